"""Other views of a micrograph under which what is said about it stays true.

What is special about it:
- the words of a micrograph's texts decide how it may be shown. 23 % of the answers about real
  micrographs name a side, a direction or an axis ("a white databar at the lower right"). Only 12 %
  say nothing that a close-up could make false (`benchmarks/data_feeding.py views` counts). A view
  that would make a text of the example false is never chosen;
- when the image is mirrored, "left" and "right" are exchanged in its texts. With a text that names
  up or down it is not turned upside down: "top" and "below" have other meanings too ("top view",
  "below 1 µm");
- a close-up may cut off a scale bar, a label or one of "seven particles", and it changes what "a
  tenth of the image width" is. It is shown only with texts that name nothing of the kind, and with
  its own, smaller field of view;
- brightness, contrast and noise change too little to make "bright" or "smooth" false. Grey stays
  grey: electron micrographs have no colour to jitter.

Known limits: printed letters are mirrored and turned with the image (the length that a scale bar
states stays true). An object at the very border of a close-up may be cut off. The words are
English: train with augmentation off on answers in another language.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageEnhance

CLOSE_UPS = 0.2  # share of micrographs shown as close-ups, if their texts allow it
SMALLEST = 0.7  # smallest side of a close-up, relative to the image's
LIGHT = 0.2  # largest relative change of brightness and of contrast
NOISE = 0.04  # largest standard deviation, of the range [-1, 1] of a pixel: five grey levels

T = Image.Transpose
MIRRORED = (None, T.FLIP_LEFT_RIGHT)
FLIPPED = (*MIRRORED, T.ROTATE_180, T.FLIP_TOP_BOTTOM)
TURNED = (*FLIPPED, T.ROTATE_90, T.ROTATE_270, T.TRANSPOSE, T.TRANSVERSE)
ON_ITS_SIDE = (T.ROTATE_90, T.ROTATE_270, T.TRANSPOSE, T.TRANSVERSE)
SIDES_SWAPPED = (T.FLIP_LEFT_RIGHT, T.ROTATE_180)


def _words(*words: str) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


_SENSE = _words("(?:counter|anti)?-?clockwise", r"\w+-handed")
_SIDE = _words("(left|right)(most|wards?|-hand)?(?! (?:behind|over|by|after)|[ -]angle)")
_UP_DOWN = _words(
    *("upper(?:most)?", "lower(?:most)?", "up", "down", "top(?:most)?", "bottom(?:most)?"),
    *("above", "below", "beneath", "underneath", "up(?:right|side|wards?)", "downwards?"),
    *("hang(?:s|ing)?", "overhang(?:s|ing)?"),
)
_AXIS = _words(
    *("horizontal(?:ly)?", "vertical(?:ly)?", "sideways", "rows?", "columns?", "widths?"),
    *("heights?", "tall(?:er)?"),
)
# What a close-up may cut off, miscount or mismeasure.
_PLACE = _words("cent(?:re|er)s?", "middle", "corners?", "edges?", "borders?", "margins?", "ends?")
_OVERLAY = _words(
    *("scale", "(?:data|info)?-?bars?", "labels?", "text", "panel", "letters?", "marks?"),
    *("markers?", "arrows?", r"annotat\w+", "caption", "logo", "overlays?", "added", "modified"),
)
_COUNT = _words(
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", r"\w+teen", r"\w+ty", "dozens?", "hundreds?", "single", "pairs?", "both", "few"),
    *("several", "only", "alone", r"\d+ (?!(?:[nµmk]m|nanomet|micromet|to|or|and|Å|kV|kx)\b)"),
)
_SHARE = _words(
    *("percent", "image", "view", "fields?", "frames?", "picture", "whole", "half", "halves"),
    *("thirds?", "quarters?", "fifths?", "sixths?", "sevenths?", "eighths?", "ninths?", "tenths?"),
    *(r"\w+teenths?", r"\w+tieths?", "hundredths?"),
)
_PERCENT = re.compile("%")
CUT_OFF = (_SENSE, _SIDE, _UP_DOWN, _PLACE, _OVERLAY, _COUNT, _SHARE, _PERCENT)


def _named(pattern: re.Pattern, texts: Iterable[str]) -> bool:
    return any(pattern.search(text) for text in texts)


@functools.lru_cache(2**16)  # the same answers come again each epoch
def survives_close_up(text: str) -> bool:
    """Whether what a text says does not depend on where the image ends."""
    return not any(pattern.search(text) for pattern in CUT_OFF)


def transposes(texts: Sequence[str]) -> tuple[Image.Transpose | None, ...]:
    """The flips and turns under which the texts stay true, "left" and "right" exchanged."""
    if _named(_SENSE, texts):
        return (None,)
    if _named(_UP_DOWN, texts):
        return MIRRORED
    if _named(_SIDE, texts) or _named(_AXIS, texts):
        return FLIPPED
    return TURNED


def _other_side(match: re.Match) -> str:
    side, ending = match[1], match[2] or ""
    other = "right" if side.lower() == "left" else "left"
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    return other + ending


@dataclass(frozen=True)
class View:
    """How a micrograph is shown.

    Attributes:
        transpose: the flip or turn, or none.
        box: left, upper, right, lower of what is shown, in [0, 1]; None for the whole image.
        brightness, contrast: factors (`PIL.ImageEnhance`).
        noise: standard deviation of the noise that is added to the pixels, black -1 and white 1.
    """

    transpose: Image.Transpose | None = None
    box: tuple[float, float, float, float] | None = None
    brightness: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, texts: Sequence[str], close_up: bool) -> Self:
        """A view under which the texts stay true.

        Args:
            close_up: show one; `survives_close_up` must hold for the texts.
        """
        allowed = transposes(texts)
        box = None
        if close_up:
            side = rng.uniform(SMALLEST, 1)
            left, upper = rng.uniform(0, 1 - side, size=2)
            box = (left, upper, left + side, upper + side)
        brightness, contrast = rng.uniform(1 - LIGHT, 1 + LIGHT, size=2)
        return cls(
            allowed[rng.integers(len(allowed))], box, brightness, contrast, rng.uniform(0, NOISE)
        )

    def text(self, text: str) -> str:
        """`text`, which is true of the image, as it is true of the view."""
        return _SIDE.sub(_other_side, text) if self.transpose in SIDES_SWAPPED else text

    def _crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return tuple(np.rint(self.box * np.array([*size, *size])).astype(int).tolist())

    def width(self, size: tuple[int, int]) -> int:
        """Width of the view of an image of this width and height, in pixels."""
        left, upper, right, lower = self._crop(size) if self.box is not None else (0, 0, *size)
        return lower - upper if self.transpose in ON_ITS_SIDE else right - left

    def show(self, image: Image.Image) -> Image.Image:
        """The view of an 8-bit image, without the noise; pixels keep their size in nanometres."""
        if self.box is not None:
            image = image.crop(self._crop(image.size))
        if self.transpose is not None:
            image = image.transpose(self.transpose)
        if self.contrast != 1:
            image = ImageEnhance.Contrast(image).enhance(self.contrast)
        if self.brightness != 1:
            image = ImageEnhance.Brightness(image).enhance(self.brightness)
        return image

    def add_noise(
        self,
        pixels: np.ndarray,
        rng: np.random.Generator,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        """Grey noise on pixel values, (channels, height, width), in place.

        Args:
            mean, std: of the image processor, of all channels or of each.
        """
        if not self.noise:
            return
        grains = rng.standard_normal(pixels.shape[1:], np.float32)
        mean, std = (np.reshape(np.float32(x), (-1, 1, 1)) for x in (mean, std))
        noisy = pixels + self.noise * grains * (np.float32(0.5) / std)
        np.clip(noisy, -mean / std, (1 - mean) / std, out=pixels)
