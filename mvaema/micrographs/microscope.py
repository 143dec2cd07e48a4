"""Reads a microscope's file as one micrograph: pixels, calibration, settings, info bar.

What is special about it:
- the image is rebuilt from pixels alone; no metadata comes with it;
- Pillow decodes every format it knows, with or without the extra `microscopy`, so the
  `pixel_hash` of a file does not depend on what is installed. tifffile reads the vendors' tags
  and the few TIFFs that Pillow cannot decode, RosettaSciIO the microscopes' own formats;
- a file that is not one readable micrograph raises `UnreadableMicrograph` with a reason that can
  be counted. There is never half an image.

Where a file leaves a choice:
- grey levels deeper than 8 bits are stretched as `processing_mvaema.stretch` does it;
- of several pages, frames or slices the first full-resolution one is read; of several images in
  a native file the largest one, or the first of equals;
- pixels that are not square (by more than 1 %) are resampled to the finer of their two sides;
- grey images have mode "L" however they are stored, transparency is laid on white, and the image
  is turned the way a viewer would show it.
"""

import errno
import gzip
import importlib
import io
import logging
import math
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mvaema.micrographs.info_bar import Box, begins_strip, find_info_bar
from mvaema.micrographs.sidecars import read_sidecar
from mvaema.micrographs.vendors import (
    DESCRIPTIONS,
    IMAGE_DESCRIPTION,
    VENDOR_TAGS,
    InstrumentRecord,
    NotAMicrograph,
    axis_nm,
    read_tiff_tags,
    refuse_energy,
    settings,
)
from processing_mvaema import stretch, without_transparency

logger = logging.getLogger(__name__)

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

# RosettaSciIO's reader for each suffix of a microscope's own format.
NATIVE_READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".mrc": "mrc",
    ".ser": "tia",
}

# Velox: images only. MRC: no search for files beside one that is called movie.
NATIVE_OPTIONS = {"emd": {"select_type": "images"}, "mrc": {"metadata_file": None}}

# Suffixes of the files that are read, lower case.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
    *(".tif", ".tiff", ".tif.gz", ".tiff.gz"),
    *NATIVE_READERS,
)

# Sides of a pixel that differ by less than this are rounding, not geometry.
SQUARE_TOLERANCE = 0.01

# A TIA series names no unit. A diffraction pattern's 1/m, read as m, is far above this.
MAX_PIXEL_NM = 1e9

# The settings to keep: their name in RosettaSciIO's metadata (keV, mm) and ours.
NATIVE_SETTINGS = {
    "acquisition_mode": "technique",
    "beam_energy": "accelerating_voltage_kv",
    "working_distance": "working_distance_mm",
    "magnification": "magnification",
}

# TIFF tags that say how pixels are stored.
SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 254, 258, 262, 339
MIN_IS_WHITE = 0
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class UnreadableMicrograph(ValueError):
    """A file that is not one readable micrograph.

    The message names the file, what is wrong and what to do. `reason` is a short slug to count by.
    """

    def __init__(self, path: str | os.PathLike, reason: str, message: str):
        super().__init__(f"{os.fspath(path)}: {message}")
        self.path = path
        self.reason = reason

    def __reduce__(self):  # exceptions travel between worker processes
        message = str(self).removeprefix(f"{os.fspath(self.path)}: ")
        return type(self), (self.path, self.reason, message)


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

    The size limit is Pillow's for every format: twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        UnreadableMicrograph: the file is missing, damaged, too large, not an image of a specimen,
            or needs the extra `microscopy`; its `reason` says which.
    """
    path = Path(path)
    _check_file(path)
    try:
        reader = NATIVE_READERS.get(path.suffix.lower())
        pixels, record = _read_native(path, reader) if reader else _read_image(path)
        return _micrograph(pixels, record)
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
    except Exception as error:  # on a damaged file, a decoder may raise anything
        message = f"is truncated or damaged ({error!r}); copy or export it again."
        raise UnreadableMicrograph(path, "damaged", message) from error


def _check_file(path: Path) -> None:
    """Raises UnreadableMicrograph unless `path` is a regular file with content."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableMicrograph(path, "not-a-file", "is not a regular file.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UnreadableMicrograph(path, *why_not_opened(error)) from error
    if info.st_size == 0:
        raise UnreadableMicrograph(path, "empty", "has zero bytes; export or copy it again.")


def why_not_opened(error: OSError) -> tuple[str, str]:
    """The (reason, message) of a file or folder that the system did not open."""
    reason, advice = {
        errno.ENOENT: ("not-found", "check the path"),
        errno.EACCES: ("permission-denied", "give yourself permission to read it"),
        errno.EPERM: ("permission-denied", "give yourself permission to read it"),
        errno.ELOOP: ("symlink-loop", "remove the link that leads to itself"),
    }.get(error.errno, ("unreadable", "check the disk or the network share"))
    return reason, f"cannot be opened ({error.strerror}); {advice}."


def _check_size(width: int, height: int) -> None:
    """Pillow's limit on pixels, for what other readers decode."""
    limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        message = f"{width} x {height} pixels; the limit is {limit} pixels"
        raise Image.DecompressionBombError(message)


def _micrograph(pixels: np.ndarray, record: InstrumentRecord) -> Micrograph:
    """The micrograph of pixels (height, width) or (height, width, 3) of any depth."""
    height, width = pixels.shape[:2]
    pixels = stretch(pixels)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(pixels))
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
    size = max(1, round(width * x / side)), max(1, round(height * y / side))
    _check_size(*size)
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
                    pixels, record = _read_tiff(file, image)
                else:
                    pixels, record = _pixels(image), InstrumentRecord()
        except UnidentifiedImageError:
            file.seek(0)
            if file.read(4) not in TIFF_MAGIC:
                raise
            pixels, record = _read_tiff(file, None)
    height, width = pixels.shape[:2]
    sidecar = read_sidecar(path, (width, height), lambda row: begins_strip(stretch(pixels), row))
    if sidecar is not None:
        record = InstrumentRecord(
            record.pixel_nm or sidecar.pixel_nm,
            sidecar.instrument | record.instrument,
            record.rows or sidecar.rows,
            sidecar.sidecar,
        )
    return pixels, record


def _gunzip(file: BinaryIO) -> BinaryIO:
    """The content of a gzip file, up to the size of the largest RGBA image allowed."""
    limit = 8 * (Image.MAX_IMAGE_PIXELS or 1 << 40)
    data = gzip.GzipFile(fileobj=file).read(limit + 1)
    if len(data) > limit:
        raise Image.DecompressionBombError(f"more than {limit} bytes when unpacked")
    return io.BytesIO(data)


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image: (height, width) of any depth or (height, width, 3) of uint8."""
    image.load()
    return np.asarray(without_transparency(ImageOps.exif_transpose(image)))


def _read_tiff(file: BinaryIO, image: Image.Image | None) -> tuple[np.ndarray, InstrumentRecord]:
    """A TIFF, opened in Pillow (`image`) unless Pillow does not know its kind of pixels."""
    tifffile = _optional("tifffile")
    index, pixels = 0, None
    if image is not None:
        index = _full_resolution_page(image)
        if tifffile is None and _has_vendor_tags(image):
            raise ImportError("tifffile is needed for the instrument's tags")
        pixels = _pillow_tiff_pixels(image)
    if tifffile is None:
        if pixels is None:
            raise ImportError("tifffile is needed for this kind of TIFF pixels")
        return pixels, InstrumentRecord()
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[index]
            if pixels is None:
                pixels = _tifffile_pixels(page)
            tags = {tag.code: tag.value for tag in page.tags}
            return pixels, read_tiff_tags(tags, (page.imagewidth, page.imagelength))
    except NotAMicrograph:
        raise
    except Exception as error:  # pixels without a calibration are better than neither
        if pixels is None:
            raise
        logger.warning("tags not understood (%r): read without calibration", error)
        return pixels, InstrumentRecord()


def _has_vendor_tags(image: Image.Image) -> bool:
    tags = image.tag_v2
    description = str(tags.get(IMAGE_DESCRIPTION, ""))
    return bool(VENDOR_TAGS & set(tags)) or any(mark in description for mark in DESCRIPTIONS)


def _pillow_tiff_pixels(image: Image.Image) -> np.ndarray | None:
    """The pixels of a TIFF open in Pillow; None for deep colour, which Pillow cuts to 8 bits."""
    tags = image.tag_v2
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    if len(bits) > 1 and max(bits) > 8:
        return None
    inverted = tags.get(PHOTOMETRIC) == MIN_IS_WHITE  # Pillow inverts 8 bits itself
    unsigned = tags.get(SAMPLE_FORMAT, (1,))[0] == 1  # Pillow reads 32 bits as signed
    pixels = _pixels(image)
    if pixels.dtype == np.int32 and unsigned:
        pixels = pixels.view(np.uint32)
    return pixels.max() - pixels if inverted and pixels.dtype != np.uint8 else pixels


def _optional(module: str):
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _full_resolution_page(image: Image.Image) -> int:
    """Seeks the first page that is not a thumbnail or mask; page 0 where there is none."""
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        if not image.tag_v2.get(SUBFILE_TYPE, 0) & 0b101:
            return index
    image.seek(0)
    return 0


def _tifffile_pixels(page) -> np.ndarray:
    """The pixels of a TIFF page that Pillow cannot decode."""
    _check_size(page.imagewidth, page.imagelength * page.samplesperpixel)
    pixels = page.asarray()
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise NotAMicrograph("not-an-image", f"its page has the axes {page.axes}")
    if pixels.ndim == 3:
        channels = pixels.shape[-1]
        if channels not in (3, 4):
            raise NotAMicrograph("not-an-image", f"it has {channels} channels")
        pixels = pixels[..., :3]
    if page.photometric == MIN_IS_WHITE:
        pixels = pixels.max() - pixels
    return _real(pixels)


def _real(pixels: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(pixels):
        message = "its values are complex numbers: a Fourier transform or the phase of a hologram"
        raise NotAMicrograph("not-an-image", message)
    return pixels


def _read_native(path: Path, reader: str) -> tuple[np.ndarray, InstrumentRecord]:
    """The largest image in a microscope's own format."""
    plugin = importlib.import_module(f"rsciio.{reader}")
    options = NATIVE_OPTIONS.get(reader, {})
    try:
        signals = plugin.file_reader(str(path), lazy=True, **options)
    except ValueError as error:
        if "RGBA" not in str(error):  # the only kind of DM image that cannot be read lazily
            raise
        signals = plugin.file_reader(str(path), **options)
    images, refusal = [], NotAMicrograph("spectrum", "it holds no image")
    for signal in signals:
        try:
            images.append((signal, _native_frame(signal)))
        except NotAMicrograph as error:
            refusal = error
    if not images:
        raise refusal
    signal, (frame, pixel_nm) = max(images, key=lambda item: math.prod(item[1][0].shape[:2]))
    _check_size(*frame.shape[:2])
    if reader == "mrc" and not _mrc_is_calibrated(signal["original_metadata"]):
        pixel_nm = None
    return np.asarray(frame), InstrumentRecord(pixel_nm, _native_settings(signal))


def _native_frame(signal: dict) -> tuple:
    """The first frame of a RosettaSciIO signal, not loaded yet, and its pixel's (x, y) in nm."""
    data, axes = signal["data"], signal["axes"]
    kind = signal["metadata"].get("Signal", {}).get("signal_type")
    plane = [axis for axis in axes if not axis["navigate"]]
    if kind or len(plane) < 2 or min(axis["size"] for axis in plane[-2:]) < 2:
        raise NotAMicrograph("spectrum", f"its data is a spectrum or a profile ({kind or '1-D'})")
    for axis in axes:
        refuse_energy(axis["units"])
    calibration = [axis_nm(axis["scale"], axis["units"]) for axis in plane]
    y, x = calibration[-2:]
    if x and x > MAX_PIXEL_NM:
        raise NotAMicrograph(
            "diffraction", f"its pixels would be {x:.3g} nm wide: a diffraction pattern"
        )
    # Axes before the last two are a stack, a series or a scan; its first frame is read.
    data = data[(0,) * (len(axes) - 2)] if len(axes) > 2 else data
    if data.dtype.names:  # a structured array of R, G, B
        data = np.stack([np.asarray(data[name]) for name in data.dtype.names[:3]], axis=-1)
    if [str(axis["name"]).lower() for axis in plane[-2:]] == ["x", "y"]:  # EMD by ncempy
        data, x, y = data.swapaxes(0, 1), y, x
    return _real(data), (x, y) if x and y else None


def _mrc_is_calibrated(original_metadata: dict) -> bool:
    """Whether an MRC file states a pixel size: not an empty cell, nor exactly 1 Å per pixel,
    which programs write when they do not know it."""
    if "fei_header" in original_metadata:
        return True
    header = original_metadata["std_header"]
    return all(
        header[f"M{axis}"] > 0 and header[f"{axis}len"] not in (0, header[f"M{axis}"])
        for axis in "XY"
    )


def _native_settings(signal: dict) -> dict[str, str | float]:
    """The settings that RosettaSciIO maps to HyperSpy's names, under our names."""
    metadata = signal["original_metadata"]
    values = {"detector": metadata.get("BinaryResult", {}).get("Detector")}  # Velox
    for source, target in signal.get("mapping", {}).items():
        name, convert = target if target else ("", None)
        key = NATIVE_SETTINGS.get(name.rpartition(".")[2])
        value = metadata
        for part in source.split("."):
            value = value.get(part) if hasattr(value, "get") else None
        if key and value is not None:
            values[key] = convert(value) if convert else value
    return settings(**values)
