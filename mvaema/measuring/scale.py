"""How long one pixel of a micrograph is: typed by a person, recorded by the instrument, or read.

What is special about it:
- a scale is read only where a bar and the length beside it are both found and nothing in the
  image disagrees. A wrong scale spoils every size, so doubt gives None and the reason;
- a reading never replaces what the instrument recorded. Where the two differ, it says so.
"""

from dataclasses import dataclass

from PIL import Image

Box = tuple[int, int, int, int]

# By how much a reading may differ from the instrument's pixel size, relative to the latter.
TOLERANCE = 0.05
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
    return ScaleReading(reason="no scale bar is read yet")


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
