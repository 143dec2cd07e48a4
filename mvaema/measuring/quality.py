"""Whether a measurement can be trusted, and in plain words why not.

What is special about it:
- the same picture is segmented again with the threshold a little lower and a little higher: what
  changes then was never in the picture;
- outlines must be steeper than the picture is elsewhere, so that noise and texture have no sizes;
- each doubt is a sentence that says what was seen.
"""

from collections.abc import Callable

import numpy as np

# Fewest objects with a size, and least median length in pixels of the image.
MIN_OBJECTS, MIN_PIXELS = 5, 3.5
# Least steepness of outlines over that of the whole picture, weighted by shape
# (`mvaema.measuring.polarity.objects_score`).
MIN_SCORE = 1.6
# Least contrast of objects over the scatter of their ground.
MIN_CONTRAST = 3.0
# Least median length over the blur of the edges (a standard deviation), and the largest share of
# clear edges that lie away from all objects.
MIN_RESOLVED, MAX_LEFT_OUT = 4.0, 0.25
# Largest share of the field for one object, of the covered area for objects that the border cuts,
# and of the covered area for clumps, whose area is below a share of their convex hull's: (share of
# the covered area, solidity). Particles are convex more often than pores.
MAX_ONE, MAX_CUT = 0.4, 0.6
CLUMPED = {"particles": (0.15, 0.9), "pores": (0.35, 0.82)}
# How much wider than the median the objects may be that make up most of the area. Pores of one
# material are more alike: fragments of them, between struts that lie deeper, are not.
MAX_SPECKS = {"particles": 6.0, "pores": 1.6}
# Of objects that stand out: least median length in pixels of the image, and least share of the
# picture's clear edges that are theirs.
MIN_STANDING, MIN_EXPLAINED = 8.0, 0.2
# And largest share of them that are narrower than a share of those that have the area.
NARROW, MAX_NARROW = 0.4, 0.25
# A pore is a sliver from this aspect ratio on, and the largest share of them. Openings that struts
# cut, and what is left where large ones are not convex, are slivers.
SLIVER, MAX_SLIVERS = 2.0, 0.3
# By how much of the contrast the threshold is moved, and how much the median and the count may
# then change.
SHIFTS, MAX_MEDIAN_CHANGE, MAX_COUNT_CHANGE = (-0.08, 0.08), 0.08, 0.2
# How much the number of objects that stand out may change with every second threshold left out.
MAX_HALVES_CHANGE = 0.45


def object_doubts(objects: dict[str, np.ndarray], field_area: float, noun: str) -> list[str]:
    """Doubts about a table of objects as `particles.measure_objects` gives it.

    Args:
        field_area: area of the field in square pixels of the image.
        noun: what they are, in the plural.
    """
    whole = ~objects["border"]
    count, area = int(whole.sum()), objects["area"]
    doubts = []
    if area.size and area.max() > MAX_ONE * field_area:
        doubts.append(
            f"one object fills {100 * area.max() / field_area:.0f} % of the picture: it is not "
            f"taken apart into {noun}"
        )
    if count < MIN_OBJECTS:
        doubts.append(
            f"only {count} {noun} lie whole in the picture; at least {MIN_OBJECTS} are needed"
        )
        return doubts
    median = float(np.median(objects["diameter"][whole]))
    if median < MIN_PIXELS:
        doubts.append(
            f"the {noun} are {median:.1f} pixels wide; below {MIN_PIXELS} pixels there is no size"
        )
    total = float(area.sum())
    if area[~whole].sum() > MAX_CUT * total:
        doubts.append(f"the border cuts most of the area of the {noun}")
    order = np.argsort(objects["diameter"])
    by_area = objects["diameter"][order][np.searchsorted(np.cumsum(area[order]), total / 2)]
    if by_area > MAX_SPECKS[noun] * median:
        doubts.append(
            f"most of the {noun} are specks beside a few that are {by_area / median:.1f} times "
            "as wide"
        )
    if noun == "pores":
        doubts += sliver_doubts(objects["aspect_ratio"][whole])
    most, convex = CLUMPED[noun]
    clumped = float(area[objects["solidity"] < convex].sum()) / total
    if clumped > most:
        doubts.append(
            f"{100 * clumped:.0f} % of their area is in clumps that could not be taken apart"
        )
    return doubts


def contrast_doubts(contrast: float, score: float, least_score: float = MIN_SCORE) -> list[str]:
    """Doubts about how clearly objects stand out."""
    if contrast < MIN_CONTRAST:
        return [f"too faint: contrast is {contrast:.1f} times the scatter of the ground"]
    if score < least_score:
        return ["the outlines found are hardly steeper than the texture or noise around them"]
    return []


def outline_doubts(median: float, blur: float, left_out: float, noun: str) -> list[str]:
    """Doubts about what the outlines say.

    Args:
        median: of the lengths, in pixels of the image.
        blur: standard deviation of the blur of the edges, in pixels of the image.
        left_out: as `mvaema.measuring.outlines.left_out` returns it.
        noun: what they are, in the plural.
    """
    doubts = []
    if median < MIN_RESOLVED * blur:
        doubts.append(
            f"not resolved: the {noun} are {median:.1f} pixels wide and "
            f"their edges {2.5 * blur:.1f}"
        )
    if left_out > MAX_LEFT_OUT:
        doubts.append(
            f"{100 * left_out:.0f} % of the clear edges lie away from the "
            f"{noun} that were found: others were missed"
        )
    return doubts


def sliver_doubts(aspect_ratios: np.ndarray) -> list[str]:
    """Doubts about the shapes of pores (n,), n at least 1."""
    share = float((aspect_ratios > SLIVER).mean())
    if share <= MAX_SLIVERS:
        return []
    return [f"{100 * share:.0f} % of the pores are slivers: cut by struts, or parts of others"]


def standing_doubts(values: np.ndarray, standing, zoom: float) -> list[str]:
    """Doubts about objects that stand out by themselves.

    Args:
        values: their diameters in pixels of the image, (n,), n at least 1.
        standing: as `mvaema.measuring.standing.Candidates.stand_out` returns it.
        zoom: pixels of the field per pixel of the image.
    """
    doubts = []
    median, blur = float(np.median(values)), standing.blur / zoom
    if median < max(MIN_RESOLVED * blur, MIN_STANDING):
        doubts.append(f"not resolved: {median:.1f} pixels wide, edges {2.5 * blur:.1f}")
    if standing.explained < MIN_EXPLAINED:
        doubts.append(f"only {100 * standing.explained:.0f} % of the clear edges are theirs")
    order = np.sort(values)
    typical = order[np.searchsorted(np.cumsum(order**2), (order**2).sum() / 2)]
    if (values < NARROW * typical).mean() > MAX_NARROW:
        doubts.append("many are far narrower than those that have the area")
    return doubts


def halves_doubts(values: np.ndarray, halves: list[np.ndarray]) -> list[str]:
    """Doubts about objects of which each half of the thresholds must find the same.

    Args:
        values: their diameters (n,).
        halves: diameters that each half finds.
    """
    medians = [float(np.median(half)) if half.size else 0.0 for half in halves]
    change = (
        max(abs(other / np.median(values) - 1) for other in medians),
        max(abs(half.size / values.size - 1) for half in halves),
    )
    if change[0] > MAX_MEDIAN_CHANGE or change[1] > MAX_HALVES_CHANGE:
        return ["every second threshold finds others"]
    return []


def stability(
    again: Callable[[float], tuple[float, int]], median: float, count: int
) -> tuple[float, float]:
    """(relative change of the median, of the count), the largest over all shifted thresholds.

    Args:
        again: gives (median, count) at a threshold shifted by a share of the contrast.
    """
    medians, counts = zip(*(again(shift) for shift in SHIFTS), strict=True)
    return (
        max(abs(other - median) / max(median, 1e-6) for other in medians),
        max(abs(other - count) / max(count, 1) for other in counts),
    )


def stability_doubts(change: tuple[float, float]) -> list[str]:
    """Doubts about what `stability` returned."""
    doubts = []
    for name, value, most in zip(
        ("median", "count"), change, (MAX_MEDIAN_CHANGE, MAX_COUNT_CHANGE), strict=True
    ):
        if value > most:
            doubts.append(
                f"unstable: the {name} changes by {100 * value:.0f} % when the threshold moves "
                f"by {100 * SHIFTS[1]:.0f} % of the contrast"
            )
    return doubts
