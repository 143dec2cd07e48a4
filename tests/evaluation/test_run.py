"""eval.py on a tiny student: figures by hand, interruptions, refusals, and models of others."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import sentence_bleu
from peft import LoraConfig, get_peft_model
from PIL import Image
from support import ROOT
from support.micrograph_data import write_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.evaluation import answerers
from mvaema.evaluation import run as evaluation
from mvaema.evaluation.answerers import Student
from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.evaluation.scores import read_records
from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.folds import LeakError
from mvaema.students.repository import save_repository
from processing_mvaema import MVaEMaProcessor, train_tokenizer

VALIDATION = [f"image{i}" for i in range(20, 26)]
MAX_NEW_TOKENS = 6


@pytest.fixture
def student(make_model, tmp_path):
    texts = [*CATEGORY_CAPTIONS.values(), *QUESTIONS.values(), "The scale bar marks 1 µm."]
    processor = MVaEMaProcessor.from_tokenizer(train_tokenizer(texts * 2, 500, 128), 32, 128)
    model = make_model(max_position_embeddings=128, **processor.token_fields())
    model.processor = processor
    save_repository(model, tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "data", 12)
    return write_dataset(tmp_path / "data", 6, "validation", first=20)


@pytest.fixture
def arguments(student, dataset, tmp_path):
    return EvaluationArguments(
        str(student),
        str(dataset),
        str(tmp_path / "report"),
        batch_size=2,
        max_new_tokens=MAX_NEW_TOKENS,
        synonyms=False,
    )


@pytest.fixture(autouse=True)
def write_report(monkeypatch):
    """The report without its pictures, which take seconds; they have tests of their own."""
    original = evaluation.write_report

    def results_only(results, answers, images, folder, log):
        (folder / "results.json").write_text(json.dumps(results, allow_nan=False))

    monkeypatch.setattr(evaluation, "write_report", results_only)
    return original


@pytest.fixture
def calls(monkeypatch):
    """The number of micrographs in each call of `Student.answer`."""
    sizes = []
    original = Student.answer

    def answer(self, images, *args):
        sizes.append(len(images))
        return original(self, images, *args)

    monkeypatch.setattr(Student, "answer", answer)
    return sizes


def lines_of(arguments, condition=evaluation.PLAIN, file="answers.jsonl"):
    rows = read_records(Path(arguments.output_dir) / file)
    return [r for r in rows if r["condition"] == condition]


def contents(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_results_are_those_of_asking_and_scoring_by_hand(arguments):
    results = evaluate(arguments)
    model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True)
    rows = [
        json.loads(line)
        for line in (Path(arguments.dataset) / "validation/metadata.jsonl").read_text().splitlines()
    ]
    blank = Image.fromarray(np.full((64, 64), 128, np.uint8))
    expected = {condition: {} for condition in evaluation.CONDITIONS}
    hits = dict.fromkeys(("ITC", "ITM", "LM"), 0)
    for row in rows:
        image = Image.open(Path(arguments.dataset) / "validation" / row["file_name"])
        for condition, shown, caption in (
            (evaluation.PLAIN, image, None),
            (evaluation.CAPTION, image, row["caption"]),
            (evaluation.BLANK, blank, None),
        ):
            for qa in row["qa"][:3]:  # the fourth was refused by the teacher
                expected[condition][row["image_id"], qa["question_id"]] = model.answer(
                    shown,
                    qa["question"],
                    captions=caption,
                    scale_bars=row["scale_bar"],
                    max_new_tokens=MAX_NEW_TOKENS,
                )
        for method in hits:
            best = next(iter(model.classify(image, by=method.lower())))
            hits[method] += best == row["category"]
    found = {
        condition: {
            (r["image_id"], r["question_id"]): r["prediction"]
            for r in lines_of(arguments, condition)
        }
        for condition in expected
    }
    assert found == expected
    assert len({tuple(sorted(answers.items())) for answers in found.values()}) == 3

    references = {(r["image_id"], r["question_id"]): r["reference"] for r in lines_of(arguments)}
    for name, condition in (
        ("student", evaluation.PLAIN),
        ("student, caption given", evaluation.CAPTION),
    ):
        summary = results["answers"][name]["overall"]
        bleu = [
            sentence_bleu([references[k].split()], answer.split(), weights=(1.0,))
            for k, answer in found[condition].items()
        ]
        assert summary["scores"]["bleu_1"]["mean"] == pytest.approx(np.mean(bleu))
        assert (summary["n"], summary["images"], summary["clusters"]) == (18, 6, 2)
    for method, count in hits.items():
        assert results["classification"][method]["top_1"] == pytest.approx(count / 6)
    # Half of the training micrographs show nanowires, half particles.
    assert results["classification"]["chance"]["top_1"] == 0.5
    assert list(results["answers"]["student"]["by_question"]) == ["basics", "morphology", "surface"]
    assert set(results["answers"]["student"]["by_category"]) == {"Nanowires", "Particles"}
    # The answers follow from the category, so that of the true category is the teacher's own.
    told = results["answers"]["typical answer of the category"]["overall"]["scores"]["bleu_1"]
    assert told["mean"] == pytest.approx(1)
    for name in (
        "student, blank image",
        "typical answer",
        "nearest image's answer",
        "random answer",
    ):
        assert results["answers"][name]["overall"]["n"] == 18
    assert set(results["comparisons"]) == {
        "student, blank image → student",
        "typical answer → student",
        "student → student, caption given",
    }


def test_an_interrupted_evaluation_continues(arguments, calls, monkeypatch):
    whole = evaluate(replace(arguments, output_dir=arguments.output_dir + "-whole"))
    assert calls == [2] * 9
    calls.clear()
    append = evaluation.JsonLines.append

    def interrupted(self, rows):
        append(self, rows)
        if len(self.rows) == 4 * 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation.JsonLines, "append", interrupted)
        evaluate(arguments)
    path = Path(arguments.output_dir) / "answers.jsonl"
    before = path.read_text()
    with path.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"image_id": "image22", "predic')
    calls.clear()
    assert evaluate(arguments) == whole
    assert calls == [2] * 5
    assert path.read_text().startswith(before) and len(path.read_text().splitlines()) == 54
    calls.clear()
    assert evaluate(arguments) == whole and not calls


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import eval
from mvaema.evaluation import run as evaluation

append = evaluation.JsonLines.append

def killed(self, rows):
    append(self, rows[:-1])  # a part of what the batch had to say
    if len(self.rows) > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, rows[-1:])

evaluation.JsonLines.append = killed
eval.main()
"""


@pytest.mark.slow
def test_the_command_is_killed_and_continues_in_a_second_process(arguments, tmp_path):
    whole = evaluate(replace(arguments, output_dir=str(tmp_path / "whole")))
    options = ["--model", arguments.model, "--dataset", arguments.dataset, "--no_synonyms"]
    options += ["--output_dir", arguments.output_dir, "--batch_size", "2"]
    options += ["--max_new_tokens", str(MAX_NEW_TOKENS)]
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run([sys.executable, str(script), *options], env=environment)
    assert first.returncode == -signal.SIGKILL
    path = Path(arguments.output_dir) / "answers.jsonl"
    before = path.read_text()
    assert 12 < len(before.splitlines()) < 54
    second = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 0, second.stderr[-3000:]
    assert path.read_text().startswith(before)
    assert json.loads((Path(arguments.output_dir) / "results.json").read_text()) == whole
    assert "| student, blank image |" in second.stdout and "index.html" in second.stdout
    third = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *options, "--max_new_tokens", "3"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert third.returncode == 1 and "differs in max_new_tokens" in third.stderr
    assert "Traceback" not in third.stderr


def test_another_evaluation_is_not_overwritten(arguments, calls, tmp_path):
    evaluate(arguments)
    before = contents(arguments.output_dir)
    calls.clear()
    other = write_dataset(tmp_path / "other", 12)
    write_dataset(other, 6, "validation", first=20, scale_bar="2 nm")
    model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True)
    with torch.no_grad():
        model.itm_head.bias += 1
    model.save_pretrained(tmp_path / "other_student")
    model.processor.save_pretrained(tmp_path / "other_student")
    for change, message in (
        ({"dataset": str(other)}, "differs in questions"),
        (
            {"model": str(tmp_path / "other_student")},
            "evaluation of .*student.* differs in weights",
        ),
        ({"max_new_tokens": 5}, "differs in max_new_tokens"),
        ({"output_dir": arguments.dataset}, "but no evaluation"),
    ):
        with pytest.raises(FileExistsError, match=message):
            evaluate(replace(arguments, **change))
    assert contents(arguments.output_dir) == before and not calls
    # The same model and dataset in another place are the same.
    moved = Path(arguments.dataset).rename(tmp_path / "moved")
    evaluate(replace(arguments, dataset=str(moved)))
    assert not calls


def test_comparison_with_another_model_and_with_its_folder(arguments, calls, tmp_path, monkeypatch):
    shutil.copytree(arguments.model, tmp_path / "better")
    original = Student.answer

    def answer(self, images, questions, *known):
        answers = original(self, images, questions, *known)
        if self.model.name_or_path.endswith("better"):
            return [[f"The micrograph shows {text}" for text in row] for row in answers]
        return answers

    monkeypatch.setattr(Student, "answer", answer)
    results = evaluate(replace(arguments, compare=str(tmp_path / "better")))
    scores = results["comparisons"]["better → student"]["scores"]["rouge_1"]
    for side, name in (("first", "better"), ("second", "student")):
        mean = results["answers"][name]["overall"]["scores"]["rouge_1"]["mean"]
        assert scores[side] == pytest.approx(mean)
    assert scores["first"] > scores["second"] and 0 < scores["p_value"] <= 1
    calls.clear()
    folder = Path(arguments.output_dir) / "compared-better"
    assert evaluate(replace(arguments, compare=str(folder))) == results
    assert not calls
    rows = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(ValueError, match="1 of 18 are missing"):
        evaluate(replace(arguments, compare=str(folder)))


def test_report_folder(arguments, write_report, monkeypatch):
    monkeypatch.setattr(evaluation, "write_report", write_report)
    losses = {"loss": 2.0, "lm_loss": 1.0}
    log = [
        {"epoch": i, "learning_rate": 1e-3, "train": losses, "validation": losses} for i in (1, 2)
    ]
    text = "\n".join(map(json.dumps, log))
    (Path(arguments.model) / "training_log.jsonl").write_text(text)
    results = evaluate(arguments)
    folder = Path(arguments.output_dir)
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"losses.png", "questions.png", "reliability_itm.png"} <= {
        p.name for p in folder.glob("*.png")
    }
    page = (folder / "index.html").read_text()
    assert page.count("<article") == 18 and "student, blank image" in page


def test_empty_answers_are_counted_and_score_nothing(arguments, monkeypatch):
    monkeypatch.setattr(
        Student,
        "answer",
        lambda self, images, questions, *known: [[""] * len(questions)] * len(images),
    )
    summary = evaluate(arguments)["answers"]["student"]["overall"]
    assert summary["empty"] == 18 and summary["scores"]["rouge_l"]["mean"] == 0


def test_a_split_without_categories(arguments, tmp_path):
    data = write_dataset(tmp_path / "plain", 12, category=None, caption=None)
    write_dataset(data, 6, "validation", first=20, category=None, caption=None)
    results = evaluate(replace(arguments, dataset=str(data)))
    assert results["classification"] == {} and results["answers"]["student"]["by_category"] == {}
    assert "student, caption given" not in results["answers"]
    assert "typical answer of the category" not in results["answers"]
    assert not (Path(arguments.output_dir) / "categories.jsonl").exists()


def test_captions_known_of_some(arguments, tmp_path):
    """Where no caption is known, the answer with and without it is the same, and given once."""
    data = write_dataset(tmp_path / "some", 12)
    path = write_dataset(data, 6, "validation", first=20) / "validation" / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0].update(category="Other", caption=None)
    path.write_text("\n".join(map(json.dumps, rows)))
    results = evaluate(replace(arguments, dataset=str(data)))
    assert {r["image_id"] for r in lines_of(arguments, evaluation.CAPTION)} == set(VALIDATION[1:])
    assert results["answers"]["student, caption given"]["overall"]["n"] == 18
    assert results["classification"]["LM"]["n"] == 5
    assert results["classification"]["LM"]["left_out"] == 1


def test_an_untrained_way_to_classify_is_left_out(arguments):
    path = Path(arguments.model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"itc_weight": 0}))
    assert list(evaluate(arguments)["classification"]) == ["ITM", "LM", "chance"]


QA = {"question_id": "basics", "question": "What?", "answer": "Wires.", "outcome": "ok"}


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        ({"qa": [QA | {"outcome": "refused"}]}, ValueError, "no answer with the outcome `ok`"),
        ({"qa": [QA | {"answer": " "}]}, DatasetError, "blank"),
        ({"qa": [QA, QA]}, ValueError, "occurs more than once"),
        ({"qa": [QA | {"question_id": "colour"}]}, ValueError, "'colour' has no answer"),
        ({"category": "Foam"}, ValueError, "not the model's: Foam.*--no_classify"),
        ({"group": "specimen1"}, LeakError, "specimen1"),
        ({"image_id": "same"}, DatasetError, "name each micrograph once"),
    ],
)
def test_bad_data_is_refused_before_the_first_answer(
    validation, error, message, arguments, tmp_path, calls
):
    data = write_dataset(tmp_path / "bad", 12)
    write_dataset(data, 6, "validation", first=20, **validation)
    with pytest.raises(error, match=message):
        evaluate(replace(arguments, dataset=str(data)))
    assert not calls and not Path(arguments.output_dir).exists()


def test_other_categories_can_be_left_out(arguments, tmp_path):
    data = write_dataset(tmp_path / "foams", 12)
    write_dataset(data, 6, "validation", first=20, category="Foam")
    results = evaluate(replace(arguments, dataset=str(data), classify=False))
    assert results["classification"] == {}
    assert set(results["answers"]["student"]["by_category"]) == {"Foam"}


def test_unreadable_images_and_missing_splits_are_named(arguments, calls):
    with pytest.raises(DatasetError, match="'exam'"):
        evaluate(replace(arguments, split="exam"))
    image = Path(arguments.dataset) / "validation" / "23.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DatasetError, match="image23"):
        evaluate(arguments)
    assert not calls and not Path(arguments.output_dir).exists()


def test_without_wordnet_meteor_is_refused_before_the_first_answer(arguments, calls, monkeypatch):
    def missing():
        raise LookupError("METEOR needs WordNet")

    monkeypatch.setattr("mvaema.evaluation.texts._synonyms", missing)
    with pytest.raises(LookupError, match="WordNet"):
        evaluate(replace(arguments, synonyms=True))
    assert not calls and not Path(arguments.output_dir).exists()


TEMPLATE = (
    "{% for m in messages %}USER: {% for part in m.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def save_llava(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A LLaVA of a few thousand random weights."""
    backend = Tokenizer(
        models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    shapes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.8,
    }
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**shapes, image_size=32, patch_size=8),
            text_config=LlamaConfig(**shapes, vocab_size=len(tokenizer)),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
        )
    )
    model.generation_config.update(do_sample=True, temperature=2.0)  # must not be used
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_chat_model_is_scored_by_the_same_command(arguments, tmp_path):
    folder = save_llava(tmp_path / "llava")
    arguments = replace(arguments, model=str(folder), batch_size=4)
    results = evaluate(arguments)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = {}
    for record in lines_of(arguments, evaluation.CAPTION):
        number = int(record["image_id"].removeprefix("image"))
        caption = CATEGORY_CAPTIONS[record["category"]]
        scale = " The scale bar marks 1 µm." if number % 3 else ""
        image = Image.open(Path(arguments.dataset) / "validation" / f"{number}.png").convert("RGB")
        # One prompt by itself, without a chat template and without padding.
        inputs = processor(
            images=image,
            text=f"USER: <image>{caption}{scale} {record['question']} ASSISTANT:",
            return_tensors="pt",
        )
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers[number, record["question_id"]] = (record["prediction"], text.strip())
    assert all(found == expected for found, expected in answers.values())
    assert len({found for found, _ in answers.values()}) > 3
    assert results["classification"] == {}
    assert results["answers"]["llava"]["overall"]["n"] == 18
    assert results["answers"]["nearest image's answer"]["overall"]["n"] == 18


def test_a_lora_adapter_is_evaluated_with_its_base(student, tmp_path):
    base = AutoModel.from_pretrained(student, trust_remote_code=True)
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    image = Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50).astype(np.uint8))
    with torch.no_grad():
        pixels = base.processor(images=image)["pixel_values"]
        expected = tuned.get_image_features(pixels)[0].numpy()
    found = answerers.load_answerer(str(tmp_path / "adapter")).embed([image])[0]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found != pytest.approx(answerers.load_answerer(str(student)).embed([image])[0], abs=1e-2)


def test_models_that_cannot_be_asked(arguments, tmp_path):
    folder = save_llava(tmp_path / "llava", template=None)
    with pytest.raises(ValueError, match=r"llava is no MVaEMa model .* no chat template"):
        evaluate(replace(arguments, model=str(folder)))
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    chat = answerers.load_answerer(str(folder), chat_template=str(template), max_new_tokens=2)
    image = Image.new("L", (40, 40), 7)
    assert len(chat.answer([image], ["What is it?", "How large?"], [None], [None], [None])[0]) == 2

    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    BertModel(BertConfig(**shapes, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert.* neither an MVaEMa model nor"):
        evaluate(replace(arguments, model=str(tmp_path / "bert")))
    with pytest.raises(OSError, match="nowhere"):
        evaluate(replace(arguments, model=str(tmp_path / "nowhere")))
    assert not Path(arguments.output_dir).exists()
