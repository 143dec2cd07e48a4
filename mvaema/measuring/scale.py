"""How long one pixel of a micrograph is: typed by a person, recorded by the instrument, or read.

What is special about it:
- a scale is read only where a bar and the length beside it are both found and nothing in the
  image disagrees. A wrong scale spoils every size, so doubt gives None and the reason;
- a reading never replaces what the instrument recorded. Where the two differ, it says so.
"""

from dataclasses import dataclass

from PIL import Image

from mvaema.measuring.bars import find_bars, is_bright
from mvaema.measuring.lengths import printed_length
from mvaema.measuring.pairs import Pair, pair
from mvaema.measuring.text import (
    LengthLine,
    Line,
    has_reciprocal,
    lengths_in,
    read_again,
    read_lines,
    read_parts,
    tightened,
)
from mvaema.micrographs.reading import SCALE_TOLERANCE

Box = tuple[int, int, int, int]

# Grey levels that an image with print has at least.
MIN_CONTRAST = 24
# Below it a pair is not read; a rival with this share of its confidence makes it doubtful.
MIN_CONFIDENCE, RIVAL = 0.35, 0.6
# Lengths of a pixel in nm that electron microscopes have; beyond them a unit was misread.
PIXEL_SIZES = (1e-4, 1e5)
# How sure the reader of print is, at least, where print that is read again reads differently.
MIN_SCORE = 0.6
# By how much the scales of two bars may differ.
DISAGREE = 0.05
SOURCES = ("typed", "recorded", "read")


@dataclass(frozen=True)
class ScaleReading:
    """What the scale bar of an image says, or why it says nothing.

    Attributes:
        pixel_size_nm: length of one pixel of the image, or None.
        confidence: 0 to 1; 0 where `pixel_size_nm` is None.
        length_nm: the length that the text states.
        bar_pixels: length of the bar, to a fraction of a pixel.
        text: the text as read, such as "500 nm".
        bar_box, text_box: (left, upper, right, lower) in pixels of the image.
        reason: why `pixel_size_nm` is None; None where it is not.
    """

    pixel_size_nm: float | None = None
    confidence: float = 0.0
    length_nm: float | None = None
    bar_pixels: float | None = None
    text: str | None = None
    bar_box: Box | None = None
    text_box: Box | None = None
    reason: str | None = None

    def agrees_with(self, recorded_nm: float, tolerance: float = SCALE_TOLERANCE) -> bool | None:
        """Whether it is the instrument's pixel size; None where nothing was read."""
        if self.pixel_size_nm is None:
            return None
        return abs(self.pixel_size_nm - recorded_nm) <= tolerance * recorded_nm


@dataclass(frozen=True)
class Scale:
    """The length of one pixel that counts, and where it comes from.

    Attributes:
        pixel_size_nm: or None where nobody knows.
        source: `typed`, `recorded` or `read`; None without a pixel size.
        reading: what the scale bar says; None where it was not read.
        contradiction: one sentence if the bar contradicts what counts, or None.
    """

    pixel_size_nm: float | None
    source: str | None
    reading: ScaleReading | None = None
    contradiction: str | None = None


def read_scale_bar(image: Image.Image) -> ScaleReading:
    """Read the scale bar of a micrograph from its pixels alone.

    Args:
        image: 8-bit, grey or colour, info bar included, at its full size.

    Raises:
        MissingExtra: the packages of the extra `measuring` are not installed.
    """
    low, high = image.convert("L").getextrema()
    if high - low < MIN_CONTRAST:
        return ScaleReading(reason="the image is of one grey level")
    reading = _judged(image, read_lines(image))
    if reading.pixel_size_nm is not None:
        return reading
    for lines in read_parts(image):
        again = _judged(image, lines)
        if again.pixel_size_nm is not None and reading.bar_box is None:
            return again
        reading = reading if reading.text else again
    return reading


def _judged(image: Image.Image, lines: list[Line]) -> ScaleReading:
    """What the print in an image and the bars beside it say."""
    if has_reciprocal(lines):
        return ScaleReading(reason="the scale is a reciprocal length, of a diffraction pattern")
    lengths = [tightened(image, line) for line in lengths_in(lines)]
    if not lengths:
        return ScaleReading(reason="no print states a length")
    candidates = []
    for line in lengths:
        others = [other.box for other in lines if _is_print(other) and not _overlap(other, line)]
        bars = find_bars(image, line.box, others)
        pairs = pair(line, is_bright(image, line.box), bars, image.width)
        candidates += [pairs] if pairs else []
    if not candidates:
        return ScaleReading(text=lengths[0].text, reason="no bar is beside the printed length")
    candidates.sort(key=lambda pairs: -pairs[0].confidence)
    top = candidates[0][0]
    line, bar = top.line, top.bar
    # The tick at the right end of a bar looks like the digit 1 of a text that follows it.
    after = bar.box[2] + 1 if abs(bar.box[2] - line.box[0]) <= line.height / 2 else 0
    reason = _doubt(candidates) or _misread(image, line, after)
    return ScaleReading(
        pixel_size_nm=None if reason else top.pixel_size_nm,
        confidence=0.0 if reason else min(1.0, top.confidence),
        length_nm=line.nm,
        bar_pixels=bar.pixels,
        text=line.text,
        bar_box=bar.box,
        text_box=line.box,
        reason=reason,
    )


def _doubt(candidates: list[list[Pair]]) -> str | None:
    """Why the best of the pairs is not believed, or None.

    Args:
        candidates: the pairs of each length, the best first in both.
    """
    top, *rivals = candidates[0]
    if top.bar.cut:
        return "the bar is cut off at the border of the image"
    if not PIXEL_SIZES[0] <= top.pixel_size_nm <= PIXEL_SIZES[1]:
        return f"{top.line.text} would be {top.pixel_size_nm:.3g} nm per pixel: no such microscope"
    if top.confidence < MIN_CONFIDENCE:
        return "the bar is too faint, too short or too unlike one"
    for rival in rivals:
        if _rivals(rival, top):
            pixels = f"{top.bar.pixels:.0f} or {rival.bar.pixels:.0f} pixels"
            return f"two bars are beside one length: {top.line.text} is {pixels}"
    for rival, *_ in candidates[1:]:
        if _rivals(rival, top):
            sizes = f"{top.pixel_size_nm:.4g} and {rival.pixel_size_nm:.4g} nm per pixel"
            return f"two scale bars disagree: {top.line.text} and {rival.line.text}, {sizes}"
    return None


def _rivals(pair: Pair, top: Pair) -> bool:
    """Whether a pair is nearly as good as the best one, and says something else."""
    ratio = pair.pixel_size_nm / top.pixel_size_nm
    differ = not 1 - DISAGREE <= ratio <= 1 + DISAGREE
    return differ and pair.confidence > RIVAL * top.confidence


def _misread(image: Image.Image, line: LengthLine, first: int) -> str | None:
    """Why the print is not believed: it reads differently when it is read again."""
    readings = read_again(image, line, first)
    again = [printed_length(text) for text, score in readings if score > MIN_SCORE]
    lengths = [length.nm for length in again if length]
    contrary = [nm for nm in lengths if abs(nm - line.nm) > 1e-6 * line.nm]
    if len(contrary) <= len(lengths) / 2:
        return None
    return f"the print reads as {line.text} once and as {contrary[0]:g} nm when enlarged"


def _is_print(line: Line) -> bool:
    return line.score > 0.8 and sum(map(str.isalnum, line.text)) >= 2


def _overlap(line: Line, other: LengthLine) -> bool:
    return (
        line.box[0] < other.box[2]
        and other.box[0] < line.box[2]
        and line.box[1] < other.box[3]
        and other.box[1] < line.box[3]
    )


def pixel_size_read(image: Image.Image) -> float | None:
    """The pixel size that `read_scale_bar` reads, or None; for `mvaema build`."""
    return read_scale_bar(image).pixel_size_nm


def scale_of(
    image: Image.Image, typed_nm: float | None = None, recorded_nm: float | None = None
) -> Scale:
    """The pixel size that counts: typed before recorded before read.

    The bar is read in each case, so that a contradiction is seen.

    Args:
        image: as `read_scale_bar` takes it.
        typed_nm: what a person says one pixel is.
        recorded_nm: what the instrument recorded.

    Raises:
        ValueError: `typed_nm` is not a positive length.
        MissingExtra: as `read_scale_bar`.
    """
    if typed_nm is not None and not 0 < typed_nm < float("inf"):
        raise ValueError(f"pixel_size_nm must be a positive length in nm; got {typed_nm!r}.")
    reading = read_scale_bar(image)
    for known, source in ((typed_nm, "typed"), (recorded_nm, "recorded")):
        if known is not None:
            return Scale(known, source, reading, _contradiction(reading, known, source))
    if reading.pixel_size_nm is None:
        return Scale(None, None, reading)
    return Scale(reading.pixel_size_nm, "read", reading)


def _contradiction(reading: ScaleReading, known_nm: float, source: str) -> str | None:
    if reading.agrees_with(known_nm) is not False:
        return None
    return (
        f"the scale bar says {reading.text} for {reading.bar_pixels:.1f} pixels, which is "
        f"{reading.pixel_size_nm:.4g} nm per pixel; {known_nm:.4g} nm is {source}."
    )
