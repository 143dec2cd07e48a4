"""Blocks of ink: rows in which a run of ink begins and ends together, with paper above and below.

What is special about it: strokes of the print beside a bar are no blocks, but a bar that runs
through its print is one, and so are the two halves of a bar that its print breaks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]

# Length of a bar over its thickness, and thickness over the height of the text.
MIN_ASPECT, MAX_THICK = 1.7, 1.3
# Share of the columns above and below a bar that may be ink.
MAX_BESIDE = 0.25
# Length of a stroke of print as a share of the text's width, at most.
LONG_STROKE = 0.3
# Pixels by which rows of one bar may differ at their ends.
LOOSE = 1


class Run(NamedTuple):
    """Ink in one row, from `start` to before `end`."""

    row: int
    start: int
    end: int
    broken: bool  # by the text


def without_text(mask: np.ndarray, text: Box) -> None:
    """Take the strokes of the text out of the ink, but not a bar that runs through it."""
    left, upper, right, lower = text
    # Readers of print leave a margin, in which a bar beside the text may end.
    margin = round(0.2 * (lower - upper))
    left, right = left + margin, max(left + margin + 1, right - margin)
    part = mask[upper:lower, left:right]
    ink = part.cumsum(1, dtype=np.int32)
    # The length of the run of ink that ends at each pixel.
    runs = ink - np.maximum.accumulate(np.where(part, 0, ink), axis=1)
    part[runs.max(1, initial=0) < LONG_STROKE * (right - left)] = False


def find_blocks(
    mask: np.ndarray, text: Box, lengths: tuple[float, float], thickest: float
) -> Iterator[tuple[int, int, int, int, bool]]:
    """(left, upper, right, lower, broken) of rows of ink that begin and end together."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    rows, columns = np.nonzero(np.diff(padded, axis=1))
    rows, starts, ends = rows[::2], columns[::2], columns[1::2]
    # A picture is full of short runs. They matter only where they may be a bar broken by its text.
    fits = (ends - starts >= lengths[0]) & (ends - starts <= lengths[1])
    fits |= (rows >= text[1]) & (rows < text[3])
    by_row: dict[int, list[Run]] = {}
    for row, start, end in zip(
        rows[fits].tolist(), starts[fits].tolist(), ends[fits].tolist(), strict=True
    ):
        by_row.setdefault(row, []).append(Run(row, start, end, False))
    for row in range(text[1], text[3]):
        joined = _joined(by_row.get(row, []), text)
        if joined:
            by_row[row] = [*by_row[row], joined]
    # counts[r, c] is the ink of row r before column c.
    counts = np.pad(mask, ((0, 0), (1, 0))).cumsum(1, dtype=np.int32)
    open_blocks: list[list[Run]] = []
    for row in range(len(mask) + 1):
        grown = []
        runs = by_row.get(row, [])
        runs = [run for run in runs if lengths[0] <= run.end - run.start <= lengths[1]]
        for block in open_blocks:
            last = block[-1]
            match = next(
                (
                    run
                    for run in runs
                    if abs(run.start - last.start) <= LOOSE
                    and abs(run.end - last.end) <= LOOSE
                    and run.broken == last.broken
                ),
                None,
            )
            if match is None:
                yield from _whole(counts, block, text, thickest)
            else:
                runs.remove(match)
                grown.append([*block, match])
        open_blocks = grown + [[run] for run in runs]


def _joined(runs: list[Run], text: Box) -> Run | None:
    """One run of those to the left and to the right of the text, if the text breaks a bar."""
    reach = 1.2 * (text[3] - text[1])
    slack = 0.4 * (text[3] - text[1])
    lefts = [r for r in runs if -slack <= text[0] - r.end <= reach]
    rights = [r for r in runs if -slack <= r.start - text[2] <= reach]
    if not (lefts and rights):
        return None
    left, right = max(lefts, key=lambda r: r.end), min(rights, key=lambda r: r.start)
    wide, other = left.end - left.start, right.end - right.start
    if min(wide, other) < 4 or max(wide, other) > 1.6 * min(wide, other) + 4:
        return None
    return Run(left.row, left.start, right.end, True)


def _whole(
    counts: np.ndarray, runs: list[Run], text: Box, thickest: float
) -> Iterator[tuple[int, int, int, int, bool]]:
    """The box of a block of rows, if it is long and has paper above and below."""
    middle = runs[len(runs) // 2]
    left, right, broken = middle.start, middle.end, middle.broken
    upper, lower = runs[0].row, runs[-1].row + 1
    thick = lower - upper
    if thick > thickest or right - left < MIN_ASPECT * thick:
        return
    trim = max(1, round(0.12 * (right - left)))
    spans = [(left + trim, right - trim)]
    if broken:
        spans = [(left + trim, text[0] - 2), (text[2] + 2, right - trim)]
    spans = [span for span in spans if span[1] > span[0]]
    wide = sum(end - start for start, end in spans)
    if not wide:
        return
    for beside in ((upper - 1, upper - 2), (lower, lower + 1)):
        ink = [
            sum(int(counts[row, end]) - int(counts[row, start]) for start, end in spans)
            for row in beside
            if 0 <= row < len(counts)
        ]
        if ink and min(ink) > MAX_BESIDE * wide:
            return
    yield left, upper, right, lower, broken
