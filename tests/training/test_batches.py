"""Batches of a training run: over ranks and workers, resumed, bucketed; and what bad data gives."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.micrograph_data import write_dataset

from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.folds import LeakError
from mvaema.training.batches import Batch, BatchLoader, load_folds, load_rows, longest_answers
from mvaema.training.examples import ExampleDrawer
from mvaema.training.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("batches") / "data", 43)


@pytest.fixture
def recipe(folder, tmp_path):
    return Recipe(
        str(folder),
        str(tmp_path / "run"),
        folds=4,
        batch_size=8,
        questions_per_image=2,
        workers=0,
    )


@pytest.fixture(scope="module")
def rows(folder):
    return load_rows(Recipe(str(folder), "", folds=4))


@pytest.fixture
def make_loader(recipe, rows, processor):
    def make(training=True, rank=0, world_size=1, **changes):
        part = rows.train if training else rows.validation
        changed = dataclasses.replace(recipe, **changes)
        return BatchLoader(part, processor, "Which category?", changed, training, rank, world_size)

    return make


def same(a: Batch, b: Batch) -> bool:
    return (
        a.image_ids == b.image_ids
        and a.inputs.keys() == b.inputs.keys()
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
    )


def joined(shares: list[Batch], pad: int) -> dict[str, torch.Tensor]:
    """The batch of which these are the shares, padded to the longest of them."""
    inputs = {}
    for name in shares[0].inputs:
        parts = [share.inputs[name] for share in shares]
        if name != "pixel_values":
            fill = {"input_ids": pad, "statement_ids": pad, "labels": -100}.get(name, 0)
            longest = max(part.shape[1] for part in parts)
            parts = [
                torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=fill)
                for part in parts
            ]
        inputs[name] = torch.cat(parts)
    return inputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_two_ranks_see_together_what_one_process_sees(make_loader, processor, training, parts):
    options = {"gradient_accumulation_steps": parts}
    alone = make_loader(training, **options)
    ranks = [make_loader(training, rank, 2, **options) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    for epoch in range(2):
        for number, whole, *shares in zip(
            range(99), alone.epoch(epoch), *(rank.epoch(epoch) for rank in ranks), strict=False
        ):
            ids = [i for share in shares for i in share.image_ids]
            if not training and number == len(alone) - 1 and len(whole.image_ids) % 2:
                assert ids[:-1] == whole.image_ids  # filled up by one
                continue
            assert ids == whole.image_ids
            both = joined(shares, processor.tokenizer.pad_token_id)
            assert all(torch.equal(both[name], whole.inputs[name]) for name in both)


def test_an_epoch_has_every_row_once_in_whole_batches(rows, make_loader):
    loader = make_loader()
    count = len(rows.train)
    first, second = ([i for b in loader.epoch(e) for i in b.image_ids] for e in range(2))
    assert len(first) == count // 8 * 8 == 8 * len(loader) and len(set(first)) == len(first)
    assert first != second
    halves = make_loader(gradient_accumulation_steps=2)
    assert len(halves) == 2 * len(loader)
    assert {len(batch.image_ids) for batch in halves.epoch(0)} == {4}


@pytest.mark.parametrize(
    "batch_size, parts, sizes", [(48, 2, [24]), (48, 1, [32]), (48, 4, [12] * 2)]
)
def test_few_rows_make_what_batches_they_can(rows, make_loader, batch_size, parts, sizes):
    loader = make_loader(batch_size=batch_size, gradient_accumulation_steps=parts)
    batches = [len(batch.image_ids) for batch in loader.epoch(0)]
    assert batches == [min(size, len(rows.train)) for size in sizes] and len(loader) == len(batches)


def test_validation_has_every_row_and_is_filled_up_as_little_as_possible(rows, make_loader):
    loader = make_loader(training=False)
    ids = [i for batch in loader.epoch(0) for i in batch.image_ids]
    assert ids == rows.validation["image_id"][:]
    ranks = [make_loader(False, rank, 4) for rank in range(4)]
    shares = [[i for batch in rank.epoch(0) for i in batch.image_ids] for rank in ranks]
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(ids)
    assert sum(map(len, shares)) == -(-len(ids) // 4) * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_be_entered_anywhere(make_loader, workers):
    whole = list(make_loader().epoch(1))
    loader = make_loader(workers=workers)
    for start in range(len(whole) + 1):
        rest = list(loader.epoch(1, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_an_epoch_may_be_left_in_the_middle(make_loader):
    loader, other = make_loader(workers=1), make_loader()
    for _ in range(2):
        assert same(next(loader.epoch(0)), next(other.epoch(0)))
    assert same(list(loader.epoch(1))[-1], list(other.epoch(1))[-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_workers_and_draw_nothing_global(make_loader, workers):
    expected = list(make_loader().epoch(0))
    loader = make_loader(workers=workers)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = list(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_bucketing_puts_like_lengths_together_and_loses_nothing(recipe, processor, tmp_path):
    rng = np.random.default_rng(0)
    folder = write_dataset(tmp_path / "lengths", 90)
    lines = [
        json.loads(line) for line in (folder / "train/metadata.jsonl").read_text().splitlines()
    ]
    for line in lines:
        for qa in line["qa"]:
            qa["answer"] = "grain " * int(rng.integers(2, 9))
    (folder / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    padding, seen = {}, {}
    for bucketing in (True, False):
        changed = dataclasses.replace(recipe, dataset=str(folder), length_bucketing=bucketing)
        rows = load_rows(changed).train
        batches = list(BatchLoader(rows, processor, "Which?", changed, True).epoch(0))
        padding[bucketing] = sum(int((b.inputs["labels"] == -100).sum()) for b in batches)
        seen[bucketing] = {i for batch in batches for i in batch.image_ids}
    assert seen[True] == seen[False]
    assert padding[True] < 0.8 * padding[False]


def test_the_longest_drawn_answer_counts(rows, processor):
    drawer = ExampleDrawer("Which category?", 2)
    numbered = list(enumerate(rows.texts))
    lengths = longest_answers(processor.tokenizer, drawer, numbered, epoch=1)
    counted = [
        max(len(processor.tokenizer(a)["input_ids"]) for _, a in drawer.draw(row, i, 1).pairs)
        for i, row in numbered
    ]
    assert lengths.tolist() == counted and len(set(counted)) > 1


def test_uneven_shares_are_refused(make_loader):
    with pytest.raises(ValueError, match=r"batch_size=8 .* 3 processes"):
        make_loader(world_size=3)
    with pytest.raises(ValueError, match="a multiple of 16"):
        make_loader(world_size=4, gradient_accumulation_steps=4)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_later_is_named(recipe, processor, tmp_path, workers):
    dataset = str(write_dataset(tmp_path / "data"))
    changed = dataclasses.replace(recipe, dataset=dataset, workers=workers)
    rows = load_rows(changed).train
    loader = BatchLoader(rows, processor, "Which?", changed, True)
    victim = rows[3]["image"]["path"]
    Path(victim).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=f"^image {rows[3]['image_id']} cannot be read"):
        list(loader.epoch(0))


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


def test_every_kind_of_place_is_read(recipe, tmp_path):
    rows = load_micrographs(recipe.dataset)
    rows.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    for place in ("disk", "parquet"):
        again = load_micrographs(tmp_path / place)
        assert again["image_id"][:] == rows["image_id"][:]
        assert again["pixel_size_nm"][0] is None


def test_a_column_may_be_null_throughout_one_split(tmp_path):
    folder = write_dataset(tmp_path / "data", 6)
    write_dataset(folder, 4, "validation", 20, scale_bar=None, category=None)
    assert load_micrographs(folder)["scale_bar"][1] == "1 µm"
    assert load_micrographs(folder, "validation")["scale_bar"][:] == [None] * 4
    with pytest.raises(DatasetError, match="split 'test'"):
        load_micrographs(folder, "test")
