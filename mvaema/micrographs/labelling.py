"""What the names in a source mean: categories, and which micrographs belong together.

What is special about it:
- names of files and folders do not enter a dataset; only pseudonyms of them do;
- a name that no category has labels nothing, and a stated value that is not valid is an error.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from datasets import Value

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.schema import FEATURES, OTHER

CATEGORIES = (*CATEGORY_CAPTIONS, OTHER)
GROUPINGS = ("image", "folder", "stem")
# The stem without the number at its end: `wafer7_cut 012` -> `wafer7_cut`.
STEM_PATTERN = r"(.*?)[\W_]*\d+"
# Columns that hold lengths and voltages: positive numbers.
NUMBERS = [name for name, feature in FEATURES.items() if feature == Value("float64")]


@dataclass(frozen=True)
class Labelling:
    """What the names in a source mean: categories, and which micrographs belong together.

    Attributes:
        synonyms: the source's name for a category -> one of the ten categories or Other.
        group_by: `image` (each micrograph is its own group), `folder` (files of one folder), or
            `stem` (files for which `group_pattern` finds the same text).
        group_pattern: regular expression for the whole stem; its first group is the specimen.
        defaults: columns for micrographs without a value of their own.

    Raises:
        ValueError: an unknown category or grouping, or a pattern without a group.
    """

    synonyms: dict[str, str] = field(default_factory=dict)
    group_by: str = "image"
    group_pattern: str = STEM_PATTERN
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        wrong = sorted({*self.synonyms.values(), self.defaults.get("category") or OTHER})
        wrong = [name for name in wrong if name not in CATEGORIES]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} is not a category; expected one of {', '.join(CATEGORIES)}."
            )
        if self.group_by not in GROUPINGS:
            raise ValueError(
                f"group_by must be one of {', '.join(GROUPINGS)}; got {self.group_by!r}."
            )
        if re.compile(self.group_pattern).groups < 1:
            raise ValueError(
                "group_pattern needs parentheses around the part that names the specimen; got "
                f"{self.group_pattern!r}."
            )
        known = {_plain(name): name for name in CATEGORIES}
        known |= {_plain(name): category for name, category in self.synonyms.items()}
        object.__setattr__(self, "_categories", known)

    def category(self, name: str) -> str | None:
        """The category of a name or synonym, or None; case and separators do not matter."""
        return self._categories.get(_plain(name))

    def from_path(self, path: PurePath) -> dict[str, Any]:
        """The columns that follow from a path relative to the source's root, with defaults."""
        fields = dict(self.defaults)
        for folder in reversed(path.parts[:-1]):
            if (category := self.category(folder)) is not None:
                fields["category"] = category
                break
        if self.group_by == "folder":
            # The root, or a folder of a whole category, does not name a specimen.
            if path.parent.name and self.category(path.parent.name) is None:
                fields["group"] = pseudonym(path.parent.as_posix())
        elif self.group_by == "stem":
            found = re.fullmatch(self.group_pattern, path.stem)
            if found and found[1]:
                fields["group"] = pseudonym((path.parent / found[1]).as_posix())
        return fields

    def check(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The stated columns in the schema's types; empty ones are left out.

        Raises:
            ValueError: a value is not valid; the message names the column.
        """
        checked = {}
        for name, value in fields.items():
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                continue
            if name == "category":
                category = self.category(str(value))
                if category is None:
                    raise ValueError(
                        f"category {value!r} is not one of {', '.join(CATEGORIES)}; "
                        "give a synonym for it."
                    )
                value = category
            elif name in NUMBERS:
                try:
                    value = float(value)
                except ValueError:
                    raise ValueError(f"{name} {value!r} is not a number.") from None
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(f"{name} must be positive and finite; got {value}.")
            elif name != "qa":
                value = str(value)
            checked[name] = value
        return checked


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).strip("_").casefold()


def pseudonym(name: str) -> str:
    """A group id that does not show its name, and is the same in every dataset.

    This is not encryption: whoever guesses the name can confirm the guess.
    """
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
