"""One question about pixels that another program has open: answer, category, measurement.

What is special about it:
- no file is read. The program says how long a pixel is, from its own axes;
- a region is asked about as a picture of its own, and measured in its place in the whole one, so
  that a scale bar outside it still counts;
- a student is loaded once, when it is first asked.
"""

import functools
from dataclasses import dataclass

from PIL import Image

from lengths_mvaema import format_length, measured_answers
from mvaema.evaluation.answerers import ChatModel, Student, load_answerer
from mvaema.measuring.results import Measurement
from mvaema.micrographs.calibration import axis_nm
from mvaema.micrographs.info_bar import Box
from mvaema.students.shipped import shipped_student
from pixels_mvaema import MIN_SIDE, to_8bit

# Sides of a pixel that differ by more than this share make it no square, and no length fits both.
SQUARE = 0.01


@dataclass(frozen=True)
class Reply:
    """What is said of an image or a region of it.

    Attributes:
        question: what was asked.
        answer: the student's; one about sizes ends with the measurement, where there is one.
        categories: category to probability, best first; empty if the model does not classify.
        measurement: the sizes; None where none were asked for.
        pixel_size_nm: length of a pixel in nm, None where it is unknown.
    """

    question: str
    answer: str
    categories: dict[str, float]
    measurement: Measurement | None
    pixel_size_nm: float | None

    def lines(self) -> list[str]:
        """The reply in words, for a person."""
        size = self.pixel_size_nm
        found = [self.answer or "(no answer)"]
        if self.categories:
            best = list(self.categories.items())[:3]
            ranked = ", ".join(f"{name.replace('_', ' ')} {100 * p:.0f} %" for name, p in best)
            found.append(f"Category: {ranked}.")
        if self.measurement is not None and self.measurement.sentence() not in self.answer:
            found.append(self.measurement.sentence())
        scale = "scale unknown" if size is None else f"{format_length(size)} per pixel"
        return [*found, f"Seen with {scale}."]


@functools.lru_cache(maxsize=1)
def load(model: str | None = None) -> Student | ChatModel:
    """A model by its folder or Hub id, or the student of this repository; kept until another one.

    Raises:
        FileNotFoundError: none is named and none comes with the installation.
        OSError, ValueError: it cannot be loaded.
    """
    return load_answerer(model or shipped_student())


def pixel_size_nm(scales: tuple[float, float], units: tuple[str, str]) -> float | None:
    """The length of a square pixel from a program's two image axes, or None if it is not known.

    Args:
        scales, units: of both axes, such as (0.5, 0.5) and ("nm", "nm").

    Raises:
        NotAMicrograph: a unit is that of a spectrum, a time trace or reciprocal space.
    """
    lengths = [axis_nm(scale, unit) for scale, unit in zip(scales, units, strict=True)]
    if None in lengths:
        return None
    small, large = sorted(lengths)
    return large if large <= (1 + SQUARE) * small else None


def ask(
    answerer: Student | ChatModel,
    pixels,
    question: str,
    *,
    pixel_size_nm: float | None = None,
    region: Box | None = None,
    measured: bool = True,
) -> Reply:
    """Ask about an image or a region of it.

    Args:
        pixels: what `to_8bit` takes: an array (height, width) or (height, width, 3 or 4) of any
            depth, or a PIL image.
        question: one of the student's own or any other.
        pixel_size_nm: length of one pixel, if the program knows it.
        region: (left, upper, right, lower) in pixels, which may run over the border; None is all.
        measured: measure sizes too.

    Raises:
        ValueError: the question is blank, the pixels are no image, or the region is smaller than
            `MIN_SIDE` pixels.
        MissingExtra: `measured`, and the packages of the extra `measuring` are not installed.
    """
    if not question.strip():
        raise ValueError("the question is blank: type one, or choose one of the student's own.")
    image = to_8bit(pixels)
    shown = image
    if region is not None:
        region = _inside(region, image)
        shown = image.crop(region)
    ranked, measurement = {}, None
    if answerer.methods:
        (ranked,) = answerer.classify([shown], answerer.methods[-1])
    if measured:
        from mvaema.measuring.measure import measure

        measurement = measure(
            image, category=next(iter(ranked), None), recorded_nm=pixel_size_nm, region=region
        )
        pixel_size_nm = measurement.pixel_size_nm
    ((answer,),) = answerer.answer(
        [shown], [question], captions=[None], pixel_size_nm=[pixel_size_nm], scale_bars=[None]
    )
    if measurement is not None:
        from mvaema.measuring.methods import facts

        (answer,) = measured_answers([answer], [question], answerer.questions, facts(measurement))
    return Reply(question, answer, ranked, measurement, pixel_size_nm)


def _inside(region: Box, image: Image.Image) -> Box:
    """The part of a region that is in the image.

    Raises:
        ValueError: it is smaller than a student can look at.
    """
    left, upper, right, lower = region
    inside = max(left, 0), max(upper, 0), min(right, image.width), min(lower, image.height)
    width, height = inside[2] - inside[0], inside[3] - inside[1]
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"the region covers {max(width, 0)} × {max(height, 0)} pixels of the image; draw one "
            f"of at least {MIN_SIDE} × {MIN_SIDE}."
        )
    return inside
