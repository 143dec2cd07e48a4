"""How well micrographs are classified, and how well the probabilities are calibrated.

Precision, recall, F1, the confusion matrix and top-k accuracy are scikit-learn's. The expected
calibration error is that of Guo et al. 2017, "On calibration of modern neural networks", with 15
bins of equal width. `metrics/micrograph_classification` offers the same as a metric of the
`evaluate` library.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mvaema.evaluation.intervals import cluster_bootstrap, mean_intervals


def score_classes(
    probabilities: np.ndarray, references: Sequence[int], labels: Sequence[str], n_bins: int = 15
) -> dict:
    """Scores of `probabilities` (n, classes), rows summing to 1, against `references` (n,).

    Returns:
        `n`, `top_1`, `top_5`; `macro_precision`, `macro_recall`, `macro_f1` over the classes that
        occur in `references`; `per_class`, by label `precision`, `recall`, `f1` (0 where undefined)
        and `support`; `confusion_matrix` (rows: true, columns: predicted, in the order of
        `labels`); `expected_calibration_error`; `reliability`, its non-empty bins, each with
        `count`, mean `confidence` and `accuracy`.

    Raises:
        ValueError: shapes differ, a reference is not a class number, or a row is not a probability
            distribution.
    """
    probabilities, references = np.asarray(probabilities, dtype=float), np.asarray(references)
    _check(probabilities, references, labels)
    classes = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        references, predicted, labels=classes, zero_division=0
    )
    occurring = support > 0
    return {
        "n": len(references),
        "top_1": float(accuracy_score(references, predicted)),
        "top_5": 1.0
        if len(labels) <= 5
        else float(top_k_accuracy_score(references, probabilities, k=5, labels=classes)),
        "macro_precision": float(precision[occurring].mean()),
        "macro_recall": float(recall[occurring].mean()),
        "macro_f1": float(f1[occurring].mean()),
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion_matrix": confusion_matrix(references, predicted, labels=classes).tolist(),
        "labels": list(labels),
        **calibration(probabilities.max(axis=1), predicted == references, n_bins),
    }


def score_categories(
    records: Iterable[dict], labels: Sequence[str], n_resamples: int = 1000, seed: int = 0
) -> dict:
    """Scores of records with `image_id`, `category`, `probabilities` by label, and maybe `group`.

    Micrographs without a category, or with the category `Other`, are left out, since no label is
    right for them. If `Other` is a label, its micrographs count.

    Returns:
        what `score_classes` returns; `left_out`, how many micrographs; `top_1_interval`, the
        clustered bootstrap 95 % interval [low, high] (None with fewer than two clusters); and per
        class `precision_std`, `recall_std` and `f1_std`, bootstrap standard errors (None where all
        micrographs behind a figure are of one cluster).

    Raises:
        ValueError: no micrograph has a category, or one has a category that is not a label.
    """
    records = list(records)
    kept = [r for r in records if r.get("category") in labels]
    unknown = {r.get("category") for r in records} - {None, "Other", *labels}
    if unknown:
        raise ValueError(
            f"the split has categories that are not labels: {', '.join(sorted(unknown))}. The "
            f"labels are {', '.join(labels)}; rename or drop the others."
        )
    if not kept:
        raise ValueError(
            f"none of the {len(records)} micrographs has a category to score; classification "
            "needs the column `category` filled in."
        )
    probabilities = np.array([[r["probabilities"][label] for label in labels] for r in kept])
    references = np.array([labels.index(r["category"]) for r in kept])
    clusters = [r.get("group") or r["image_id"] for r in kept]
    result = score_classes(probabilities, references, labels)
    result["left_out"] = len(records) - len(kept)

    predicted = probabilities.argmax(axis=1)
    hits = (predicted == references).astype(float)
    (interval,) = mean_intervals(hits[:, None], clusters, n_resamples, seed)
    result["top_1_interval"] = list(interval)
    draws = _resampled_matrices(references, predicted, len(labels), clusters, n_resamples, seed)
    for i, label in enumerate(labels):
        result["per_class"][label] |= _standard_errors(draws, i, references, predicted, clusters)
    return result


def _resampled_matrices(
    references: np.ndarray,
    predicted: np.ndarray,
    n_classes: int,
    clusters: Sequence[str],
    n_resamples: int,
    seed: int,
) -> np.ndarray:
    """Bootstrap confusion matrices, scaled to sum to 1: (n_resamples, true, predicted)."""
    # A resampled matrix is a mean of matrices with a single 1.
    cells = np.eye(n_classes**2)[references * n_classes + predicted]
    draws = cluster_bootstrap(cells, clusters, n_resamples, seed)
    return draws.reshape(-1, n_classes, n_classes)


def _standard_errors(
    matrices: np.ndarray,
    i: int,
    references: np.ndarray,
    predicted: np.ndarray,
    clusters: Sequence[str],
) -> dict[str, float | None]:
    """Of precision, recall and F1 of class `i`."""
    hits = matrices[:, i, i]
    true, guessed = matrices[:, i, :].sum(axis=1), matrices[:, :, i].sum(axis=1)
    is_true, is_guessed = references == i, predicted == i
    errors = {}
    for name, denominator, involved in (
        ("precision", guessed, is_guessed),
        ("recall", true, is_true),
        ("f1", (true + guessed) / 2, is_true | is_guessed),
    ):
        drawn = denominator > 0
        values = hits[drawn] / denominator[drawn]
        several = len({clusters[j] for j in np.flatnonzero(involved)}) > 1
        errors[f"{name}_std"] = float(values.std()) if several else None
    return errors


def calibration(confidence: np.ndarray, correct: np.ndarray, n_bins: int = 15) -> dict:
    """How well confidences (n,) agree with how often they are correct (n,).

    Returns:
        `expected_calibration_error`; `reliability`, the non-empty bins, each with `count`, mean
        `confidence` and `accuracy`.
    """
    # Bins are open below and closed above, ((i - 1) / n, i / n], as in Guo et al.
    index = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    bins = [
        {
            "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for inside in (index == i for i in range(n_bins))
        if inside.any()
    ]
    error = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(confidence)
    return {"expected_calibration_error": error, "reliability": bins}


def chance_probabilities(train_categories: Iterable[str | None], labels: Sequence[str]) -> dict:
    """The same guess for every micrograph: each label's frequency in training, by label.

    Scored like a model, it is what a model that looks at the image must beat.

    Raises:
        ValueError: no training micrograph has one of the labels.
    """
    counts = Counter(category for category in train_categories if category in labels)
    if not counts:
        raise ValueError(
            "no training micrograph has a category that the model knows, so there is no chance "
            "level to compare with; fill in the column `category`."
        )
    return {label: counts[label] / counts.total() for label in labels}


def _check(probabilities: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> None:
    if not len(references):
        raise ValueError("there are no micrographs to score.")
    if probabilities.shape != (len(references), len(labels)):
        raise ValueError(
            f"probabilities must have one row per reference and one column per label, shape "
            f"{(len(references), len(labels))}; got {probabilities.shape}."
        )
    if (
        references.dtype.kind not in "iu"
        or not ((references >= 0) & (references < len(labels))).all()
    ):
        raise ValueError(f"references must be class numbers from 0 to {len(labels) - 1}.")
    if not ((probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise ValueError(
            "each row of probabilities must be non-negative and sum to 1; apply a softmax first."
        )
