"""The text files that some instruments write beside an image.

What is special about it:
- TESCAN writes `name-tif.hdr` (or `name.hdr`) beside `name.tif`, JEOL and Hitachi `name.txt`;
- a sidecar calibrates only an image of the size that it states.
"""

import logging
import re
from pathlib import Path

from mvaema.micrographs.calibration import (
    InstrumentRecord,
    axis_nm,
    ini,
    number,
    pair,
    scaled,
    settings,
)
from mvaema.micrographs.vendors import tescan

logger = logging.getLogger(__name__)

SIDECAR_BYTES = 1 << 20  # a larger text file is not a sidecar


def read_sidecar(path: Path, size: tuple[int, int]) -> InstrumentRecord | None:
    """The record in the text file that some instruments write beside the image, or None.

    TESCAN writes `name-tif.hdr` (or `name.hdr`) beside `name.tif`, JEOL and Hitachi `name.txt`.
    """
    suffix = path.suffix.removeprefix(".").lower()
    for name in (f"{path.stem}-{suffix}.hdr", f"{path.stem}.hdr", f"{path.stem}.txt"):
        for ending in (name[-4:], name[-4:].upper(), name[-4:].title()):
            text = _read_text(path.with_name(name[:-4] + ending))
            for signature, reader in SIDECARS.items():
                if text and signature in text:
                    return reader(text, size)
    return None


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


# Text that marks a vendor's sidecar -> its reader.
SIDECARS = {
    "[SemImageFile]": _hitachi,
    "[TemImageFile]": _hitachi,
    "SM_MICRON_BAR": _jeol_sem,
    "PixelSizeX": lambda text, size: tescan(ini(text), size),
}
