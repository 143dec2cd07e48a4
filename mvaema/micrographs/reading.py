"""One file, or the bytes of one, to what a build keeps of it.

What is special about it:
- it runs in worker processes, and whatever happens becomes a reason that can be counted;
- an image that shows nothing is refused: all black frames have the same pixels, and would be one
  row for several specimens;
- a version tells when a file that was read, or could not be read, is worth reading again.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

import pixels_mvaema
from mvaema.micrographs.microscope import Micrograph, UnreadableMicrograph, read_micrograph
from mvaema.micrographs.schema import instrument_columns, pixel_hash
from mvaema.micrographs.shards import clean_png

# Raise it when files come to give other pixels or facts: then all files are read once more.
READING = 2

# Reasons that lie in the system and may be gone at the next build. Any other lies in the file's
# content: it is read again only when the file or the reader changes.
PASSING = {
    *("missing-extra", "not-a-file", "not-found", "permission-denied", "symlink-loop"),
    "unreadable",
}
# Reasons that say that the file holds no micrograph.
REFUSED = {"blank", "diffraction", "not-an-image", "spectrum"}
# Whose version decides whether a file can be read, beside our own modules.
PACKAGES = ("pillow", "tifffile", "imagecodecs", "rosettasciio", "h5py", "numpy")

# By how much the scale bar may differ from the pixel size that is known without it.
SCALE_TOLERANCE = 0.05

# Grey levels between the darkest and the brightest pixel of an image that shows nothing.
BLANK_LEVELS = 2


@dataclass(frozen=True)
class ReadMicrograph:
    """What a build keeps of a file that was read.

    Attributes:
        image_id: hash of the pixels.
        png: the pixels.
        pixel_size_nm: length of one of these pixels, or None.
        instrument: what is known of the columns `mvaema.micrographs.schema.INSTRUMENT_COLUMNS`.
        info_bar: `cut` off, `left` in the image, or None where there is none.
        sidecar: path of the text file that was read beside it, or None.
        pixel_size_source: one of `mvaema.micrographs.schema.PIXEL_SIZE_SOURCES`, or None.
        scale_bar_check: whether a scale bar that was read `agrees` with a pixel size that is known
            without it, or `contradicts` it; None where one of them is missing.
    """

    image_id: str
    png: bytes
    pixel_size_nm: float | None
    instrument: dict[str, str | float] = field(default_factory=dict)
    info_bar: str | None = None
    sidecar: str | None = None
    pixel_size_source: str | None = None
    scale_bar_check: str | None = None

    @property
    def facts(self) -> dict:
        """All that is known besides pixels."""
        facts = {"pixel_size_nm": self.pixel_size_nm, "pixel_size_source": self.pixel_size_source}
        facts |= {**self.instrument, "info_bar": self.info_bar, "sidecar": self.sidecar}
        facts |= {"scale_bar_check": self.scale_bar_check}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class ReadOptions:
    """How files become images.

    Attributes:
        crop_info_bar: cut off a burnt-in info bar, which may name operators and lots.
        max_side: longest side in pixels; larger images are scaled down.
        read_scale_bar: reads the length of one pixel of a whole image off its scale bar, in nm, or
            None; a function that can be pickled. It fills in what no file states.
    """

    crop_info_bar: bool = False
    max_side: int | None = None
    read_scale_bar: Callable[[Image.Image], float | None] | None = field(default=None, repr=False)

    @property
    def version(self) -> str:
        """Changes when files would come to give other rows."""
        return f"{self}{' scale bars' if self.read_scale_bar else ''}"


def read_entry(
    content: Path | bytes, suffix: str, pixel_size_nm: float | None, options: ReadOptions
) -> ReadMicrograph | tuple[str, str]:
    """Read one micrograph, in a worker process. Returns (reason, message) if it cannot be read.

    `pixel_size_nm`, if given, is that of the stored file and replaces the instrument's.
    """
    try:
        if isinstance(content, bytes):
            with tempfile.NamedTemporaryFile(suffix=suffix) as file:
                file.write(content)
                file.flush()
                micrograph = read_micrograph(file.name)
        else:
            micrograph = read_micrograph(content)
        source = None if micrograph.pixel_size_nm is None else "recorded"
        if pixel_size_nm is not None:
            micrograph, source = replace(micrograph, pixel_size_nm=pixel_size_nm), "typed"
        return _row_of(micrograph, source, options)
    except UnreadableMicrograph as error:
        return error.reason, str(error).removeprefix(f"{error.path}: ")
    except Exception as error:  # one file must not stop a build of a million
        return failure(error)


def _row_of(
    micrograph: Micrograph, source: str | None, options: ReadOptions
) -> ReadMicrograph | tuple[str, str]:
    """What a build keeps of a micrograph, or (reason, message) if it shows nothing."""
    cropped = micrograph.crop_info_bar()
    if _is_blank(cropped.image):
        # All such images are the same, whatever specimen is in the microscope.
        return "blank", "is of one grey level: the beam or the shutter was off; leave it out."
    check = None
    if options.read_scale_bar is not None:
        # On the whole image: later steps cut the bar off or make it too small to read.
        read = options.read_scale_bar(micrograph.image)
        known = micrograph.pixel_size_nm
        if read is not None and known is None:
            micrograph, source = replace(micrograph, pixel_size_nm=read), "read"
        elif read is not None:
            agrees = abs(read - known) <= SCALE_TOLERANCE * known
            check = "agrees" if agrees else "contradicts"
    has_bar = micrograph.info_bar is not None
    if options.crop_info_bar:
        micrograph = cropped
    if options.max_side is not None:
        micrograph = micrograph.resize(options.max_side)
    return ReadMicrograph(
        pixel_hash(micrograph.image),
        clean_png(micrograph.image),
        micrograph.pixel_size_nm,
        instrument_columns(micrograph.instrument),
        ("cut" if options.crop_info_bar else "left") if has_bar else None,
        micrograph.sidecar,
        source,
        check,
    )


def _is_blank(image: Image.Image) -> bool:
    extrema = image.getextrema()
    bands = [extrema] if image.mode == "L" else extrema
    return all(high - low <= BLANK_LEVELS for low, high in bands)


@cache
def reader_version() -> str:
    """Changes when a file that could not be read may have become readable."""
    digest = hashlib.sha256()
    modules = [*Path(__file__).parent.glob("*.py")]
    modules += Path(pixels_mvaema.__file__).parent.glob("*_mvaema.py")
    for module in sorted(modules):
        digest.update(module.read_bytes())
    for package in PACKAGES:
        try:
            digest.update(f" {package} {version(package)}".encode())
        except PackageNotFoundError:
            digest.update(f" no {package}".encode())
    return digest.hexdigest()[:16]


def failure(error: Exception) -> tuple[str, str]:
    return "unreadable", f"{type(error).__name__}: {error}"
