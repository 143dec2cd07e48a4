"""Rows of a synthetic dataset."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from support import ROOT

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.micrographs.schema import FEATURES, INSTRUMENT_COLUMNS
from mvaema.synthetic.dataset import SyntheticSplit, rows


@pytest.mark.slow
def test_rows_do_not_depend_on_the_workers():
    split = SyntheticSplit(seed=7, size=96)
    here = list(rows(split, 20, workers=0))
    assert list(rows(split, 20, workers=2)) == here
    assert list(rows(split, 20, start=9, workers=0)) == here[9:]
    code = (
        "from mvaema.synthetic.dataset import SyntheticSplit, rows\n"
        "split = SyntheticSplit(seed=7, size=96)\n"
        "print(*[r['image_id'] for r in rows(split, 6, workers=0)])"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert fresh.stdout.split() == [r["image_id"] for r in here[:6]]


def test_rows_have_the_schema_and_groups_are_scenes():
    split = SyntheticSplit(seed=1, size=96)
    made = list(rows(split, 40, workers=0))
    assert len({row["image_id"] for row in made}) == 40
    assert {row["category"] for row in made} == set(CATEGORY_CAPTIONS)
    groups = [row["group"] for row in made]
    assert len(set(groups)) == 20 and groups[0] == groups[1] != groups[2]
    for row in made:
        # No instrument was involved; the technique is the one that is imitated.
        assert set(row) == set(FEATURES) - set(INSTRUMENT_COLUMNS) | {"technique"}
        imaging = next(item["answer"] for item in row["qa"] if item["question_id"] == "imaging")
        named = re.findall(r"STEM|TEM|SEM", imaging)
        assert set(named) == {row["technique"]}
        assert "synthetic" in row["source"] and row["licence"]
        assert [item["question_id"] for item in row["qa"]] == list(QUESTIONS)
    other = rows(replace(split, name="validation"), 40, workers=0)
    assert not {row["group"] for row in other} & set(groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dev"}, "split must be one of train, validation, test; got 'dev'"),
        ({"views": 0}, "views must be at least 1; got 0"),
        ({"difficulty": (0.5, 2)}, "difficulty must be a range within 0 to 1"),
        ({"categories": ("Cats",)}, "categories must be some of .* got Cats"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_the_first_row(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSplit(**settings)


def test_a_negative_count_is_refused_before_the_first_row():
    with pytest.raises(ValueError, match="must not be negative"):
        rows(SyntheticSplit(), -1)


@pytest.mark.slow
def test_no_two_of_many_images_are_the_same():
    made = [row["image_id"] for row in rows(SyntheticSplit(seed=5, size=96), 3000)]
    assert len(set(made)) == 3000
