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
# What is left of the belief in a bar whose ink is dark where that of its text is bright.
OTHER_INK = 0.5
# A bar that has this share of another's confidence can show that the other is a frame or a part.
STRONG = 0.5
# Most lengths of a millimetre and more that are printed are working distances.
MILLIMETRE = 1e6
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


def pair(line: LengthLine, bright: bool, bars: list[Bar], width: int) -> list[Pair]:
    """The pairs of one length with each bar in its place, the best first.

    Frames around a bar and its text, and parts of a bar, are left out.

    Args:
        line: the length.
        bright: whether its print is brighter than its paper.
        bars: as `find_bars` found them around it.
        width: of the image, in pixels.
    """
    pairs = []
    for bar in bars:
        place = _place(line, bar)
        if place:
            confidence = place * bar.quality * _plausible(line, bar, width)
            confidence *= 1.0 if bar.bright == bright else OTHER_INK
            pairs.append(Pair(line, bar, confidence))
    pairs.sort(key=lambda pair: -pair.confidence)
    kept: list[Pair] = []
    for candidate in pairs:
        strong = [other for other in pairs if other.confidence >= STRONG * candidate.confidence]
        if not any(
            _frames(candidate.bar, other.bar, line) or _part_of(candidate.bar, other.bar)
            for other in strong
        ):
            kept.append(candidate)
    return kept


def _frames(bar: Bar, other: Bar, line: LengthLine) -> bool:
    """Whether what looks like a bar is the border of a box around another bar and the text."""
    begin, end = min(other.box[0], line.box[0]), max(other.box[2], line.box[2])
    wider = bar.box[0] <= other.box[0] - 2 and bar.box[2] >= other.box[2] + 2
    at_border = bar.cut and not other.cut
    return not bar.broken and (
        (wider and bar.box[0] <= begin + 3 and bar.box[2] >= end - 3) or at_border
    )


def _part_of(bar: Bar, other: Bar) -> bool:
    """Whether a bar lies in the rows and columns of a longer one."""
    inside = other.box[0] - 2 <= bar.box[0] and bar.box[2] <= other.box[2] + 2
    level = other.box[1] - 2 <= bar.box[1] and bar.box[3] <= other.box[3] + 2
    shorter = bar.box[2] - bar.box[0] < other.box[2] - other.box[0]
    return inside and level and shorter and (other.broken or other.style in ("row", "dashed"))


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
    core = upper + 0.22 * height <= (top + bottom) / 2 <= lower - 0.22 * height
    stroke = end - begin < 0.35 * (right - left) or bar.style == "dashed"
    if overlap > 0 and core and stroke:
        return 0.0
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
    long = min(1.0, 0.6 + bar.pixels / 40, 0.3 + 0.6 * bar.pixels / line.height)
    lengths = (1.0 if is_round(line.nm) else 0.3) * (1.0 if line.nm < MILLIMETRE else 0.6)
    return lengths * (1.0 if line.sure else 0.75) * usual * long
