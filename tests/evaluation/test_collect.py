"""Step 1: what a model is asked, under which conditions, and that nothing is asked twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT
from support.tiny_student import MAX_NEW_TOKENS, save_tiny_student, write_splits
from transformers import AutoModel

from mvaema.evaluation.answerers import Student, load_answerer
from mvaema.evaluation.choices import Choices
from mvaema.evaluation.collect import collect, read_collected
from mvaema.evaluation.conditions import BLANK, CAPTION, CONDITIONS, OTHER, PLAIN
from mvaema.evaluation.questions import load_questions
from mvaema.files import read_json_lines
from mvaema.micrographs.dataset import DatasetError


class Watched:
    """An answerer that notes how many micrographs each call is about, and may be interrupted."""

    def __init__(self, answerer: Student, interrupted_at: int | None = None):
        self.answerer, self.calls, self.interrupted_at = answerer, [], interrupted_at

    def __getattr__(self, name: str):
        return getattr(self.answerer, name)

    def answer(self, images, *args, **known):
        if len(self.calls) == self.interrupted_at:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        return self.answerer.answer(images, *args, **known)


def split_of(dataset: Path) -> list[dict]:
    text = (dataset / "validation" / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_answers_and_categories_are_those_of_asking_by_hand(collected, student, dataset, questions):
    model = AutoModel.from_pretrained(student, trust_remote_code=True)
    blank = Image.fromarray(np.full((64, 64), 128, np.uint8))
    expected = {condition: {} for condition in CONDITIONS}
    partners, rows = Choices.draw(questions).partners, split_of(dataset)
    images = {r["image_id"]: Image.open(dataset / "validation" / r["file_name"]) for r in rows}
    for row in rows:
        shown_under = {
            PLAIN: images[row["image_id"]],
            BLANK: blank,
            OTHER: images[partners[row["image_id"]]],
        }
        for condition in CONDITIONS:
            shown = shown_under.get(condition, images[row["image_id"]])
            caption = row["caption"] if condition == CAPTION else None
            for qa in row["qa"][:3]:  # the fourth was refused by the teacher
                expected[condition][row["image_id"], qa["question_id"]] = model.answer(
                    shown,
                    qa["question"],
                    captions=caption,
                    scale_bars=row["scale_bar"],
                    max_new_tokens=MAX_NEW_TOKENS,
                )
        for found in collected.categories:
            if found["image_id"] == row["image_id"]:
                shown = shown_under[found["condition"]]
                ranked = model.classify(shown, by=found["method"].lower())
                probabilities = found["probabilities"]
                total = sum(ranked.values())
                assert probabilities == pytest.approx(
                    {name: p / total for name, p in ranked.items()}, abs=1e-6
                )
                assert next(iter(probabilities)) == next(iter(ranked))
    found = {condition: collected.predictions(condition) for condition in CONDITIONS}
    assert found == expected
    assert len({tuple(sorted(answers.items())) for answers in found.values()}) == 4
    assert len(collected.categories) == 3 * 4 * 6 and len(collected.embeddings) == 18


def test_an_interrupted_collection_resumes(answerer, questions, collected, tmp_path):
    folder, first = tmp_path / "report", Watched(answerer, interrupted_at=4)
    with pytest.raises(KeyboardInterrupt):
        collect(first, questions, folder)
    assert first.calls == [2] * 4
    path = folder / "answers.jsonl"
    before = path.read_text(encoding="utf-8")
    assert len(before.splitlines()) == 4 * 2 * 3
    with path.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"image_id": "image22", "predic')
    second, third = Watched(answerer), Watched(answerer)
    assert collect(second, questions, folder).answers == collected.answers
    assert second.calls == [2] * 8 and path.read_text(encoding="utf-8").startswith(before)
    assert collect(third, questions, folder).categories == collected.categories
    assert not third.calls


KILLED = """
import os, signal, sys
from pathlib import Path
from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.collect import collect
from mvaema.evaluation.questions import load_questions

model, dataset, folder, max_new_tokens = sys.argv[1:]

class Killed:
    answerer = load_answerer(model, max_new_tokens=int(max_new_tokens), batch_size=2)
    calls = 0

    def __getattr__(self, name):
        return getattr(self.answerer, name)

    def answer(self, *args, **known):
        self.calls += 1
        if self.calls == 4:  # while asking under the second condition
            os.kill(os.getpid(), signal.SIGKILL)
        return self.answerer.answer(*args, **known)

collect(Killed(), load_questions(dataset, "validation", "train"), Path(folder))
"""


@pytest.mark.slow
def test_a_killed_collection_resumes_in_another_process(
    student, dataset, answerer, questions, collected, tmp_path
):
    arguments = [str(student), str(dataset), str(tmp_path / "report"), str(MAX_NEW_TOKENS)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(read_json_lines(tmp_path / "report" / "answers.jsonl")) == 18
    watched = Watched(answerer)
    resumed = collect(watched, questions, tmp_path / "report")
    assert watched.calls == [2] * 9
    assert resumed.about == collected.about and resumed.answers == collected.answers
    assert resumed.categories == collected.categories


def test_another_evaluation_is_not_overwritten(folder, student, dataset, questions, tmp_path):
    folder = Path(shutil.copytree(folder, tmp_path / "report"))
    before = contents(folder)

    def refused(message: str, model=student, data=None, into=folder, **settings):
        asked = Watched(
            load_answerer(str(model), **({"max_new_tokens": MAX_NEW_TOKENS} | settings))
        )
        with pytest.raises(FileExistsError, match=message):
            collect(asked, data or questions, into)
        assert not asked.calls

    data = load_questions(
        str(write_splits(tmp_path / "other", scale_bar="2 nm")), "validation", "train"
    )
    refused("differs in questions", data=data)
    other = save_tiny_student(tmp_path / "other_student", seed=1)
    refused(r"evaluation of .*student.* differs in weights", model=other)
    refused("differs in max_new_tokens", max_new_tokens=5)
    refused("differs in decoding", decoding="beam")
    refused("holds no evaluation", into=dataset)
    assert contents(folder) == before


def test_model_and_dataset_may_move(folder, student, dataset, tmp_path):
    folder = Path(shutil.copytree(folder, tmp_path / "report"))
    model = shutil.copytree(student, tmp_path / "student")
    data = shutil.copytree(dataset, tmp_path / "data")
    watched = Watched(load_answerer(str(model), max_new_tokens=MAX_NEW_TOKENS))
    collect(watched, load_questions(str(data), "validation", "train"), folder)
    assert not watched.calls


@pytest.mark.slow
def test_a_split_without_categories(answerer, tmp_path):
    data = write_splits(tmp_path / "plain", category=None, caption=None)
    watched = Watched(answerer)
    plain = load_questions(str(data), "validation", "train")
    collected = collect(watched, plain, tmp_path / "report")
    assert watched.calls == [2] * 9  # with the image, without, and with another
    assert collected.about["labels"] == collected.categories == []
    assert not (tmp_path / "report" / "categories.jsonl").exists()


def test_only_micrographs_with_a_caption_are_asked_about_with_it(answerer, tmp_path):
    data = write_splits(tmp_path / "some")
    rows = split_of(data)
    rows[0].update(category="Other", caption=None)
    path = data / "validation" / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    some = load_questions(str(data), "validation", "train")
    collected = collect(answerer, some, tmp_path / "report", classify=False)
    about = {condition: set() for condition in CONDITIONS}
    for record in collected.answers:
        about[record["condition"]].add(record["image_id"])
    everyone = {row["image_id"] for row in rows}
    asked = dict.fromkeys((PLAIN, BLANK, OTHER), everyone)
    assert about == {**asked, CAPTION: everyone - {"image20"}}


def test_a_way_to_classify_that_was_not_trained_is_left_out(student, questions, tmp_path):
    folder = Path(shutil.copytree(student, tmp_path / "student"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"itc_weight": 0}))
    answerer = load_answerer(str(folder), max_new_tokens=MAX_NEW_TOKENS)
    collected = collect(answerer, questions, tmp_path / "report", sight=False)
    assert {record["method"] for record in collected.categories} == {"ITM", "LM"}


def test_unknown_categories_are_refused_and_can_be_left_out(answerer, tmp_path):
    foams = load_questions(
        str(write_splits(tmp_path / "foams", category="Foam")), "validation", "train"
    )
    watched = Watched(answerer)
    with pytest.raises(ValueError, match=r"model does not know: Foam.*--no_classify"):
        collect(watched, foams, tmp_path / "report")
    assert not watched.calls and not (tmp_path / "report").exists()
    collected = collect(answerer, foams, tmp_path / "report", classify=False, sight=False)
    assert collected.categories == []


def test_an_unreadable_image_is_named_before_the_first_answer(answerer, dataset, tmp_path):
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    image = data / "validation" / "23.png"
    image.write_bytes(image.read_bytes()[:60])
    watched = Watched(answerer)
    with pytest.raises(DatasetError, match="image23"):
        collect(watched, load_questions(str(data), "validation", "train"), tmp_path / "report")
    assert not watched.calls and not (tmp_path / "report").exists()


def test_what_was_collected_can_be_read_without_the_model(folder, collected):
    found = read_collected(folder)
    assert found.about == collected.about and found.answers == collected.answers
    assert found.categories == collected.categories
    for image_id, vector in collected.embeddings.items():
        np.testing.assert_array_equal(found.embeddings[image_id], vector)
    with pytest.raises(FileNotFoundError):
        read_collected(folder / "nothing")


def test_embeddings_are_those_of_the_student(collected, student, dataset):
    model = AutoModel.from_pretrained(student, trust_remote_code=True)
    with Image.open(dataset / "train" / "3.png") as image, torch.no_grad():
        pixels = model.processor(images=image)["pixel_values"]
        expected = model.get_image_features(pixels).pooler_output[0].numpy()
    assert collected.embeddings["image3"] == pytest.approx(expected, abs=1e-5)
