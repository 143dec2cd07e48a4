"""The words for every kind of specimen, from `vocabulary.toml` beside this file."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """Words for one kind of specimen; lists are alternatives.

    Attributes:
        names: what it is, after "The image shows".
        units: what is counted, plural.
        shapes: full sentences on shape and morphology.
        surfaces: full sentences on the surface.
        parts: full sentences on regions that look functionally distinct.
        uses: after "could be used".
        contact: full sentences on contacts and boundaries; without them, the facts decide.
        ground: full sentences on what surrounds the structures.
        fills_field: the material always hides the ground.
        length: what `Facts.length_nm` is.
        tilt_shows: whether a tilt can be seen in the image.
        texture: whether `Facts.rough` applies to the surface.
    """

    names: list[str]
    units: str
    shapes: list[str]
    surfaces: list[str]
    parts: list[str]
    uses: list[str]
    contact: list[str] | None = None
    ground: list[str] | None = None
    fills_field: bool = False
    length: str | None = None
    tilt_shows: bool = False
    texture: bool = False


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
KINDS = {name: Kind(**words) for name, words in _TABLE.items()}
