"""AUROC by counting pairs, its interval by drawing groups, calibration by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mvaema.evaluation.support import auroc, score_support


def by_pairs(scores, good) -> float:
    ups, downs = ([s for s, g in zip(scores, good, strict=True) if g == x] for x in (True, False))
    pairs = [(a, b) for a in ups for b in downs]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    n = 60
    support = rng.random(n).round(1)  # with ties
    good = rng.random(n) < 0.2 + 0.6 * support
    records = [
        {"image_id": f"i{i}", "group": f"g{i % 9}", "question_id": ("basics", "surface")[i % 2]}
        for i in range(n)
    ]
    return records, support.tolist(), good.tolist()


def test_auroc_is_the_share_of_pairs_in_the_right_order(answers):
    records, support, good = answers
    found = score_support(records, support, good)
    assert found["auroc"] == pytest.approx(by_pairs(support, good))
    assert found["auroc"] == pytest.approx(roc_auc_score(good, support))
    for i, question in enumerate(("basics", "surface")):
        expected = by_pairs(support[i::2], good[i::2])
        assert found["by_question"][question]["auroc"] == pytest.approx(expected)
    assert found["low"] < found["auroc"] < found["high"]
    assert (found["n"], found["share"]) == (60, np.mean(good))


def test_weights_count_an_answer_several_times(answers):
    _, support, good = answers
    weights = np.random.default_rng(1).integers(0, 4, (20, 60))
    found = auroc(np.array(support), np.array(good, float), weights)
    for row, area in zip(weights, found, strict=True):
        assert area == pytest.approx(by_pairs(np.repeat(support, row), np.repeat(good, row)))


def test_the_interval_is_that_of_drawing_whole_groups(answers):
    records, support, good = answers
    found, rng = score_support(records, support, good), np.random.default_rng(2)
    groups = np.array([r["group"] for r in records])
    areas = []
    for _ in range(300):
        drawn = np.concatenate(
            [np.flatnonzero(groups == g) for g in rng.choice(np.unique(groups), 9)]
        )
        areas.append(roc_auc_score(np.array(good)[drawn], np.array(support)[drawn]))
    low, high = np.percentile(areas, [2.5, 97.5])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.05)


def test_calibration_by_hand():
    records = [{"image_id": str(i), "question_id": "basics"} for i in range(4)]
    found = score_support(records, [0.9, 0.9, 0.2, 0.2], [True, False, False, False])
    assert found["expected_calibration_error"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert [b["count"] for b in found["reliability"]] == [2, 2]


def test_what_has_no_support_or_is_undefined_is_left_out():
    records = [{"image_id": str(i), "question_id": "basics"} for i in range(4)]
    found = score_support(records, [None, 0.5, 0.25, 0.75], [True, None, False, True])
    assert (found["n"], found["auroc"]) == (2, 1)
    assert score_support(records, [0.1] * 4, [True] * 4) is None
    assert score_support(records, [None] * 4, [True, False, True, False]) is None
