"""What is measured of an image: grey levels without info bar and print, finer than the pixels.

What is special about it:
- the info bar is cut off, and print on the picture (scale bar, its text, labels, coloured marks)
  is masked: a letter is no particle;
- a small image is enlarged, so that an edge falls between pixels; all lengths are divided by the
  zoom again;
- noise is estimated from the pixels and smoothed as far as it asks for, and no further.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy import ndimage

from mvaema.measuring.scale import ScaleReading
from mvaema.micrographs.info_bar import Box, find_info_bar

# An image is enlarged to about this long a side, at most threefold, and a larger one reduced.
FINE_SIDE, MAX_ZOOM, LARGEST_SIDE = 768, 3, 1536
# Noise, in grey levels, from which on the picture is smoothed by this much more (pixels).
SMOOTHING = ((0, 0.6), (4, 0.9), (9, 1.3), (18, 1.8))
# Colour: grey levels between the strongest and the weakest channel.
COLOURED = 48
# A box of a label: this share of its bounding box has one level; its sides in shares of the image.
BOX_FILL, BOX_SIDES = 0.55, (0.02, 0.6)
# Heights of letters in shares of the image, how near to a corner one stands alone, and the share
# of all pixels of their level that print makes up.
LETTER_HEIGHT, CORNER, MIN_PRINTED = (0.018, 0.16), 0.16, 0.6
# Least sides of a drawn rectangle, in shares of the image.
FRAME = 0.08
# Pixels around print that JPEG and resizing have touched.
PRINT_MARGIN = 3
# Least side of what is measured, in pixels.
MIN_SIDE = 16


class NothingToMeasure(ValueError):
    """An image, or the region of it, in which nothing can be measured; the text says why."""


@dataclass(frozen=True)
class Field:
    """The part of an image that is measured.

    Attributes:
        grey: float32 (height, width), 0 to 255, smoothed and zoomed.
        valid: bool (height, width), False where there is print.
        zoom: pixels of `grey` per pixel of the image, along each axis.
        box: (left, upper, right, lower) of the field in the image, in pixels.
        noise: standard deviation of the noise before smoothing, in grey levels.
    """

    grey: np.ndarray
    valid: np.ndarray
    zoom: float
    box: Box
    noise: float

    @cached_property
    def values(self) -> np.ndarray:
        """The grey levels that are not print, (n,)."""
        return self.grey[self.valid]


def make_field(
    image: Image.Image,
    region: Box | None = None,
    scale: ScaleReading | None = None,
    info_bar: Box | None = None,
) -> Field:
    """The field of an 8-bit image.

    Args:
        image: mode L or RGB.
        region: (left, upper, right, lower) in pixels of the image; None is all of it.
        scale: what was read of the scale bar, whose boxes are masked.
        info_bar: box of the info bar, if it is known; else it is looked for.

    Raises:
        NothingToMeasure: the region lies outside, is too small, or has one grey level.
    """
    box = _measured_box(image, region, info_bar)
    pixels = np.asarray(image.convert("RGB"))
    print_mask = printed(pixels, scale)
    left, upper, right, lower = box
    grey = np.asarray(image.convert("L"))[upper:lower, left:right].astype(np.float32)
    valid = ~print_mask[upper:lower, left:right]
    if not valid.any() or np.ptp(grey[valid]) <= 2:
        raise NothingToMeasure("the picture is of one grey level: the beam or the shutter was off")
    noise = estimate_noise(grey)
    sigma = [smoothing for least, smoothing in SMOOTHING if noise >= least][-1]
    grey = ndimage.gaussian_filter(_filled(grey, valid), sigma)
    longest = max(grey.shape)
    zoom = float(np.clip(FINE_SIDE / longest, 1, MAX_ZOOM))
    if longest > LARGEST_SIDE:
        zoom = LARGEST_SIDE / longest
    if zoom != 1:
        size = round(grey.shape[1] * zoom), round(grey.shape[0] * zoom)
        grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
        valid = np.asarray(Image.fromarray(valid).resize(size, Image.Resampling.NEAREST))
    return Field(np.ascontiguousarray(grey), np.ascontiguousarray(valid), zoom, box, noise)


def _measured_box(image: Image.Image, region: Box | None, bar: Box | None) -> Box:
    """The region without the info bar."""
    width, height = image.size
    if region is not None:
        left, upper, right, lower = (round(side) for side in region)
        if not (0 <= left < right <= width and 0 <= upper < lower <= height):
            raise NothingToMeasure(
                f"the region {tuple(region)} does not lie in the image of {width} x {height} "
                "pixels: give left, upper, right and lower in pixels"
            )
    else:
        left, upper, right, lower = 0, 0, width, height
    if bar is None and min(image.size) >= MIN_SIDE:
        bar = find_info_bar(image)
    if bar is not None:  # it spans the width: the larger rest is picture
        if bar[1] >= height - bar[3]:
            lower = min(lower, bar[1])
        else:
            upper = max(upper, bar[3])
    if right - left < MIN_SIDE or lower - upper < MIN_SIDE:
        raise NothingToMeasure(f"fewer than {MIN_SIDE} pixels of picture in height or width")
    return left, upper, right, lower


def estimate_noise(grey: np.ndarray) -> float:
    """Standard deviation of noise that differs from pixel to pixel, in grey levels.

    The median response to a kernel that planes and straight edges do not excite (Immerkær 1996),
    so that the structures of the picture count little.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.median(np.abs(ndimage.convolve(grey, kernel))) / 0.6745 / 6)


def printed(pixels: np.ndarray, scale: ScaleReading | None) -> np.ndarray:
    """Where something is printed over the picture, bool (height, width).

    Args:
        pixels: uint8 (height, width, 3).
        scale: what was read of the scale bar.
    """
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), bool)
    for box in (scale.bar_box, scale.text_box) if scale else ():
        if box is not None:
            left, upper, right, lower = (round(side) for side in box)
            margin = PRINT_MARGIN
            mask[
                max(0, upper - margin) : lower + margin, max(0, left - margin) : right + margin
            ] = True
    channels = pixels.astype(np.int16)
    coloured = np.ptp(channels, axis=2) > COLOURED
    if coloured.mean() < 0.2:  # else the picture itself is coloured
        mask |= coloured
    mask |= _labels(pixels.max(axis=2))
    return ndimage.binary_dilation(mask, iterations=PRINT_MARGIN)


def _labels(grey: np.ndarray) -> np.ndarray:
    """Labels in black or white: boxes at the rim, scale bars, letters in lines and in corners.

    Letters have the darkest or the brightest level, which little else in the picture has.
    """
    height, width = grey.shape
    found = np.zeros(grey.shape, bool)
    for plain in (grey >= 250, grey <= 5):
        if not 0 < plain.mean() < 0.2:  # the picture itself is clipped
            continue
        parts, _ = ndimage.label(plain, np.ones((3, 3)))
        boxes, letters, frames = [], [], []
        for number, place in enumerate(ndimage.find_objects(parts), start=1):
            rows, columns = place
            tall, wide = rows.stop - rows.start, columns.stop - columns.start
            area = int((parts[place] == number).sum())
            fill = area / (tall * wide)
            at_rim = rows.start <= 2 or columns.start <= 2
            at_rim |= rows.stop >= height - 2 or columns.stop >= width - 2
            low, high = BOX_SIDES
            is_box = at_rim and fill >= BOX_FILL and low * height < tall < high * height / 2
            is_box &= low * width < wide < high * width
            # A scale bar that was not read: long, thin and full.
            is_bar = (
                fill > 0.85 and wide > 4 * tall and wide > 0.04 * width and tall < 0.04 * height
            )
            if _is_frame(parts[place] == number, height, width):
                frames.append((place, number))
            elif is_box or is_bar:
                boxes.append((place, area))
            elif LETTER_HEIGHT[0] * height < tall < LETTER_HEIGHT[1] * height and wide < 2 * tall:
                letters.append((place, area))
        for place, number in frames:
            inside = parts[place] == number
            found[place] |= inside
            plain[place] &= ~inside
        printed = boxes + _lines(letters, height, width)
        if sum(area for _, area in printed) < MIN_PRINTED * plain.sum():
            printed = boxes
        for place, _ in printed:
            found[place] = True
    return found


def _is_frame(part: np.ndarray, height: int, width: int) -> bool:
    """Whether a part, bool over its bounding box, is a rectangle drawn around something."""
    tall, wide = part.shape
    if tall < FRAME * height or wide < FRAME * width or part.mean() > 0.3:
        return False
    inner = part.copy()
    for k in (0, 1, 2):
        inner[k] = inner[-1 - k] = inner[:, k] = inner[:, -1 - k] = False
    sides = (part[:3].any(0), part[-3:].any(0), part[:, :3].any(1), part[:, -3:].any(1))
    return inner.sum() < 0.1 * part.sum() and min(side.mean() for side in sides) > 0.8


def _lines(letters: list, height: int, width: int) -> list:
    """Those of the parts that stand beside another of their height, or alone in a corner."""
    kept = []
    for place, area in letters:
        rows, columns = place
        tall = rows.stop - rows.start
        x, y = (columns.start + columns.stop) / 2 / width, (rows.start + rows.stop) / 2 / height
        corner = min(x, 1 - x) < CORNER and min(y, 1 - y) < CORNER
        beside = any(
            other[0] is not place
            and abs(other[0][0].stop - rows.stop) < 0.25 * tall
            and abs(other[0][0].stop - other[0][0].start - tall) < 0.45 * tall
            and max(other[0][1].start - columns.stop, columns.start - other[0][1].stop) < tall
            for other in letters
        )
        if corner or beside:
            kept.append((place, area))
    return kept


def _filled(grey: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The grey levels with those of print replaced by the nearest of the picture."""
    if valid.all():
        return grey
    rows, columns = ndimage.distance_transform_edt(
        ~valid, return_distances=False, return_indices=True
    )
    return grey[rows, columns]
