"""Particles and pores: objects that have an area, as a draft with its doubts.

What is special about it:
- one threshold for all objects is tried first. It finds all of them, so they are counted;
- where that cannot be trusted, only those that stand out by themselves are sized, each with its own
  threshold. The result says so, and gives no coverage.
"""

from collections.abc import Callable

import numpy as np

from mvaema.measuring import particles, pores, quality
from mvaema.measuring.field import Field
from mvaema.measuring.foreground import Foreground
from mvaema.measuring.outlines import edge_blur, left_out
from mvaema.measuring.polarity import choose_foreground
from mvaema.measuring.results import Draft
from mvaema.measuring.standing import LEVELS, Candidates

# Of the objects that stand out, bright and dark, those with the larger area are measured if it is
# this many times the other's.
CLEARLY_MORE = 1.5
# Two halves of the thresholds, which must find the same objects.
HALVES = (slice(0, LEVELS, 2), slice(1, LEVELS, 2))


def draft_particles(field: Field) -> Draft:
    """Equivalent diameters of particles."""
    foreground, score, clearness = choose_foreground(field)
    draft = _areas(field, foreground, score, particles.segment_finely, ("particles", "particle"))
    look = "brighter" if foreground.bright else "darker"
    clear = "" if clearness >= 1.5 else " (hardly clearer than the opposite)"
    draft.notes.insert(0, f"particles are {look} than their ground{clear}")
    draft.facts["objects_are"] = look
    return _standing_instead(draft, field, (True, False)) if draft.doubts else draft


def draft_pores(field: Field) -> Draft:
    """Equivalent diameters of pores, and the area that is open."""
    foreground, score = pores.pore_foreground(field)
    draft = _areas(field, foreground, score, pores.segment, ("pores", "pore"))
    look = "brighter" if foreground.bright else "darker"
    draft.notes.insert(0, f"pores are {look} than the solid")
    draft.facts["objects_are"] = look
    draft.facts["area_fraction"] = draft.coverage
    return _standing_instead(draft, field, (foreground.bright,)) if draft.doubts else draft


def _standing_instead(draft: Draft, field: Field, brightness: tuple[bool, ...]) -> Draft:
    """A draft of the objects that stand out, if they can be trusted; else `draft`.

    Args:
        brightness: whether they may be brighter, and darker, than their ground.
    """
    tried = [(Candidates(field, bright), bright) for bright in brightness]
    found = sorted(
        ((parts.stand_out(), parts, bright) for parts, bright in tried),
        key=lambda entry: -entry[0].area,
    )
    standing, parts, bright = found[0]
    objects = particles.measure_objects(standing.labels, field.zoom, field.valid)
    whole = ~objects["border"]
    values = objects["diameter"][whole]
    other = found[1][0].area if len(found) > 1 else 0.0
    if standing.area < CLEARLY_MORE * other or len(values) < quality.MIN_OBJECTS:
        return draft
    doubts = quality.standing_doubts(values, standing, field.zoom)
    if draft.noun[0] == "pores":
        doubts += quality.sliver_doubts(objects["aspect_ratio"][whole])
    if not doubts:
        halves = [
            particles.quick_sizes(parts.stand_out(half).labels, field.zoom, field.valid)
            for half in HALVES
        ]
        doubts = quality.halves_doubts(values, halves)
    if doubts:
        return draft
    look = "brighter" if bright else "darker"
    one = draft.noun[1]
    notes = [
        f"only {draft.noun[0]} whose outline is clear nearly all around are sized, each at the "
        f"threshold of its own steepest edge; they are {look} than what is around them",
        f"how many {draft.noun[0]} there are in all is not known",
    ]
    if standing.specks:
        notes.append(f"{standing.specks} specks below a quarter of the typical width are left out")
    columns = ("x", "y", "diameter", "area", "aspect_ratio", "circularity")
    return Draft(
        "equivalent diameter",
        (f"{draft.noun[0]} that stand out", f"{one} that stands out"),
        values,
        count=len(values),
        seen=len(whole),
        table={name: objects[name][whole] for name in columns},
        lengths=("diameter",),
        areas=("area",),
        facts=_means(objects, whole) | {"objects_are": look},
        notes=notes,
        overlay=standing.labels,
        partial=True,
    )


def _areas(
    field: Field,
    foreground: Foreground,
    score: float,
    segment: Callable[[Foreground, float, float], np.ndarray],
    noun: tuple[str, str],
) -> Draft:
    """A draft of objects that have an area."""
    labels = segment(foreground, field.zoom, 0.0)
    objects = particles.measure_objects(labels, field.zoom, field.valid)
    whole = ~objects["border"]
    values = objects["diameter"][whole]
    valid_area = field.valid.sum() / field.zoom**2
    doubts = quality.object_doubts(objects, valid_area, noun[0])
    doubts += quality.contrast_doubts(foreground.contrast_to_noise, score)
    if len(values):
        blur = edge_blur(foreground, labels) / field.zoom
        doubts += quality.outline_doubts(
            float(np.median(values)), blur, left_out(foreground, labels), noun[0]
        )
    if not doubts:

        def again(shift: float) -> tuple[float, int]:
            diameters = particles.quick_sizes(
                segment(foreground, field.zoom, shift), field.zoom, field.valid
            )
            return (float(np.median(diameters)) if diameters.size else 0.0), diameters.size

        change = quality.stability(again, float(np.median(values)), len(values))
        doubts += quality.stability_doubts(change)
    cut = int((~whole).sum())
    notes = (
        [f"{cut} cut by the border or by print: counted in coverage, not in sizes"] if cut else []
    )
    columns = ("x", "y", "diameter", "area", "aspect_ratio", "circularity")
    return Draft(
        "equivalent diameter",
        noun,
        values,
        count=len(values),
        seen=len(whole),
        coverage=float(objects["area"].sum() / valid_area),
        table={name: objects[name][whole] for name in columns},
        lengths=("diameter",),
        areas=("area",),
        facts=_means(objects, whole),
        notes=notes,
        doubts=doubts,
        overlay=labels,
    )


def _means(objects: dict[str, np.ndarray], whole: np.ndarray) -> dict[str, float | str]:
    if not whole.any():
        return {}
    return {
        "median_aspect_ratio": float(np.median(objects["aspect_ratio"][whole])),
        "median_circularity": float(np.median(objects["circularity"][whole])),
    }
