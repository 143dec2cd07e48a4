"""Batches of a training run: over ranks and workers, resumed, bucketed, and with a bad image."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.micrograph_data import write_dataset

from mvaema.micrographs.dataset import DatasetError
from mvaema.training.batches import Batch, BatchLoader, ProcessShare, longest_answers
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.recipe import Recipe
from mvaema.training.split import load_rows


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
        drawer = ExampleDrawer("Which category?", Draws.of(changed) if training else None)
        return BatchLoader(part, drawer, processor, changed, ProcessShare(rank, world_size))

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
        drawer = ExampleDrawer("Which?", Draws.of(changed))
        batches = list(BatchLoader(rows, drawer, processor, changed).epoch(0))
        padding[bucketing] = sum(int((b.inputs["labels"] == -100).sum()) for b in batches)
        seen[bucketing] = {i for batch in batches for i in batch.image_ids}
    assert seen[True] == seen[False]
    assert padding[True] < 0.8 * padding[False]


def test_the_longest_drawn_answer_counts(rows, processor):
    drawer = ExampleDrawer("Which category?", Draws(2))
    numbered = [(i, row, i % 3) for i, row in enumerate(rows.texts)]
    lengths = longest_answers(processor.tokenizer, drawer, numbered)
    counted = [
        max(len(processor.tokenizer(a)["input_ids"]) for _, a in drawer.draw(row, i, epoch).pairs)
        for i, row, epoch in numbered
    ]
    assert lengths.tolist() == counted and len(set(counted)) > 1


def test_uneven_shares_are_refused(make_loader):
    with pytest.raises(ValueError, match=r"batch_size=8 .* 3 processes"):
        make_loader(world_size=3)
    with pytest.raises(ValueError, match="a multiple of 16"):
        make_loader(world_size=4, gradient_accumulation_steps=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_later_is_named(recipe, processor, tmp_path, workers):
    dataset = str(write_dataset(tmp_path / "data"))
    changed = dataclasses.replace(recipe, dataset=dataset, workers=workers)
    rows = load_rows(changed).train
    loader = BatchLoader(rows, ExampleDrawer("Which?", Draws()), processor, changed)
    victim = rows[3]["image"]["path"]
    Path(victim).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=f"^image {rows[3]['image_id']} cannot be read"):
        list(loader.epoch(0))
