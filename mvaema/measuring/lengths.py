"""Lengths as they are printed beside scale bars, and as readers of print misread them.

What is special about it:
- misread signs are corrected only in a whole statement of a length ("5OO nrn" is 500 nm), and the
  correction is told, because only a bar beside it makes it believable;
- what is printed about the instrument is no length of a bar: "WD 10.1mm", "Size = 30 µm";
- a reciprocal length ("5 1/nm", on diffraction patterns) is recognised, so that it can be refused.
"""

import re
from typing import NamedTuple

from lengths_mvaema import NANOMETRES

# What readers of print make of a unit in small print.
_MISREAD = {
    r"n\s?rn|nrm|nn|ntn|rnm|hm|n\sm|nm[.,:;]": 1.0,
    r"pm|jm|jum|wm|ym|lm|vm|hum|yum|[μu]rn|[μu]\sm|pum|gm|µ|μ|[μu]n|[μu]m[.,:;]|umn|4m|μ\.m": 1e3,
    r"mrn|rnrn": 1e6,
}
_DIGITS = str.maketrans({"O": "0", "o": "0", "D": "0", "Q": "0", "l": "1", "I": "1", "|": "1"})
_UNIT = "|".join(NANOMETRES)
_NUMBER = r"\d+(?:\s?[.,]\s?\d+)?"
_LENGTH = re.compile(rf"(?<![\w.,/^])({_NUMBER})\s*-?({_UNIT})(?![a-zμ0-9/^])", re.IGNORECASE)
_DOUBTFUL = re.compile(
    rf"^\W*[TH]?\W*([\dOoDQlI|]+(?:\s?[.,]\s?[\dOoDQlI|]+)?)\s*-?({'|'.join(_MISREAD)}|{_UNIT})[TIHl|]?\W*$"
)
_RECIPROCAL = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)?\s*(?:1\s*/\s*|/\s*)nm|nm\s*(?:-1|\^)", re.I)
# What stands before the number of a setting of the instrument.
_SETTING = re.compile(r"(?:[=:×±]|wd|size|width|hfw|vfw|aperture|spot|dist\w*|fov|field)\W*$", re.I)


_SCALE = re.compile(r"(?:scale|bar)\W*$", re.I)
# A unit whose number was not read.
_BARE_UNIT = re.compile(rf"^\W*(?:{_UNIT})\W*$", re.I)


class PrintedLength(NamedTuple):
    """A length stated in print.

    Attributes:
        nm: the length.
        start, end: where the text states it.
        sure: whether nothing had to be corrected.
    """

    nm: float
    start: int
    end: int
    sure: bool


def printed_length(text: str) -> PrintedLength | None:
    """The length that a line of print states, or None if it states none, or several.

    Args:
        text: as `normal_text` returns it.
    """
    matches = [match for match in _LENGTH.finditer(text) if not _is_setting(text, match)]
    if len(matches) == 1 and not is_reciprocal(text):
        match = matches[0]
        length = _nanometres(match[1], match[2], NANOMETRES)
        return PrintedLength(length, *match.span(), True) if length else None
    match = None if matches else _DOUBTFUL.match(text)
    if match and not is_reciprocal(text):
        if re.match(r"[lI|].*[1-9]", match[1]):
            return None  # the tick of a bar, or a 1: "I30nm" is 30 or 130 nm
        number = match[1].translate(_DIGITS)
        length = _nanometres(number, match[2], _MISREAD | NANOMETRES)
        return PrintedLength(length, 0, len(text), False) if length else None
    return None


def _is_setting(text: str, match: re.Match) -> bool:
    """Whether a length is one of the instrument's settings: "WD 10.1mm", "10.0kV 14.9mm"."""
    before = text[: match.start()]
    if _SCALE.search(before):
        return False
    return bool(_SETTING.search(before)) or ("kv" in before.lower() and "mm" in match[2].lower())


def is_reciprocal(text: str) -> bool:
    """Whether a line of print states a reciprocal length, as a diffraction pattern does."""
    return bool(_RECIPROCAL.search(text))


def is_bare_unit(text: str) -> bool:
    """Whether a line of print is a unit of length without its number."""
    return bool(_BARE_UNIT.match(text))


def is_round(nm: float) -> bool:
    """Whether instruments and people choose such a length for a bar: 1, 2, 2.5, 5 … of a decade."""
    mantissa = float(f"{nm:e}".partition("e")[0])
    return any(abs(mantissa - value) < 1e-6 for value in (1, 1.2, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


def _nanometres(number: str, unit: str, units: dict[str, float]) -> float:
    value = float(re.sub(r"\s", "", number).replace(",", "."))
    for pattern, size in units.items():
        if re.fullmatch(pattern, unit, re.IGNORECASE):
            return value * size
    return 0.0
