"""Scores, summaries, intervals and comparisons of answer records."""

import json

import numpy as np
import pytest
from scipy import stats

from mvaema.evaluation.intervals import (
    cluster_bootstrap,
    cluster_permutation_p_value,
    mean_intervals,
)
from mvaema.evaluation.records import compare, compare_parts, score_records, summarize


def make_records(n_images: int = 6, prediction: str = "Round grains of about 80 nm.") -> list[dict]:
    return [
        {
            "image_id": f"image{i}",
            "group": f"group{i // 2}",
            "category": ("Powder", "Tips", None)[i % 3],
            "question_id": question,
            "question": f"What about {question}?",
            "reference": f"Round grains of about {20 * (i + 1)} nm lie on a {question}.",
            "prediction": prediction,
        }
        for i in range(n_images)
        for question in ("basics", "surface")
    ]


def scored(**kwargs) -> list[dict]:
    return score_records(make_records(**kwargs), synonyms=False)


def test_summaries_are_means_over_their_answers():
    records = scored()
    summary = summarize(records)
    values = np.array([r["scores"]["rouge_l"] for r in records])
    overall = summary["overall"]
    assert (overall["n"], overall["images"], overall["clusters"], overall["empty"]) == (12, 6, 3, 0)
    assert overall["scores"]["rouge_l"]["mean"] == pytest.approx(values.mean())
    assert overall["scores"]["rouge_l"]["std"] == pytest.approx(values.std())
    assert list(summary["by_question"]) == ["basics", "surface"]
    assert list(summary["by_category"]) == ["Powder", "Tips", "unknown"]
    of_tips = [r["scores"]["bleu_2"] for r in records if r["category"] == "Tips"]
    tips = summary["by_category"]["Tips"]
    assert tips["n"] == 4 and tips["scores"]["bleu_2"]["mean"] == pytest.approx(np.mean(of_tips))
    json.dumps(summary, allow_nan=False)


def test_lengths_are_scored_beside_the_words():
    scores = {r["image_id"]: r["scores"] for r in scored()}
    assert scores["image3"]["length_error"] == 0  # 80 nm
    assert scores["image3"]["length_within_20_percent"] == 1
    assert scores["image0"]["length_error"] == pytest.approx(3)  # 80 nm for 20 nm
    assert scores["image0"]["length_invented"] is None
    silent = scored(prediction="Round grains.")[0]["scores"]
    assert silent["length_stated"] == 0 and silent["length_error"] is None
    assert silent["length_within_20_percent"] == 0
    record = {**make_records()[0], "reference": "No scale bar is visible."}
    (invented,) = score_records([record], synonyms=False)
    assert invented["scores"]["length_invented"] == 1
    assert invented["scores"]["length_within_20_percent"] is None


def test_false_claims_are_scored_beside_the_words():
    records = scored(prediction="Angular grains of about 80 nm.")
    of_20_nm, of_80_nm = (records[2 * i] for i in (0, 3))
    assert (of_20_nm["scores"]["false_claims"], of_80_nm["scores"]["false_claims"]) == (2, 1)
    assert of_80_nm["facts"]["false_claims"] == ["shape: angular (reference: shape: round)"]
    overall = summarize(records)["overall"]
    means = [r["scores"]["false_claims"] for r in records]
    assert overall["scores"]["false_claims"]["mean"] == pytest.approx(np.mean(means))
    assert overall["facts"]["shape"]["false"] == overall["n"]
    assert overall["facts"]["structure"]["fact_precision"] == 1


def test_a_split_without_categories_and_groups():
    records = [
        {k: v for k, v in r.items() if k not in ("category", "group")} for r in make_records()
    ]
    summary = summarize(score_records(records, synonyms=False))
    assert summary["by_category"] == {}
    assert summary["overall"]["clusters"] == 6  # its micrographs


def test_empty_predictions_score_0_and_are_counted():
    summary = summarize(scored(prediction=" "))["overall"]
    assert summary["empty"] == summary["n"]
    assert summary["scores"]["rouge_1"]["mean"] == 0


def test_one_cluster_has_no_interval():
    summary = summarize(scored(n_images=2))["overall"]
    assert summary["scores"]["rouge_l"]["low"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": None}, "record 0 has no `reference`"),
        ({"reference": "  "}, "image 'image0', question 'basics': the reference answer is blank"),
        ({"prediction": None}, "record 0 has no `prediction`"),
        ({"question_id": "surface"}, "image 'image0', question 'surface' occurs more than once"),
    ],
)
def test_bad_records(change, message):
    records = make_records()
    records[0] |= change
    with pytest.raises(ValueError, match=message):
        score_records(records, synonyms=False)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no records"):
        score_records([])
    with pytest.raises(ValueError, match="have no scores; call score_records"):
        summarize(make_records())


def test_bootstrap_agrees_with_scipy_where_answers_are_independent():
    values = np.random.default_rng(0).beta(2, 5, (200, 1))
    ((low, high),) = mean_intervals(values, [str(i) for i in range(200)], n_resamples=5000)
    theirs = stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=0)
    expected = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (low, high) == pytest.approx(expected, abs=0.003)


def test_bootstrap_sees_that_answers_of_a_cluster_agree():
    """Ten equal answers per cluster carry the information of one."""
    means = np.random.default_rng(0).normal(size=(30, 1))
    repeated, clusters = np.repeat(means, 10, axis=0), np.repeat(np.arange(30).astype(str), 10)
    once = cluster_bootstrap(means, np.arange(30).astype(str))
    assert cluster_bootstrap(repeated, clusters) == pytest.approx(once)
    independent = cluster_bootstrap(repeated, np.arange(300).astype(str))
    assert independent.std() < 0.5 * once.std()


def test_missing_values_are_left_out_of_the_means():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    draws = cluster_bootstrap(values, ["a", "b", "c"], n_resamples=50)
    assert set(np.unique(draws[~np.isnan(draws[:, 0]), 0])) <= {1, 1.5, 5 / 3, 2, 7 / 3, 2.5, 3}
    intervals = mean_intervals(values, ["a", "b", "c"], n_resamples=50)
    assert intervals[0] == (1, 3) and intervals[1] == (None, None)


def test_p_value_is_exact_for_few_clusters():
    """All 2**5 sign flips by hand; 10 answers in 5 clusters."""
    differences = np.array([0.3, 0.1, 0.2, 0.4, -0.1, 0.0, 0.5, 0.1, 0.2, -0.1])
    clusters = np.repeat(list("abcde"), 2)
    sums = differences.reshape(5, 2).sum(axis=1)
    flips = 1 - 2 * ((np.arange(32)[:, None] >> np.arange(5)) & 1)
    expected = np.mean(np.abs(flips @ sums) >= abs(sums.sum()) - 1e-12)
    assert cluster_permutation_p_value(differences, clusters) == pytest.approx(expected)


@pytest.mark.slow
def test_compare():
    worse, better = scored(prediction="Wires."), scored()
    comparison = compare(worse, better)
    rouge = comparison["scores"]["rouge_l"]
    assert comparison["n"] == 12 and comparison["clusters"] == 3
    assert rouge["difference"] == pytest.approx(rouge["second"] - rouge["first"])
    assert 0 < rouge["low"] <= rouge["difference"] <= rouge["high"]
    assert rouge["p_value"] == 2 / 2**3  # the smallest three clusters can give
    assert compare(better, list(reversed(better)))["scores"]["rouge_l"]["p_value"] == 1
    json.dumps(comparison, allow_nan=False)


def test_compare_refuses_what_is_not_paired():
    records = scored()
    with pytest.raises(ValueError, match="1 are answered by one side only, such as image 'image0'"):
        compare(records, records[1:])
    other = [{**r, "reference": "Else."} for r in records]
    with pytest.raises(ValueError, match="references differ"):
        compare(records, other)
    renamed = [{**r, "scores": {"meteor": 1.0}} for r in records]
    with pytest.raises(ValueError, match="scored with different metrics"):
        compare(records, renamed)


def test_parts_are_compared_as_their_answers_alone_are():
    records, others = scored(prediction="Wires."), scored()
    parts = compare_parts(records, others[::-1], "rouge_l")
    assert set(parts["by_question"]) == {"basics", "surface"}
    assert set(parts["by_category"]) == {"Powder", "Tips", "unknown"}
    for part, field in (("by_question", "question_id"), ("by_category", "category")):
        for name, comparison in parts[part].items():
            value = None if name == "unknown" else name
            first, second = ([r for r in rs if r[field] == value] for rs in (records, others))
            means = [np.mean([r["scores"]["rouge_l"] for r in rs]) for rs in (first, second)]
            found = comparison["scores"]["rouge_l"]
            assert comparison["n"] == len(first) and list(comparison["scores"]) == ["rouge_l"]
            assert [found["first"], found["second"]] == pytest.approx(means)
            assert found["low"] <= means[1] - means[0] <= found["high"]
    with pytest.raises(ValueError, match="no score 'meteor'"):
        compare_parts(records, others, "meteor")
