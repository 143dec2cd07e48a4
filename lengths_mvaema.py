"""Lengths in words: those that an answer states, and what a measurement says beside them.

What is special about it:
- a length is a number, or a range of numbers, with a unit. Not lengths: words without a number ("a
  few micrometres"), shares of the image ("3 percent of the width"), areas (nm²), reciprocal lengths
  (5 1/nm) and magnifications (5,000x). Hedges are dropped: "up to 80 nm" is 80 nm;
- a measurement is a sentence, as `mvaema measure` writes it: "Measured: 143 particles, median 38
  nm, 22–71 nm (5–95 %).". Prompts, datasets and answers can carry it as it is;
- where a student's words and the measurement differ, both stay, and the words are marked.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# The question groups whose answers state sizes, and how other questions ask for one.
MEASURED_QUESTIONS = ("basics", "size_distribution")
_ASKS = re.compile(
    r"how (?:large|big|small|wide|thick|long|far|many)|sizes?\b|diameter|width|thickness|dimension"
    r"|pitch|spacing|period|scale bar|nanomet|microns?\b|micromet",
    re.IGNORECASE,
)
# A length that is further off than this, relative to what was measured, contradicts it.
TOLERANCE = 0.25
CONTRADICTS = "(contradicts the measurement)"

NANOMETRES = {
    r"nm|nanomet(?:er|re)s?": 1.0,
    r"[μu]m|micromet(?:er|re)s?|microns?": 1e3,
    r"mm|millimet(?:er|re)s?": 1e6,
    r"cm|centimet(?:er|re)s?": 1e7,
    r"å|angstroms?|ångstr[öo]ms?": 0.1,
}

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
_HEDGE = r"(?:about|around|roughly|nearly|over|up to|more than|~|≈)?\s*"
_EXPONENTS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "^"))


class Length(NamedTuple):
    """A length in nanometres; `low == high` unless the text states a range."""

    low: float
    high: float


class Quantity(NamedTuple):
    """A range of values in the base unit, and where the text states it."""

    start: int
    end: int
    range: Length


def normal_text(text: str) -> str:
    """The text with single plain spaces and one code point for each sign."""
    # NFKC: one code point for the two signs µ and μ, and one for the two of Å.
    return " ".join(unicodedata.normalize("NFKC", text.translate(_EXPONENTS)).split())


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


def format_length(nanometres: float) -> str:
    """A length with three significant digits: 850 -> "850 nm", 12340 -> "12.3 µm"."""
    for unit, size in (("mm", 1e6), ("µm", 1e3)):
        if nanometres >= size * 0.9995:  # what rounds to 1000 has the larger unit
            return f"{nanometres / size:.3g} {unit}"
    return f"{nanometres:.3g} nm"


# ---- what a measurement says -------------------------------------------------------------------

# Lengths of different things are not compared. What is none of these is a size.
_QUANTITIES = {
    "picture": r"field of view|magnif|pixel|image width|voltage|working distance",
    "scale": r"\bbars?\b|\bscale",
    "deviation": r"deviation|scatter",
    "pitch": r"pitch|period|spacing|repeat|apart|distance|gap",
    "thickness": r"thick",
    "length": r"\blengths?\b|\blong\b",
}
_CLAUSE = re.compile(r"[,;:]\s|\b(?:and|while|with|whose|but)\b")
_AT_MOST = re.compile(
    r"(?:up to|at most|largest|biggest|maximum|below|under)\W+(?:\w+\W+){0,4}$", re.IGNORECASE
)
_AT_LEAST = re.compile(
    r"(?:down to|at least|smallest|finest|minimum|above)\W+(?:\w+\W+){0,4}$", re.IGNORECASE
)


def contradicted(answer: str, measurement: str) -> list[str]:
    """The sentences of an answer that state a length which the measurement contradicts.

    A stated length is compared with each measured one of the same quantity (size, thickness, pitch,
    length, scale bar): the median, and the range from the 5th to the 95th percentile; what is "up
    to" or "at least" so much, with the ends of that range. It contradicts if the nearest is off by
    more than `TOLERANCE`. What was not measured, or in pixels only, contradicts nothing.

    Args:
        answer: of a student.
        measurement: sentences such as "Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %).
            Scale bar: 200 nm."
    """
    measured: dict[str, list[Length]] = {}
    for sentence in _sentences(measurement):
        measured.setdefault(_quantity(sentence), []).extend(parse_lengths(sentence))
    found = []
    for sentence in _sentences(answer):
        text = normal_text(sentence)
        for stated in find_quantities(text, NANOMETRES):
            known = measured.get(_quantity(_clause(text, stated)))
            if known and _off(text, stated, known) > TOLERANCE:
                found.append(sentence)
                break
    return found


def asks_for_size(question: str, question_id: str | None = None) -> bool:
    """Whether a measurement belongs beside the answer to a question.

    Args:
        question_id: of one of the student's own questions, where it is one.
    """
    if question_id is not None:
        return question_id in MEASURED_QUESTIONS
    return _ASKS.search(question) is not None


def beside_measurement(answer: str, measurement: str) -> str:
    """An answer with the measurement behind it; sentences that contradict it are marked.

    "The grains are 0.5 µm wide." becomes "The grains are 0.5 µm wide (contradicts the measurement).
    Measured: 143 grains, median 38 nm, 22–71 nm (5–95 %)."
    """
    wrong = set(contradicted(answer, measurement))
    told = [_marked(s) if s in wrong else s for s in _sentences(answer)]
    return " ".join([*told, measurement.strip()])


def measured_answers(
    answers: Sequence[str],
    questions: Sequence[str],
    own: Mapping[str, str],
    measurement: str | None,
) -> list[str]:
    """Answers about one image, with its measurement behind those to questions about sizes.

    Args:
        questions: one for each answer.
        own: question id to question, those that the student was trained on.
        measurement: see `contradicted`; without one the answers stay as they are.
    """
    ids = {question: name for name, question in own.items()}
    return [
        beside_measurement(answer, measurement)
        if measurement and asks_for_size(question, ids.get(question))
        else answer
        for answer, question in zip(answers, questions, strict=True)
    ]


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?;])\s+", text.strip()) if part]


def _marked(sentence: str) -> str:
    words, stop = re.fullmatch(r"(.*?)([.!?;]*)", sentence, re.DOTALL).groups()
    return f"{words} {CONTRADICTS}{stop}"


def _quantity(text: str) -> str:
    for name, pattern in _QUANTITIES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "size"


def _clause(text: str, stated: Quantity) -> str:
    """The part of a sentence that a length stands in."""
    starts = [match.end() for match in _CLAUSE.finditer(text, 0, stated.start)]
    end = _CLAUSE.search(text, stated.end)
    return text[starts[-1] if starts else 0 : end.start() if end else len(text)]


def _off(text: str, stated: Quantity, measured: list[Length]) -> float:
    """By how much a stated length differs from the nearest measured one."""
    before = text[: stated.start]
    ends = [length for length in measured if length.low < length.high]
    if _AT_MOST.search(before):
        measured = [Length(length.high, length.high) for length in ends] or measured
    elif _AT_LEAST.search(before):
        measured = [Length(length.low, length.low) for length in ends] or measured
    return min(relative_error(stated.range, length) for length in measured)


__all__ = [
    "CONTRADICTS",
    "MEASURED_QUESTIONS",
    "NANOMETRES",
    "Length",
    "Quantity",
    "asks_for_size",
    "beside_measurement",
    "contradicted",
    "find_quantities",
    "format_length",
    "measured_answers",
    "normal_text",
    "parse_lengths",
    "relative_error",
]
