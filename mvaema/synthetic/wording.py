"""How an answer is put into words: lengths, counts, and a choice of wordings."""

from dataclasses import dataclass

import numpy as np

from mvaema.synthetic.specimen import Facts
from mvaema.synthetic.vocabulary import Kind


def two_digits(value: float) -> str:
    """A number with two significant digits, never in exponent form."""
    digits = max(0, 1 - int(np.floor(np.log10(value)))) if value > 0 else 0
    text = f"{float(f'{value:.2g}'):.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _unit(nanometres: float) -> tuple[str, float]:
    """The unit for a length, and its size in nanometres."""
    return next(
        (u, s) for u, s in (("mm", 1e6), ("µm", 1e3), ("nm", 1)) if nanometres >= s or s == 1
    )


@dataclass
class Writer:
    """The facts, and the random stream that chooses the wording."""

    facts: Facts
    kind: Kind
    scale_bar: str | None
    rng: np.random.Generator
    width_named: bool = False

    def say(self, *options: str) -> str:
        """One of the wordings, with the placeholders filled in."""
        option = options[int(self.rng.integers(len(options)))]
        return option.format(units=self.kind.units, shape=self.facts.shape or "regular")

    def length(self, nanometres: float) -> str:
        """A length, or without a scale bar a percentage of the image width."""
        if self.scale_bar is None:
            percent = 100 * nanometres / self.facts.field_of_view_nm
            return f"{two_digits(percent)} percent{self._of_the_width()}"
        unit, size = _unit(nanometres)
        return f"{two_digits(nanometres / size)} {unit}"

    def span(self, low: float, high: float) -> str:
        """A range of lengths in one unit."""
        if self.scale_bar is None:
            low, high = (100 * x / self.facts.field_of_view_nm for x in (low, high))
            return f"{two_digits(low)} to {two_digits(high)} percent{self._of_the_width()}"
        unit, size = _unit(high)
        return f"{two_digits(low / size)} to {two_digits(high / size)} {unit}"

    def _of_the_width(self) -> str:
        """The reference of a percentage, stated once per answer."""
        first, self.width_named = not self.width_named, True
        return " of the image width" if first else ""

    def number(self) -> str:
        """How many structures are visible."""
        count, units = self.facts.count, self.kind.units
        if count == 1:
            return f"1 {units.removesuffix('s')}" if units != "bodies" else "1 body"
        return f"{count} {units}" if count <= 12 else f"about {two_digits(count)} {units}"


def plural(n: int, one: str, many: str) -> str:
    return f"1 {one}" if n == 1 else f"{n} {many}"
