"""Lengths stated in an answer ("about 80 nm", "5–10 µm"), since n-gram scores miss wrong numbers.

A length is a number, or a range of numbers, with a unit. Not lengths: words without a number ("a
few micrometres"), shares of the image ("3 percent of the width"), areas (nm²), reciprocal lengths
(5 1/nm) and magnifications (5,000x). Hedges are dropped: "up to 80 nm" is 80 nm.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

NANOMETRES = {
    r"nm|nanomet(?:er|re)s?": 1.0,
    r"[μu]m|micromet(?:er|re)s?|microns?": 1e3,
    r"mm|millimet(?:er|re)s?": 1e6,
    r"cm|centimet(?:er|re)s?": 1e7,
    r"å|angstroms?|ångstr[öo]ms?": 0.1,
}

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
_UNIT = rf"(?:{'|'.join(NANOMETRES)})"
# A following exponent or slash makes it another unit: nm2, nm^2, nm/s, nm-1.
_LENGTH = rf"{_NUMBER}\s*-?{_UNIT}(?![\w^/]|[-−]1(?!\d))"
_HEDGE = r"(?:about|around|roughly|nearly|over|up to|more than|~|≈)?\s*"
_STATEMENT = re.compile(
    rf"(?<![\w.,/⁄^])(?:(?P<between>between\s+{_HEDGE})?(?P<first>{_NUMBER}(?:\s*-?{_UNIT})?)\s*"
    rf"(?P<join>to|and|[-–—−]|±|\+/-|[×x](?=\d)|(?<=\s)[×x])\s*{_HEDGE}(?P<last>{_LENGTH})"
    rf"|(?P<only>{_LENGTH}))",
    re.IGNORECASE,
)
_EXPONENTS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "^"))


class Length(NamedTuple):
    """A length in nanometres; `low == high` unless the text states a range."""

    low: float
    high: float


def parse_lengths(text: str) -> list[Length]:
    """The lengths that a text states, in order.

    "80 to 120 nm", "5–10 µm" and "between 1 and 2 µm" are ranges, "100 ± 20 nm" is 80 to 120 nm,
    and "2 × 3 µm" or "2 and 3 µm" are two lengths.
    """
    lengths = []
    # NFKC: one code point for the two signs µ and μ, one for the two of Å, and plain spaces.
    text = " ".join(unicodedata.normalize("NFKC", text.translate(_EXPONENTS)).split())
    for match in _STATEMENT.finditer(text):
        if match["only"]:
            value, _ = _nanometres(match["only"])
            lengths.append(Length(value, value))
            continue
        last, factor = _nanometres(match["last"])
        first, _ = _nanometres(match["first"], factor)
        join = match["join"].lower()
        if join in ("×", "x") or (join == "and" and not match["between"]):
            lengths += [Length(first, first), Length(last, last)]
        elif join in ("±", "+/-"):
            lengths.append(Length(max(first - last, 0.0), first + last))
        else:
            lengths.append(Length(min(first, last), max(first, last)))
    return [length for length in lengths if length.high > 0]


def relative_error(predicted: Length, true: Length) -> float:
    """The mean error of the two ends, relative to the middle of the true range.

    For single values this is |predicted - true| / true. A single value counts as a range whose ends
    are equal: 100 nm for 80 to 120 nm is off by 0.2.
    """
    off = abs(predicted.low - true.low) + abs(predicted.high - true.high)
    return off / (true.low + true.high)


def length_errors(prediction: str, reference: str) -> list[float]:
    """The relative error of each length in `reference`, `inf` where `prediction` states none.

    Lengths are paired one to one, nearest on a logarithmic scale. Further lengths in the prediction
    are ignored.
    """
    true, predicted = parse_lengths(reference), parse_lengths(prediction)
    errors = np.full(len(true), np.inf)
    if true and predicted:
        middles = [np.log([sum(length) for length in lengths]) for lengths in (true, predicted)]
        rows, columns = linear_sum_assignment(np.abs(np.subtract.outer(*middles)))
        errors[rows] = [
            relative_error(predicted[c], true[r]) for r, c in zip(rows, columns, strict=True)
        ]
    return errors.tolist()


def _nanometres(text: str, factor: float = 1.0) -> tuple[float, float]:
    """A text such as "5 µm" in nanometres, and its unit's factor (`factor` if it has no unit)."""
    number, unit = re.match(rf"({_NUMBER})[\s-]*(.*)", text, re.DOTALL).groups()
    for pattern, nanometres in NANOMETRES.items():
        if re.fullmatch(pattern, unit, re.IGNORECASE):
            factor = nanometres
    # "1,000" has a thousands separator, "0,5" a decimal comma.
    thousands = re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?", number)
    return float(number.replace(",", "" if thousands else ".")) * factor, factor
