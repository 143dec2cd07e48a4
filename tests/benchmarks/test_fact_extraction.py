"""The facts of 200 labelled answers are found as well as when they were measured."""

import json

import pytest

from benchmarks.fact_extraction import LABELS, agreement, precision_and_recall


@pytest.mark.parametrize(
    ("half", "precision", "recall"), [("first", 0.986, 0.986), ("second", 0.940, 0.950)]
)
def test_precision_and_recall_do_not_fall(half, precision, recall):
    measured = precision_and_recall(*agreement(half)["all"])
    assert measured[0] >= precision - 5e-4 and measured[1] >= recall - 5e-4


def test_each_half_has_ten_answers_per_question_group():
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    groups = [(row["half"], row["question_id"]) for row in rows]
    assert len(set(groups)) == 20 and all(groups.count(group) == 10 for group in groups)
