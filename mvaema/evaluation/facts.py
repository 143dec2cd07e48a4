"""What an answer asserts, fact by fact: "a few round grains, no cracks" has three facts.

What is special about it:
- a lexicon (`lexicon.py`, `facts.toml`) gives kinds of facts, their values and words. Lengths,
  shares of the image ("3 percent of the width"), counts and the text of the scale bar are read as
  quantities;
- negation is followed ("without cracks or pores", "cracks are absent", "do not touch"), and what
  an answer only supposes ("possibly", "may be") or says of a use ("could be used as") is no fact;
- words of degree are dropped: "mostly smooth", "a few cracks" and "about 80 nm" are facts;
- a fact belongs to the micrograph, not to one object of it: "smooth wires on a rough base" is both
  smooth and rough.

`benchmarks/fact_extraction.py` measures how often it reads an answer as a person does.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lengths_mvaema import NANOMETRES, Length, find_quantities, normal_text
from mvaema.evaluation.lexicon import Lexicon, Mention, load_lexicon

LENGTH, SHARE, SCALE, COUNT = QUANTITIES = ("length", "share", "scale", "count")
PRESENCE, STRUCTURE = "presence", "structure"


class Fact(NamedTuple):
    """Something that a text asserts.

    Attributes:
        kind: a kind of the lexicon, or one of `QUANTITIES`.
        value: a value of the lexicon; of a count what is counted, "" if the text leaves it out; of
            the other quantities their unit.
        absent: the text denies it.
        range: of a quantity: nanometres, percent of the image, or a number.
    """

    kind: str
    value: str
    absent: bool = False
    range: Length | None = None

    def __str__(self) -> str:
        if self.range is None:
            return f"{self.kind}: {'no ' if self.absent else ''}{self.value}"
        low, high = (f"{end:.6g}" for end in self.range)
        return f"{self.kind}: {low if low == high else f'{low}–{high}'} {self.value}".rstrip()


def extract_facts(text: str) -> list[Fact]:
    """The facts that a text asserts, each once, in the order of the text."""
    lexicon = load_lexicon()
    facts = []
    for sentence in _SENTENCE.split(lexicon.british(normal_text(text))):
        facts += _quantities(sentence)
        for clause in _CLAUSE.split(sentence):
            facts += _clause_facts(clause, sentence, lexicon)
    return list(dict.fromkeys(facts))


# --- clauses: what is asserted, denied or only supposed ---

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_CLAUSE = re.compile(
    r":|\b(?:but|while|whereas|although|though|however|except|apart from|which|because|since|"
    r"yet)\b",
    re.IGNORECASE,
)
# A thing is denied up to the end of its list ("no cracks, pores or dirt are visible"), a property
# or an action up to the next comma or "and" ("do not touch and are smooth").
_EVENT = re.compile(
    r"(?P<no>\b(?:no|without|neither|nor|lacks?|lacking|free (?:of|from)|absence of|devoid of|"
    r"none of|hardly any|nothing)\b)"
    r"|(?P<not>\b(?:not(?! only)|never|hardly|barely|rather than|instead of|cannot|little)\b"
    r"|n['’]t\b)"
    r"|(?P<maybe>\b(?:possibly|perhaps|maybe|may|might|if any|potentially|whether|could|can be)\b)"
    r"|(?P<use>\b(?:used|serves?|useful|suitable|suited|suits|plausible|candidates?|applied|"
    r"applications?|help) (?:as|for|in|to|the|are|include)\b)"
    r"|(?P<verb>\b(?:is|are|was|were|has|have|lies?|looks?|appears?|remains?|covers?|fills?|shows?|"
    r"stands?|runs?|crosses)\b)"
    r"|(?P<break>,|\band\b|\bwith\b|\bonly\b)(?P<article>\s+(?:an?|the|its|their|some|many|most|few|"
    r"several|one|with)\b)?",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"\b(?:(?:is|are|was|were|be|remains?) )?(?:absent|missing|lacking|"
    r"(?:not|hardly|barely|cannot)(?: be)?(?: \w+ly)? "
    r"(?:visible|present|seen|evident|observed|apparent|detected|found|resolved|shown))\b",
    re.IGNORECASE,
)
_SEEN = re.compile(r"\b(?:visible|present|seen|found|evident|appear|identified)\b", re.IGNORECASE)


def _clause_facts(clause: str, sentence: str, lexicon: Lexicon) -> Iterator[Fact]:
    states = _states(clause)
    denied_before = _DENIED_BEFORE.search(clause)
    for mention in lexicon.mentions(clause):
        state = states[mention.start]
        if state in ("maybe", "use"):
            continue
        denied = state in ("no", "not") or mention.denied
        for kind, value in mention.senses:
            if kind in lexicon.near and not lexicon.near[kind].search(sentence):
                continue
            yield from _fact(kind, value, denied, lexicon, clause, mention, denied_before)


def _fact(
    kind: str,
    value: str,
    denied: bool,
    lexicon: Lexicon,
    clause: str,
    mention: Mention,
    denied_before: re.Match | None,
) -> Iterator[Fact]:
    if kind in (PRESENCE, STRUCTURE) and denied_before and mention.end <= denied_before.start():
        denied = True
    # "No particles touch" denies what they do; only "no particles are visible" denies them.
    if kind == STRUCTURE and denied and not _SEEN.search(clause, mention.end):
        return
    opposite = lexicon.opposites.get((kind, value))
    if denied and opposite:
        yield Fact(kind, opposite)
    else:
        yield Fact(kind, value, denied)


def _states(clause: str) -> list[str | None]:
    """For each character what holds there: "no", "not", "maybe", "use", or None."""
    states: list[str | None] = []
    state = None
    for event in _EVENT.finditer(clause):
        states += [state] * (event.start() - len(states))
        state = _next_state(state, event)
    return states + [state] * (len(clause) - len(states))


def _next_state(state: str | None, event: re.Match) -> str | None:
    name = event.lastgroup if event.lastgroup != "article" else "break"
    if state == "use" or name in ("no", "not", "maybe", "use"):
        return "use" if state == "use" else name
    if name == "verb":
        return None if state == "no" else state
    word = event["break"].lower()
    listed = word in (",", "and") and not event["article"]
    return state if state == "no" and listed else None


# --- quantities ---

_SHARES = {r"%|per ?cent": 1.0}
_ON_THE_SCALE_BAR = re.compile(r"\b(?:bar|scale)\b[^.;,]*$", re.IGNORECASE)
_BAR_FOLLOWS = re.compile(r"\s*(?:long )?(?:scale )?(?:bar|marker)\b", re.IGNORECASE)
# Lengths that belong to the instrument, not to the specimen.
_INSTRUMENT = re.compile(
    r"\b(?:WD|HFW|HFOV|FOV|working distance|field of view)\b[^.;,]*$", re.IGNORECASE
)
_FRACTIONS = {
    "half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "twelfth": 12, "fifteenth": 15, "twentieth": 20, "thirtieth": 30,
    "fortieth": 40, "fiftieth": 50, "sixtieth": 60, "eightieth": 80, "hundredth": 100,
}  # fmt: skip
_FRACTION = rf"\b(?:(?P<parts{{0}}>one|an?|two|three) )(?P<fraction{{0}}>{'|'.join(_FRACTIONS)})s?"
_FRACTION_OF_THE_IMAGE = re.compile(
    rf"(?:{_FRACTION.format(1)} to )?{_FRACTION.format(2)} of the "
    r"(?:image|field|frame|picture|view)\b",
    re.IGNORECASE,
)
_NUMBERS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "a dozen": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
    "a hundred": 100, "one hundred": 100, "two hundred": 200, "three hundred": 300,
}  # fmt: skip
_NUMBER = rf"(?:{'|'.join(sorted(_NUMBERS, key=len, reverse=True))}|\d{{1,3}}(?:,\d{{3}})+|\d+)"
# "Eight thin wires" counts wires; "about ninety are scattered" leaves out what.
_COUNT = re.compile(
    rf"(?<![\w.,-])(?P<low>{_NUMBER})(?:\s*(?:to|or|[-–])\s*(?P<high>{_NUMBER}))?"
    r"\s+(?:(?P<verb>are|lie|stand|form)\b|"
    r"(?P<rest>(?:(?!(?:and|are|at|by|in|is|of|on|or|that|to|with)\b)[a-z-]+\s*){1,4}))",
    re.IGNORECASE,
)


def _quantities(sentence: str) -> Iterator[Fact]:
    for start, end, length in find_quantities(sentence, NANOMETRES):
        before = sentence[:start]
        if _INSTRUMENT.search(before):
            continue
        on_bar = _ON_THE_SCALE_BAR.search(before) or _BAR_FOLLOWS.match(sentence, end)
        yield Fact(SCALE if on_bar else LENGTH, "nm", range=length)
    for quantity in find_quantities(_FRACTION_OF_THE_IMAGE.sub(_percent, sentence), _SHARES):
        yield Fact(SHARE, "%", range=quantity.range)
    yield from _counts(sentence)


def _percent(match: re.Match) -> str:
    parts = {"two": 2, "three": 3}
    values = [
        100 * parts.get(match[f"parts{i}"].lower(), 1) / _FRACTIONS[match[f"fraction{i}"].lower()]
        for i in "12"
        if match[f"fraction{i}"]
    ]
    return " to ".join(f"{value:.4g}" for value in values) + " percent"


def _counts(sentence: str) -> Iterable[Fact]:
    lexicon = load_lexicon()
    for match in _COUNT.finditer(sentence):
        ends = [_number(match[end]) for end in ("low", "high") if match[end]]
        if max(ends) < 2:
            continue
        if match["verb"]:
            yield Fact(COUNT, "", range=Length(min(ends), max(ends)))
            continue
        senses = [s for m in lexicon.mentions(match["rest"]) for s in m.senses]
        counted = [value for kind, value in senses if kind == STRUCTURE]
        if counted:
            yield Fact(COUNT, counted[0], range=Length(min(ends), max(ends)))


def _number(text: str) -> float:
    return float(_NUMBERS.get(text.lower()) or text.replace(",", ""))
