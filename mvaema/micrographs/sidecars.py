"""The text files that some instruments write beside an image.

What is special about it:
- TESCAN writes `name-tif.hdr` (or `name.hdr`) beside `name.tif`, JEOL and Hitachi `name.txt`;
- a sidecar calibrates only an image of the size that it states: a smaller copy has the same name;
- a strip that it states is cut off only where the image has one.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mvaema.micrographs.vendors import (
    InstrumentRecord,
    axis_nm,
    ini,
    number,
    pair,
    scaled,
    settings,
    tescan,
)

logger = logging.getLogger(__name__)

SIDECAR_BYTES = 1 << 20  # a larger text file is not a sidecar
WIDTH_TOLERANCE = 0.005  # a width computed from lengths is rounded


def sidecar_paths(path: Path) -> list[Path]:
    """The text files that may hold the record of an image, the likeliest first.

    TESCAN writes `name-tif.hdr` (or `name.hdr`) beside `name.tif`, JEOL and Hitachi `name.txt`.
    """
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    suffix = path.suffix.removeprefix(".").lower()
    names = (f"{path.stem}-{suffix}.hdr", f"{path.stem}.hdr", f"{path.stem}.txt")
    endings = (str.lower, str.upper, str.title)
    return [path.with_name(name[:-4] + case(name[-4:])) for name in names for case in endings]


def read_sidecar(
    path: Path, size: tuple[int, int], begins_strip: Callable[[int], bool]
) -> InstrumentRecord | None:
    """The record in the text file that some instruments write beside the image, or None.

    An exported copy beside the original has the same sidecar. So the lengths in it count only if
    it states the width of this image. One that states no width counts beside a TIFF, and where its
    name has the suffix of the image.

    Args:
        path: of the image.
        size: (width, height) of its pixels.
        begins_strip: whether an info bar begins at a row, as seen in the pixels.
    """
    for sidecar in sidecar_paths(path):
        text = _read_text(sidecar)
        for signature, (reader, width) in SIDECARS.items():
            if text and signature in text:
                record = replace(reader(text, size), sidecar=str(sidecar))
                record = _of_this_image(record, path, size, width(text))
                # TESCAN states the height of its strip, but not whether a copy still has it.
                if reader is _tescan_sidecar and record.rows and not begins_strip(record.rows):
                    return replace(record, rows=None)
                return record
    return None


def _of_this_image(
    record: InstrumentRecord,
    path: Path,
    size: tuple[int, int],
    width: float | None,
) -> InstrumentRecord:
    """The record of a sidecar without lengths that are not those of the image."""
    stem, suffix = path.stem, path.suffix.removeprefix(".").lower()
    named = Path(str(record.sidecar)).stem == f"{stem}-{suffix}"
    if width is None:
        belongs, why = named or suffix in ("tif", "tiff"), "does not state the size of its image"
    else:
        belongs = abs(width - size[0]) <= WIDTH_TOLERANCE * size[0]
        why = f"belongs to an image {width:.0f} pixels wide"
    if not belongs:
        logger.warning(
            "%s: %s %s; its lengths are not used", path, Path(str(record.sidecar)).name, why
        )
        return replace(record, pixel_nm=None, rows=None)
    return record


def _read_text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > SIDECAR_BYTES:
            return None
        data = path.read_bytes()
    except OSError as error:
        logger.warning("%s: the sidecar cannot be read (%s)", path, error.strerror)
        return None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def _jeol_sem(text: str, size: tuple[int, int]) -> InstrumentRecord:
    """JEOL SEM: `$KEY value` lines in a .txt sidecar; the scale bar gives the calibration."""
    values = dict(re.findall(r"^\$+(\S+)[ \t]+(.*\S)", text, re.MULTILINE))
    full = [int(n) for n in re.findall(r"\d+", values.get("CM_FULL_SIZE", ""))]
    same_width = not full or full[0] == size[0]
    bar = number(values.get("SM_MICRON_BAR"))
    marker = re.match(r"([\d.]+)\s*(\S+)", values.get("SM_MICRON_MARKER", ""))
    length = axis_nm(marker[1], marker[2]) if marker else None
    pixel = length / bar if length and bar and same_width else None
    return InstrumentRecord(
        (pixel, pixel) if pixel else None,
        settings(
            technique="SEM",
            accelerating_voltage_kv=values.get("CM_ACCEL_VOLT"),
            working_distance_mm=values.get("SM_WD"),
            magnification=values.get("CM_MAG"),
            detector=values.get("CM_DETECTOR") or values.get("CM_SIGNAL"),
        ),
        full[1] if len(full) == 2 and same_width else None,
    )


def _hitachi(text: str, size: tuple[int, int]) -> InstrumentRecord:
    """Hitachi: `key=value` in a .txt sidecar; `PixelSize` in nm belongs to `DataSize`."""
    values = ini(text)
    stored = re.match(r"(\d+)x(\d+)", values.get("DataSize", ""))
    same_width = stored is None or int(stored[1]) == size[0]
    distance = values.get("WorkingDistance", "").split()
    distance_nm = axis_nm(distance[0], distance[1]) if len(distance) == 2 else None
    return InstrumentRecord(
        pair(values.get("PixelSize"), values.get("PixelSize"), "nm") if same_width else None,
        settings(
            technique="TEM" if "[TemImageFile]" in text else "SEM",
            accelerating_voltage_kv=scaled(values.get("AcceleratingVoltage"), 1e-3),
            working_distance_mm=distance_nm and distance_nm * 1e-6,
            magnification=values.get("Magnification"),
            detector=values.get("SignalName"),
        ),
        int(stored[2]) if stored and same_width else None,
    )


def _hitachi_width(text: str) -> float | None:
    return number(ini(text).get("DataSize"))


def _jeol_width(text: str) -> float | None:
    found = re.search(r"^\$+CM_FULL_SIZE[ \t]+(\d+)", text, re.MULTILINE)
    return float(found[1]) if found else None


def _tescan_sidecar(text: str, size: tuple[int, int]) -> InstrumentRecord:
    return tescan(ini(text), size)


def _tescan_width(text: str) -> float | None:
    """The field of view (reference over magnification) in pixels."""
    values = ini(text)
    names = ("MagnificationReference", "Magnification", "PixelSizeX")
    reference, magnification, pixel = (number(values.get(name)) for name in names)
    return reference / magnification / pixel if reference and magnification and pixel else None


# Text that marks a vendor's sidecar -> its reader, and the width in pixels that it states.
SIDECARS = {
    "[SemImageFile]": (_hitachi, _hitachi_width),
    "[TemImageFile]": (_hitachi, _hitachi_width),
    "SM_MICRON_BAR": (_jeol_sem, _jeol_width),
    "PixelSizeX": (_tescan_sidecar, _tescan_width),
}
