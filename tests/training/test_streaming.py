"""Parquet shards as they come: rows over ranks and workers, resumed, and what bad shards give."""

import dataclasses
import functools
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.micrograph_data import write_dataset

from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.training import batches, split
from mvaema.training.batches import BatchLoader, ProcessShare
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.recipe import Recipe
from mvaema.training.samples import sample_answers
from mvaema.training.split import load_folds, load_rows
from mvaema.training.streaming import RowReader, open_shards

ROWS = 90


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of uneven size with row groups of uneven size; some rows without answers."""
    folder = tmp_path_factory.mktemp("streamed")
    rows = load_micrographs(write_dataset(folder / "files", ROWS)).cast_column(
        "image", load_micrographs(folder / "files").features["image"]
    )
    rows = rows.map(
        lambda row, i: {"qa": row["qa"] if i % 9 else row["qa"][-1:]}, with_indices=True
    )
    (folder / "parquet").mkdir()
    files = {p.name: p.read_bytes() for p in (folder / "files" / "train").glob("*.png")}
    rows = rows.map(
        lambda row: {
            "image": {"bytes": files[row["image"]["path"].rpartition("/")[2]], "path": None}
        }
    )
    for number, (part, group) in enumerate(
        ((range(50), 7), (range(50, 55), 50), (range(55, ROWS), 16))
    ):
        rows.select(part).to_parquet(
            folder / "parquet" / f"train-{number:05d}-of-00003.parquet", batch_size=group
        )
    return folder / "parquet"


@pytest.fixture
def recipe(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_ROWS", 24)
    return Recipe(
        str(shards),
        str(tmp_path / "run"),
        folds=5,
        batch_size=8,
        questions_per_image=2,
        workers=0,
        streaming=True,
    )


@pytest.fixture
def make_loader(recipe, processor):
    load = functools.cache(lambda dataset: load_rows(dataclasses.replace(recipe, dataset=dataset)))

    def make(training=True, rank=0, world_size=1, **changes):
        changed = dataclasses.replace(recipe, **changes)
        rows = load(changed.dataset)
        part = rows.train if training else rows.validation
        drawer = ExampleDrawer("Which?", Draws.of(changed) if training else None)
        return BatchLoader(part, drawer, processor, changed, ProcessShare(rank, world_size))

    return make


def same(a, b) -> bool:
    return a.image_ids == b.image_ids and all(
        torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs
    )


def test_what_is_streamed_is_what_would_be_loaded(recipe, shards):
    folded = load_folds(recipe)
    loaded = load_micrographs(shards)
    expected = [row["image_id"] for row in loaded if any(qa["outcome"] == "ok" for qa in row["qa"])]
    assert folded.keys["image_id"][:] == expected and len(expected) == ROWS * 8 / 9
    assert folded.dataset.rows.tolist() == [i for i in range(ROWS) if i % 9]
    sample = folded.dataset.sample(5)
    assert sample["image_id"][:] == [expected[i] for i in (0, 19, 39, 59, 79)]
    assert sample[1] == loaded[int(folded.dataset.rows[19])]
    assert folded.dataset.sample(999)["image_id"][:] == expected


def test_folds_share_no_specimen_and_texts_are_those_of_the_rows(recipe, monkeypatch):
    rows = load_folds(recipe).split(2, cross_validation=True)
    parts = [rows.train, rows.validation, rows.test]
    groups = [set(part.read(part.rows)["group"]) for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert sum(map(len, parts)) == ROWS * 8 / 9
    assert rows.skipped == [] and "image" not in rows.texts.column_names
    train = rows.train.read(rows.train.rows)
    assert (
        rows.texts["qa"][:] == train["qa"][:] and rows.texts["image_id"][:] == train["image_id"][:]
    )
    monkeypatch.setattr(split, "TEXT_RUNS", 2)
    monkeypatch.setattr(split, "TEXT_RUN", 3)
    few = load_rows(recipe).texts
    assert 6 <= len(few) <= 8 and len(set(few["category"])) == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "world_size, workers",
    [
        (2, 0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0), (1, 2), (2, 1), (4, 0)]),
    ],
)
def test_every_row_once_and_as_many_batches_on_every_rank(
    recipe, make_loader, training, world_size, workers
):
    loaders = [make_loader(training, r, world_size, workers=workers) for r in range(world_size)]
    rows = load_rows(recipe)
    expected = set(
        (rows.train if training else rows.validation).read(
            (rows.train if training else rows.validation).rows
        )["image_id"]
    )
    orders = []
    for epoch in range(2):
        shares = [list(loader.epoch(epoch)) for loader in loaders]
        assert {len(share) for share in shares} == {len(loaders[0])}
        for of_ranks in zip(*shares, strict=True):
            assert len({len(batch.image_ids) for batch in of_ranks}) == 1
        seen = [i for share in shares for batch in share for i in batch.image_ids]
        orders.append(seen)
        if training:
            assert len(seen) == len(set(seen)) == len(expected) // 8 * 8
        else:
            assert set(seen) == expected
            assert len(seen) < len(expected) + world_size
    assert set(orders[0]) <= expected
    assert (orders[0] != orders[1]) == training


def test_rows_of_an_epoch_come_from_all_over(make_loader):
    """Within a block rows are shuffled, and blocks are made of row groups from anywhere."""
    ids = [i for batch in make_loader().epoch(0) for i in batch.image_ids]
    numbers = np.array([int(i.removeprefix("image")) for i in ids])
    assert np.mean(np.abs(np.diff(numbers)) < 3) < 0.25


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_an_epoch_may_be_entered_anywhere(make_loader, workers, training):
    whole = list(make_loader(training, 1, 2).epoch(3))
    loader = make_loader(training, 1, 2, workers=workers)
    for start in (0, 1, 3, len(whole) - 1, len(whole)):
        rest = list(loader.epoch(3, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_streamed_and_loaded_rows_give_the_same_examples(recipe, make_loader, processor):
    """What is drawn depends on the row: on a stream without gaps, numbers are the same."""
    plain = {"augmentation": False, "length_bucketing": False}
    streamed = list(make_loader(False, **plain).epoch(0))
    rows = load_rows(recipe).validation
    loaded = load_micrographs(recipe.dataset).select(rows.rows)
    changed = dataclasses.replace(recipe, streaming=False, **plain)
    mapped = list(BatchLoader(loaded, ExampleDrawer("Which?"), processor, changed).epoch(0))
    assert all(same(a, b) for a, b in zip(streamed, mapped, strict=True))


def test_each_row_group_is_read_once_and_never_whole(recipe, monkeypatch):
    opened, original = [], pq.ParquetFile.iter_batches

    def iter_batches(file, batch_size, row_groups, **options):
        opened.append((file.metadata.num_rows, *row_groups))  # the shards differ in their rows
        assert batch_size < 100
        return original(file, batch_size, row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    rows = load_folds(recipe).dataset
    reader = RowReader(rows)
    numbers = rows.shuffled(np.random.default_rng(0))
    found = [
        i for part in np.array_split(numbers, 9) for i in reader.read(part)["image_id"].to_pylist()
    ]
    assert found == [f"image{i}" for i in numbers]
    assert len(opened) == len(set(opened)) == len(rows.groups)


def test_samples_are_answered_about_streamed_rows(recipe, model):
    rows = load_rows(recipe).validation
    samples = sample_answers(model, rows, 2)
    ids = {sample["image_id"] for sample in samples}
    assert len(ids) == 2 and ids <= set(rows.read(rows.rows)["image_id"])


def test_shards_may_be_behind_a_url(recipe):
    rows = load_folds(recipe).dataset
    urls = dataclasses.replace(rows, files=tuple(f"file://{file}" for file in rows.files))
    assert urls.read(rows.rows[5:50])[:] == rows.read(rows.rows[5:50])[:]


def broken(shards, folder, ids):
    """A copy in which some images cannot be read."""
    folder.mkdir()
    for file in shards.iterdir():
        source = pq.ParquetFile(file)
        with pq.ParquetWriter(folder / file.name, source.schema_arrow) as writer:
            for group in range(source.num_row_groups):
                rows = source.read_row_group(group).to_pylist()
                for row in rows:
                    if row["image_id"] in ids:
                        row["image"] = {"bytes": b"no image", "path": None}
                writer.write_table(pa.Table.from_pylist(rows, source.schema_arrow))
    return str(folder)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_another_micrograph_stands_in_for_an_unreadable_one(
    recipe, shards, make_loader, tmp_path, workers
):
    ids = [i for batch in make_loader().epoch(0) for i in batch.image_ids]
    bad = [ids[7], ids[11], ids[12]]
    options = {"dataset": broken(shards, tmp_path / "broken", bad), "workers": workers}
    good, found = list(make_loader().epoch(0)), list(make_loader(**options).epoch(0))
    assert [i for batch in found for i in batch.skipped] == bad
    assert [batch.image_ids for batch in found[2:]] == [batch.image_ids for batch in good[2:]]
    # After the last comes the first of the same batch, and of two in a row both have the next.
    assert found[0].image_ids == [*ids[:7], ids[0]]
    assert found[1].image_ids == [*ids[8:11], ids[13], ids[13], *ids[13:16]]
    assert torch.equal(found[1].inputs["pixel_values"][3], good[1].inputs["pixel_values"][5])
    with pytest.raises(DatasetError, match=f"^image {bad[0]} cannot be read"):
        list(make_loader(strict=True, **options).epoch(0))
    options["dataset"] = broken(shards, tmp_path / "worse", ids)
    with pytest.raises(DatasetError, match="no image of a whole batch"):
        list(make_loader(**options).epoch(0))


@pytest.mark.slow
def test_the_same_image_twice_is_never_on_both_sides(recipe, shards, tmp_path):
    (tmp_path / "twice").mkdir()
    for copy, file in itertools.product("ab", shards.iterdir()):
        table = pq.read_table(file)
        groups = pa.array([f"{copy}{i}" for i in range(len(table))])
        at = table.schema.get_field_index("group")
        table = table.set_column(at, "group", groups).replace_schema_metadata(None)
        pq.write_table(table, tmp_path / "twice" / f"train-{copy}{file.name}")
    rows = load_rows(dataclasses.replace(recipe, dataset=str(tmp_path / "twice")))
    parts = [set(part.read(part.rows)["image_id"]) for part in (rows.train, rows.validation)]
    assert parts[0] and parts[1] and not parts[0] & parts[1]


def test_what_cannot_be_streamed_is_refused(recipe, shards, tmp_path):
    def refuse(match, **fields):
        with pytest.raises(DatasetError, match=match):
            load_rows(dataclasses.replace(recipe, **fields))

    refuse("cannot read .*nowhere", dataset=str(tmp_path / "nowhere"))
    refuse("split 'test'", split="test")
    refuse("is not a Parquet shard", dataset=str(write_dataset(tmp_path / "files", 5)))
    table = pq.read_table(sorted(shards.iterdir())[0]).replace_schema_metadata(None)
    for name, changed, match in (
        ("noqa", table.drop_columns("qa"), "has no column 'qa'"),
        ("noimage", table.drop_columns("image"), "has no column 'image'"),
        ("norows", table.slice(0, 0), "empty"),
        ("refused", table.slice(0, 1), "no answers with outcome 'ok'"),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(changed, tmp_path / name / "train-00000.parquet")
        refuse(match, dataset=str(tmp_path / name))


def test_columns_that_the_shards_lack_are_null(recipe, shards, tmp_path):
    (tmp_path / "few").mkdir()
    table = pq.read_table(sorted(shards.iterdir())[0]).replace_schema_metadata(None)
    few = table.select(["image", "image_id", "qa"])
    pq.write_table(few, tmp_path / "few" / "train-00000.parquet")
    rows, keys = open_shards(str(tmp_path / "few"), "train")
    assert keys["group"][:] == [None] * len(rows)
    assert rows.sample(1)[0]["caption"] is None
