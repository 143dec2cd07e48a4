"""Reading what a microscope wrote: one function, one micrograph.

What is special about it:
- the image is rebuilt from pixels alone, and its calibration and info bar come with it;
- Pillow decodes every format it knows, with or without the extra, so that `pixel_hash` of a file
  does not depend on what is installed;
- a file that cannot be read as one micrograph is an `UnreadableMicrograph` with a countable
  reason, never half an image.

Choices, where a file leaves one:
- grey levels deeper than 8 bits are stretched linearly between their 0.1 and 99.9 percentiles;
- of several pages, frames or slices the first full-resolution one is read;
- grey images come as "L" however they are stored, transparency is laid on white, and the
  orientation a viewer would show is applied.
"""

import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# File suffixes worth trying, lower case.
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
)

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

# Percentiles that become black and white when deeper pixels are stretched to 8 bits.
PERCENTILES = (0.1, 99.9)

Box = tuple[int, int, int, int]


class UnreadableMicrograph(ValueError):
    """A file that is not one readable micrograph.

    The message names the file, the reason and what to do; `reason` is a short slug for counting.
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
    """One micrograph, without anything but pixels and what the instrument recorded about them.

    Attributes:
        image: 8-bit image, mode "L" or "RGB", rebuilt from pixels alone (no metadata).
        pixel_size_nm: real-world length of one pixel of `image` in nm, None when unknown.
        instrument: what is known of `technique`, `accelerating_voltage_kv`,
            `working_distance_mm`, `magnification` and `detector`.
        info_bar: (left, upper, right, lower) of a burnt-in info bar in pixels, or None.
    """

    image: Image.Image
    pixel_size_nm: float | None
    instrument: dict[str, str | float]
    info_bar: Box | None

    def crop_info_bar(self) -> "Micrograph":
        """The micrograph without its info bar; itself when it has none."""
        if self.info_bar is None:
            return self
        left, upper, right, lower = self.info_bar
        width, height = self.image.size
        # Cut on the side that leaves most of the image.
        rests = [(0, 0, width, upper), (0, lower, width, height)]
        rests += [(0, 0, left, height), (right, 0, width, height)]
        rest = max(rests, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        return replace(self, image=self.image.crop(rest), info_bar=None)

    def resize(self, max_side: int) -> "Micrograph":
        """The micrograph with its longer side at most `max_side` pixels; never enlarged."""
        if max_side < 1:
            raise ValueError(f"max_side must be at least 1 pixel; got {max_side}.")
        width, height = self.image.size
        if max(width, height) <= max_side:
            return self
        scale = max_side / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        box = self.info_bar
        if box is not None:
            sx, sy = size[0] / width, size[1] / height
            box = (round(box[0] * sx), round(box[1] * sy), round(box[2] * sx), round(box[3] * sy))
        return replace(
            self,
            image=self.image.resize(size, Image.Resampling.LANCZOS),
            pixel_size_nm=self.pixel_size_nm and self.pixel_size_nm / scale,
            info_bar=box,
        )


def read_micrograph(path: str | os.PathLike) -> Micrograph:
    """Reads one micrograph from a file.

    Raises:
        UnreadableMicrograph: whatever is wrong with the file.
    """
    path = Path(path)
    _check_file(path)
    image = _eight_bit(_decode(path))
    return Micrograph(image, None, {}, None)


def _check_file(path: Path) -> None:
    """Raises UnreadableMicrograph unless `path` is a regular file with content."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableMicrograph(path, "not-a-file", "is not a regular file; name a file.")
        with path.open("rb"):
            pass
    except OSError as error:
        reason, advice = {
            errno.ENOENT: ("not-found", "check the path"),
            errno.EACCES: ("permission-denied", "give yourself the right to read it"),
            errno.EPERM: ("permission-denied", "give yourself the right to read it"),
            errno.ELOOP: ("symlink-loop", "remove the link that leads to itself"),
        }.get(error.errno, ("unreadable", "check the disk or the network share"))
        message = f"cannot be opened ({error.strerror}); {advice}."
        raise UnreadableMicrograph(path, reason, message) from error
    if info.st_size == 0:
        raise UnreadableMicrograph(path, "empty", "has zero bytes; export or copy it again.")


def _decode(path: Path) -> Image.Image:
    """The first frame of a file that Pillow knows, decoded."""
    try:
        with Image.open(path, formats=PILLOW_FORMATS) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"is too large ({error}); export it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."
        raise UnreadableMicrograph(path, "too-large", message) from error
    except UnidentifiedImageError as error:
        message = "is no image of a known format; export it again as TIFF or PNG."
        raise UnreadableMicrograph(path, "not-an-image", message) from error
    except Exception as error:
        message = f"is truncated or damaged ({error}); copy or export it again."
        raise UnreadableMicrograph(path, "damaged", message) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Mode "L" or "RGB", from pixels alone."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode.startswith(("I", "F")):
        return Image.fromarray(stretch(np.asarray(image)))
    elif image.mode != "L":
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
        pixels = np.asarray(image)
        if (pixels[..., :1] == pixels[..., 1:]).all():
            return Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return Image.fromarray(np.asarray(image))


def stretch(pixels: np.ndarray) -> np.ndarray:
    """Grey levels of any depth to uint8, linear between their 0.1 and 99.9 percentiles.

    Non-finite values become black; a constant image becomes black.
    """
    finite = np.isfinite(pixels)
    if not finite.any():
        return np.zeros(pixels.shape, np.uint8)
    low, high = np.percentile(pixels[finite].astype(np.float64), PERCENTILES)
    if high <= low:
        return np.zeros(pixels.shape, np.uint8)
    scaled = (np.where(finite, pixels, low).astype(np.float64) - low) / (high - low)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
