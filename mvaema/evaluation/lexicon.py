"""The words that assert facts, from `facts.toml`, which says how its tables are meant."""

import functools
import itertools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lengths_mvaema import normal_text

# "nanoparticles", "non-spherical" and "crack-free" need no words of their own. "Needle-like" is no
# needle: what is like something has its own words, or none.
_PHRASE = (
    r"(?<!\w)(?P<non>non-?)?(?:nano|micro)?-?(?P<phrase>{})(?:es|s)?(?!\w|-like|-shaped)"
    r"(?P<free>-free)?"
)


class Mention(NamedTuple):
    """A phrase of the lexicon in a text.

    Attributes:
        senses: the (kind, value) pairs that the phrase stands for; none if it is to be ignored.
        denied: the word itself denies them, as in "non-spherical" and "crack-free".
    """

    start: int
    end: int
    senses: tuple[tuple[str, str], ...]
    denied: bool


@dataclass(frozen=True)
class Lexicon:
    """Kinds of facts, their values, and the words for them.

    Attributes:
        kinds: names of the kinds, in the order of the file.
        opposites: (kind, value) to the value that denying it asserts.
        excluded: (kind, value) to the values that exclude it.
        alike: (kind, value) to the values that share its place in a set of exclusive values.
        near: kind to a pattern that must be in the same sentence.
    """

    kinds: tuple[str, ...]
    opposites: dict[tuple[str, str], str]
    excluded: dict[tuple[str, str], set[str]]
    alike: dict[tuple[str, str], set[str]]
    near: dict[str, re.Pattern]
    spelling: dict[str, str]
    senses: dict[str, tuple[tuple[str, str], ...]]
    phrase: re.Pattern

    def british(self, text: str) -> str:
        """The text in the spelling of the lexicon."""
        for american, british in self.spelling.items():
            text = re.sub(american, british, text, flags=re.IGNORECASE)
        return text

    def mentions(self, text: str) -> Iterator[Mention]:
        """The phrases in a text, in order, the longest where several begin."""
        for match in self.phrase.finditer(text):
            denied = bool(match["non"] or match["free"])
            yield Mention(*match.span(), self.senses[match["phrase"].lower()], denied)


@functools.cache
def load_lexicon() -> Lexicon:
    """The lexicon of `facts.toml`.

    Raises:
        ValueError: a set of exclusive values names a value that its kind does not have.
    """
    tables = tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))
    ignored, spelling = tables.pop("ignored"), tables.pop("spelling")
    senses: dict[str, tuple] = dict.fromkeys(map(normal_text, ignored), ())
    opposites, excluded, alike, near = {}, {}, {}, {}
    for kind, table in tables.items():
        for value, words in table["values"].items():
            for word in map(normal_text, words):  # one code point for µ, as in the texts
                senses[word] = (*senses.get(word, ()), (kind, value))
        _read_exclusive(kind, table, excluded, alike)
        if table.get("either"):
            first, second = table["values"]
            opposites |= {(kind, first): second, (kind, second): first}
        if "near" in table:
            near[kind] = re.compile(rf"\b(?:{'|'.join(table['near'])})(?:s|es)?\b", re.IGNORECASE)
    longest_first = sorted(map(re.escape, senses), key=len, reverse=True)
    phrase = _PHRASE.format("|".join(longest_first))
    return Lexicon(
        tuple(tables),
        opposites,
        excluded,
        alike,
        near,
        spelling,
        senses,
        re.compile(phrase, re.IGNORECASE),
    )


def _read_exclusive(kind: str, table: dict, excluded: dict, alike: dict) -> None:
    """Add to `excluded` and `alike` what a kind's sets of exclusive values say."""
    for exclusive in table.get("exclusive", ()):
        parts = [part.split("|") for part in exclusive]
        if unknown := {*itertools.chain(*parts)} - table["values"].keys():
            raise ValueError(f"facts.toml: [{kind}] has no value {min(unknown)!r} to exclude.")
        for part, other in itertools.permutations(parts, 2):
            for value in part:
                excluded.setdefault((kind, value), set()).update(other)
                alike.setdefault((kind, value), set()).update(part)
