"""Answers of a student in training: the right ones, and no trace in the run."""

import random

import numpy as np
import pytest
import torch
from support.micrograph_data import write_dataset

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.training.samples import format_samples, sample_answers
from mvaema.training.streaming import open_shards
from processing_mvaema import MVaEMaProcessor, train_tokenizer


@pytest.fixture
def student(make_model):
    texts = [*CATEGORY_CAPTIONS.values(), *QUESTIONS.values(), "The scale bar marks 1 µm."]
    processor = MVaEMaProcessor.from_tokenizer(train_tokenizer(texts * 2, 500, 128), 32, 128)
    model = make_model(max_position_embeddings=128, **processor.token_fields())
    model.processor = processor
    model.generation_config.max_new_tokens = 8
    return model


@pytest.fixture
def rows(tmp_path):
    return load_micrographs(write_dataset(tmp_path / "data", 8))


def test_answers_are_those_of_asking_by_hand(student, rows):
    samples = sample_answers(student, rows, 3)
    # Nanowires and particles alternate; each micrograph has three answered questions.
    assert [s["image_id"] for s in samples[::3]] == ["image0", "image1", "image2"]
    by_id = {row["image_id"]: row for row in rows}
    for sample in samples:
        row = by_id[sample["image_id"]]
        expected = student.answer(
            decode_image(row), sample["question"], scale_bars=row["scale_bar"], decoding="greedy"
        )
        assert sample["answer"] == expected
        (teacher,) = (
            qa["answer"]
            for qa in row["qa"]
            if qa["question_id"] == sample["question_id"] and qa["outcome"] == "ok"
        )
        assert sample["teacher"] == teacher
    assert sample_answers(student, rows, 3) == samples


def test_categories_come_in_turn(student, rows):
    rows = rows.select([0, 2, 4, 6, 1, 3])  # four of nanowires, then two of particles
    samples = sample_answers(student, rows, 5)
    found = list(dict.fromkeys(s["image_id"] for s in samples))
    assert found == ["image0", "image1", "image2", "image3", "image4"]
    assert len(sample_answers(student, rows, 99)) == 6 * 3


def test_a_stream_gives_the_same_samples(student, rows, tmp_path):
    (tmp_path / "shards").mkdir()
    rows.to_parquet(tmp_path / "shards" / "train-00000.parquet")
    streamed, _ = open_shards(str(tmp_path / "shards"), "train")
    assert sample_answers(student, streamed, 3) == sample_answers(student, rows, 3)


def test_each_micrograph_is_asked_other_questions(student, tmp_path):
    answers = [
        {"question_id": name, "question": text, "answer": "yes", "outcome": "ok"}
        for name, text in list(QUESTIONS.items())[:8]
    ]
    rows = load_micrographs(write_dataset(tmp_path / "many", 2, qa=answers))
    asked = [sample["question_id"] for sample in sample_answers(student, rows, 2)]
    assert asked == list(QUESTIONS)[:6]


def test_training_continues_as_if_nothing_had_been_asked(student, rows, batch, monkeypatch):
    # A checkpoint may be set to sample.
    student.generation_config.do_sample = True

    def states():
        generator = np.random.get_state()
        return [torch.get_rng_state().tolist(), random.getstate(), [str(x) for x in generator]]

    student.train()(**batch).loss.backward()  # as between two parts of a batch
    gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    before = states()
    for training in (True, False):
        student.train(training)
        sample_answers(student, rows, 2)
        assert all(module.training == training for module in student.modules())
    assert states() == before
    student.train()
    monkeypatch.setattr(student, "answer", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_answers(student, rows, 2)
    assert student.training
    assert gradients
    for name, parameter in student.named_parameters():
        assert name not in gradients or torch.equal(parameter.grad, gradients[name]), name


def test_samples_in_words():
    sample = {"image_id": "id1", "question_id": "basics", "question": "What?", "answer": ""}
    samples = [{**sample, "teacher": "Wires,\n\nlong " + "and " * 100 + "thin."}]
    text = format_samples([*samples, *samples, {**samples[0], "image_id": "id2"}], 40)
    assert text == (
        "**Micrograph id1**\n\n"
        + 2
        * (
            "- What?\n    - student: (nothing)\n"
            "    - teacher: Wires, long and and and and and and …\n"
        )
        + "\n**Micrograph id2**\n\n- What?\n    - student: (nothing)\n"
        "    - teacher: Wires, long and and and and and and …\n"
    )
