"""The rows of a training run: folds without leaks, unreadable images, datasets that are refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.micrograph_data import write_dataset

from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.folds import LeakError
from mvaema.training.recipe import Recipe
from mvaema.training.split import load_folds, load_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("split") / "data", 43)


@pytest.fixture
def recipe(folder):
    return Recipe(str(folder), "", folds=4, workers=0)


def test_folds_test_validate_and_train_without_sharing_a_specimen(recipe):
    folded = load_folds(recipe)
    tested = []
    for fold in range(4):
        rows = folded.split(fold, cross_validation=True)
        tested += rows.test["image_id"][:]
        parts = [set(part["group"]) for part in (rows.train, rows.validation, rows.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(rows.train) + len(rows.validation) + len(rows.test) == 43
        assert "image" not in rows.texts.column_names
        assert rows.texts["image_id"][:] == rows.train["image_id"][:]
        plain = folded.split((fold + 1) % 4)
        assert plain.test is None
        assert plain.validation["image_id"][:] == rows.validation["image_id"][:]
    assert sorted(tested) == sorted(folded.dataset["image_id"])


def test_one_unreadable_image_is_skipped_or_refused(recipe, tmp_path):
    recipe.dataset = str(write_dataset(tmp_path / "data", 43))
    image = Path(recipe.dataset) / "train" / "7.png"
    image.write_bytes(image.read_bytes()[:60])
    (Path(recipe.dataset) / "train" / "9.png").unlink()
    rows = load_rows(recipe)
    assert sorted(rows.skipped) == ["image7", "image9"]
    assert len(rows.train) + len(rows.validation) == 41
    with pytest.raises(DatasetError, match=r"2 of 43 images .* image7, image9.*--strict"):
        load_rows(dataclasses.replace(recipe, strict=True))
    for path in (Path(recipe.dataset) / "train").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="43 of 43"):
        load_rows(recipe)


def test_bad_datasets_are_refused(recipe, tmp_path):
    def refuse(error, match, **fields):
        with pytest.raises(error, match=match):
            load_rows(dataclasses.replace(recipe, **fields))

    refuse(DatasetError, "cannot read split 'train' of", dataset=str(tmp_path / "nowhere"))
    refuse(DatasetError, "split 'test'", split="test")
    refuse(ValueError, "k must be", folds=30)
    refuse(DatasetError, "for train of fold 0", folds=2, cross_validation=True)
    for name, qa, match in (
        ("none", [], "no answers with outcome 'ok'"),
        ("null", None, "no answers with outcome 'ok'"),
        ("bare", [{"question": "What?", "answer": "It."}], "lacks question_id, outcome"),
        ("strings", ["What?"], "lacks question_id, question, answer, outcome"),
    ):
        refuse(DatasetError, match, dataset=str(write_dataset(tmp_path / name, qa=qa)))
    same_specimen = write_dataset(tmp_path / "one", group="one")
    refuse(ValueError, "k must be", dataset=str(same_specimen))


def test_folds_that_cross_are_refused(recipe):
    folded = load_folds(recipe)
    rng = np.random.default_rng(0)
    with pytest.raises(LeakError, match="values of group"):
        dataclasses.replace(folded, folds=rng.permutation(folded.folds)).split(0)
