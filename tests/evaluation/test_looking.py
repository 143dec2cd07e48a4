"""What a student makes of given answers: rows by hand, one at a time, and resuming."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.choices import ANY, Choices
from mvaema.evaluation.collect import collect
from mvaema.evaluation.conditions import BLANK, CAPTION, OTHER, PLAIN
from mvaema.evaluation.likelihoods import Scorer
from mvaema.evaluation.looking import LANGUAGE, Looker
from mvaema.evaluation.questions import Questions, key_of
from mvaema.files import JsonLines, read_json_lines
from processing_mvaema import MVaEMaProcessor


def looker_of(answerer, questions: Questions, **changes) -> Looker:
    """Its answers are another micrograph's, and one is empty."""
    answers = {key_of(r): r["reference"] for r in questions.records}
    said = dict(zip(answers, [*list(answers.values())[1:], ""], strict=True))
    arguments = {
        "scorer": Scorer(answerer.model),
        "methods": ("ITC", "ITM", "LM"),
        "questions": questions,
        "choices": Choices.draw(questions),
        "predictions": dict.fromkeys((PLAIN, CAPTION, BLANK, OTHER), said),
    }
    return Looker(**arguments | changes)


@pytest.fixture(scope="module")
def rows(answerer, asked, tmp_path_factory) -> dict:
    file = JsonLines(tmp_path_factory.mktemp("looked") / "likelihoods.jsonl")
    looker_of(answerer, asked).write_likelihoods(file)
    return {(r["condition"], *key_of(r)): r for r in file.rows}


@torch.no_grad()
@pytest.mark.parametrize("condition", [LANGUAGE, PLAIN, CAPTION, BLANK, OTHER])
def test_rows_are_those_of_one_pass_per_text(condition, rows, answerer, asked, sights):
    assert len(rows) == 5 * 32
    model, choices = answerer.model, Choices.draw(asked)
    references = {key_of(r): r["reference"] for r in asked.records}
    record = asked.records[11]
    image_id, question_id = key_of(record)
    found, number = rows[condition, image_id, question_id], int(image_id.removeprefix("image"))
    shown = int(choices.partners[image_id].removeprefix("image")) if condition == OTHER else number
    image = Image.open(sights / "validation" / f"{shown}.png")
    if condition in (BLANK, LANGUAGE):
        image = Image.fromarray(np.full((64, 64), 128, np.uint8))
    caption = asked.micrographs.row(image_id)["caption"] if condition == CAPTION else None

    def loss(answer: str, scale_bar: str | None) -> tuple[float, int]:
        prompt = MVaEMaProcessor.prompt(record["question"], caption, None, scale_bar)
        inputs = model.processor(images=[image], text=[prompt], answers=[answer])
        tokens = int((inputs["labels"] != -100).sum())
        return float(model(**inputs).lm_loss) * tokens, tokens

    def match(text: str) -> float:
        inputs = model.processor(images=[image], statements=[text])
        states = model.image_encoder(inputs["pixel_values"])
        return float(model.match(states, inputs["statement_ids"], inputs["statement_mask"]))

    expected = loss(record["reference"], f"{number + 1} µm")
    assert (found["loss"], found["tokens"]) == (pytest.approx(expected[0], abs=1e-3), expected[1])
    block = [image_id] if condition == LANGUAGE else choices.blocks[ANY][image_id, question_id]
    assert set(found["losses"]) >= set(block)
    for other, value in found["losses"].items():
        # The scale would give the answer away.
        assert value == pytest.approx(loss(references[other, question_id], None)[0], abs=1e-3)
    if condition in (LANGUAGE, CAPTION):
        assert not {"matches", "similarities", "support"} & found.keys()
        return
    for other, value in found["matches"].items():
        assert value == pytest.approx(match(references[other, question_id]), abs=1e-3)
    for other, value in found["similarities"].items():
        inputs = model.processor(images=[image], statements=[references[other, question_id]])
        logits = model(**inputs, return_loss=False).logits_per_image
        assert value == pytest.approx(float(logits), abs=1e-3)
    assert found["support"] == pytest.approx(match(asked.records[12]["reference"]), abs=1e-3)
    assert "support" not in rows[condition, *key_of(asked.records[-1])]  # an empty answer


def test_what_was_not_trained_is_not_asked(answerer, asked, tmp_path):
    file = JsonLines(tmp_path / "likelihoods.jsonl")
    looker_of(answerer, asked, methods=("ITM",)).write_likelihoods(file)
    plain = [r for r in file.rows if r["condition"] == PLAIN]
    assert len(plain) == 32 and all("matches" in r for r in plain)
    assert not any({"losses", "loss", "similarities"} & r.keys() for r in file.rows)


def assert_alike(rows: list[dict], others: list[dict]) -> None:
    """Equal, but for what float32 differs between batches."""
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == (other[name] if isinstance(value, str) else approx(other[name]))


def approx(value):
    return pytest.approx(value, abs=1e-3)


class Encoded:
    """How many images a model has encoded; it may be interrupted before one of them."""

    def __init__(self, model: torch.nn.Module, interrupted_at: int | None = None):
        self.count, self.interrupted_at = 0, interrupted_at
        self.hook = model.image_encoder.register_forward_pre_hook(self._count)

    def _count(self, *_):
        if self.count == self.interrupted_at:
            raise KeyboardInterrupt
        self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.slow
def test_nothing_is_scored_twice(rows, answerer, asked, tmp_path):
    path = tmp_path / "likelihoods.jsonl"
    with Encoded(answerer.model, interrupted_at=9) as first, pytest.raises(KeyboardInterrupt):
        looker_of(answerer, asked).write_likelihoods(JsonLines(path))
    before = path.read_bytes()
    with path.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"image_id": "image5", "quest')
    with Encoded(answerer.model) as second:
        looker_of(answerer, asked).write_likelihoods(resumed := JsonLines(path))
    # Each micrograph and its blank once, and once the blank image of `LANGUAGE`.
    assert first.count + second.count == 16 + 16 + 1
    assert path.read_bytes().startswith(before)
    found = {(r["condition"], *key_of(r)): r for r in resumed.rows}
    assert len(resumed.rows) == len(found)
    assert_alike(list(found.values()), [rows[key] for key in found])


def test_attention_maps_resume_and_leave_empty_answers_out(answerer, asked, tmp_path):
    path = tmp_path / "attention.jsonl"
    with Encoded(answerer.model, interrupted_at=5), pytest.raises(KeyboardInterrupt):
        looker_of(answerer, asked).write_attention(JsonLines(path))
    before = path.read_bytes()
    with Encoded(answerer.model) as second:
        looker_of(answerer, asked).write_attention(resumed := JsonLines(path))
    assert second.count == 11 and path.read_bytes().startswith(before)
    assert len(resumed.rows) == 31 == len({key_of(r) for r in resumed.rows})
    assert all(np.shape(r["map"]) == (4, 4) and np.max(r["map"]) == 255 for r in resumed.rows)


KILLED = """
import os, signal, sys
from pathlib import Path
from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.collect import collect
from mvaema.evaluation.questions import load_questions

model, dataset, folder = sys.argv[1:]
answerer = load_answerer(model, max_new_tokens=2)
likelihoods = Path(folder) / "likelihoods.jsonl"

def kill(*_):
    if likelihoods.exists() and likelihoods.read_text().count("another micrograph") > 8:
        os.kill(os.getpid(), signal.SIGKILL)

answerer.model.itm_head.register_forward_pre_hook(kill)
collect(answerer, load_questions(dataset, "validation", "train"), Path(folder), classify=False)
"""


@pytest.mark.slow
def test_a_killed_process_resumes(student, sights, asked, tmp_path):
    report = tmp_path / "report"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(student), str(sights), str(report)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL
    before = (report / "likelihoods.jsonl").read_bytes()
    assert 0 < before.count(b"\n") < 160 and not (report / "attention.jsonl").exists()
    answerer = load_answerer(str(student), max_new_tokens=2)
    resumed = collect(answerer, asked, report, classify=False)
    whole = collect(answerer, asked, tmp_path / "whole", classify=False)
    assert (report / "likelihoods.jsonl").read_bytes().startswith(before)
    by_key = {(r["condition"], *key_of(r)): r for r in whole.likelihoods}
    assert len(resumed.likelihoods) == len(by_key) == 160
    keys = [(r["condition"], *key_of(r)) for r in resumed.likelihoods]
    assert_alike(resumed.likelihoods, [by_key.pop(key) for key in keys])
    assert read_json_lines(report / "attention.jsonl") == whole.attention
