"""Scales that are no solid bar: rows of equal ticks or dots, and dashed lines.

What is special about it: a row of ticks is believed only with as many as instruments draw. Hitachi's
scale has 11 ticks around ten intervals; with fewer, part of it is cut off or was missed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TICKS = 11
MIN_DASHES, MAX_MARKS = 4, 1000
# Length of a row of ticks in heights of its text, at least.
MIN_LENGTH = 3.0
# By how much distances of marks may differ, in pixels and as a share of the distance.
SPACING = (1.01, 0.08)


class Marks(NamedTuple):
    """A row of equal marks: its box, its length in pixels, and what kind it is."""

    left: int
    upper: int
    right: int
    lower: int
    pixels: float
    style: str


def find_marks(mask: np.ndarray, ink: np.ndarray, height: float) -> Iterator[Marks]:
    """Rows of equal marks.

    Args:
        mask: (rows, columns), where there is ink.
        ink: of the same shape, higher is more.
        height: of the print beside the scale, in pixels.
    """
    labels, count = ndimage.label(mask)
    if not MIN_DASHES <= count <= MAX_MARKS:
        return
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        wide, high = columns.stop - columns.start, rows.stop - rows.start
        if high <= 1.6 * height and wide <= 3 * height:
            found.append((columns.start, rows.start, columns.stop, rows.stop, label))
    for aligned in _levels(found):
        yield from _rows_of_ticks(ink, aligned, height)
        yield from _dashed(aligned)


def _levels(found: list[tuple]) -> Iterator[np.ndarray]:
    """Marks whose upper or lower borders are at one level, from left to right."""
    boxes = np.array(found).reshape(-1, 5)
    seen = set()
    for side in (1, 3):
        for level in np.unique(boxes[:, side]):
            aligned = boxes[np.abs(boxes[:, side] - level) <= 1]
            if len(aligned) < MIN_DASHES:
                continue
            aligned = aligned[np.argsort(aligned[:, 0])]
            key = tuple(aligned[:, 4])
            if key not in seen:
                seen.add(key)
                yield aligned


def _equal(boxes: np.ndarray, least: int) -> Iterator[np.ndarray]:
    """Runs of marks at equal distances, of at least so many; other marks may lie between them."""
    centres = (boxes[:, 0] + boxes[:, 2]) / 2
    used: set[int] = set()
    for first in range(len(centres) - least + 1):
        for second in range(first + 1, min(first + 4, len(centres))):
            step = centres[second] - centres[first]
            if step < 3 or first in used:
                continue
            run = [first, second]
            while True:
                step = (centres[run[-1]] - centres[first]) / (len(run) - 1)
                following = centres[run[-1]] + step
                nearest = int(np.argmin(np.abs(centres - following)))
                off = abs(centres[nearest] - following)
                if nearest <= run[-1] or off > max(SPACING[0], SPACING[1] * step):
                    break
                run.append(nearest)
            if len(run) >= least:
                used.update(run[:-1])
                yield boxes[run]


def _rows_of_ticks(
    ink: np.ndarray, aligned: np.ndarray, height: float
) -> Iterator[Marks]:
    wide, high = aligned[:, 2] - aligned[:, 0], aligned[:, 3] - aligned[:, 1]
    ticks = aligned[(wide <= np.maximum(3, high)) & (wide <= max(4, 0.3 * height))]
    for run in _equal(ticks, TICKS):
        if len(run) != TICKS or not _is_scale(run, height):
            continue
        left, upper, right, lower = run[:, 0].min(), run[:, 1].min(), run[-1, 2], run[:, 3].max()
        ends = []
        for box in (run[0], run[-1]):
            ends.append(_middle(ink[box[1] : box[3], max(0, box[0] - 2) : box[2] + 2].mean(0)))
            ends[-1] += max(0, box[0] - 2)
        yield Marks(int(left), int(upper), int(right), int(lower), float(ends[1] - ends[0]), "row")


def _is_scale(run: np.ndarray, height: float) -> bool:
    """Whether a row of ticks is long, of slender ticks, and of equal ones between its ends."""
    wide, high = run[:, 2] - run[:, 0], run[:, 3] - run[:, 1]
    long = run[-1, 2] - run[0, 0] >= MIN_LENGTH * height
    between = np.delete(high, [0, TICKS // 2, TICKS - 1])
    equal = np.ptp(between) <= max(1, 0.25 * between.mean()) and np.ptp(wide) <= max(
        1, 0.5 * wide.mean()
    )
    slender = (high >= 1.3 * wide).mean() >= 0.7
    return bool(long and equal and slender and min(high[0], high[-1]) >= between.mean() - 1)


def _middle(profile: np.ndarray) -> float:
    """The middle of a mark across which ink was averaged, in pixels from the profile's border."""
    weights = np.clip(profile - profile.min() - 0.1 * np.ptp(profile), 0, None)
    return float(((np.arange(len(weights)) + 0.5) * weights).sum() / weights.sum())


def _dashed(aligned: np.ndarray) -> Iterator[Marks]:
    wide, high = aligned[:, 2] - aligned[:, 0], aligned[:, 3] - aligned[:, 1]
    dashes = aligned[(wide >= np.maximum(3, 1.5 * high))]
    for run in _equal(dashes, MIN_DASHES):
        widths = run[:, 2] - run[:, 0]
        heights = run[:, 3] - run[:, 1]
        gaps = run[1:, 0] - run[:-1, 2]
        alike = np.ptp(widths) <= max(1, 0.15 * widths.mean()) and np.ptp(heights) <= 1
        if alike and gaps.max() <= 1.5 * widths.mean() and len(run) <= 40:
            left, right = int(run[0, 0]), int(run[-1, 2])
            upper, lower = int(run[:, 1].min()), int(run[:, 3].max())
            yield Marks(left, upper, right, lower, float(right - left), "dashed")
