"""Where a bar begins and ends, to a fraction of a pixel.

What is special about it:
- an edge is where the grey level is half way between ink and paper, interpolated between pixels.
  Edges of a bar that was drawn on whole pixels are exact, those of a blurred one unbiased;
- a bar with ticks at its ends is measured from the middle of one tick to the middle of the other.
  That is what instruments mean by it: their own pixel sizes say so (`benchmarks/scale_bars.py`).
"""

import numpy as np

# Pixels beside an edge in which ink and paper are looked for.
REACH = 6


def ends_of_bar(profile: np.ndarray, start: int, end: int) -> tuple[float, float] | None:
    """The left and right edge of a run of ink, as coordinates of pixel borders.

    Args:
        profile: ink along the bar (higher is more), averaged over its rows, over the whole width.
        start, end: first pixel of the run and the one after its last.

    Returns:
        The edges, or None where there is no step of ink at one of them.
    """
    left = _edge(profile, start, end)
    mirrored = _edge(profile[::-1], len(profile) - end, len(profile) - start)
    return None if left is None or mirrored is None else (left, len(profile) - mirrored)


def _edge(profile: np.ndarray, start: int, end: int) -> float | None:
    """The border at which ink begins, near the pixel `start`."""
    inside = profile[start : min(end, start + max(3, (end - start) // 3))]
    outside = profile[max(0, start - REACH) : max(0, start - 1)]
    if not len(outside):
        outside = profile[max(0, start - 1) : start]
    if not len(outside):
        return None
    ink, paper = float(np.median(inside)), float(np.median(outside))
    middle = (ink + paper) / 2
    if ink - paper < 8:
        return None
    first = max(0, start - 3)
    for x in range(first, min(len(profile) - 1, start + 3)):
        low, high = profile[x], profile[x + 1]
        if low < middle <= high:
            # Centres of pixels are at x + 1/2.
            return x + 0.5 + float((middle - low) / (high - low))
    return float(start)


def tick_centres(
    ink: np.ndarray, rows: tuple[int, int], start: int, end: int, threshold: float
) -> tuple[float, float] | None:
    """The middles of the upright ticks at both ends of a bar, or None where it has none.

    Args:
        ink: (height, width), higher is more.
        rows: first row of the bar and the one after its last.
        start, end: as for `ends_of_bar`.
        threshold: ink from here on.
    """
    thick, length = rows[1] - rows[0], end - start
    widest = int(max(4, 0.2 * length))
    extents, centres = [], []
    for side, inward in ((start, 1), (end - 1, -1)):
        columns = np.clip([side - inward, side, side + inward, side + 2 * inward], 0, None)
        columns = columns[columns < ink.shape[1]]
        has_ink = ink[:, columns].max(1) >= threshold
        above = _reach(has_ink[: rows[0]][::-1])
        below = _reach(has_ink[rows[1] :])
        extents.append((above, below))
        tick_rows = [*range(rows[0] - above, rows[0]), *range(rows[1], rows[1] + below)]
        # The row next to the bar is blurred into it.
        if thick > 1 or above + below > 4:
            near = {rows[0] - 1, rows[1]}
            tick_rows = [row for row in tick_rows if row not in near] or tick_rows
        if not tick_rows:
            return None
        centres.append(_centre(ink[tick_rows].mean(0), side, inward, widest))
    (above, below), (other_above, other_below) = extents
    least = max(2, thick // 2)
    tall = max(above, below) >= least and max(other_above, other_below) >= least
    # Small ticks, of a row or two, are believed on both sides of both ends.
    tall = tall or min(above, below, other_above, other_below) >= 1
    alike = abs(above - other_above) <= max(2, 0.4 * above) and abs(below - other_below) <= max(
        2, 0.4 * below
    )
    if not (tall and alike) or None in centres:
        return None
    return centres[0], centres[1]


def _reach(has_ink: np.ndarray) -> int:
    """How many entries from the first on are true."""
    return len(has_ink) if has_ink.all() else int(np.argmin(has_ink))


def _centre(profile: np.ndarray, side: int, inward: int, widest: int) -> float | None:
    """The middle of a tick of at most `widest` pixels whose outer pixel is near `side`."""
    low, high = sorted((side - 3 * inward, side + (widest + 3) * inward))
    low, high = max(0, low), min(len(profile), high + 1)
    part = profile[low:high].astype(float)
    part = part - np.median(profile[max(0, low - 4) : high + 4])
    near = slice(max(0, side - 2 - low), side + 3 - low)
    if not len(part[near]) or part[near].max() < 12:
        return None
    peak = int(np.argmax(part[near])) + near.start
    strong = part >= 0.5 * part[peak]
    first, last = peak, peak
    while first > 0 and strong[first - 1]:
        first -= 1
    while last < len(part) - 1 and strong[last + 1]:
        last += 1
    if last - first + 1 > widest:
        return None
    first, last = max(0, first - 1), min(len(part) - 1, last + 1)
    weights = np.clip(part[first : last + 1], 0, None)
    return float(low + 0.5 + (np.arange(first, last + 1) * weights).sum() / weights.sum())
