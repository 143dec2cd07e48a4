"""Category scores against scikit-learn and a calibration error computed naively."""

import json

import numpy as np
import pytest
from sklearn import metrics

from mvaema.evaluation.categories import chance_probabilities, score_categories, score_classes

LABELS = [f"class {i}" for i in range(8)]


def random_case(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    references = rng.integers(0, 7, n)  # class 7 never occurs
    logits = rng.normal(size=(n, 8)) + 1.5 * np.eye(8)[references]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), references


def test_equal_to_scikit_learn():
    probabilities, references = random_case()
    scores = score_classes(probabilities, references, LABELS)
    predicted = probabilities.argmax(axis=1)
    assert scores["top_1"] == metrics.accuracy_score(references, predicted)
    assert scores["top_5"] == metrics.top_k_accuracy_score(
        references, probabilities, k=5, labels=range(8)
    )
    assert (
        scores["confusion_matrix"]
        == metrics.confusion_matrix(references, predicted, labels=range(8)).tolist()
    )
    report = metrics.classification_report(
        references,
        predicted,
        labels=range(8),
        target_names=LABELS,
        output_dict=True,
        zero_division=0,
    )
    for label in LABELS:
        ours, theirs = scores["per_class"][label], report[label]
        assert ours["precision"] == theirs["precision"] and ours["recall"] == theirs["recall"]
        assert ours["f1"] == theirs["f1-score"] and ours["support"] == theirs["support"]
    macro = metrics.precision_recall_fscore_support(
        references, predicted, labels=range(7), average="macro"
    )
    ours = [scores[f"macro_{name}"] for name in ("precision", "recall", "f1")]
    assert ours == pytest.approx(macro[:3])


def test_calibration_error_computed_naively():
    probabilities, references = random_case()
    total = 0.0
    for i in range(15):
        inside = [
            (max(row), row.argmax() == true)
            for row, true in zip(probabilities, references, strict=True)
            if i / 15 < max(row) <= (i + 1) / 15
        ]
        total += abs(sum(hit for _, hit in inside) - sum(confidence for confidence, _ in inside))
    scores = score_classes(probabilities, references, LABELS)
    assert scores["expected_calibration_error"] == pytest.approx(total / len(references))
    assert sum(b["count"] for b in scores["reliability"]) == len(references)


def test_two_classes():
    scores = score_classes([[0.8, 0.2], [0.4, 0.6]], [0, 0], ["a", "b"])
    assert scores["top_1"] == 0.5 and scores["top_5"] == 1


@pytest.mark.parametrize(
    ("probabilities", "references", "message"),
    [
        ([[0.5, 0.5]], [0, 1], r"\(2, 2\); got \(1, 2\)"),
        ([[0.5, 0.5]], [2], "class numbers from 0 to 1"),
        ([[0.5, 0.5]], ["a"], "class numbers"),
        ([[3.0, -1.0]], [0], "apply a softmax"),
        ([[np.nan, 1.0]], [0], "apply a softmax"),
        ([], [], "no micrographs to score"),
    ],
)
def test_bad_input(probabilities, references, message):
    with pytest.raises(ValueError, match=message):
        score_classes(probabilities, references, ["a", "b"])


def make_records(n: int = 60) -> list[dict]:
    probabilities, references = random_case(n)
    return [
        {
            "image_id": str(i),
            "group": str(i // 3),
            "category": LABELS[references[i]],
            "probabilities": dict(zip(LABELS, probabilities[i].tolist(), strict=True)),
        }
        for i in range(n)
    ]


def test_score_categories_leaves_out_what_has_no_right_answer():
    records = make_records()
    expected = score_classes(*random_case(60), LABELS)
    odd = [{**records[0], "image_id": "x", "category": c} for c in (None, "Other")]
    scores = score_categories(records + odd, LABELS)
    assert scores["top_1"] == expected["top_1"] and scores["left_out"] == 2
    low, high = scores["top_1_interval"]
    assert low < scores["top_1"] < high
    json.dumps(scores, allow_nan=False)


def test_standard_errors_shrink_with_more_clusters():
    few, many = (score_categories(make_records(n), LABELS) for n in (60, 600))
    for name in ("precision_std", "recall_std", "f1_std"):
        assert 0 < many["per_class"]["class 0"][name] < few["per_class"]["class 0"][name]
    assert many["per_class"]["class 7"]["recall_std"] is None  # never occurs
    of_one = [{**r, "group": "g"} if r["category"] == "class 0" else r for r in make_records()]
    of_one = score_categories(of_one, LABELS)["per_class"]["class 0"]
    assert of_one["recall_std"] is None and of_one["f1_std"] > 0


def test_categories_of_another_model():
    records = make_records()
    with pytest.raises(ValueError, match="not labels: class 6"):
        score_categories(records, LABELS[:6])
    with pytest.raises(ValueError, match="none of the 60 micrographs has a category"):
        score_categories([{**r, "category": None} for r in records], LABELS)


def test_chance_is_the_most_frequent_category():
    chance = chance_probabilities(["b", "a", "b", None, "Other"], ["a", "b", "c"])
    assert chance == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3), "c": 0}
    with pytest.raises(ValueError, match="no chance level"):
        chance_probabilities([None], ["a"])
