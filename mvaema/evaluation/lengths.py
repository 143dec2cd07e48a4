"""Lengths stated in an answer ("about 80 nm", "5–10 µm"), since n-gram scores miss wrong numbers.

`find_quantities` reads any unit; `facts.py` uses it for shares of the image.

A length is a number, or a range of numbers, with a unit. Not lengths: words without a number ("a
few micrometres"), shares of the image ("3 percent of the width"), areas (nm²), reciprocal lengths
(5 1/nm) and magnifications (5,000x). Hedges are dropped: "up to 80 nm" is 80 nm.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from mvaema.measuring.lengths import NANOMETRES, normal_text

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
_HEDGE = r"(?:about|around|roughly|nearly|over|up to|more than|~|≈)?\s*"


class Length(NamedTuple):
    """A length in nanometres; `low == high` unless the text states a range."""

    low: float
    high: float


class Quantity(NamedTuple):
    """A range of values in the base unit, and where the text states it."""

    start: int
    end: int
    range: Length


def parse_lengths(text: str) -> list[Length]:
    """The lengths that a text states, in order.

    "80 to 120 nm", "5–10 µm" and "between 1 and 2 µm" are ranges, "100 ± 20 nm" is 80 to 120 nm,
    and "2 × 3 µm" or "2 and 3 µm" are two lengths.
    """
    return [quantity.range for quantity in find_quantities(normal_text(text), NANOMETRES)]


def find_quantities(text: str, units: Mapping[str, float]) -> list[Quantity]:
    """The quantities that a text states, in order, as `parse_lengths` understands them.

    Args:
        text: as `normal_text` returns it.
        units: pattern of a unit's name to its size in the base unit.
    """
    found = []
    for match in _statement("|".join(units)).finditer(text):
        found += [Quantity(*match.span(), values) for values in _ranges(match, units)]
    return [quantity for quantity in found if quantity.range.high > 0]


@functools.cache
def _statement(unit: str) -> re.Pattern:
    """The pattern of one or two quantities in a unit."""
    # A following exponent or slash makes it another unit: nm2, nm^2, nm/s, nm-1.
    length = rf"{_NUMBER}\s*-?(?:{unit})(?![\w^/]|[-−]1(?!\d))"
    return re.compile(
        rf"(?<![\w.,/⁄^])(?:(?P<between>between\s+{_HEDGE})?"
        rf"(?P<first>{_NUMBER}(?:\s*-?(?:{unit}))?)\s*"
        rf"(?P<join>to|and|[-–—−]|±|\+/-|[×x](?=\d)|(?<=\s)[×x])\s*{_HEDGE}(?P<last>{length})"
        rf"|(?P<only>{length}))",
        re.IGNORECASE,
    )


def _ranges(match: re.Match, units: Mapping[str, float]) -> list[Length]:
    if match["only"]:
        value, _ = _in_base_unit(match["only"], units)
        return [Length(value, value)]
    last, factor = _in_base_unit(match["last"], units)
    first, _ = _in_base_unit(match["first"], units, factor)
    join = match["join"].lower()
    if join in ("×", "x") or (join == "and" and not match["between"]):
        return [Length(first, first), Length(last, last)]
    if join in ("±", "+/-"):
        return [Length(max(first - last, 0.0), first + last)]
    return [Length(min(first, last), max(first, last))]


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
    for row, column in pair_lengths(true, predicted):
        errors[row] = relative_error(predicted[column], true[row])
    return errors.tolist()


def pair_lengths(lengths: list[Length], others: list[Length]) -> Iterable[tuple[int, int]]:
    """Indices of lengths paired one to one so that they are nearest on a logarithmic scale."""
    if not lengths or not others:
        return []
    middles = [np.log([sum(length) for length in side]) for side in (lengths, others)]
    rows, columns = linear_sum_assignment(np.abs(np.subtract.outer(*middles)))
    return zip(rows.tolist(), columns.tolist(), strict=True)


def _in_base_unit(
    text: str, units: Mapping[str, float], factor: float = 1.0
) -> tuple[float, float]:
    """A text such as "5 µm" in the base unit, and its unit's size (`factor` if it has no unit)."""
    number, unit = re.match(rf"({_NUMBER})[\s-]*(.*)", text, re.DOTALL).groups()
    for pattern, size in units.items():
        if re.fullmatch(pattern, unit, re.IGNORECASE):
            factor = size
    # "1,000" has a thousands separator, "0,5" a decimal comma.
    thousands = re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?", number)
    return float(number.replace(",", "" if thousands else ".")) * factor, factor
