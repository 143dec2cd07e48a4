"""Reads a microscope's file as one micrograph: pixels, calibration, settings, info bar.

What is special about it:
- the image is rebuilt from pixels alone; no metadata comes with it;
- a file that is not one readable micrograph raises `UnreadableMicrograph` with a reason that can
  be counted. There is never half an image.

Where a file leaves a choice:
- grey levels deeper than 8 bits are stretched as `pixels_mvaema.stretch` does it;
- of several pages, frames or slices the first full-resolution one is read; of several images in
  a native file the largest one, or the first of equals;
- pixels that are not square (by more than 1 %) are resampled to the finer of their two sides, as
  long as neither side is more than `MAX_ANISOTROPY` times the other;
- grey images have mode "L" however they are stored, transparency is laid on white, and the image
  is turned the way a viewer would show it.
"""

import gzip
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mvaema.micrographs.calibration import InstrumentRecord, NotAMicrograph
from mvaema.micrographs.info_bar import Box, begins_strip, find_info_bar
from mvaema.micrographs.native import NATIVE_READERS, read_native
from mvaema.micrographs.refusals import UnreadableMicrograph, check_file, check_size
from mvaema.micrographs.sidecars import read_sidecar
from mvaema.micrographs.tiff import TIFF_MAGIC, read_tiff
from pixels_mvaema import UnsupportedPixels, picture, viewed_pixels

logger = logging.getLogger(__name__)

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

# Suffixes of the files that are read, lower case.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
    *(".tif", ".tiff", ".tif.gz", ".tiff.gz"),
    *NATIVE_READERS,
)

# Sides of a pixel that differ by less than this are rounding, not geometry.
SQUARE_TOLERANCE = 0.01
# Beyond this ratio of a pixel's sides, resampling would invent most of the picture.
MAX_ANISOTROPY = 16


@dataclass(frozen=True)
class Micrograph:
    """One micrograph: its pixels, and what the instrument recorded about them.

    Attributes:
        image: 8-bit image, mode "L" or "RGB", rebuilt from pixels alone (no metadata).
        pixel_size_nm: real-world length of one pixel of `image` in nm, None when unknown.
        instrument: what is known of `technique`, `accelerating_voltage_kv`,
            `working_distance_mm`, `magnification` and `detector`.
        info_bar: (left, upper, right, lower) of a burnt-in info bar in pixels, or None.
        sidecar: path of the text file that was read beside the image, or None.
    """

    image: Image.Image
    pixel_size_nm: float | None
    instrument: dict[str, str | float]
    info_bar: Box | None
    sidecar: str | None = None

    def crop_info_bar(self) -> "Micrograph":
        """The micrograph without its info bar; itself when it has none."""
        if self.info_bar is None:
            return self
        left, upper, right, lower = self.info_bar
        width, height = self.image.size
        # Cut on the side that leaves the larger rest.
        rests = [(0, 0, width, upper), (0, lower, width, height)]
        rests += [(0, 0, left, height), (right, 0, width, height)]
        rest = max(rests, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        return replace(self, image=self.image.crop(rest), info_bar=None)

    def resize(self, max_side: int) -> "Micrograph":
        """The micrograph with its longer side at most `max_side` pixels; never enlarged.

        Raises:
            ValueError: `max_side` is below 1.
        """
        if max_side < 1:
            raise ValueError(f"max_side must be at least 1 pixel; got {max_side}.")
        width, height = self.image.size
        if max(width, height) <= max_side:
            return self
        scale = max_side / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixel_size_nm = self.pixel_size_nm and self.pixel_size_nm / scale
        return replace(self._scaled(size), pixel_size_nm=pixel_size_nm)

    def _scaled(self, size: tuple[int, int]) -> "Micrograph":
        """The image and its info bar at another size; the caller sets the new pixel size."""
        bar = self.info_bar
        if bar is not None:
            x, y = size[0] / self.image.width, size[1] / self.image.height
            bar = (round(bar[0] * x), round(bar[1] * y), round(bar[2] * x), round(bar[3] * y))
        image = self.image.resize(size, Image.Resampling.LANCZOS)
        return replace(self, image=image, info_bar=bar)


def read_micrograph(path: str | os.PathLike) -> Micrograph:
    """Reads one micrograph, and what is recorded about it, from a file of any format in `SUFFIXES`.

    The size limit is Pillow's for every format: twice `PIL.Image.MAX_IMAGE_PIXELS`. A decoder's
    warnings are given with the file's name.

    Raises:
        UnreadableMicrograph: the file is missing, damaged, too large, not an image of a specimen,
            or needs the extra `microscopy`; its `reason` says which.
    """
    path = Path(path)
    check_file(path)
    try:
        with _warnings_that_name(path):
            if path.suffix.lower() in NATIVE_READERS:
                pixels, record = read_native(path)
            else:
                pixels, record = _read_image(path)
            return _micrograph(pixels, record, path)
    except UnreadableMicrograph:
        raise
    except ImportError as error:
        message = f"needs the extra `microscopy` ({error}): pip install 'mvaema[microscopy]'."
        raise UnreadableMicrograph(path, "missing-extra", message) from error
    except NotAMicrograph as error:
        message = f"is not a micrograph: {error}; leave it out."
        raise UnreadableMicrograph(path, error.reason, message) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        message = (
            f"is too large ({error or 'out of memory'}); export it at a smaller size, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        )
        raise UnreadableMicrograph(path, "too-large", message) from error
    except UnidentifiedImageError as error:
        message = "is not in a known image format; export it again as TIFF or PNG."
        raise UnreadableMicrograph(path, "not-an-image", message) from error
    except UnsupportedPixels as error:
        message = f"is not read: {error} Export it again as 8-bit or as 16-bit grey."
        raise UnreadableMicrograph(path, "unsupported-pixels", message) from error
    except Exception as error:  # on a damaged file, a decoder may raise anything
        message = f"is truncated or damaged ({error!r}); copy or export it again."
        raise UnreadableMicrograph(path, "damaged", message) from error


@contextmanager
def _warnings_that_name(path: Path) -> Iterator[None]:
    """Gives a decoder's warnings anew, with the name of the file and what becomes of it."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for message in dict.fromkeys((str(entry.message), entry.category) for entry in caught):
        text, category = message
        if issubclass(category, Image.DecompressionBombWarning):
            text = (
                f"{text} It is read all the same; from {2 * Image.MAX_IMAGE_PIXELS} pixels on, "
                "twice PIL.Image.MAX_IMAGE_PIXELS, it would be refused."
            )
        warnings.warn(f"{path}: {text}", category, stacklevel=4)


def _micrograph(pixels: np.ndarray, record: InstrumentRecord, path: Path) -> Micrograph:
    """The micrograph of pixels of any depth (see `pixels_mvaema.picture`)."""
    image = picture(pixels)
    if image.mode == "RGB":
        red, *others = image.split()
        if all(np.array_equal(red, other) for other in others):
            image = red
    width, height = image.size
    if record.rows and record.rows < height:
        bar = (0, record.rows, width, height)
    else:
        bar = find_info_bar(image)
    micrograph = Micrograph(image, None, dict(record.instrument), bar, record.sidecar)
    if record.pixel_nm is None:
        return micrograph
    x, y = record.pixel_nm
    if abs(x - y) <= SQUARE_TOLERANCE * max(x, y):
        return replace(micrograph, pixel_size_nm=math.sqrt(x * y))
    side = min(x, y)
    if max(x, y) > MAX_ANISOTROPY * side:
        message = (
            "%s: its pixels would be %.4g x %.4g nm, more than %d : 1; read without a pixel size"
        )
        logger.warning(message, path, x, y, MAX_ANISOTROPY)
        return micrograph
    size = max(1, round(width * x / side)), max(1, round(height * y / side))
    check_size(*size)
    return replace(micrograph._scaled(size), pixel_size_nm=side)


def _read_image(path: Path) -> tuple[np.ndarray, InstrumentRecord]:
    """A file that Pillow or tifffile knows, with its tags and sidecar."""
    # Opened here because Pillow, given a path, maps raw TIFFs into memory and then ignores their
    # orientation.
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            path = path.with_suffix("")
            file = _gunzip(file)
        try:
            with Image.open(file, formats=PILLOW_FORMATS) as image:
                if image.format == "TIFF":
                    pixels, record = read_tiff(file, image, path)
                else:
                    pixels, record = viewed_pixels(image), InstrumentRecord()
        except UnidentifiedImageError:
            file.seek(0)
            if file.read(4) not in TIFF_MAGIC:
                raise
            pixels, record = read_tiff(file, None, path)
    height, width = pixels.shape[:2]
    sidecar = read_sidecar(
        path, (width, height), lambda row: begins_strip(np.asarray(picture(pixels)), row)
    )
    return pixels, record.filled_from(sidecar) if sidecar else record


def _gunzip(file: BinaryIO) -> BinaryIO:
    """The content of a gzip file, up to the size of the largest RGBA image allowed."""
    limit = 8 * (Image.MAX_IMAGE_PIXELS or 1 << 40)
    data = gzip.GzipFile(fileobj=file).read(limit + 1)
    if len(data) > limit:
        raise Image.DecompressionBombError(f"more than {limit} bytes when unpacked")
    return io.BytesIO(data)
