"""Scale bars near a line of print: found in the pixels, and measured to half a pixel.

What is special about it:
- it looks for what is drawn, not for a colour: a run of rows of one level that begins and ends
  together, has paper above and below, and is the same at many thresholds. So bars are black, white
  or coloured, on a strip or on the picture, with ticks, dashed, dotted, or broken by their text;
- a picture also has straight bright lines. A bar is drawn of one level and ends abruptly;
- a bar that touches the left or right border of the image is cut off: it is told as such.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mvaema.measuring.edges import ends_of_bar, tick_centres
from mvaema.measuring.marks import find_marks
from mvaema.measuring.runs import MAX_THICK, find_blocks, without_text

Box = tuple[int, int, int, int]

# Grey levels at which ink is told from paper.
THRESHOLDS = tuple(range(30, 250, 16))
# And at which of them rows of marks are looked for.
MARKS = THRESHOLDS[2::2]
# At so many of them a bar is found alike. A picture's lines change with the threshold.
MIN_VOTES = 2
# Where a bar may be, seen from its text: columns as a share of the image, rows in heights of text.
COLUMNS, ROWS = 0.62, 1.6
# Shortest bar in pixels and in heights of its text, and longest as a share of the image's width.
MIN_PIXELS, MIN_HEIGHTS, MAX_SHARE = 5, 0.4, 0.95
# Spread of levels along a bar, in grey levels, and contrast to its paper.
MAX_SPREAD, MIN_CONTRAST = 22, 24
# A colour differs by this much between channels.
COLOURED = 40


@dataclass(frozen=True)
class Bar:
    """A scale bar.

    Attributes:
        box: (left, upper, right, lower) in pixels.
        pixels: its length, from middle to middle of its ticks, or from edge to edge without ticks.
        style: `line`, `ticks`, `row` (of equal ticks) or `dashed`.
        bright: whether it is brighter than its paper (in one colour at least).
        broken: whether its text is in its middle.
        cut: whether it touches the left or right border of the image.
        quality: 0 to 1: how much it looks drawn.
    """

    box: Box
    pixels: float
    style: str
    bright: bool
    broken: bool
    cut: bool
    quality: float


def find_bars(image: Image.Image, text: Box, print_boxes: list[Box] = ()) -> list[Bar]:
    """The bars in the neighbourhood of a line of print, the best first.

    Args:
        image: 8-bit, at its full size.
        text: box of the print, in pixels.
        print_boxes: boxes of all other print, in which no bar is looked for.
    """
    return _distinct(
        [
            bar
            for ink, bright, window in _planes(image, text)
            for bar in _bars(ink, bright, window, text, print_boxes, image.size)
        ]
    )


def _planes(image: Image.Image, text: Box) -> Iterator[tuple[np.ndarray, bool, Box]]:
    """Ink in the window around the text, whether bright pixels are ink, and the window."""
    height = text[3] - text[1]
    reach, rows = round(COLUMNS * image.width), round(ROWS * height) + 4
    window = (
        max(0, text[0] - reach),
        max(0, text[1] - rows),
        min(image.width, text[2] + reach),
        min(image.height, text[3] + rows),
    )
    crop = image.crop(window)
    colours = np.asarray(crop.convert("RGB")).astype(np.int16)
    planes = [np.asarray(crop.convert("L")).astype(np.int16)]
    if np.ptp(colours, axis=2).max() > COLOURED:
        planes += [colours[:, :, channel] for channel in range(3)]
    for plane in planes:
        yield plane, True, window
        yield 255 - plane, False, window


def _bars(
    ink: np.ndarray,
    bright: bool,
    window: Box,
    text: Box,
    print_boxes: list[Box],
    size: tuple[int, int],
) -> Iterator[Bar]:
    inner = (text[0] - window[0], text[1] - window[1], text[2] - window[0], text[3] - window[1])
    height = text[3] - text[1]
    free = np.ones(ink.shape, bool)
    for box in print_boxes:
        shrink = (box[3] - box[1]) // 6
        left, right = (np.clip(box[i] - window[0], 0, ink.shape[1]) for i in (0, 2))
        upper, lower = (np.clip(box[i] - window[1], 0, ink.shape[0]) for i in (1, 3))
        free[upper + shrink : max(upper, lower - shrink), left:right] = False

    groups: list[list] = []
    for threshold in THRESHOLDS:
        mask = (ink >= threshold) & free
        if not mask.any():
            break
        without_text(mask, inner)
        lengths = max(MIN_PIXELS, MIN_HEIGHTS * height), MAX_SHARE * size[0]
        for block in find_blocks(mask, inner, lengths, MAX_THICK * height):
            for group in groups:
                if _alike(group[0][1], block):
                    group.append((threshold, block))
                    break
            else:
                groups.append([(threshold, block)])
        for marks in find_marks(mask, ink, height) if threshold in MARKS else ():
            yield replace(_bar_of_marks(ink, marks, window, size), bright=bright)
    shown = [group for group in groups if len(group) >= MIN_VOTES]
    for group in shown:
        if any(_is_dash_beside(group[0][1], other[0][1], inner) for other in shown):
            continue
        # The most common of its forms, at the middle of the thresholds that show it.
        block = Counter(block for _, block in group).most_common(1)[0][0]
        same = [threshold for threshold, other in group if other == block]
        threshold = same[len(same) // 2]
        bar = _measured(ink, block, threshold, inner, window, size)
        if bar is not None:
            votes = min(1.0, len(group) / 5)
            quality = bar.quality * (0.5 + 0.5 * votes)
            yield replace(bar, bright=bright, quality=quality)


def _is_dash_beside(block, other, text: Box) -> bool:
    """Whether two blocks are dashes of one line, or the halves of a bar that its text breaks."""
    long, other_long = block[2] - block[0], other[2] - other[0]
    gap = max(block[0] - other[2], other[0] - block[2])
    level = block[1] < other[3] and other[1] < block[3]
    equal = abs(long - other_long) <= max(2, 0.2 * long)
    # The text between two halves may be wider than they are.
    beside_text = text[1] <= block[1] and block[3] <= text[3]
    most = max(1.6 * long, 1.2 * (text[2] - text[0]) if beside_text else 0)
    near = 1 < gap <= most
    return level and equal and not block[4] and not other[4] and near


def _alike(block, other) -> bool:
    """Whether two blocks are one bar at two thresholds."""
    slack = 2 + 0.02 * (block[2] - block[0])
    return (
        block[4] == other[4]
        and abs(block[0] - other[0]) <= slack
        and abs(block[2] - other[2]) <= slack
        and block[1] <= other[3]
        and other[1] <= block[3]
    )


def _measured(
    ink: np.ndarray, block, threshold: int, text: Box, window: Box, size: tuple[int, int]
) -> Bar | None:
    """A block as a bar with its length and quality, or None if it is not drawn."""
    left, upper, right, lower, broken = block
    columns = np.arange(left, right)
    if broken:
        columns = columns[(columns < text[0] - 1) | (columns > text[2])]
    # The rows that are full of ink: the outer ones may be blur.
    if not len(columns):
        return None
    means = ink[upper:lower, columns].mean(1)
    highest = means.max()
    core = upper + np.flatnonzero(means >= highest - 0.3 * max(0.0, highest - threshold) - 2)
    profile = ink[core].mean(0)
    inner = profile[columns][2:-2] if len(columns) > 8 else profile[columns][1:-1]
    if not len(inner):
        return None
    beside = [ink[row, columns] for row in (upper - 2, lower + 1) if 0 <= row < len(ink)]
    if not beside:
        return None
    level = float(np.median(inner))
    spread = float(np.subtract(*np.percentile(inner, (90, 10)))) / 2
    contrast = level - float(np.median([np.median(row) for row in beside]))
    clear = float(np.mean([np.mean(profile[columns] - row > 0.3 * contrast) for row in beside]))
    if spread > MAX_SPREAD or contrast < MIN_CONTRAST or clear < 0.6:
        return None
    cut = (left + window[0] <= 0) or (right + window[0] >= size[0])
    ends = ends_of_bar(profile, left, right)
    ticks = None if cut else tick_centres(ink, (upper, lower), left, right, threshold)
    if ends is None and ticks is None:
        if not cut:
            return None
        ends = float(left), float(right)
    begin, end = ticks or ends
    if end - begin < MIN_PIXELS:
        return None
    sharp = _sharp(profile, left, right, level)
    quality = min(1.0, contrast / 60) * (1 - spread / (2 * MAX_SPREAD)) * clear * sharp
    box = (left + window[0], upper + window[1], right + window[0], lower + window[1])
    return Bar(box, end - begin, "ticks" if ticks else "line", True, broken, cut, max(0.0, quality))


def _sharp(profile: np.ndarray, left: int, right: int, level: float) -> float:
    """1 if both ends of a bar are steps within three pixels, less if they fade."""
    shares = []
    for side, outward in ((left, -1), (right - 1, 1)):
        outside = side + 3 * outward
        if not 0 <= outside < len(profile):
            shares.append(1.0)
            continue
        inside = profile[np.clip(side - 2 * outward, 0, len(profile) - 1)]
        drop = inside - profile[outside]
        further = profile[np.clip(side + 6 * outward, 0, len(profile) - 1)]
        whole = max(inside - further, drop, 1.0)
        shares.append(float(np.clip(drop / whole, 0, 1)) if drop > 0.15 * level else 0.2)
    return float(min(shares))


def _bar_of_marks(ink: np.ndarray, marks, window: Box, size: tuple[int, int]) -> Bar:
    box = (
        marks.left + window[0],
        marks.upper + window[1],
        marks.right + window[0],
        marks.lower + window[1],
    )
    inside = ink[marks.upper : marks.lower, marks.left : marks.right]
    contrast = float(np.percentile(inside, 95) - np.percentile(inside, 20))
    pixels = marks.pixels
    if marks.style == "dashed":
        ends = ends_of_bar(ink[marks.upper : marks.lower].mean(0), marks.left, marks.right)
        pixels = ends[1] - ends[0] if ends else pixels
    cut = box[0] <= 0 or box[2] >= size[0]
    quality = min(1.0, contrast / 60) * (0.9 if marks.style == "row" else 0.7)
    return Bar(box, pixels, marks.style, True, False, cut, quality)


def is_bright(image: Image.Image, text: Box) -> bool:
    """Whether print is brighter than its paper: ink is the lesser part of its box."""
    grey = np.asarray(image.crop(text).convert("L")).astype(float)
    low, middle, high = np.percentile(grey, (3, 50, 97))
    return bool(high - middle > middle - low)


def _distinct(bars: list[Bar]) -> list[Bar]:
    """The bars without worse finds of the same one, the best first."""
    kept: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: -bar.quality):
        if not any(_same(bar, other) for other in kept):
            kept.append(bar)
    return kept


def _same(bar: Bar, other: Bar) -> bool:
    slack = 3 + 0.03 * (other.box[2] - other.box[0])
    return (
        abs(bar.box[0] - other.box[0]) <= slack
        and abs(bar.box[2] - other.box[2]) <= slack
        and bar.box[1] <= other.box[3] + 2
        and other.box[1] <= bar.box[3] + 2
    )
