"""The print in a micrograph, found and read by RapidOCR (extra `measuring`).

What is special about it:
- it is offline: the models are inside the package;
- print in published micrographs is 8 to 14 pixels high, too small for readers of print. An image
  is enlarged before it is read, and its parts are enlarged further where nothing was found;
- what was read is read again from the enlarged print alone, in both polarities.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from lengths_mvaema import normal_text
from mvaema.measuring.lengths import (
    PrintedLength,
    is_bare_unit,
    is_reciprocal,
    printed_length,
)

Box = tuple[int, int, int, int]

# Longest side, in pixels, of what the text detector looks at, and of what is given to it.
DETECTED_SIDE = 800
READ_SIDE = 1024
# Height of print, in pixels, that the recogniser was trained on.
LINE_HEIGHT = 48
# Height of a line of print as a share of the box that was read, at least.
MIN_BAND = 0.35
# Parts of an image, as shares of its width and height, in which print is looked for again.
PARTS = ((0.0, 0.6, 0.55, 1.0), (0.45, 0.6, 1.0, 1.0))


class MissingExtra(ModuleNotFoundError):
    """The packages of the extra `measuring` are not installed."""


@dataclass(frozen=True)
class Line:
    """A line of print: its text, how sure the reader is (0 to 1), and its box in pixels."""

    text: str
    score: float
    box: Box

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.box[3] - self.box[1]


@dataclass(frozen=True)
class LengthLine:
    """The part of a line that states a length: the text as printed, its length and its box."""

    text: str
    nm: float
    sure: bool
    score: float
    box: Box

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.box[3] - self.box[1]


def read_lines(image: Image.Image) -> list[Line]:
    """All print that is found in an image at once.

    Args:
        image: 8-bit, of any size.

    Raises:
        MissingExtra: RapidOCR is not installed.
    """
    lines = _joined(_read(image, (0, 0), _scale(image.size)))
    return _completed(image, lines)


def read_parts(image: Image.Image) -> Iterator[list[Line]]:
    """The print in the parts of an image where scale bars are, at a larger scale; see `PARTS`."""
    width, height = image.size
    for left, upper, right, lower in PARTS:
        box = (int(left * width), int(upper * height), int(right * width), int(lower * height))
        if box[2] - box[0] >= 16 and box[3] - box[1] >= 16:
            part = image.crop(box)
            yield _completed(image, _joined(_read(part, box[:2], _scale(part.size, 4.0))))


def read_again(
    image: Image.Image, line: Line | LengthLine, first: int = 0
) -> list[tuple[str, float]]:
    """What the print in a box reads as, as it is and with ink and paper exchanged, enlarged.

    Args:
        image: that the line was read from.
        line: whose box is read.
        first: column before which nothing is read.

    Returns:
        (text, score) of each reading.
    """
    left, upper, right, lower = line.box
    pad = max(2, line.height // 5)
    box = (left - 2 * pad, upper - pad, right + 2 * pad, lower + pad)
    box = (max(first, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
    if box[2] - box[0] < 4:
        return []
    crop = image.convert("L").crop(box)
    scale = LINE_HEIGHT / crop.height
    size = max(8, round(crop.width * scale)), LINE_HEIGHT
    crop = ImageOps.autocontrast(crop.resize(size, Image.Resampling.BICUBIC))
    readings = []
    for picture in (crop, ImageOps.invert(crop)):
        result = _engine()(_pixels(picture), use_det=False, use_rec=True)
        if result.txts:
            readings.append((normal_text(result.txts[0]), float(result.scores[0])))
    return readings


def tightened(image: Image.Image, line: LengthLine) -> LengthLine:
    """The line with the rows of its own print, where the box that was read also holds a bar."""
    left, upper, right, lower = line.box
    grey = np.asarray(image.convert("L").crop(line.box)).astype(np.int16)
    if min(grey.shape) < 6:
        return line
    middle = np.median(grey)
    low, high = np.percentile(grey, (3, 97))
    bright = high - middle > middle - low
    inked = grey > 0.4 * middle + 0.6 * high if bright else grey < 0.4 * middle + 0.6 * low
    edges = np.flatnonzero(np.diff(np.pad(inked.any(1), 1).astype(np.int8)))
    bands = sorted(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True), key=_extent)
    # Print is taller than a bar, but a letter's accent or tail is no bar.
    if len(bands) < 2 or _extent(bands[-1]) < MIN_BAND * line.height:
        return line
    first, last = bands[-1]
    pad = max(1, round(0.15 * (last - first)))
    box = (left, max(upper, upper + first - pad), right, min(lower, upper + last + pad))
    return LengthLine(line.text, line.nm, line.sure, line.score, box)


def _extent(band: tuple[int, int]) -> int:
    return band[1] - band[0]


def lengths_in(lines: list[Line]) -> list[LengthLine]:
    """The lengths that lines of print state, each with the box of its own characters."""
    found = []
    for line in lines:
        stated = printed_length(line.text)
        if stated is not None:
            found.append(_length_line(line, stated))
    return found


def has_reciprocal(lines: list[Line]) -> bool:
    """Whether print states a reciprocal length: the image is a diffraction pattern."""
    return any(is_reciprocal(line.text) for line in lines)


def _length_line(line: Line, stated: PrintedLength) -> LengthLine:
    left, upper, right, lower = line.box
    step = (right - left) / max(1, len(line.text))
    box = (round(left + stated.start * step), upper, round(left + stated.end * step), lower)
    return LengthLine(line.text[stated.start : stated.end], stated.nm, stated.sure, line.score, box)


def _scale(size: tuple[int, int], most: float = 2.0) -> float:
    """By how much to enlarge an image before it is read."""
    return min(most, READ_SIDE / max(size))


def _read(image: Image.Image, offset: tuple[int, int], scale: float) -> list[Line]:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = image.convert("L").resize(size, Image.Resampling.BICUBIC)
    result = _engine()(_pixels(picture), use_det=True, use_rec=True)
    lines = []
    for text, score, corners in zip(
        result.txts or (), result.scores or (), result.boxes if result.txts else (), strict=True
    ):
        corners = np.asarray(corners) / scale
        left, upper = np.floor(corners.min(0)).astype(int) + offset
        right, lower = np.ceil(corners.max(0)).astype(int) + offset
        if normal_text(text):
            box = (int(left), int(upper), int(right), int(lower))
            lines.append(Line(normal_text(text), float(score), box))
    return lines


def _joined(lines: list[Line]) -> list[Line]:
    """The lines, and in front of them pairs of neighbours that only together state a length."""
    pairs = []
    for first in lines:
        for second in lines:
            height = max(first.height, second.height)
            gap = second.box[0] - first.box[2]
            level = abs(first.box[1] + first.box[3] - second.box[1] - second.box[3]) / 2
            if first is second or not -height / 2 < gap < 1.2 * height or level > 0.4 * height:
                continue
            if printed_length(first.text) or printed_length(second.text):
                continue
            text = normal_text(f"{first.text} {second.text}")
            if printed_length(text):
                box = (
                    first.box[0],
                    min(first.box[1], second.box[1]),
                    second.box[2],
                    max(first.box[3], second.box[3]),
                )
                pairs.append(Line(text, min(first.score, second.score), box))
    return pairs + lines


def _completed(image: Image.Image, lines: list[Line]) -> list[Line]:
    """The lines, with the numbers of those of which only the unit was read."""
    completed = []
    for line in lines:
        completed.append(line)
        if not is_bare_unit(line.text) or any(
            printed_length(other.text) and _overlap(line.box, other.box) for other in lines
        ):
            continue
        for heights in (1.0, 1.8):
            left = max(0, round(line.box[0] - heights * line.height))
            wider = Line(line.text, line.score, (left, *line.box[1:]))
            readings = [
                (text, score) for text, score in read_again(image, wider) if printed_length(text)
            ]
            if readings:
                text, score = max(readings, key=lambda reading: reading[1])
                completed.append(Line(text, score, wider.box))
                break
    return completed


def _overlap(box: Box, other: Box) -> bool:
    across = box[0] < other[2] and other[0] < box[2]
    return across and box[1] < other[3] and other[1] < box[3]


def _pixels(image: Image.Image) -> np.ndarray:
    """Pixels in the order of colours that the engine expects; grey has none."""
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)


def require_reader() -> None:
    """Start the reader of print, so that a missing one is told before any work.

    Raises:
        MissingExtra: RapidOCR is not installed.
    """
    _engine()


@functools.cache
def _engine():
    """The reader, with one thread: several files are read in several processes."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingExtra(
            f'reading print needs the extra `measuring` ({error}): pip install "mvaema[measuring]"'
        ) from error
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Det.limit_type": "max",
            "Det.limit_side_len": DETECTED_SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
