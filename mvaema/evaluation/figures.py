"""Figures to pictures: scores per question, confusion matrix, reliability."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvaema.training.curves import INK, MUTED, STUDENT

MARKERS = "Dos^vPX"


def question_bars(answers: Mapping[str, dict], metric: str, label: str) -> Figure:
    """The student's mean per question group with its interval; everyone else's mean as a mark.

    Args:
        answers: name to summary (`mvaema.evaluation.records.summarize`), the student first.
        metric: its name, and its `label` in print.
    """
    (student, summary), *others = answers.items()
    scores = {q: s["scores"][metric] for q, s in summary["by_question"].items()}
    y = np.arange(len(scores))
    means = np.array([s["mean"] for s in scores.values()])
    figure = Figure(figsize=(7, 1.4 + 0.36 * len(scores)), layout="constrained")
    axes = figure.subplots()
    axes.barh(y, means, color=STUDENT, height=0.62, label=student)
    if all(s["low"] is not None for s in scores.values()):
        low, high = (np.array([s[end] for s in scores.values()]) for end in ("low", "high"))
        axes.errorbar(
            means, y, xerr=[means - low, high - means], fmt="none", ecolor=INK, capsize=2, lw=1
        )
    for i, (name, other) in enumerate(others):
        points = [
            other["by_question"].get(q, {"scores": {}})["scores"].get(metric, {}).get("mean")
            for q in scores
        ]
        x = np.array(points, dtype=float)
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(x, y, marker, color=f"C{i + 1}", ms=8, mec="white", mew=1, label=name)
    axes.set_yticks(y, list(scores))
    axes.invert_yaxis()
    axes.set_xlabel(f"{label}, mean and 95 % interval")
    axes.set_xlim(left=None if axes.dataLim.x0 < 0 else 0)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(name) for name in answers]  # matplotlib puts bars last
    figure.legend(
        [handles[i] for i in order],
        list(answers),
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure


def confusion_matrix(scores: Mapping, title: str) -> Figure:
    """Counts of true and predicted classes, coloured by the share of the true class.

    Args:
        scores: what `mvaema.evaluation.categories.score_classes` returns.
    """
    counts = np.array(scores["confusion_matrix"])
    labels = [label.replace("_", " ") for label in scores["labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.6 + 0.48 * len(labels)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def reliability_diagram(
    scores: Mapping, title: str, share: str = "accuracy", counted: str = "micrographs"
) -> Figure:
    """Accuracy against confidence per bin (Guo et al. 2017), and how many micrographs each has.

    Args:
        share: what accuracy is called here.
        counted: what there are so many of.
    """
    confidence, accuracy, count = (
        np.array([b[name] for b in scores["reliability"]])
        for name in ("confidence", "accuracy", "count")
    )
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color=MUTED, lw=1, label="perfectly calibrated")
    upper.plot(confidence, accuracy, "o-", color=STUDENT, ms=5, lw=1.5)
    upper.vlines(confidence, accuracy, confidence, color=STUDENT, alpha=0.35, lw=4)
    upper.set_ylabel(share)
    upper.set_ylim(0, 1)
    upper.set_title(f"{title}, ECE {scores['expected_calibration_error']:.3f}", fontsize=11)
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.bar(confidence, count, width=0.04, color=STUDENT)
    lower.set_ylabel(counted)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_xlabel("confidence")
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
