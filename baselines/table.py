"""What the runs of a folder came to: tables by the paper's groups, and accuracy against cost.

What is special about it:
- a table has the columns that its rows have figures for, the paper's beside ours;
- with several runs of a row a cell is their mean and, in brackets, their range; with one run the
  brackets hold its 95 % interval over specimens. The two are not the same, and the note says which;
- what failed is listed, and what differs between runs that should be equal is said.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from baselines.registry import all_rows
from baselines.runs import FAILURE, RESULT, SETTINGS
from mvaema.evaluation.figures import MARKERS
from mvaema.evaluation.table import Table, markdown
from mvaema.training.curves import INK, MUTED

# Figures by name, as columns print them; others follow under their own names. Of a blind twin, only
# those named here have a column: `result.json` has them all.
LABELS = {
    "top_1": "Top-1",
    "top_5": "Top-5",
    "macro_f1": "Macro F1",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "blind_top_1": "Blind top-1",
    "bleu_2": "BLEU-2",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "blind_meteor": "Blind METEOR",
    "meteor_no_synonyms": "METEOR without synonyms",
    "blind_meteor_no_synonyms": "Blind METEOR without synonyms",
    "image_gain": "Image gain",
    "own_gain": "Own gain",
    "among_eight": "True answer among eight",
    "false_claims": "False claims",
}
HIDDEN = {"n", "expected_calibration_error"}
BLIND, TYPICAL = "blind_", "typical_"  # before the names of figures that are not the row's own
REFERENCES = "References"
COSTS = {
    "minutes": "training, minutes",
    "gflop": "GFLOP a micrograph",
    "parameters": "parameters",
}


@dataclass(frozen=True)
class Line:
    """All runs of one row.

    Attributes:
        results: as in their files; one at least.
    """

    results: list[dict]

    @property
    def first(self) -> dict:
        return self.results[0]

    def values(self, figure: str) -> list[float]:
        """Of the runs that have it."""
        found = [result["figures"].get(figure) for result in self.results]
        return [value for value in found if value is not None]

    def minutes(self) -> float | None:
        """Mean training time of a run: the processor's on a CPU, else the clock's."""
        times = []
        for result in self.results:
            if result["training"]:
                key = "processor_seconds" if result["device"] == "cpu" else "seconds"
                times.append(sum(phase[key] for phase in result["training"].values()) / 60)
        return sum(times) / len(times) if times else None

    def steps(self) -> list[int]:
        """Of each run, in all phases: how much training the budget allowed."""
        return [
            sum(phase["steps"] for phase in result["training"].values()) for result in self.results
        ]

    def cost(self, name: str) -> float | None:
        """One of `COSTS`."""
        if name == "minutes":
            return self.minutes()
        if name == "gflop":
            return self.first["details"].get("gflop")
        return self.first["parameters"] or None


def read_results(folder: Path) -> tuple[list[Line], list[str]]:
    """The rows of a folder in the order of the tables, and the runs that failed.

    Raises:
        FileNotFoundError: there are none.
    """
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} holds no rows (no {SETTINGS}).")
    by_row: dict[str, list[dict]] = defaultdict(list)
    for file in sorted(folder.glob(f"*/fold-*/seed-*/{RESULT}")):
        result = json.loads(file.read_text(encoding="utf-8"))
        by_row[result["row"]].append(result)
    failed = [
        f"{file.parts[-4]}, {file.parts[-3].replace('-', ' ')}, {file.parts[-2].replace('-', ' ')}"
        for file in sorted(folder.glob(f"*/fold-*/seed-*/{FAILURE}"))
        if not file.with_name(RESULT).is_file()
    ]
    if not by_row:
        hint = f"; {len(failed)} failed" if failed else ""
        raise FileNotFoundError(f"no row in {folder} is finished{hint}.")
    lines = [Line(results) for results in by_row.values()]
    names = list(all_rows())

    def place(line: Line) -> tuple[int, str]:
        name = line.first["row"]
        base = name.partition("@")[0]
        return (names.index(base) if base in names else len(names), name)

    return sorted(lines, key=place), failed


def tables(lines: Sequence[Line], failed: Sequence[str], folder: Path) -> str:
    """All tables as Markdown."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.first["group"], []).append(line)
    references = groups.pop(REFERENCES, [])
    if not groups:
        groups = {REFERENCES: references}
    parts = [_conditions(lines, folder)]
    for group, members in groups.items():
        own = set().union(*(line.first["figures"] for line in members))
        fitting = [line for line in references if own & line.first["figures"].keys()]
        more = [line for line in fitting if line not in members] + _typical_answer(members)
        number = members[0].first["table"]
        title = f"{group} (table {number} of the paper)" if number else group
        parts.append(markdown(_table(title, [*members, *more])))
    if failed:
        parts.append("Failed: " + "; ".join(failed) + ".\n")
    return "\n".join(parts)


def _conditions(lines: Sequence[Line], folder: Path) -> str:
    """What the runs share, and what they do not."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    shown = ", ".join(
        f"{name} {value}" for name, value in settings.items() if value not in (None, [], "")
    )
    results = [result for line in lines for result in line.results]
    machines = " and ".join(sorted({result["machine"] for result in results}))
    threads = " or ".join(map(str, sorted({result["threads"] for result in results})))
    threads += " thread" if threads == "1" else " threads"
    dates = sorted({result["date"] for result in results})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{shown}. {machines}; {threads}; {when}.\n"


def _table(title: str, lines: Sequence[Line]) -> Table:
    names = _figures(lines)
    printed = [name for name in names if any(name in line.first["paper"] for line in lines)]
    header = ["Row"]
    for name in names:
        label = LABELS.get(name, name)
        header += [f"{label}, paper", label] if name in printed else [label]
    header += ["Parameters", "Minutes", "Steps", "GFLOP", "Learning rate", "Starts from", "Remarks"]
    rows = []
    for line in lines:
        first, cells = line.first, [line.first["title"]]
        for name in names:
            if name in printed:
                cells.append(_number(first["paper"].get(name)))
            cells.append(_cell(line, name))
        trained = bool(first["training"])
        cells += [
            f"{first['parameters'] / 1e6:.2f} M" if first["parameters"] else "–",
            _number(line.minutes(), ".1f"),
            _range(line.steps()) if trained else "–",
            _number(first["details"].get("gflop"), ".2f"),
            f"{first['learning_rate']:g}" if trained else "–",
            first["pretrained"] or ("random weights" if trained else "–"),
            _remarks(line),
        ]
        rows.append(cells)
    several = max(len(line.results) for line in lines) > 1
    of_several = "the range over a row's runs; of a row with one run " if several else ""
    note = f"Brackets hold {of_several}the 95 % interval over specimens."
    told = [i for i, column in enumerate(zip(*rows, strict=True)) if set(column) != {"–"}]
    return Table(title, _at(header, told), [_at(row, told) for row in rows], note)


def _at(items: Sequence[str], places: Iterable[int]) -> list[str]:
    return [items[i] for i in places]


def _typical_answer(lines: Iterable[Line]) -> list[Line]:
    """What all rows that answer are scored beside, as a row of its own; it depends on the fold."""
    by_fold: dict[int, dict] = {}
    for result in (result for line in lines for result in line.results):
        figures = result["figures"].items()
        found = {n.removeprefix(TYPICAL): v for n, v in figures if n.startswith(TYPICAL)}
        if found:
            by_fold[result["fold"]] = {
                "title": "Typical answer",
                "note": "of the training micrographs to the same question",
                "figures": found,
                "paper": {},
                "parameters": 0,
                "training": {},
                "details": {},
                "learning_rate": None,
                "pretrained": None,
            }
    return [Line(list(by_fold.values()))] if by_fold else []


def _figures(lines: Iterable[Line]) -> list[str]:
    """Names of the figures that a table shows, in order."""
    found: dict[str, None] = {}
    for line in lines:
        found |= dict.fromkeys([*line.first["figures"], *line.first["paper"]])
    shown = [
        name
        for name in found
        if name in LABELS
        or not (name in HIDDEN or name.endswith("_interval") or name.startswith((BLIND, TYPICAL)))
    ]
    order = list(LABELS)
    return sorted(shown, key=lambda n: order.index(n) if n in LABELS else len(order))


def _cell(line: Line, name: str) -> str:
    values = line.values(name)
    if not values:
        return "–"
    mean = _number(sum(values) / len(values))
    if len(values) > 1:
        return f"{mean} [{_number(min(values))}, {_number(max(values))}]"
    interval = line.first["figures"].get(f"{name}_interval")
    if interval is None or interval[0] is None:
        return mean
    return f"{mean} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else f"{value:z{form}}"  # a blind student gains 0.000, not -0.000


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _remarks(line: Line) -> str:
    """A row's note, how many runs it has, and how its training ended."""
    parts = [line.first["note"]] if line.first["note"] else []
    if len(line.results) > 1:
        parts.append(f"{len(line.results)} runs")
    phases = [phase for result in line.results for phase in result["training"].values()]
    epochs = [phase["epochs"] for phase in phases]
    if any(epochs):
        parts.append(f"{_range(epochs)} epoch{'s' * (max(epochs) > 1)}")
    return "; ".join(parts)


def accuracy_against_cost(lines: Sequence[Line], cost: str) -> Figure:
    """Top-1 of every row that has both, over one of `COSTS` on a logarithmic axis.

    Raises:
        ValueError: no row has both.
    """
    points = [
        (line, line.cost(cost), sum(values) / len(values))
        for line in lines
        if (values := line.values("top_1")) and line.cost(cost)
    ]
    if not points:
        raise ValueError(f"no row has both a top-1 accuracy and {COSTS[cost]}.")
    figure = Figure(figsize=(9, 6), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set_xscale("log")
    groups = list(dict.fromkeys(line.first["group"] for line, _, _ in points))
    for i, group in enumerate(groups):
        of_group = [(x, y) for line, x, y in points if line.first["group"] == group]
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(*zip(*of_group, strict=True), marker, color=f"C{i}", ms=6, label=group)
    for line in lines:
        if line.first["group"] == REFERENCES and line.values("top_1"):
            axes.axhline(line.values("top_1")[0], color=MUTED, lw=1, ls="--")
            axes.annotate(
                line.first["title"],
                (0.995, line.values("top_1")[0]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color=MUTED,
            )
    axes.set_xlabel(f"{COSTS[cost]} (logarithmic)")
    axes.set_ylabel("top-1 accuracy on the test part")
    axes.margins(x=0.12, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    _label(figure, axes, [(line.first["title"], x, y) for line, x, y in points])
    return figure


def _label(figure: Figure, axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points: inside the axes, and where they cover no other name and no point, as far
    as there is room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    places = np.array([axes.transData.transform((x, y)) for _, x, y in points])
    taken: list[tuple[float, float, float, float]] = [
        (x - 5, y - 5, x + 5, y + 5) for x, y in places
    ]
    # Names of references are there already.
    taken += [text.get_window_extent(canvas.get_renderer()).extents for text in axes.texts]
    inside = axes.get_window_extent().extents
    for (name, x, y), (left, low) in sorted(
        zip(points, places, strict=True), key=lambda item: -item[0][2]
    ):
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset pixels",
            fontsize=7,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0},
            in_layout=False,  # the axes stay where the names were placed
        )
        box = text.get_window_extent(canvas.get_renderer())
        width, height = box.width, box.height
        tries = []
        for ring in range(1, 13):
            for step in range(12):
                angle = 2 * math.pi * step / 12
                dx = 9 * ring * math.cos(angle) - (width if math.cos(angle) < -0.1 else 0)
                dy = 9 * ring * math.sin(angle) - height / 2
                rectangle = (left + dx, low + dy, left + dx + width, low + dy + height)
                bad = sum(_covers(rectangle, other) for other in taken)
                bad += width * height - _covers(rectangle, inside)
                tries.append((round(bad), len(tries)))
                tries[-1] += (dx, dy, rectangle)
        _, _, dx, dy, rectangle = min(tries)
        text.set_position((dx, dy))
        taken.append(rectangle)


def _covers(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two rectangles (left, low, right, high) share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
