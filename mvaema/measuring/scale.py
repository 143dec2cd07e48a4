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
)

Box = tuple[int, int, int, int]

# By how much a reading may differ from the instrument's pixel size, relative to the latter.
TOLERANCE = 0.05
# Grey levels that an image with print has at least.
MIN_CONTRAST = 24
# Below it a pair is not read; a rival with this share of its confidence makes it doubtful.
MIN_CONFIDENCE, RIVAL = 0.25, 0.6
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

    def agrees_with(self, recorded_nm: float, tolerance: float = TOLERANCE) -> bool | None:
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
    if max(band[1] - band[0] for band in _extrema(image)) < MIN_CONTRAST:
        return ScaleReading(reason="the image shows nothing: it is of one grey level")
    lines = read_lines(image)
    reading = _judged(image, lines)
    if reading.pixel_size_nm is not None:
        return reading
    for more in read_parts(image):
        again = _judged(image, more)
        if again.pixel_size_nm is not None:
            return again
        reading = reading if reading.bar_box or not again.text else again
    return reading


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    extrema = image.convert("L").getextrema()
    return [extrema]


def _judged(image: Image.Image, lines: list[Line]) -> ScaleReading:
    """What the print in an image and the bars beside it say."""
    if has_reciprocal(lines):
        return ScaleReading(reason="the scale is a reciprocal length: a diffraction pattern")
    lengths = lengths_in(lines)
    if not lengths:
        return ScaleReading(reason="no print states a length")
    best = []
    for line in lengths:
        others = [other.box for other in lines if _is_print(other) and not _overlap(other, line)]
        bars = find_bars(image, line.box, others)
        pairs = pair(line, is_bright(image, line.box), bars, image.width)
        if pairs:
            best.append((line, pairs))
    if not best:
        return ScaleReading(text=lengths[0].text, reason="no bar is beside the printed length")
    best.sort(key=lambda item: -item[1][0].confidence)
    found = [item[1][0] for item in best]
    return _decided(image, found, best[0][1])


def _decided(image, found: list[Pair], rivals: list[Pair]) -> ScaleReading:
    top = found[0]

    def unread(reason: str) -> ScaleReading:
        line, bar = top.line, top.bar
        return ScaleReading(
            None, 0.0, line.nm, bar.pixels, line.text, bar.box, line.box, reason
        )

    if top.bar.cut:
        return unread("the bar is cut off at the border of the image")
    if top.confidence < MIN_CONFIDENCE:
        return unread("the bar is too faint or too unlike one")
    for other in rivals[1:]:
        if other.confidence > RIVAL * top.confidence and _differ(other, top):
            return unread(f"two bars beside one text differ in length ({top.bar.pixels:.0f} and {other.bar.pixels:.0f} pixels)")
    for other in found[1:]:
        if other.confidence > RIVAL * top.confidence and _differ(other, top):
            return unread(f"two scale bars disagree: {top.line.text} and {other.line.text}")
    line, bar = top.line, top.bar
    readings = [printed_length(text) for text, score in read_again(image, line) if score > 0.6]
    contrary = [r for r in readings if r and abs(r.nm - line.nm) > 1e-6 * line.nm]
    if len(contrary) > sum(1 for r in readings if r) / 2:
        return unread(f"the print reads differently when read again: {line.text}")
    confidence = min(1.0, top.confidence)
    return ScaleReading(
        top.pixel_size_nm, confidence, line.nm, bar.pixels, line.text, bar.box, line.box
    )


def _differ(pair: Pair, other: Pair) -> bool:
    ratio = pair.pixel_size_nm / other.pixel_size_nm
    return not 1 - DISAGREE <= ratio <= 1 + DISAGREE


def _is_print(line: Line) -> bool:
    return line.score > 0.8 and sum(map(str.isalnum, line.text)) >= 2


def _overlap(line: Line, other: LengthLine) -> bool:
    return (
        line.box[0] < other.box[2]
        and other.box[0] < line.box[2]
        and line.box[1] < other.box[3]
        and other.box[1] < line.box[3]
    )


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
