"""TIFF: the pixels of one page, and what its tags record.

What is special about it:
- Pillow decodes, with or without the extra `microscopy`, so that the `pixel_hash` of a file does
  not depend on what is installed. tifffile reads the vendors' tags and the pages that Pillow does
  not decode in full;
- the first full-resolution page is read. Where its tags name no instrument, those of the next
  pages are asked.
"""

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from mvaema.micrographs.calibration import InstrumentRecord, NotAMicrograph
from mvaema.micrographs.refusals import check_size
from mvaema.micrographs.vendors import (
    FEI_HELIOS,
    FEI_SFEG,
    names_instrument,
    read_tiff_tags,
)
from pixels_mvaema import (
    UnsupportedPixels,
    cmyk_to_rgb,
    full_scale,
    negative,
    straight_alpha,
    turned,
    viewed_pixels,
)

logger = logging.getLogger(__name__)

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

SUBFILE_TYPE, ORIENTATION = 254, 274
REDUCED_OR_MASK = 0b101  # in SUBFILE_TYPE
# The pages whose tags are looked at; instruments write few, stacks have thousands.
FIRST_PAGES = 8
# Values of PhotometricInterpretation, and of ExtraSamples.
MIN_IS_WHITE, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 2, 3, 5, 6, 8
PREMULTIPLIED, STRAIGHT = 1, 2


def read_tiff(
    file: BinaryIO, image: Image.Image | None, name: Path
) -> tuple[np.ndarray, InstrumentRecord]:
    """A TIFF's pixels (see `pixels_mvaema.picture`), upright, and its record.

    Args:
        file: the open file.
        image: the same file opened in Pillow, or None where Pillow does not know its pixels.
        name: what warnings call it.

    Raises:
        ImportError: it needs the extra `microscopy`.
        NotAMicrograph: it is not an image of a specimen.
    """
    tifffile = _optional("tifffile")
    if tifffile is None:
        return _without_tifffile(image), InstrumentRecord()
    index = 0 if image is None else _full_resolution_page(image)
    pixels, failure = None, None
    if image is not None:
        try:
            pixels = viewed_pixels(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            raise
        except Exception as error:  # damaged, or a kind of TIFF that Pillow does not decode
            failure = error
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            if pixels is None:
                pixels = _page_pixels(tiff.pages[index], failure)
            return pixels, _record(tiff, index)
    except NotAMicrograph:
        raise
    except Exception as error:  # pixels without a calibration are better than neither
        if pixels is None:
            raise
        logger.warning("%s: tags not understood (%r): read without calibration", name, error)
        return pixels, InstrumentRecord()


def _optional(module: str):
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _without_tifffile(image: Image.Image | None) -> np.ndarray:
    """What Pillow alone decodes; a file whose tags it would lose is refused."""
    if image is None:
        raise ImportError("tifffile is needed for this kind of TIFF pixels")
    index = _full_resolution_page(image)
    for page in range(min(FIRST_PAGES, getattr(image, "n_frames", 1))):
        image.seek(page)
        if names_instrument(image.tag_v2):
            raise ImportError("tifffile is needed for the instrument's tags")
    image.seek(index)
    try:
        return viewed_pixels(image)
    except UnsupportedPixels as error:
        raise ImportError("tifffile is needed for this kind of TIFF pixels") from error


def _full_resolution_page(image: Image.Image) -> int:
    """Seeks the first page that is not a thumbnail or mask; page 0 where there is none."""
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        if not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK:
            return index
    image.seek(0)
    return 0


def _page_pixels(page, failure: Exception | None) -> np.ndarray:
    """The pixels of a page that Pillow does not decode, upright.

    Raises:
        ValueError: the page's data are not all there; its cause is `failure`, what Pillow said.
        NotAMicrograph: the page has axes, channels or colours that no micrograph has.
    """
    check_size(page.imagewidth, page.imagelength * page.samplesperpixel)
    end = page.parent.filehandle.size
    segments = zip(page.dataoffsets, page.databytecounts, strict=True)
    if not all(0 < count <= end - offset for offset, count in segments):
        raise ValueError("its pixel data are not all there") from failure
    pixels = page.asarray()
    if np.iscomplexobj(pixels):
        message = "its values are complex numbers: a Fourier transform or the phase of a hologram"
        raise NotAMicrograph("not-an-image", message)
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise NotAMicrograph("not-an-image", f"its page has the axes {page.axes}")
    if pixels.dtype == np.uint8 and 1 < page.bitspersample < 8:
        pixels = (pixels * (255 // (2**page.bitspersample - 1))).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = _colours(page, pixels)
    elif page.photometric == PALETTE:
        pixels = np.moveaxis(page.colormap[:, pixels] >> 8, 0, -1).astype(np.uint8)
    elif page.photometric == MIN_IS_WHITE:
        pixels = negative(pixels)
    return turned(pixels, page.tags.valueof(ORIENTATION, 1))


def _colours(page, pixels: np.ndarray) -> np.ndarray:
    """Grey, grey and alpha, RGB or RGBA from the samples (height, width, samples) of a page."""
    if page.photometric == LAB:
        raise NotAMicrograph("not-an-image", "its colours are CIELAB; export it as RGB")
    channels = pixels.shape[-1]
    colours = {CMYK: 4, RGB: 3, YCBCR: 3}.get(page.photometric, 1)
    extra = [int(kind) for kind in page.extrasamples] or [0] * (channels - colours)
    alpha = next((i for i, kind in enumerate(extra) if kind in (PREMULTIPLIED, STRAIGHT)), None)
    if colours == 1 and alpha is None and channels in (3, 4):
        colours = 3  # RGB by a program that does not say so
    if not colours <= channels or (colours == 1 and len(extra) > 1):
        raise NotAMicrograph("not-an-image", f"it has {channels} channels")
    if alpha is None:
        pixels = pixels[..., :colours]
    else:
        pixels = pixels[..., [*range(colours), colours + alpha]]
        if pixels.dtype != np.uint8:
            pixels = pixels / full_scale(pixels.dtype)
        if extra[alpha] == PREMULTIPLIED:
            pixels = straight_alpha(pixels)
    shown, transparency = pixels[..., :colours], pixels[..., colours:]
    if page.photometric == CMYK:
        shown = cmyk_to_rgb(shown)
    if page.photometric == MIN_IS_WHITE:
        shown = negative(shown)
    pixels = np.concatenate([shown, transparency], axis=-1)
    return pixels if pixels.shape[-1] > 1 else pixels[..., 0]


def _record(tiff, index: int) -> InstrumentRecord:
    """The record of a page; the page's orientation is taken into account.

    Some instruments (Olympus SIS) describe the image on a later page. Its calibration counts where
    that page has the same size.
    """
    page = tiff.pages[index]
    size = page.imagewidth, page.imagelength
    record = InstrumentRecord()
    for described in _described(tiff, index):
        here = described.imagewidth, described.imagelength
        record = read_tiff_tags(_tags(described), here)
        if here != size:
            record = InstrumentRecord(instrument=record.instrument)
        break
    orientation = page.tags.valueof(ORIENTATION, 1)
    if orientation == 1 or record == InstrumentRecord():
        return record
    pixel = record.pixel_nm
    if pixel and orientation in (5, 6, 7, 8):
        pixel = pixel[::-1]
    return InstrumentRecord(pixel, record.instrument)


def _described(tiff, index: int) -> Iterator:
    """The pages whose tags name an instrument: the one that is read, then the others in order."""
    others = range(min(FIRST_PAGES, len(tiff.pages)))
    for number in [index, *(other for other in others if other != index)]:
        page = tiff.pages[number]
        if names_instrument({tag.code: tag.value for tag in page.tags}):
            yield page


def _tags(page) -> dict[int, object]:
    """The tags of a page, {code: value}; XML in FEI's tags, where tifffile sees INI, as bytes."""
    tags = {tag.code: tag.value for tag in page.tags}
    file = page.parent.filehandle
    for code in {FEI_HELIOS, FEI_SFEG} & set(tags):
        tag = page.tags[code]
        file.seek(tag.valueoffset)
        text = file.read(tag.valuebytecount).lstrip(b"\xef\xbb\xbf \r\n\t")
        if text.startswith(b"<"):
            tags[code] = text
    return tags
