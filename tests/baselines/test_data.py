"""What rows are fed: parts that share nothing, views that a seed decides, plain pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.micrograph_data import write_dataset

from baselines.data import Data, plain_pixels
from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.folds import LeakError
from mvaema.training.split import load_folds


def test_a_fold_is_that_of_the_student(settings, data):
    """Fold k tests and the next one validates, as in a cross-validation."""
    rows = load_folds(settings.recipe()).split(0, cross_validation=True)
    for name in ("train", "validation", "test"):
        ids = [record["image_id"] for record in getattr(data.micrographs(32), name).records]
        assert ids == getattr(rows, name)["image_id"][:]


def test_parts_share_no_specimen(data):
    seen = data.micrographs(32)
    groups = [{r["group"] for r in part.records} for part in (seen.train, seen.validation)]
    groups.append({r["group"] for r in seen.test.records})
    assert sum(map(len, groups)) == len(set().union(*groups)) == 10


def test_other_and_unknown_are_left_out(tmp_path, settings):
    folder = write_dataset(tmp_path / "data", 24)
    write_other(folder, {1: "Other", 2: None})
    fold = Data(replace(settings, dataset=str(folder), folds=3)).fold(0)
    seen = fold.micrographs(32)
    records = [r for p in (seen.train, seen.validation, seen.test) for r in p.records]
    assert len(records) == 22
    assert {r["category"] for r in records} == {"Nanowires", "Particles"} == set(fold.categories)
    assert not {"image1", "image2"} & {r["image_id"] for r in records}


def write_other(folder, categories):
    import json

    file = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, category in categories.items():
        rows[number] |= {"category": category, "caption": None}
    file.write_text("\n".join(map(json.dumps, rows)))


def test_a_dataset_without_answers_can_be_classified(tmp_path, settings):
    folder = write_dataset(tmp_path / "data", 24, qa=None)
    seen = Data(replace(settings, dataset=str(folder), folds=3)).fold(0).micrographs(32)
    assert len(seen.train.labels) + len(seen.validation.labels) + len(seen.test.labels) == 24


def test_another_split_is_tested_on(tmp_path, settings):
    folder = write_dataset(tmp_path / "data", 24)
    write_dataset(folder, 8, split="test", first=100)
    of_split = replace(settings, dataset=str(folder), test_split="test", folds=3)
    seen = Data(of_split).fold(0).micrographs(32)
    assert [r["image_id"] for r in seen.test.records] == [f"image{i}" for i in range(100, 108)]
    assert len(seen.train.labels) + len(seen.validation.labels) == 24


def test_a_specimen_in_both_splits_is_refused(tmp_path, settings):
    folder = write_dataset(tmp_path / "data", 24)
    write_dataset(folder, 8, split="test", first=22)  # specimen5 is in both
    of_split = replace(settings, dataset=str(folder), test_split="test", folds=3)
    with pytest.raises(LeakError, match="share"):
        Data(of_split).fold(0)


def test_further_datasets_are_only_trained_on(tmp_path, settings, stripes_and_dots):
    more = write_dataset(tmp_path / "more", 8, first=200)
    mixed = replace(settings, train_also=(str(more),), mix="1:3")
    fold = Data(mixed).fold(0)
    alone, seen = Data(settings).fold(0).micrographs(32), fold.micrographs(32)
    assert len(seen.train.labels) == len(alone.train.labels) + 8
    assert [r["image_id"] for r in seen.test.records] == [r["image_id"] for r in alone.test.records]
    assert fold.own == len(alone.train.labels)
    shown = torch.cat([batch.labels for batch in seen.training_batches(0)(0)])
    assert len(shown) == len(alone.train.labels) + 3 * 8


def test_seed_and_epoch_decide_every_view(data):
    def first(seed, epoch):
        return next(iter(data.micrographs(32).training_batches(seed)(epoch))).pixel_values

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_workers_change_nothing(settings, data):
    fold = replace(data, settings=replace(settings, workers=2), _seen={})
    alone = list(data.micrographs(32).training_batches(3)(1))
    for ours, theirs in zip(alone, fold.micrographs(32).training_batches(3)(1), strict=True):
        assert torch.equal(ours.pixel_values, theirs.pixel_values)
        assert torch.equal(ours.labels, theirs.labels)


def test_an_epoch_shows_each_micrograph_once_in_even_batches(data):
    seen = data.micrographs(32)
    sizes = [len(batch.labels) for batch in seen.training_batches(0)(0)]
    assert sum(sizes) == len(seen.train.labels) and max(sizes) - min(sizes) <= 1 and max(sizes) <= 8


def test_pixels_are_as_a_student_sees_them(processor):
    rng = np.random.default_rng(0)
    for shape in ((48, 64), (80, 50, 3)):
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        expected = processor(images=[picture])["pixel_values"][0].numpy()
        np.testing.assert_allclose(plain_pixels(picture, 32), expected, atol=1e-6)


def test_a_blank_image_is_flat_grey(data):
    blank = data.micrographs(32).blank
    assert blank.shape == (1, 3, 32, 32)
    assert blank.std() == 0 and blank.abs().max() < 0.5


def test_one_category_is_refused(tmp_path, settings):
    folder = write_dataset(tmp_path / "data", 24, category="Tips")
    with pytest.raises(DatasetError, match="1 categories"):
        Data(replace(settings, dataset=str(folder), folds=3))
