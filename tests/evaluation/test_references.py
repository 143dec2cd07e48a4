"""Reference answers, on made-up data and on the real micrographs."""

import os
from pathlib import Path

import pytest
from support.wordnet_data import needs_wordnet

from mvaema.evaluation.questions import records_from_dataset
from mvaema.evaluation.records import score_records, summarize
from mvaema.evaluation.references import nearest_image_answers, random_answers, typical_answers


def record(image_id: str, answer: str, category: str = "Tips", question_id: str = "basics") -> dict:
    return {
        "image_id": image_id,
        "category": category,
        "question_id": question_id,
        "question": "?",
        "reference": answer,
    }


TRAIN = [
    record("a", "thin long wires"),
    record("b", "thin long bent wires"),
    record("c", "short thin wires"),
    record("d", "a porous sponge", category="Porous_Sponge"),
]
TARGETS = [record("x", "?"), record("y", "?", category="Porous_Sponge")]


def test_typical_answer_is_the_one_nearest_to_all():
    assert [r["prediction"] for r in typical_answers(TRAIN, TARGETS)] == ["thin long wires"] * 2


def test_typical_answer_of_the_category():
    targets = [*TARGETS, record("z", "?", category="Powder")]  # unseen in training
    answers = [r["prediction"] for r in typical_answers(TRAIN, targets, of_category=True)]
    assert answers == ["thin long wires", "a porous sponge", "thin long wires"]


def test_random_answers_are_of_the_same_question_and_repeatable():
    train = [*TRAIN, record("a", "matte", question_id="surface")]
    targets = [record(str(i), "?", question_id=q) for i in range(30) for q in ("basics", "surface")]
    answers = random_answers(train, targets, seed=3)
    assert answers == random_answers(train, targets, seed=3)
    assert {r["prediction"] for r in answers if r["question_id"] == "surface"} == {"matte"}
    assert {r["prediction"] for r in answers if r["question_id"] == "basics"} == {
        r["reference"] for r in TRAIN
    }


def test_nearest_image_answers_pass_over_images_without_the_question():
    train = [*TRAIN, record("c", "matte", question_id="surface")]
    embeddings = {
        "a": [1.0, 0],
        "b": [-1.0, -1.0],
        "c": [0.6, 0.8],
        "d": [0, 1.0],
        "x": [2.0, 0.1],
        "y": [0, 3.0],
    }
    targets = [*TARGETS, record("x", "?", question_id="surface")]
    answers = nearest_image_answers(train, targets, embeddings)
    assert [r["prediction"] for r in answers] == ["thin long wires", "a porous sponge", "matte"]


def test_a_question_that_training_never_asked():
    for answers in (typical_answers, random_answers, lambda *r: nearest_image_answers(*r, {})):
        with pytest.raises(ValueError, match="'function' has no answer in the training split"):
            answers(TRAIN, [record("x", "?", question_id="function")])


@pytest.mark.slow
@needs_wordnet
@pytest.mark.skipif("MVAEMA_SHARED" not in os.environ, reason="MVAEMA_SHARED is not set")
def test_figures_of_the_shared_micrographs():
    """The README of ../shared/micrographs states them, without the definition of typical."""
    from datasets import load_dataset

    folder = Path(os.environ["MVAEMA_SHARED"]) / "micrographs"
    dataset = load_dataset("imagefolder", data_dir=str(folder))
    train, records = (records_from_dataset(dataset[split]) for split in ("train", "validation"))

    def figures(answers: list[dict]) -> list[float]:
        scores = summarize(score_records(answers), n_resamples=10)["overall"]["scores"]
        return [scores[name]["mean"] for name in ("bleu_2", "bleu_4", "rouge_l", "meteor")]

    published = [0.157, 0.069, 0.305, 0.271]
    assert figures(random_answers(train, records)) == pytest.approx(published, abs=0.0005)
    published = [0.218, 0.096, 0.370, 0.343]
    assert figures(typical_answers(train, records)) == pytest.approx(published, abs=0.006)
