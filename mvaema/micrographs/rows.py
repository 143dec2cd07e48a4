"""One row for all the files that show the same pixels.

What is special about it:
- the row takes each column from the first of its files that states it. So the TIFF beside an
  exported PNG supplies the scale, whichever of them comes first;
- a pixel size that was read off a scale bar counts only where no file states one;
- where files contradict each other about the category or the scale, the row has none: their order
  would decide it. The private table of a build names these files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.schema import FEATURES, INSTRUMENT_COLUMNS

# Columns that are taken together, from the first file that states the first of them.
LABELS = (("category", "caption"), ("group",), ("scale_bar",), ("qa",), ("source", "licence"))
# What was measured stays true of the pixels when a file is gone; its folder's labels do not.
SCALE = ("pixel_size_nm", "pixel_size_source")
MEASURED = (SCALE, *((name,) for name in INSTRUMENT_COLUMNS))

# Pixel sizes that differ by less than this agree: files state them to different precision.
SCALE_TOLERANCE = 0.01


@dataclass(frozen=True)
class FileColumns:
    """What one file says about its row.

    Attributes:
        columns: of `mvaema.micrographs.schema.FEATURES`; those it does not state are missing.
        present: the file is still in its source.
    """

    columns: dict
    present: bool = True


def merge(image_id: str, files: Sequence[FileColumns]) -> tuple[dict, list[str]]:
    """The row of files with the same pixels, without its image, and what they contradict.

    Args:
        image_id: of the pixels.
        files: at least one, in the order of their source.

    Returns:
        The columns that are known, in the schema's order, and those of `category` and
        `pixel_size_nm` that were left out because files contradict each other.
    """
    present = [file.columns for file in files if file.present]
    everything = present + [file.columns for file in files if not file.present]
    present = present or everything
    present, everything = _unless_stated(present), _unless_stated(everything)
    found = {}
    for units, stated in ((LABELS, present), (MEASURED, everything)):
        for unit in units:
            found |= _first(unit, stated)
    contradictions = _contradictions(present)
    if "category" in contradictions:
        found = {name: found[name] for name in found if name not in ("category", "caption")}
    if "pixel_size_nm" in contradictions:
        found = {name: found[name] for name in found if name not in SCALE}
    if found.get("category") in CATEGORY_CAPTIONS:
        found.setdefault("caption", CATEGORY_CAPTIONS[found["category"]])
    found.setdefault("group", image_id)
    return {name: found[name] for name in FEATURES if name in found}, contradictions


def _unless_stated(stated: list[dict]) -> list[dict]:
    """The columns without pixel sizes that were read, if one is stated."""
    sources = {columns.get("pixel_size_source") for columns in stated if "pixel_size_nm" in columns}
    if not sources - {"read"}:
        return stated
    return [
        {name: columns[name] for name in columns if name not in SCALE}
        if columns.get("pixel_size_source") == "read"
        else columns
        for columns in stated
    ]


def _first(unit: tuple[str, ...], stated: list[dict]) -> dict:
    """The columns of a unit, from the first that states its first column, or else any of them."""
    for needed in unit:
        for columns in stated:
            if columns.get(needed) not in (None, []):
                return {name: columns[name] for name in unit if columns.get(name) is not None}
    return {}


def _contradictions(stated: list[dict]) -> list[str]:
    categories = {columns.get("category") for columns in stated} - {None}
    sizes = [columns["pixel_size_nm"] for columns in stated if columns.get("pixel_size_nm")]
    contradictions = ["category"] if len(categories) > 1 else []
    if sizes and max(sizes) > min(sizes) * (1 + SCALE_TOLERANCE):
        contradictions.append("pixel_size_nm")
    return contradictions
