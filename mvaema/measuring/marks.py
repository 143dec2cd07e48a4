"""Scales that are no solid bar: rows of equal ticks or dots, and dashed lines.

What is special about it: a row of ticks is believed only with as many as instruments draw.
Hitachi's scale has 11 ticks around ten intervals; with fewer, part of it is cut off or was missed.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TICKS, MISSING = 11, 2
MIN_DASHES, MAX_MARKS = 4, 1000
# Height of a tick in pixels, at least.
MIN_TICK = 3
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
    ticks, dashes = [], []
    for rows, columns in ndimage.find_objects(labels):
        wide, high = columns.stop - columns.start, rows.stop - rows.start
        box = columns.start, rows.start, columns.stop, rows.stop
        if high >= MIN_TICK and wide <= min(high, max(4, 0.3 * height)) and high <= 1.6 * height:
            ticks.append(box)
        elif 3 <= wide <= 3 * height and wide >= 1.5 * high:
            dashes.append(box)
    for aligned in _levels(ticks, TICKS - MISSING):
        yield from _rows_of_ticks(ink, aligned, height)
    for aligned in _levels(dashes, MIN_DASHES):
        yield from _dashed(ink, aligned)


def _levels(found: list[tuple], least: int) -> Iterator[np.ndarray]:
    """Marks whose upper or lower borders are at one level, from left to right."""
    if len(found) < least:
        return
    boxes = np.array(sorted(found))
    seen = set()
    for side in (1, 3):
        for level in np.unique(boxes[:, side]):
            places = np.flatnonzero(np.abs(boxes[:, side] - level) <= 1)
            if len(places) >= least and (key := places.tobytes()) not in seen:
                seen.add(key)
                yield boxes[places]


def _equal(boxes: np.ndarray, least: int, missing: int) -> Iterator[tuple[np.ndarray, int]]:
    """Runs of marks at equal distances; other marks may lie between them.

    Args:
        boxes: marks from left to right.
        least: of marks in a run.
        missing: marks that may be missing between the first and the last: they lie on a bright
            part of the picture.

    Returns:
        The marks of each run, and how many distances it spans.
    """
    middles = (boxes[:, 0] + boxes[:, 2]) / 2
    order = np.argsort(middles, kind="stable")
    boxes, centres = boxes[order], middles[order].tolist()
    used: set[int] = set()
    for first in range(len(centres) - least + 1):
        for second in range(first + 1, min(first + 4, len(centres))):
            if centres[second] - centres[first] < 3 or first in used:
                continue
            run, place = _followed(centres, first, second, missing)
            if len(run) >= least and place + 1 - len(run) <= missing:
                used.update(run[:-1])
                yield boxes[run], place


def _followed(centres: list[float], first: int, second: int, missing: int) -> tuple[list[int], int]:
    """The marks at equal distances that begin with two of them, and the distances they span."""
    run, place, gaps = [first, second], 1, 0
    while gaps <= missing:
        step = (centres[run[-1]] - centres[first]) / place
        following = centres[run[-1]] + step * (1 + gaps)
        after = bisect_left(centres, following)
        near = [n for n in (after - 1, after) if run[-1] < n < len(centres)]
        nearest = min(near, key=lambda n: abs(centres[n] - following), default=None)
        if nearest is None or abs(centres[nearest] - following) > max(
            SPACING[0], SPACING[1] * step
        ):
            gaps += 1
            continue
        run.append(nearest)
        place += 1 + gaps
        gaps = 0
    return run, place


def _rows_of_ticks(ink: np.ndarray, aligned: np.ndarray, height: float) -> Iterator[Marks]:
    for run, distances in _equal(aligned, TICKS - MISSING, MISSING):
        if distances != TICKS - 1 or not _is_scale(run, height):
            continue
        left, upper, right, lower = run[:, 0].min(), run[:, 1].min(), run[-1, 2], run[:, 3].max()
        ends = []
        for box in (run[0], run[-1]):
            start = max(0, box[0] - 2)
            profile = ink[box[1] : box[3], start : box[2] + 2].mean(0)
            ends.append(start + _middle(profile))
        yield Marks(int(left), int(upper), int(right), int(lower), float(ends[1] - ends[0]), "row")


def _is_scale(run: np.ndarray, height: float) -> bool:
    """Whether a row of ticks is long, of slender ticks, and of equal ones between its ends."""
    wide, high = run[:, 2] - run[:, 0], run[:, 3] - run[:, 1]
    long = run[-1, 2] - run[0, 0] >= MIN_LENGTH * height
    # The middle one may be longer.
    between = np.sort(high[1:-1])[:-1]
    equal = np.ptp(between) <= max(2, 0.25 * between.mean()) and np.ptp(wide) <= max(
        1, 0.5 * wide.mean()
    )
    slender = (high >= 1.3 * wide).mean() >= 0.7
    return bool(long and equal and slender and min(high[0], high[-1]) >= between.mean() - 1.5)


def _middle(profile: np.ndarray) -> float:
    """The middle of a mark across which ink was averaged, in pixels from the profile's border."""
    weights = np.clip(profile - profile.min() - 0.1 * np.ptp(profile), 0, None)
    return float(((np.arange(len(weights)) + 0.5) * weights).sum() / weights.sum())


def _goes_on(ink: np.ndarray, run: np.ndarray) -> bool:
    """Whether there is ink where the next dash would be: then the ends of the line are unknown."""
    rows = slice(run[:, 1].min(), run[:, 3].max())
    profile = ink[rows].mean(0)
    step = (run[-1, 0] - run[0, 0]) / (len(run) - 1)
    level = np.median([profile[left:right].mean() for left, _, right, _ in run])
    between = [profile[a:b].mean() for a, b in zip(run[:-1, 2], run[1:, 0], strict=True)]
    paper = np.median(between)
    for box, side in ((run[0], -1), (run[-1], 1)):
        left, right = round(box[0] + side * step), round(box[2] + side * step)
        beyond = profile[max(0, left) : max(0, right)]
        if len(beyond) and beyond.mean() > (level + paper) / 2:
            return True
    return False


def _dashed(ink: np.ndarray, aligned: np.ndarray) -> Iterator[Marks]:
    for run, _ in _equal(aligned, MIN_DASHES, 0):
        widths = run[:, 2] - run[:, 0]
        heights = run[:, 3] - run[:, 1]
        gaps = run[1:, 0] - run[:-1, 2]
        alike = np.ptp(widths) <= max(1, 0.15 * widths.mean()) and np.ptp(heights) <= 1
        if gaps.min() < 1 or _goes_on(ink, run):
            continue
        if alike and gaps.max() <= 1.5 * widths.mean() and len(run) <= 40:
            left, right = int(run[0, 0]), int(run[-1, 2])
            upper, lower = int(run[:, 1].min()), int(run[:, 3].max())
            yield Marks(left, upper, right, lower, float(right - left), "dashed")
