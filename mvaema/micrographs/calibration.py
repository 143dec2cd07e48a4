"""What an instrument recorded about its image, in one form: lengths in nm, settings in one unit.

What is special about it:
- a unit is read however it is spelled: "µm", "\\u00B5m", "micrometers", "[u_m]", an Ångström sign;
- a unit of energy, of time or of reciprocal space says that the image is not one of a specimen;
- only listed settings are kept; operators, specimens, serial numbers and dates are not read.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field

# Nanometres per unit of length: symbols, in which case matters, and English words.
SYMBOLS = {"m": 1e9, "cm": 1e7, "mm": 1e6, "um": 1e3, "µm": 1e3, "nm": 1.0, "pm": 1e-3}
SYMBOLS |= {"A": 0.1, "Å": 0.1}
WORDS = {
    **{"meter": 1e9, "centimeter": 1e7, "millimeter": 1e6, "micrometer": 1e3, "micron": 1e3},
    **{"nanometer": 1.0, "angstrom": 0.1, "picometer": 1e-3},
}

# No micrograph has a wider pixel. The 1/m of a diffraction pattern, read as m, is far above this.
MAX_PIXEL_NM = 1e9


class NotAMicrograph(Exception):
    """The record says that the file is not an image of a specimen; `reason` is a short slug."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class InstrumentRecord:
    """What an instrument recorded.

    Attributes:
        pixel_nm: (x, y) length of a stored pixel in nm, or None.
        instrument: settings under the keys of `Micrograph.instrument`.
        rows: rows of the image above an info bar that the instrument added, or None.
        sidecar: path of the text file that the record is from, or None.
    """

    pixel_nm: tuple[float, float] | None = None
    instrument: dict[str, str | float] = field(default_factory=dict)
    rows: int | None = None
    sidecar: str | None = None

    def filled_from(self, other: "InstrumentRecord") -> "InstrumentRecord":
        """This record, with what it lacks taken from another one of the same image."""
        return InstrumentRecord(
            self.pixel_nm or other.pixel_nm,
            other.instrument | self.instrument,
            self.rows or other.rows,
            self.sidecar or other.sidecar,
        )


def refuse_energy(unit: str | None) -> None:
    """Raises NotAMicrograph for a unit of energy: the data is a spectrum or spectrum image."""
    if str(unit).strip("\0 ").lower() in ("ev", "kev", "mev"):
        raise NotAMicrograph("spectrum", f"one of its axes is in {unit}: a spectrum")


def refuse_diffraction(pixel_nm: float | None) -> None:
    """Raises NotAMicrograph for a pixel too wide for an image: its unit was that of a pattern."""
    if pixel_nm and pixel_nm > MAX_PIXEL_NM:
        message = f"its pixels would be {pixel_nm:.3g} nm wide: a diffraction pattern"
        raise NotAMicrograph("diffraction", message)


def axis_nm(scale: object, unit: str | None) -> float | None:
    """The calibration of one axis of an image in nm per pixel, or None if it has none.

    Raises:
        NotAMicrograph: the unit is that of a spectrum, a time trace or reciprocal space.
    """
    refuse_energy(unit)
    unit = (unit or "").strip("\0 []")
    if unit.lower() in ("s", "ms", "sec"):
        raise NotAMicrograph("spectrum", f"one of its axes is in {unit}: a time trace")
    if re.search(r"^1 ?/|\^?-1$|⁻¹|^m?rad$", unit):
        message = f"one of its axes is in {unit}: a diffraction pattern or a Fourier transform"
        raise NotAMicrograph("diffraction", message)
    length, value = _unit_nm(unit), number(scale)
    if length is None or not value:
        return None
    return abs(value) * length  # Gatan gives a flipped axis a negative scale


def _unit_nm(unit: str) -> float | None:
    """Nanometres per unit of length, or None for what is none."""
    # ImageJ writes other letters as \u00B5; ncempy writes [u_m].
    unit = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), unit)
    unit = unicodedata.normalize("NFC", unit).replace("μ", "µ").replace("_", "")
    if unit in SYMBOLS:
        return SYMBOLS[unit]
    word = unicodedata.normalize("NFKD", unit).encode("ascii", "ignore").decode().lower()
    return WORDS.get(re.sub(r"metre$", "meter", word.removesuffix("s")))


def number(value: object) -> float | None:
    """The finite number that `value` is or starts with ("10000 Volt"), else None."""
    match = re.match(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", str(value))
    result = float(match[0]) if match else math.nan
    return result if math.isfinite(result) else None


def scaled(value: object, factor: float) -> float | None:
    """The number in `value` (see `number`) times a factor, or None."""
    result = number(value)
    return None if result is None else result * factor


def pair(x: object, y: object, unit: str | None) -> tuple[float, float] | None:
    """The (x, y) length of a pixel in nm when both axes have one (see `axis_nm`), else None."""
    x, y = axis_nm(x, unit), axis_nm(y, unit)
    return (x, y) if x and y else None


TEXTS = ("technique", "detector")


def settings(**values: object) -> dict[str, str | float]:
    """The settings that have a value: non-empty texts, and numbers above zero (6 digits)."""
    known: dict[str, str | float] = {}
    for key, value in values.items():
        if key in TEXTS:
            text = str(value or "").strip("\0 \r\n\t")
            if text:
                known[key] = text
        else:
            setting = number(value)
            if setting is not None and setting > 0:
                known[key] = float(f"{setting:.6g}")
    return known


def ini(text: str) -> dict[str, str]:
    """The `key=value` lines of a text; sections are ignored, a key's first value is used."""
    pairs = re.findall(r"^\s*(\w+)[ \t]*=[ \t]*([^\r\n]*)", text, re.MULTILINE)
    return {key: value.strip() for key, value in reversed(pairs)}
