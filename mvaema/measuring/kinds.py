"""The kinds of measurement: what each looks for, and what it makes of it.

What is special about it:
- a kind is chosen by what the user says, else by the category, else from the picture itself; the
  result says which;
- each kind returns a draft in pixels with its doubts; units and the verdict come later, in one
  place for all kinds.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from mvaema.measuring import fibres, films, patterns, quality
from mvaema.measuring.areas import draft_particles, draft_pores
from mvaema.measuring.field import Field
from mvaema.measuring.foreground import Foreground, find_foreground
from mvaema.measuring.outlines import outline_steepness
from mvaema.measuring.results import Draft

# What is measured where the category says it; other categories show many kinds of things.
KIND_OF_CATEGORY = {
    "Particles": "particles",
    "Powder": "particles",
    "Fibres": "fibres",
    "Nanowires": "fibres",
    "Porous_Sponge": "pores",
    "Films_Coated_Surface": "films",
    "Patterned_surface": "pattern",
}
# A picture repeats, or its objects are fibres, from these values on (`choose_from_picture`).
CLEARLY_PERIODIC, CLEARLY_LONG = 0.6, 8.0
# Fewest places with a width, share of the skeleton that must have one, and least length of a
# fibre over its width.
MIN_PLACES, MIN_MEASURED, MIN_ELONGATION = 60, 0.35, 3.0
# Most places that may be so thin, in pixels of the image, that they are no fibre.
THIN, MAX_THIN = 2.5, 0.08
# Least steepness of a fibre's outline over that of the picture.
MIN_FIBRE_STEEPNESS = 1.4
# Dark fibres are looked for where bright parts cover more than this.
DARK_FIBRES = 0.55
# Largest disagreement between the quarters of a pattern.
MAX_QUARTERS = 0.1


def choose_kind(kind: str | None, category: str | None, field: Field) -> tuple[str, str]:
    """(kind, how it was chosen)."""
    if kind is not None:
        return kind, "as told"
    if category in KIND_OF_CATEGORY:
        return KIND_OF_CATEGORY[category], f"by the category {category}"
    return choose_from_picture(field), "from the picture"


def choose_from_picture(field: Field) -> str:
    """The kind that a picture of unknown category asks for."""
    lattice = patterns.find_lattice(field.grey)
    if lattice is not None and lattice.peak >= CLEARLY_PERIODIC:
        return "pattern"
    mask = ndimage.binary_opening(_fibre_foreground(field).mask(), iterations=2)
    depth = ndimage.distance_transform_edt(mask)
    skeleton = skeletonize(mask)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if not skeleton.any():
        return "particles"
    numbers = np.arange(1, count + 1)
    lengths = ndimage.sum(skeleton, parts, numbers)
    widths = 2 * ndimage.mean(depth, np.where(skeleton, parts, 0), numbers)
    areas = np.bincount(parts.ravel())[1:]
    elongation = np.average(lengths / np.maximum(widths, 1), weights=areas)
    return "fibres" if elongation >= CLEARLY_LONG else "particles"


def _fibre_foreground(field: Field) -> Foreground:
    bright = find_foreground(field, True)
    if bright.mask().mean() <= DARK_FIBRES:
        return bright
    return find_foreground(field, False)


def draft_fibres(field: Field) -> Draft:
    """Widths of fibres and wires along their skeletons, and their directions."""
    foreground = _fibre_foreground(field)
    traced = fibres.trace(foreground, field.zoom)
    widths, count = traced.widths, int(traced.fibre.max(initial=-1)) + 1
    noun = ("fibres", "fibre")
    table = _fibre_table(traced, count)
    doubts = []
    if len(widths) < MIN_PLACES:
        doubts.append(
            f"a width can be read at {len(widths)} places only; at least {MIN_PLACES} are needed"
        )
    else:
        if traced.measured_share < MIN_MEASURED:
            doubts.append(
                f"both edges are seen along {100 * traced.measured_share:.0f} % of the fibres only"
            )
        if np.median(widths) < quality.MIN_PIXELS:
            doubts.append(f"the fibres are {np.median(widths):.1f} pixels wide: too thin")
        thin = float((widths < THIN).mean())
        if thin > MAX_THIN:
            doubts.append(
                f"{100 * thin:.0f} % of the places are below {THIN} pixels wide: rims or noise "
                "rather than fibres"
            )
        elongation = float(np.median(np.repeat(table["length"] / table["width"], _n(traced))))
        if elongation < MIN_ELONGATION:
            doubts.append("what was found is not long and thin: measure it as particles or pores")
        steep = outline_steepness(foreground, traced.mask)
        doubts += quality.contrast_doubts(foreground.contrast_to_noise, steep, MIN_FIBRE_STEEPNESS)
    if not doubts:

        def again(shift: float) -> tuple[float, int]:
            other = fibres.trace(foreground, field.zoom, shift).widths
            return (float(np.median(other)) if other.size else 0.0), other.size

        doubts += quality.stability_doubts(
            quality.stability(again, float(np.median(widths)), len(widths))
        )
    look = "brighter" if foreground.bright else "darker"
    direction, alignment = fibres.order_parameter(traced.angles) if count else (0.0, 0.0)
    return Draft(
        "width",
        noun,
        widths,
        count=None if traced.crossings else count,
        seen=None if traced.crossings else count,
        coverage=float((traced.mask & field.valid).sum() / field.valid.sum()),
        table=table,
        lengths=("width", "length"),
        facts={"direction_deg": direction, "alignment": alignment, "objects_are": look},
        notes=[
            f"fibres are {look} than their ground",
            f"widths at {len(widths)} places along the skeletons, away from crossings and ends",
            f"{traced.crossings} crossings or branches: the fibres are not counted"
            if traced.crossings
            else "the fibres do not cross, so they are counted",
        ],
        doubts=doubts,
        overlay=np.where(ndimage.binary_dilation(traced.skeleton, iterations=1), 1, 0),
    )


def _n(traced: fibres.Fibres) -> np.ndarray:
    return np.bincount(traced.fibre)


def _fibre_table(traced: fibres.Fibres, count: int) -> dict[str, np.ndarray]:
    numbers = np.arange(count)
    if not count:
        return {name: np.empty(0) for name in ("x", "y", "width", "length", "angle_deg")}
    angles = [fibres.order_parameter(traced.angles[traced.fibre == k])[0] for k in numbers]
    return {
        "x": ndimage.mean(traced.x, traced.fibre, numbers),
        "y": ndimage.mean(traced.y, traced.fibre, numbers),
        "width": ndimage.median(traced.widths, traced.fibre, numbers),
        "length": ndimage.sum(traced.steps, traced.fibre, numbers),
        "angle_deg": np.array(angles),
    }


def draft_films(field: Field) -> Draft:
    """Thicknesses of layers in section."""
    layers = films.find_layers(field)
    thickness = layers.thickness
    count = len(thickness)
    medians = np.nanmedian(thickness, axis=1) if count else np.empty(0)
    doubts = []
    if not count:
        doubts.append("no two edges run through the picture: no layer is seen in section")
    else:
        found = [films.find_layers(field, s).thickness for s in films.SENSITIVITIES]
        if any(len(other) != count for other in found):
            doubts.append("unstable: the number of layers depends on how steep an edge must be")
    if layers.ambiguous:
        doubts.append(
            f"two edges lie less than {films.RIM:.0f} pixels apart: a thin layer or the rim of one"
        )
    spread = np.nanstd(thickness, axis=1) if count else np.empty(0)
    if count and np.any(spread > 0.35 * medians):
        doubts.append("the thickness of a layer scatters by more than a third along it")
    return Draft(
        "thickness",
        ("layers", "layer"),
        medians,
        count=count,
        seen=count,
        table={
            "upper_edge": np.nanmedian(layers.edges[:-1], axis=1) if count else np.empty(0),
            "thickness": medians,
            "scatter": spread,
        },
        lengths=("upper_edge", "thickness", "scatter"),
        facts={"direction_deg": layers.angle_deg},
        notes=[
            f"thickness is the distance between edges in {films.STRIPS} strips across the layers",
            "a layer that the border cuts has no thickness",
            f"a line of less than {films.RIM:.0f} pixels along an edge is taken for its rim",
        ],
        doubts=doubts,
        overlay=layers.labels(field.grey.shape),
    )


def draft_pattern(field: Field) -> Draft:
    """Pitches of what repeats."""
    lattice = patterns.find_lattice(field.grey)
    noun = ("periods", "period")
    if lattice is None:
        return Draft("pitch", noun, np.empty(0), 0, doubts=["nothing in the picture repeats"])
    height, width = field.grey.shape
    pitches = lattice.pitches
    doubts = []
    inside = min(height, width) / pitches.max()
    if inside < patterns.MIN_PERIODS:
        doubts.append(f"only {inside:.1f} periods are in view; {patterns.MIN_PERIODS} are needed")
    elif inside < 2 * patterns.MIN_PERIODS and lattice.peak < patterns.MIN_PEAK_OF_FEW:
        doubts.append(f"only {inside:.1f} periods are in view, and they are too unlike each other")
    parts = patterns.quarters(field.grey, lattice)
    if inside >= 2 * patterns.MIN_PERIODS and (
        len(parts) < 3 or np.abs(parts / pitches[0] - 1).max() > MAX_QUARTERS
    ):
        doubts.append("the quarters of the picture do not have the same pitch")
    if lattice.cell is None:
        x, y = np.abs(lattice.vectors[0]) / pitches[0]
        count = round((width * x + height * y) / pitches[0])
    else:
        count = round(height * width / lattice.cell)
    angles = np.rad2deg(np.arctan2(-lattice.vectors[:, 1], lattice.vectors[:, 0])) % 180
    scatter = float(np.std(parts / pitches[0])) if len(parts) > 1 else 0.0
    return Draft(
        "pitch",
        noun,
        pitches / field.zoom,
        count=count,
        seen=count,
        table={"pitch": pitches / field.zoom, "angle_deg": angles},
        lengths=("pitch",),
        facts={
            "direction_deg": float(angles[0]),
            "repetition": lattice.peak,
            "relative_scatter": scatter,
            "order": "lines" if lattice.cell is None else "lattice",
        },
        notes=[
            "pitch in the plane of the image: a tilt of the specimen shortens it",
            f"the quarters of the picture differ by {100 * scatter:.1f} % (standard deviation)",
        ],
        doubts=doubts,
        overlay=lattice.labels(field.grey.shape),
    )


DRAFTS: dict[str, Callable[[Field], Draft]] = {
    "particles": draft_particles,
    "fibres": draft_fibres,
    "pores": draft_pores,
    "films": draft_films,
    "pattern": draft_pattern,
}
KINDS = tuple(DRAFTS)
