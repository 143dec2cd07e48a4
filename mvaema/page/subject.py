"""One micrograph, and all that is known of it so far.

What is special about it:
- it lies in the server's memory and nowhere else, and has no file name: its id is that of its
  pixels;
- the pixel size that counts is decided here, for prompts, measurements and reports alike: typed
  before recorded before read.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

from PIL import Image

from lengths_mvaema import format_length
from mvaema.measuring.methods import facts
from mvaema.measuring.results import Measurement
from mvaema.measuring.scale import Scale
from mvaema.micrographs.info_bar import Box
from mvaema.micrographs.microscope import Micrograph
from mvaema.micrographs.schema import instrument_columns, pixel_hash


@dataclass
class Subject:
    """What the page knows of one micrograph.

    Attributes:
        micrograph: its pixels, and what the instrument recorded.
        found: the scale that is recorded or read; None until the scale bar was read.
        typed_nm: length of a pixel in nm as the visitor says it, or None.
        ranked: category to probability, best first.
        region: the part that is asked about, in pixels; None for all of it.
        answers: question to the student's answer about all of it, and how that was decoded.
        measurement: the latest, and the region that it is about.
    """

    micrograph: Micrograph
    found: Scale | None = None
    typed_nm: float | None = None
    ranked: dict[str, float] = field(default_factory=dict)
    region: Box | None = None
    answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    measurement: Measurement | None = None
    measured_region: Box | None = None

    @property
    def image(self) -> Image.Image:
        return self.micrograph.image

    @property
    def shown(self) -> Image.Image:
        """What is asked about: the region, or all."""
        return self.image if self.region is None else self.image.crop(self.region)

    @property
    def scale(self) -> Scale:
        """The length of a pixel that counts, and who says so."""
        recorded = self.micrograph.pixel_size_nm
        known = self.found or Scale(recorded, recorded and "recorded")
        if self.typed_nm is None:
            return known
        typed = replace(known, pixel_size_nm=self.typed_nm, source="typed", contradiction=None)
        if known.reading is None or known.reading.agrees_with(self.typed_nm) is not False:
            return typed
        said = (
            f"the scale bar says {known.reading.pixel_size_nm:.4g} nm per pixel; "
            f"{self.typed_nm:.4g} nm is typed."
        )
        return replace(typed, contradiction=said)

    @cached_property
    def image_id(self) -> str:
        """Of the pixels, as in a dataset."""
        return pixel_hash(self.image)

    @property
    def instrument(self) -> dict[str, str | float]:
        """What the instrument recorded, of the public facts."""
        return instrument_columns(self.micrograph.instrument)

    @property
    def sizes(self) -> str | None:
        """What is known for sure of sizes in what is shown, as one text; None for nothing."""
        if self.measurement is not None and self.measured_region == self.region:
            return facts(self.measurement)
        reading = self.found and self.found.reading
        if not reading or reading.pixel_size_nm is None or self.scale.contradiction:
            return None
        return f"Scale bar: {format_length(reading.length_nm)}."

    def choose(self, corners: tuple[float | None, ...]) -> None:
        """Choose a region by left, upper, right and lower in pixels; anything impossible is all."""
        self.region = None
        if any(side is None for side in corners):
            return
        width, height = self.image.size
        left, right = sorted(int(min(max(x, 0), width)) for x in corners[::2])
        upper, lower = sorted(int(min(max(y, 0), height)) for y in corners[1::2])
        box = (left, upper, right, lower)
        if right > left and lower > upper and box != (0, 0, width, height):
            self.region = box
