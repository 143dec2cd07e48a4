"""What is asked: usable answers only, and bad data refused with its remedy."""

import json

import pytest
from datasets import Dataset
from support.micrograph_data import write_dataset
from support.tiny_student import write_splits

from mvaema.evaluation.questions import load_questions, records_from_dataset
from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.folds import LeakError

QA = {"question_id": "basics", "question": "What?", "answer": "Wires.", "outcome": "ok"}


def test_records_take_usable_answers_only():
    qa = [QA, {**QA, "question_id": "surface", "answer": "", "outcome": "refused"}]
    dataset = Dataset.from_list([{"image_id": "a", "category": "Tips", "group": "g", "qa": qa}])
    (record,) = records_from_dataset(dataset)
    assert record["reference"] == "Wires." and record["category"] == "Tips"
    with pytest.raises(ValueError, match="no column `qa`"):
        records_from_dataset(dataset.remove_columns("qa"))
    refused = Dataset.from_list([{"image_id": "a", "qa": qa[1:]}])
    with pytest.raises(ValueError, match="no answer with the outcome `ok`"):
        records_from_dataset(refused)


def test_what_prompts_say_belongs_to_what_is_asked(dataset, questions, tmp_path):
    again = load_questions(str(dataset), "validation", "train")
    assert again.digest() == questions.digest()
    for column in ({"scale_bar": "2 nm"}, {"pixel_size_nm": 2.0}, {"caption": "A wire."}):
        other = write_splits(tmp_path / next(iter(column)), **column)
        assert load_questions(str(other), "validation", "train").digest() != questions.digest()


def test_some_questions_about_all_micrographs(questions):
    some = questions.only(["surface", "basics"])
    assert {r["question_id"] for r in some.records} == {"surface", "basics"}
    assert {r["image_id"] for r in some.records} == set(questions.micrographs)
    assert {r["question_id"] for r in some.train_records} == {"surface", "basics"}
    with pytest.raises(ValueError, match=r"no micrograph was asked colour\. Choose of basics, "):
        questions.only(["surface", "colour"])


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        ({"qa": [QA | {"outcome": "refused"}]}, ValueError, "no answer with the outcome `ok`"),
        ({"qa": [QA | {"answer": " "}]}, DatasetError, "blank"),
        ({"qa": [QA, QA]}, ValueError, "occurs more than once"),
        ({"qa": [QA | {"question_id": "colour"}]}, ValueError, "'colour' has no answer"),
        ({"group": "specimen1"}, LeakError, "specimen1"),
        ({"image_id": "same"}, DatasetError, "name each micrograph once"),
        ({"image_id": None}, DatasetError, "`image_id` must be filled in"),
    ],
)
def test_bad_data_is_refused(validation, error, message, tmp_path):
    data = write_splits(tmp_path / "bad", **validation)
    with pytest.raises(error, match=message):
        load_questions(str(data), "validation", "train")


def test_a_micrograph_in_both_splits_is_a_leak(tmp_path):
    data = write_dataset(tmp_path / "data", 12)
    write_dataset(data, 1, "validation", group="another")  # image0 again
    with pytest.raises(LeakError, match="image0"):
        load_questions(str(data), "validation", "train")


def test_a_missing_split_is_named(dataset):
    with pytest.raises(DatasetError, match="'exam'"):
        load_questions(str(dataset), "exam", "train")


def test_images_are_decoded_on_demand(questions, dataset):
    micrographs = questions.micrographs
    names = [
        json.loads(line)["image_id"]
        for line in (dataset / "validation" / "metadata.jsonl").read_text().splitlines()
    ]
    assert list(micrographs) == names and len(micrographs) == 6
    assert "image20" in micrographs and "image0" not in micrographs
    assert micrographs["image20"].size == (64, 64)
