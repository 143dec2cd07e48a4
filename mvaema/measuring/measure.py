"""Measures what a micrograph shows, or says why it cannot.

    from mvaema.measuring.measure import measure

    result = measure(image, category="Particles", pixel_size_nm=2.0)
    result.sentence()   # Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %).

What is special about it:
- it takes any pixels: whatever an image holds, the answer is a `Measurement`, which may say that
  nothing can be trusted;
- where a length of a pixel is not typed and not recorded, the scale bar is read, and the result
  says which of the three it was.
"""

import numpy as np
from PIL import Image

from mvaema.measuring.field import NothingToMeasure, make_field
from mvaema.measuring.kinds import DRAFTS, KINDS, choose_kind
from mvaema.measuring.results import Draft, Measurement, Statistics, Unit
from mvaema.measuring.scale import Scale, scale_of
from mvaema.micrographs.info_bar import Box


def measure(
    image: Image.Image,
    *,
    kind: str | None = None,
    category: str | None = None,
    pixel_size_nm: float | None = None,
    recorded_nm: float | None = None,
    region: Box | None = None,
    scale: Scale | None = None,
    info_bar: Box | None = None,
) -> Measurement:
    """Measure one micrograph.

    Args:
        image: 8-bit, info bar included, at its full size.
        kind: one of `KINDS`; None chooses it by `category` or from the picture.
        category: a category of the dataset, or any other text, which chooses nothing.
        pixel_size_nm: length of one pixel as a person says it.
        recorded_nm: length of one pixel as the instrument recorded it.
        region: (left, upper, right, lower) in pixels of the image; None is all of it.
        scale: what `scale_of` returned for this image, if it was called already.
        info_bar: box of the info bar, if it is known; else it is looked for.

    Raises:
        ValueError: `kind` is unknown, or `pixel_size_nm` is not a positive length.
        MissingExtra: the packages of the extra `measuring` are not installed.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if scale is None:
        scale = scale_of(image, pixel_size_nm, recorded_nm)
    told = {"pixel_size_nm": scale.pixel_size_nm, "scale_source": scale.source}
    read = scale.reading
    if read is not None and read.pixel_size_nm is not None and not scale.contradiction:
        told["scale_bar_nm"] = read.length_nm
    try:
        field = make_field(image, region, scale.reading, info_bar)
    except NothingToMeasure as nothing:
        return Measurement(kind, "as told" if kind else "", False, (str(nothing),), **told)
    kind, chosen_by = choose_kind(kind, category, field)
    draft = DRAFTS[kind](field)
    notes = list(draft.notes)
    if scale.contradiction:
        notes.append(scale.contradiction.rstrip("."))
    if scale.pixel_size_nm is None and read is not None and read.reason:
        notes.append(f"no scale was read: {read.reason}")
    told |= {"notes": tuple(notes), "quantity": draft.quantity, "noun": draft.noun}
    told |= {"box": field.box, "overlay": draft.overlay}
    if draft.doubts or not len(draft.values):
        reasons = tuple(draft.doubts) or ("nothing was found",)
        return Measurement(kind, chosen_by, False, reasons, **told)
    unit = Unit.choose(scale.pixel_size_nm, float(np.median(draft.values)))
    return Measurement(
        kind,
        chosen_by,
        True,
        unit=unit.name,
        count=draft.count,
        seen=draft.seen,
        statistics=Statistics.of(draft.values * unit.per_pixel),
        coverage=draft.coverage,
        facts=draft.facts,
        objects=tuple(_rows(draft, unit)),
        partial=draft.partial,
        **told,
    )


def _rows(draft: Draft, unit: Unit) -> list[dict]:
    """The table of objects, the unit in the names of lengths and areas."""
    columns = {}
    for name, values in draft.table.items():
        if name in ("x", "y"):
            columns[f"{name}_px"] = values
        elif name in draft.lengths:
            columns[f"{name}_{unit.name}"] = values * unit.per_pixel
        elif name in draft.areas:
            columns[f"{name}_{unit.name}2"] = values * unit.per_pixel**2
        else:
            columns[name] = values
    names = list(columns)
    return [
        {"object": number, **{name: float(value) for name, value in zip(names, row, strict=True)}}
        for number, row in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
