"""Image files and arrays of any depth to 8-bit pictures: one way for datasets and for students.

What is special about it:
- deeper images are stretched to 8 bits between percentiles that ignore an info bar, never clipped
  (`stretch`);
- Pillow decodes. What it leaves out is put right: bytes with a sign, 32 bits without one, black
  and white exchanged, and the lower half of 16-bit colours (`stored_pixels`). What Pillow cannot
  decode in full is refused, never shown wrong;
- transparency is laid on white, the background of figures.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

import base64
import io
import math
import os
import re
import sys
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

# An image with a shorter side, in pixels, shows nothing; most likely it is the wrong file.
MIN_SIDE = 16

# No image file is as short in base64, and no path as long.
MIN_BASE64, MAX_PATH = 64, 4096
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
DOWNLOAD_SECONDS = 30

# Percentiles of the grey levels that become black and white when an image is stretched to 8 bits.
BLACK_AND_WHITE = (0.1, 99.9)
# Share of one grey level in the blank rows that begin and end a burnt-in info bar.
BLANK_ROW = 0.85

# Pillow asks libtiff for these raw modes, but libtiff gives the machine's byte order.
NATIVE_ORDER = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}

# TIFF tags that say how pixels are stored, and their values.
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 258, 262, 284, 339
MIN_IS_WHITE, PLANES, UNSIGNED, SIGNED = 0, 2, 1, 2


class UnsupportedPixels(ValueError):
    """A file stores its pixels in a way that Pillow does not decode in full."""


def to_8bit(image) -> Image.Image:
    """An image of any kind as an 8-bit PIL image of mode "L" or "RGB".

    8-bit grey levels are kept; deeper ones are stretched (see `stretch`). Transparent pixels are
    put on white, the background of figures.

    Args:
        image: PIL image; numpy array or torch tensor of shape (height, width),
            (height, width, 1|3|4) or (1|3|4, height, width); or, of an image file that Pillow
            reads, the path, a URL, a data URI or what it holds in base64, as chat messages have
            them. (`mvaema.micrographs.microscope` reads instruments' own formats and every kind of
            TIFF.)

    Raises:
        ValueError: the image cannot be read in full, has a side below 16 pixels, or no finite
            pixel; it is to be downloaded while the environment says HF_HUB_OFFLINE.
    """
    if isinstance(image, str | os.PathLike):
        return picture(_file_pixels(image))
    if hasattr(image, "cpu"):  # a torch tensor; a bench without torch has none
        image = image.cpu().numpy()
    if isinstance(image, Image.Image):
        _check_size(*image.size)
        return picture(stored_pixels(image))
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise ValueError(
            "an image must be a PIL image, a path, or an array of shape (height, width), "
            f"(height, width, 1, 3 or 4); got an array of shape {pixels.shape}."
        )
    _check_size(pixels.shape[1], pixels.shape[0])
    return picture(pixels)


def _file_pixels(source: str | os.PathLike) -> np.ndarray:
    """The pixels of the image in a file, turned the way a viewer would show it."""
    name = source = os.fspath(source)
    encoded = _base64(source)
    if encoded is not None or len(source) > MAX_PATH:
        name = f"the image that begins with {source[:32]!r}"
    try:
        # Given a path, Pillow maps raw TIFFs into memory and then ignores their orientation.
        with _opened(source, encoded) as file, Image.open(file) as image:
            _check_size(*image.size)
            return viewed_pixels(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(source, name)
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def _opened(source: str, encoded: str | None) -> BinaryIO:
    """The file at a path or URL, or that is given in base64.

    Raises:
        OSError, ValueError: there is none.
    """
    if encoded is not None:
        return io.BytesIO(base64.b64decode(encoded))
    if source.startswith(("http://", "https://")):
        return io.BytesIO(_downloaded(source))
    return open(source, "rb")  # noqa: PTH123


def _base64(source: str) -> str | None:
    """The base64 in a data URI, or that a string is; None for a path or a URL."""
    if source.startswith("data:"):
        return source.partition(",")[2]
    if len(source) < MIN_BASE64 or os.path.exists(source):  # noqa: PTH110
        return None
    return source if BASE64.fullmatch(source) else None


def _downloaded(url: str) -> bytes:
    """What lies at a URL.

    Raises:
        OSError: the download failed, or the environment says HF_HUB_OFFLINE.
    """
    # Loaded where it is needed: a bench without a network has no use for it.
    try:
        from huggingface_hub import get_session
    except ModuleNotFoundError as error:
        raise OSError("to download needs the package huggingface_hub") from error
    try:
        response = get_session().get(url, timeout=DOWNLOAD_SECONDS, follow_redirects=True)
        response.raise_for_status()
    except OSError:
        raise
    except Exception as error:  # the session's library has errors of its own
        raise OSError(f"the download failed: {error}") from error
    return response.content


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"an image of {width} x {height} pixels is too small to show anything; micrographs "
            f"need at least {MIN_SIDE} pixels on each side."
        )


def picture(pixels: np.ndarray) -> Image.Image:
    """Pixels of any depth as an 8-bit PIL image of mode "L" or "RGB".

    Args:
        pixels: (height, width) or (height, width, channels) of grey, grey and alpha, RGB or RGBA.
            Alpha is not multiplied into the colours; its full value is the largest integer of
            the dtype, or 1.0.

    Raises:
        ValueError: no pixel is finite.
    """
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4) and pixels.dtype != np.uint8:
        alpha = pixels[..., -1:] / full_scale(pixels.dtype)
        colours = stretch(np.where(alpha > 0, pixels[..., :-1], np.nan))
        alpha = np.rint(255 * alpha.clip(0, 1)).astype(np.uint8)
        pixels = np.concatenate([colours, alpha], axis=-1)
    return without_transparency(Image.fromarray(np.ascontiguousarray(stretch(pixels))))


def without_transparency(image: Image.Image) -> Image.Image:
    """A PIL image of mode "L", "RGB" or one deeper than 8 bits; transparency is laid on white.

    Raises:
        UnsupportedPixels: Pillow does not convert the image's colours to RGB.
    """
    if image.mode == "L" or image.mode[0] in "IF":
        return image
    if image.mode == "1":
        return image.convert("L")
    mode = "L" if image.mode in ("LA", "La") else "RGB"
    if image.mode in ("La", "RGBa"):  # multiplied by its alpha
        image = image.convert(image.mode.upper())
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise UnsupportedPixels(f"its colours are of the kind {image.mode}: {error}.") from error


def viewed_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image (see `stored_pixels`), turned the way a viewer would show them."""
    return turned(*_decode(image))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (height, width, ...) stored in one of EXIF's eight orientations, upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def stored_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image with the values that its file states.

    Returns:
        (height, width) of any dtype, (height, width, 3), or for 16-bit colours with alpha
        (height, width, 2|4). 8-bit transparency is already laid on white.

    Raises:
        UnsupportedPixels: Pillow does not decode this kind of pixels in full.
    """
    return _decode(image)[0]


def _decode(image: Image.Image) -> tuple[np.ndarray, int]:
    """The pixels that a PIL image's file states, and their EXIF orientation.

    The orientation is read last: Pillow turns a TIFF as it loads it, and then drops the tag.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    if tags.get(PLANAR_CONFIGURATION) == PLANES and len(bits) > 1:
        if max(bits) > 8 or image.mode in ("LA", "La", "PA"):
            raise UnsupportedPixels("Pillow does not read planes of this kind.")
    raw = _raw_mode(image)
    if ";16" in raw and raw[0] != "I" and image.format in ("PNG", "TIFF"):
        return _deep_colours(image, raw)
    if raw in NATIVE_ORDER and image.tile[0].codec_name == "libtiff":
        image.tile = _with_raw_mode(image.tile, NATIVE_ORDER[raw])
    inverted = tags.get(PHOTOMETRIC) == MIN_IS_WHITE  # Pillow inverts up to 8 bits itself
    sign = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
    image.load()
    pixels = np.asarray(without_transparency(image))
    if pixels.dtype == np.int32 and bits[0] == 32 and sign == UNSIGNED:
        pixels = pixels.view(np.uint32)
    if pixels.dtype == np.uint8 and pixels.ndim == 2 and sign == SIGNED:
        pixels = pixels.view(np.int8)
    if inverted and pixels.dtype != np.uint8:
        pixels = negative(pixels)
    return pixels, image.getexif().get(ExifTags.Base.Orientation, 1)


def negative(pixels: np.ndarray) -> np.ndarray:
    """Pixels with black and white exchanged: in a range of its own, without overflow."""
    return -pixels if pixels.dtype.kind == "f" else ~pixels


def _raw_mode(image: Image.Image) -> str:
    """How Pillow will unpack the pixels of an image that it has not loaded yet, else ""."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0].args
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _with_raw_mode(tiles: list, raw: str) -> list:
    """Pillow's tiles of an image, to be unpacked in another way."""
    return [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in tiles
    ]


def _deep_colours(image: Image.Image, raw: str) -> tuple[np.ndarray, int]:
    """An image's colours in 16 bits, (height, width, 2|3|4), and its orientation.

    Pillow keeps one byte of each sample. Which one, its raw mode says; so it decodes twice.
    """
    if image.info.get("transparency") is not None:
        raise UnsupportedPixels("Pillow does not read 16-bit colours with a transparent one.")
    channels, order = raw.split(";16")
    if channels == "LA":  # its two samples are as long as four bytes
        pixels, orientation = _decode_as(image, "RGBA", "RGBA")
        first, second = pixels[..., 0::2], pixels[..., 1::2]
    else:
        straight = channels.upper()
        first, _ = _decode_as(image, image.mode, f"{straight};16B")
        second, orientation = _decode_as(image, image.mode, f"{straight};16L")
    if order == "L" or (order == "N" and sys.byteorder == "little"):
        first, second = second, first
    pixels = first.astype(np.uint16) << 8 | second
    convert = {"CMYK": cmyk_to_rgb, "RGBa": straight_alpha}.get(channels, np.asarray)
    return convert(pixels), orientation


def _decode_as(image: Image.Image, mode: str, raw: str) -> tuple[np.ndarray, int]:
    """The bytes of an image's file, decoded anew with another mode and raw mode of Pillow."""
    image.fp.seek(0)
    with Image.open(image.fp, formats=[image.format]) as copy:
        copy.seek(image.tell())
        copy._mode = mode  # as Pillow's guide tells the author of a decoder to set it
        copy.tile = _with_raw_mode(copy.tile, raw)
        copy.load()
        return np.asarray(copy), copy.getexif().get(ExifTags.Base.Orientation, 1)


def full_scale(dtype: np.dtype) -> float:
    """The value of an opaque alpha."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def straight_alpha(pixels: np.ndarray) -> np.ndarray:
    """Samples (height, width, n) that were multiplied by the last one, their alpha, divided by it.

    8-bit samples stay so; deeper ones become shares of their full value, float64.
    """
    shares = pixels / full_scale(pixels.dtype)
    samples, alpha = shares[..., :-1], shares[..., -1:]
    samples = np.divide(samples, alpha, out=np.zeros_like(samples), where=alpha > 0).clip(0, 1)
    return _like(pixels, np.concatenate([samples, alpha], axis=-1))


def cmyk_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Ink (height, width, 4) of cyan, magenta, yellow and black as light, as Pillow converts it.

    8-bit samples stay so; deeper ones become shares of their full value, float64.
    """
    light = 1 - pixels / full_scale(pixels.dtype)
    return _like(pixels, light[..., :3] * light[..., 3:])


def _like(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    return np.rint(255 * shares).astype(np.uint8) if pixels.dtype == np.uint8 else shares


def stretch(pixels: np.ndarray) -> np.ndarray:
    """Pixels of any depth as uint8 of the same shape; 8-bit pixels are returned as they are.

    Deeper grey levels are mapped linearly, the 0.1th percentile to black and the 99.9th to white.
    The percentiles are those of the picture: rows of an info bar, printed in the extremes of the
    range, would leave the specimen without contrast. Non-finite pixels become black, and so does
    a constant image.

    Args:
        pixels: (height, width) or (height, width, channels), of any real dtype or bool.

    Raises:
        ValueError: no pixel is finite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    picture = _without_info_bar(pixels)
    if pixels.dtype.kind == "f":
        picture = picture[np.isfinite(picture)]
    if not picture.size:
        raise ValueError("the image has no finite pixel.")
    low, high = _percentiles(picture, BLACK_AND_WHITE)
    if high <= low:  # nearly constant: the few pixels that stand out are all there is to see
        low, high = float(picture.min()), float(picture.max())
    if high <= low:
        return np.zeros(pixels.shape, np.uint8)
    if pixels.dtype == np.uint16:  # each grey level once, and not each pixel
        return _between(np.arange(2**16, dtype=np.uint16), low, high)[pixels]
    return _between(np.nan_to_num(pixels, nan=low, posinf=low, neginf=low), low, high)


def _between(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey levels as uint8, 0 at `low` and 255 at `high`."""
    levels = levels.astype(np.float32 if levels.dtype.itemsize <= 2 else np.float64)
    return np.rint(((levels - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)


def _percentiles(pixels: np.ndarray, percents: tuple[float, ...]) -> list[float]:
    """As `np.percentile`. 16-bit grey levels are counted, not sorted: 9 instead of 35 ms for three
    million (one thread of an AMD EPYC)."""
    if pixels.dtype != np.uint16:
        return np.percentile(pixels, percents).tolist()
    up_to = np.bincount(pixels.ravel(), minlength=2**16).cumsum()
    found = []
    for percent in percents:
        place = percent / 100 * (pixels.size - 1)
        first = math.floor(place)
        low, high = np.searchsorted(up_to, [first, first + 1], side="right").tolist()
        high, beyond = min(high, 2**16 - 1), place - first
        # From the nearer of the two, as NumPy does it: the same to the last bit.
        near_low = low + (high - low) * beyond
        found.append(near_low if beyond < 0.5 else high - (high - low) * (1 - beyond))
    return found


def _without_info_bar(pixels: np.ndarray) -> np.ndarray:
    """The rows of a picture that are not an info bar's.

    A bar lies in the lower third and begins and ends with blank rows: nearly all of a row has
    exactly one grey level, which noise rules out for rows of a picture.
    """
    start = -(-len(pixels) * 2 // 3)
    rows = pixels.reshape(len(pixels), -1)[start:]
    level = np.median(rows, axis=1, keepdims=True)  # the row's one level, if it has one
    blank = start + np.flatnonzero((rows == level).mean(axis=1) >= BLANK_ROW)
    return np.delete(pixels, slice(blank[0], blank[-1] + 1), axis=0) if blank.size else pixels
