"""The picture of a training run: its losses and its learning rate."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mvaema.files import write_bytes

INK, STUDENT, MUTED = "#1f2933", "#2f6f9f", "#9aa5b1"
LOSSES = {
    "itc_loss": "Image-text contrastive (ITC)",
    "itm_loss": "Image-text matching (ITM)",
    "lm_loss": "Language modelling (LM)",
}


def loss_curves(log: Sequence[Mapping], file: Path | None = None) -> Figure:
    """The losses in training and validation, and the learning rate, over the epochs.

    The epoch with the lowest validation loss, whose student is kept, is marked.

    Args:
        log: records of `training_log.jsonl`.
        file: PNG to write, if any.

    Raises:
        ValueError: a record lacks a field, or there are no losses.
    """
    for record in log:
        if missing := {"epoch", "learning_rate", "train", "validation"} - record.keys():
            raise ValueError(
                f"a record of the training log has no `{min(missing)}`; it has "
                f"{', '.join(record)}. Is it the training_log.jsonl of a training run?"
            )
    parts = [name for name in LOSSES if log and name in log[0]["validation"]]
    if not parts:
        raise ValueError("the training log has no losses.")
    epochs = [record["epoch"] for record in log]
    best = min(log, key=lambda record: record["validation"]["loss"])

    # The total and the learning rate on the left; its parts, as many as were trained, on the right.
    height = max(2, len(parts))
    left = ["loss"] * (height - 1) + ["learning rate"]
    right = parts + parts[-1:] * (height - len(parts))
    figure = Figure(figsize=(9, 1 + 1.7 * height), layout="constrained")
    panels = figure.subplot_mosaic(list(zip(left, right, strict=True)), sharex=True)
    marker = "o" if len(log) < 20 else None
    for name in ("loss", *parts):
        _draw_loss(panels[name], name, log, best, marker)
    axes = panels["learning rate"]
    rates = [record["learning_rate"] for record in log]
    axes.step(epochs, rates, where="mid", color=INK, marker=marker, ms=3.5, lw=1.5)
    axes.set_ylim(bottom=0)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Learning rate", fontsize=10, loc="left", color=INK)
    for name, axes in panels.items():
        axes.axvline(best["epoch"], color=INK, lw=0.8, ls=":", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name in ("learning rate", parts[-1]):
            axes.set_xlabel("epoch")
    figure.legend(
        [Line2D([], [], color=MUTED, lw=1.8), Line2D([], [], color=STUDENT, lw=1.8, marker="o")],
        ["training", f"validation, lowest in epoch {best['epoch']}"],
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    if file is not None:
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        write_bytes(file, image.getvalue())
    return figure


def _draw_loss(
    axes: Axes, name: str, log: Sequence[Mapping], best: Mapping, marker: str | None
) -> None:
    """One loss in training and validation; its value in the best epoch is written down."""
    epochs = [record["epoch"] for record in log]
    for part, color in (("train", MUTED), ("validation", STUDENT)):
        values = [record[part][name] for record in log]
        axes.plot(epochs, values, color=color, marker=marker, ms=3.5, lw=1.8)
    lowest = best["validation"][name]
    axes.plot(best["epoch"], lowest, "o", color=STUDENT, ms=8, mec="white", mew=1.5)
    axes.annotate(
        f"{lowest:.3f}",
        (best["epoch"], lowest),
        (0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=STUDENT,
        bbox={"color": "white", "pad": 0.5},
    )
    axes.set_title(LOSSES.get(name, "Total loss"), fontsize=10, loc="left", color=INK)
    axes.margins(y=0.14)
