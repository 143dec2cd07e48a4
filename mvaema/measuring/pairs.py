"""Which bar belongs to which printed length.

What is special about it:
- a bar is above, below, beside or around its text, and close to it. What is further away is not
  its bar, however much it looks like one;
- the more a pair looks as instruments and people draw it (a round length, a text in the middle of
  its bar, a bar between 4 and 60 % of the width), the more it is believed.
"""

from dataclasses import dataclass

from mvaema.measuring.bars import Bar
from mvaema.measuring.lengths import is_round
from mvaema.measuring.text import LengthLine

# How far a bar may be from its text, in heights of the text: above or below, and beside.
GAP, SIDE_GAP = 1.3, 6.0
# Shares of the width that bars usually have.
USUAL = (0.04, 0.6)


@dataclass(frozen=True)
class Pair:
    """A length and a bar, and how much they look like a scale bar (0 to 1)."""

    line: LengthLine
    bar: Bar
    confidence: float

    @property
    def pixel_size_nm(self) -> float:
        """Length of one pixel."""
        return self.line.nm / self.bar.pixels


def pair(line: LengthLine, bars: list[Bar], width: int) -> list[Pair]:
    """The pairs of one length with each bar in its place, the best first.

    Args:
        line: the length.
        bars: as `find_bars` found them around it.
        width: of the image, in pixels.
    """
    pairs = []
    for bar in bars:
        place = _place(line, bar)
        if place:
            confidence = place * bar.quality * _plausible(line, bar, width)
            pairs.append(Pair(line, bar, confidence))
    return sorted(pairs, key=lambda pair: -pair.confidence)


def _place(line: LengthLine, bar: Bar) -> float:
    """How well a bar lies to its text, 0 to 1."""
    left, upper, right, lower = line.box
    begin, top, end, bottom = bar.box
    height, middle = line.height, (left + right) / 2
    if bar.broken:
        off = abs((begin + end) / 2 - middle)
        return 1.0 if off <= 0.15 * (end - begin) + height else 0.5
    overlap = min(right, end) - max(left, begin)
    gap = max(top - lower, upper - bottom)
    if overlap > 0 and gap > -0.45 * height:
        if gap > GAP * height:
            return 0.0
        # In the middle of each other, or flush at one end.
        flush = min(abs(left - begin), abs(right - end), abs((begin + end) / 2 - middle))
        near = 1.0 - 0.35 * max(0.0, gap / height) / GAP
        shared = overlap / min(right - left, end - begin)
        return near * (1.0 if flush <= 0.8 * height else 0.8) * (0.6 + 0.4 * shared)
    level = abs((top + bottom) / 2 - (upper + lower) / 2)
    side = max(begin - right, left - end)
    if -0.5 * height <= side <= SIDE_GAP * height and level <= 0.7 * height:
        return (1.0 - 0.4 * max(0.0, side) / (SIDE_GAP * height)) * (
            0.95 if level <= 0.45 * height else 0.7
        )
    # Hitachi prints the length below the end of a longer row of ticks.
    if bar.style == "row" and 0 <= gap <= GAP * height and side <= height:
        return 0.9
    return 0.0


def _plausible(line: LengthLine, bar: Bar, width: int) -> float:
    """Whether such lengths and bars are used, 0 to 1."""
    share = bar.pixels / width
    usual = 1.0 if USUAL[0] <= share <= USUAL[1] else 0.8 if 0.012 <= share <= 0.8 else 0.3
    long = min(1.0, 0.6 + bar.pixels / 40)
    return (1.0 if is_round(line.nm) else 0.45) * (1.0 if line.sure else 0.75) * usual * long
