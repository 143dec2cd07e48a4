"""Support: does the matching head's probability that an answer fits say whether it is good?

What is special about it:
- what is predicted is any yes or no about an answer, such as "its METEOR is above that of the
  typical answer to the same question";
- AUROC is the probability that a good answer has more support than a bad one. 0.5 is chance;
- its interval resamples whole groups (`mvaema/evaluation/intervals.py`).
"""

from collections.abc import Sequence

import numpy as np

from mvaema.evaluation.categories import calibration
from mvaema.evaluation.intervals import cluster_weights
from mvaema.evaluation.questions import Record, cluster_of


def score_support(
    records: Sequence[Record], support: Sequence[float | None], good: Sequence[bool | None]
) -> dict | None:
    """How well `support` predicts `good`.

    Args:
        records: n records, for their groups and question groups.
        support: ITM probabilities (n,); None for an empty answer, which is left out.
        good: (n,); None where undefined, which is left out.

    Returns:
        `n`, `share` of good answers, mean `support`; `auroc` with its 95 % interval `low`, `high`
        (None with fewer than two groups); `by_question`, the same three by question group;
        `expected_calibration_error` and `reliability` of the support as a probability of good. None
        where no answer is left, or all are alike.
    """
    kept = [
        (record, s, g)
        for record, s, g in zip(records, support, good, strict=True)
        if s is not None and g is not None
    ]
    if len({g for _, _, g in kept}) < 2:
        return None
    values, targets = (np.array([k[i] for k in kept], dtype=float) for i in (1, 2))
    questions = np.array([r["question_id"] for r, _, _ in kept])
    clusters = np.array([cluster_of(r) for r, _, _ in kept])
    by_question = {}
    for question in dict.fromkeys(questions.tolist()):
        asked = questions == question
        if len(set(targets[asked])) == 2:
            by_question[question] = _auroc(values[asked], targets[asked], clusters[asked])
    return {
        "n": len(kept),
        "share": float(targets.mean()),
        "support": float(values.mean()),
        **_auroc(values, targets, clusters),
        "by_question": by_question,
        **calibration(values, targets),
    }


def auroc(scores: np.ndarray, good: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for each row of weights; equal scores count half.

    Args:
        scores: (n,).
        good: (n,), 0 or 1.
        weights: (m, n), how often each answer counts.

    Returns:
        (m,), NaN where only good or only bad answers count.
    """
    _, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    weights = weights[:, order].astype(float)
    ups, downs = (
        np.add.reduceat(weights * of_kind[order], starts, axis=1) for of_kind in (good, 1 - good)
    )
    below = downs.cumsum(axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))


def _auroc(values: np.ndarray, targets: np.ndarray, clusters: np.ndarray) -> dict:
    low = high = None
    if len(set(clusters)) > 1:
        draws = auroc(values, targets, cluster_weights(clusters))
        low, high = np.nanpercentile(draws, [2.5, 97.5]).tolist()
    (area,) = auroc(values, targets, np.ones((1, len(values))))
    return {"auroc": float(area), "low": low, "high": high}
