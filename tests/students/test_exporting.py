"""Exported students answer as the model does, in a process that cannot import torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from support import ROOT

from modeling_mvaema import MVaEMaModel
from mvaema.commands.export import main
from mvaema.students.exporting import export_onnx
from mvaema.students.loading import load_student
from onnx_mvaema import GRAPHS, RUNNABLE, WEIGHTS, OnnxStudent, _choose

# Slow: tracing the four graphs takes torch most of a minute.
pytestmark = pytest.mark.slow

QUESTIONS = [
    "What?",
    "How large are the structures, and is [EOS] a word of this question or its end?",
    "Which imperfections such as defects, pores or impurities are visible?",
]


@pytest.fixture(scope="module")
def model(tiny_student) -> MVaEMaModel:
    return load_student(tiny_student).eval()


@pytest.fixture(scope="module")
def student(exported) -> OnnxStudent:
    return OnnxStudent(exported, threads=1)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    grey = [Image.fromarray(rng.integers(0, 256, (48, 64), dtype=np.uint8)) for _ in range(2)]
    colour = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (50, 40), dtype=np.uint16))
    return [*grey, colour, deep]


def test_pixels_are_the_processor_s(model, student, images):
    expected = model.processor(images=images)["pixel_values"].numpy()
    from pixels_mvaema import to_8bit

    assert np.array_equal(student.pixel_values([to_8bit(image) for image in images]), expected)


def test_few_rows_are_decoded_by_one_thread(exported, student, images, monkeypatch):
    """Two are slower then. What is said does not depend on it."""
    several = OnnxStudent(exported, threads=2)
    assert several.answer(images) == student.answer(images)
    assert {threads for graph, threads in several._sessions if graph == "decoder"} == {1}
    monkeypatch.setattr("onnx_mvaema.SHARED", 0)
    assert several.answer(images) == student.answer(images)
    assert {threads for graph, threads in several._sessions if graph == "decoder"} == {1, 2}


@pytest.mark.parametrize("decoding", RUNNABLE)
def test_answers_are_the_model_s(model, student, images, decoding):
    asked = {
        "captions": [None, "An electron micrograph of a tip.", None, None],
        "pixel_size_nm": [None, 2.5, None, 4000.0],
        "scale_bars": ["500 nm", None, None, None],
    }
    options = {"decoding": decoding, "max_new_tokens": 24}
    expected = model.answer(images, QUESTIONS, **asked, **options)
    assert student.answer(images, QUESTIONS, **asked, **options) == expected
    assert len({len(answer) for row in expected for answer in row}) > 3, "rows end at many steps"
    assert student.answer(images, QUESTIONS, **asked, **options, batch_size=1) == expected


def test_the_greedy_answer_may_be_the_last_candidate_that_is_written():
    """Its numbers are NaN; nothing is drawn then."""
    logits, options = np.array([[0.1, 2.0, 0.3]], np.float32), {"temperature": 0.7, "top_p": 0.95}
    assert _choose(logits, np.array([np.nan], np.float32), options).tolist() == [1]
    logits = np.repeat(logits, 2, axis=0)
    words = _choose(logits, np.array([np.nan, 0.999], np.float32), options).tolist()
    assert words == [1, 2]


def test_forms_of_a_question(model, student, images):
    options = {"decoding": "greedy", "max_new_tokens": 5}
    for image, questions in (
        (images[0], None),
        (images[0], "What?"),
        (images, "What?"),
        (images[:2], None),
    ):
        expected = model.answer(image, questions, **options)
        assert student.answer(image, questions, **options) == expected
    measured = "Measured: 12 particles, median 38 nm, 22–71 nm (5–95 %)."
    expected = model.answer(images[0], measurements=measured, **options)
    assert student.answer(images[0], measurements=measured, **options) == expected


def test_a_graph_s_logits_are_the_model_s(model, exported, images):
    inputs = model.processor(images=images[:2], text=["What?", "How large is it?"] * 2)
    words = torch.tensor([[3, 7, 9, 11], [3, 8, 8, 8], [3, 4, 5, 6], [3, 9, 7, 5]])
    words[:, 0] = model.config.dec_token_id
    expected = model(**inputs, decoder_input_ids=words).logits.detach().numpy()
    sessions = {name: onnxruntime.InferenceSession(exported / f"{name}.onnx") for name in GRAPHS}
    seen = sessions["vision"].run(None, {"pixel_values": inputs["pixel_values"].numpy()})[1:]
    names = [f"{kind}_{i}" for kind in ("keys", "values") for i in range(2)]
    feed = {f"image_{name}": x for name, x in zip(names, seen, strict=True)}
    mask = inputs["attention_mask"].numpy()
    text = {"input_ids": inputs["input_ids"].numpy(), "attention_mask": mask}
    index = np.array([0, 0, 1, 1])
    grounded = sessions["grounded"].run(None, {**feed, **text, "image_index": index})[1:]
    feed |= {f"question_{name}": x for name, x in zip(names, grounded, strict=True)}
    past = [np.zeros((4, 4, 0, 8), np.float32)] * 4
    for step in range(4):
        given = {f"past_{name}": x for name, x in zip(names, past, strict=True)}
        given |= {"decoder_input_ids": words[:, step : step + 1].numpy(), "question_mask": mask}
        logits, *past = sessions["decoder"].run(None, {**feed, **given})
        np.testing.assert_allclose(logits, expected[:, step], atol=1e-4)


def test_what_is_no_answer(model, student, images):
    for by in ("itc", "itm", "lm", "itc+itm"):
        for row, expected in zip(
            student.classify(images, by=by), model.classify(images, by=by), strict=True
        ):
            assert row == pytest.approx(expected, abs=1e-5) and list(row) == list(expected)
    said = ["Wires.", " ", "Large particles lie on a dark ground."]
    assert student.support(images[0], said) == pytest.approx(
        model.support(images[0], said), abs=1e-5
    )
    pixels = model.processor(images=images)["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output.numpy()
        texts = model.processor(statements=["Wires.", "A tip."])
        words = model.get_text_features(texts["statement_ids"], texts["statement_mask"])
    np.testing.assert_allclose(student.embed_images(images), expected, atol=1e-5)
    np.testing.assert_allclose(
        student.embed_texts(["Wires.", "A tip."]), words.pooler_output.numpy(), atol=1e-5
    )


def test_likelihoods_of_answers(model, student, images):
    prompts, said = ["What?", "How large is it?"], ["Wires, 20 nm wide.", "A tip."]
    inputs = model.processor(images=images[0], text=prompts, answers=said)
    labels = inputs["labels"]
    with torch.no_grad():
        memory = model.encode_prompt(
            *(inputs[n] for n in ("pixel_values", "input_ids")), inputs["attention_mask"]
        )
        losses = model.answer_losses(labels, memory, inputs["attention_mask"])
    expected = -losses.sum(dim=1).numpy()
    found = student.log_likelihoods(images[0], prompts, said)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_folder_answers_where_torch_cannot_be_imported(exported, model, images, tmp_path):
    images[0].save(tmp_path / "image.png")
    refused = tmp_path / "refused"
    for name in ("torch", "transformers", "mvaema", "huggingface_hub"):
        (refused / name).mkdir(parents=True)
        (refused / name / "__init__.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "-P", str(exported / "onnx_mvaema.py"), "image.png", "-q", "What?"]
    environment = {**os.environ, "PYTHONPATH": f"{refused}:{exported}"}
    run = subprocess.run(
        [*command, "--decoding", "greedy"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert model.answer(images[0], "What?", decoding="greedy") in run.stdout
    (tmp_path / "text.png").write_text("no image")
    command[3] = "text.png"
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "text.png cannot be read as an image" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_weights(model, tiny_student, exported, images, precision, tmp_path):
    target = tmp_path / precision
    assert main([str(tiny_student), "--onnx", str(target), "--precision", precision]) == 0
    small = OnnxStudent(target)
    assert (target / WEIGHTS).stat().st_size < (exported / WEIGHTS).stat().st_size
    expected = model.processor(images=images)["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(expected).pooler_output.numpy()
    similar = (small.embed_images(images) * expected).sum(axis=1)
    assert (similar > {"float16": 0.9999, "int8": 0.95}[precision]).all()
    assert all(small.answer(images[0], QUESTIONS, decoding="greedy", max_new_tokens=4))


def test_each_weight_is_stored_once_and_the_folder_can_be_moved(model, exported, images, tmp_path):
    weights = exported / WEIGHTS
    stored, places = 0, {}
    for name in GRAPHS:
        graph = onnx.load(exported / f"{name}.onnx", load_external_data=False)
        for tensor in graph.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                assert where["location"] == WEIGHTS
                places[int(where["offset"])] = int(where["length"])
                stored += 1
    contents = [weights.read_bytes()[at : at + length] for at, length in places.items()]
    assert len(set(contents)) == len(contents) < stored
    kept = sum(p.nbytes for p in model.parameters() if p.nbytes >= 1024)
    assert sum(places.values()) < 1.05 * kept
    moved = shutil.copytree(exported, tmp_path / "elsewhere")
    expected = model.answer(images[0], "What?", decoding="greedy")
    assert OnnxStudent(moved).answer(images[0], "What?", decoding="greedy") == expected
    (moved / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.bin is missing"):
        OnnxStudent(moved)


def test_nothing_tells_of_the_machine_that_exported(exported):
    places = [str(place).encode() for place in (ROOT, Path(sys.prefix), exported.parent)]
    for file in exported.iterdir():
        content = file.read_bytes()
        assert not [place for place in places if place in content], file.name


def test_what_cannot_be_exported(model, tiny_student, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    assert main([str(tiny_student), "--onnx", str(kept)]) == 1
    assert "holds no exported student" in capsys.readouterr().err
    assert [file.name for file in kept.iterdir()] == ["thesis.txt"]
    model.config.instruction_aware = True
    try:
        with pytest.raises(ValueError, match="instruction_aware=True cannot be exported"):
            export_onnx(model, tmp_path / "new")
    finally:
        model.config.instruction_aware = False
    model.generation_config.repetition_penalty = 1.3
    try:
        with pytest.raises(ValueError, match="sets repetition_penalty"):
            export_onnx(model, tmp_path / "new")
    finally:
        model.generation_config.repetition_penalty = None
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="holds no exported student"):
        OnnxStudent(tiny_student)


def test_what_the_runner_refuses(student, images):
    with pytest.raises(ValueError, match="without torch; got 'beam'"):
        student.answer(images[0], decoding="beam")
    with pytest.raises(ValueError, match="expected 2 values, one per image; got 1"):
        student.answer(images[:2], captions=[None])
    with pytest.raises(ValueError, match="ask at least one"):
        student.answer(images[0], [])
    with pytest.raises(ValueError, match="by must be"):
        student.classify(images[0], by="best")


def test_card_configs_and_licence_go_along(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "mvaema"
    assert "onnx_mvaema.py" in (exported / "README.md").read_text()
    assert "onnxruntime" in (exported / "requirements.txt").read_text()
