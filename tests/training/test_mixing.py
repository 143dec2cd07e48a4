"""Several datasets in one run: what is left out, what a row without answers teaches, how often."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from PIL import Image
from support.micrograph_data import write_dataset

from configuration_mvaema import CATEGORY_CAPTIONS, CATEGORY_QUESTION
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.training.batches import BatchLoader
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.mixing import draw_rows, join, showings
from mvaema.training.recipe import Recipe
from mvaema.training.split import load_rows


def recipe_for(folder, **settings) -> Recipe:
    return Recipe(str(folder), "", folds=4, workers=0, **settings)


def without_answers(folder, count=6, first=100):
    """Micrographs of a category, with nothing said about them."""
    write_dataset(folder, count, first=first)
    file = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["qa"], row["caption"], row["scale_bar"]
    file.write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_further_micrographs_are_trained_on_and_never_validate(tmp_path):
    data, more = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b", 8, first=60)
    alone = load_rows(recipe_for(data))
    rows = load_rows(recipe_for(data, train_also=[str(more)]))
    further = {f"image{i}" for i in range(60, 68)}
    assert set(rows.train["image_id"]) == set(alone.train["image_id"]) | further
    assert rows.validation["image_id"][:] == alone.validation["image_id"][:]
    assert rows.counts is None
    assert {a["answer"] for row in rows.texts for a in row["qa"]} >= {
        "The micrograph shows nanowires, basics."
    }


def test_what_validates_is_left_out_of_further_datasets(tmp_path):
    data = write_dataset(tmp_path / "a")
    validation = load_rows(recipe_for(data)).validation
    shown = load_micrographs(data).filter(lambda r: r["image_id"] == validation["image_id"][0])[0]
    more = write_dataset(tmp_path / "b", 8, first=60)
    file = more / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["group"] = validation["group"][0]
    rows[1]["image_id"] = validation["image_id"][0]
    # The same picture under another name, a little darker.
    picture = Image.open(shown["image"]["path"])
    picture.point(lambda v: v * 0.9).save(more / "train" / rows[2]["file_name"])
    (more / "train" / rows[3]["file_name"]).write_bytes(b"no image")
    file.write_text("\n".join(map(json.dumps, rows)))
    train = load_rows(recipe_for(data, train_also=[str(more)])).train
    assert {i for i in train["image_id"] if int(i[5:]) >= 60} == {
        f"image{i}" for i in range(64, 68)
    }


def test_a_micrograph_without_answers_is_trained_on_by_its_category(tmp_path):
    data, more = write_dataset(tmp_path / "a"), without_answers(tmp_path / "b")
    train = load_rows(recipe_for(data, train_also=[str(more)])).train
    row = next(r for r in train if r["image_id"] == "image100")
    drawer = ExampleDrawer(CATEGORY_QUESTION, Draws())
    for epoch in range(5):
        example = drawer(row, 0, epoch)
        caption = CATEGORY_CAPTIONS["Nanowires"]
        assert example.answers == [caption] and set(example.statements) == {caption}
        assert all(prompt.endswith(CATEGORY_QUESTION) for prompt in example.prompts)


def test_nothing_to_train_on_is_an_error(tmp_path):
    data, more = write_dataset(tmp_path / "a"), without_answers(tmp_path / "b")
    file = more / "train" / "metadata.jsonl"
    rows = [json.loads(line) | {"category": None} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match="neither answers"):
        load_rows(recipe_for(data, train_also=[str(more)]))


def test_micrographs_of_other_licences_are_left_out(tmp_path):
    data = write_dataset(tmp_path / "a")
    file = data / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = ["MIT", "CC-BY-4.0 (Someone 2018)", "unclear", None]
    rows = [row | {"licence": names[i % 4]} for i, row in enumerate(rows)]
    file.write_text("\n".join(map(json.dumps, rows)))
    more = write_dataset(tmp_path / "b", 4, first=80, licence="MIT")
    recipe = recipe_for(data, train_also=[str(more)], licences=["MIT", "CC-BY"])
    parts = load_rows(recipe)
    kept = {*parts.train["image_id"], *parts.validation["image_id"]}
    ours = [i for i in range(20) if i % 4 < 2]
    assert kept == {f"image{i}" for i in [*ours, *range(80, 84)]}
    with pytest.raises(DatasetError, match="licence begins with GPL"):
        load_rows(recipe_for(data, licences=["GPL"]))


def of_categories(*names) -> Dataset:
    return Dataset.from_dict({"category": list(names)})


def test_mix_and_balance_decide_how_often_a_row_is_shown():
    real, simulated = of_categories("A", "A", "A", "B"), of_categories("B", "B")
    assert showings([real, simulated], [1, 1], 0) is None
    assert showings([real, simulated], [2, 0.5], 0).tolist() == [2, 2, 2, 2, 0.5, 0.5]
    assert showings([real, simulated], [1, 1], 1) is None  # three of each category
    even = showings([real, of_categories()], [1, 1], 1)
    np.testing.assert_allclose(even, [2 / 3] * 3 + [2])
    # Half way: categories in proportion to the square roots of 3 and 1.
    half = showings([real, of_categories()], [1, 1], 0.5)
    assert half[:3].sum() / half[3] == pytest.approx(np.sqrt(3)) and half.sum() == pytest.approx(4)


def test_epochs_have_as_many_rows_and_show_each_as_often_as_it_counts():
    counts, shown = np.array([2.0, 1.0, 0.5, 0.25, 1.3, 0.95]), Counter()
    for epoch in range(400):
        rows, showing = draw_rows(counts, np.random.default_rng(epoch))
        assert len(rows) == 6
        per_row = Counter(rows.tolist())
        assert all(abs(per_row[i] - counts[i]) < 1 for i in range(6))
        pairs = set(zip(rows.tolist(), showing.tolist(), strict=True))
        assert pairs == {(r, k) for r, n in per_row.items() for k in range(n)}
        shown.update(rows.tolist())
    for row, count in enumerate(counts):
        assert shown[row] / 400 == pytest.approx(count, abs=0.08)


def test_a_row_shown_twice_in_an_epoch_is_asked_other_questions(tmp_path, processor):
    data = write_dataset(tmp_path / "a")
    recipe = recipe_for(data, batch_size=4, questions_per_image=1, epochs=1)
    recipe.train_also, recipe.mix = [str(write_dataset(tmp_path / "b", 4, first=80))], "3:1"
    rows = load_rows(recipe)
    drawer = ExampleDrawer(CATEGORY_QUESTION, Draws.of(recipe))
    batches = list(BatchLoader(rows.train, drawer, processor, recipe, counts=rows.counts).epoch(0))
    seen: dict[str, set] = {}
    for batch in batches:
        for name, prompt in zip(batch.image_ids, batch.inputs["input_ids"].tolist(), strict=True):
            seen.setdefault(name, set()).add(tuple(filter(None, prompt)))
    times = Counter(name for batch in batches for name in batch.image_ids)
    assert {times[f"image{i}"] for i in range(80, 84)} <= {0, 1}
    assert sum(len(prompts) > 1 for prompts in seen.values()) > len(seen) / 3


def test_joined_datasets_keep_what_training_reads(tmp_path):
    real = load_micrographs(write_dataset(tmp_path / "a", 8))
    recipe = recipe_for(tmp_path, train_also=[str(without_answers(tmp_path / "b"))])
    parts = join(real.select(range(4)), recipe, real.select([7]))
    joined = concatenate_datasets(parts)
    assert joined[0]["qa"][0]["answer"] == real[0]["qa"][0]["answer"]
    assert joined[0]["scale_bar"] == real[0]["scale_bar"] and joined[4]["qa"] == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mix": "2:x"}, "mix"),
        ({"mix": "2:1"}, "--train_also"),
        ({"balance": 2.0}, "balance"),
        ({"train_vision": "first:2"}, "train_vision"),
        ({"streaming": True, "balance": 0.5}, "streaming"),
        ({"schedule": "linear"}, "schedule"),
        ({"keep_by": "meteor"}, "keep_by"),
    ],
)
def test_settings_that_cannot_be(settings, named):
    with pytest.raises(ValueError, match=named):
        Recipe("data", "run", **settings)
