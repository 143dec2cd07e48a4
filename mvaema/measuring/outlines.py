"""Outlines of objects: how steep and how wide they are, and whether as steep ones were left out.

What is special about it:
- clear edges away from all objects are objects that were missed;
- the width of the edges tells whether objects of this size are resolved at all.
"""

import numpy as np
from scipy import ndimage

from mvaema.measuring.foreground import Foreground

# Blur before slopes are taken, in pixels of the field: less for the width of edges.
BLUR, FINE_BLUR = 1.5, 1.0
# An edge away from the objects is as good as an outline from this share of the outlines' median
# slope on, and this many times the median slope there, which noise or texture has.
AS_STEEP, OVER_GROUND = 0.2, 4.0
# An edge belongs to an object up to this many pixels of the field from it, and this many widths of
# the edges.
NEAR, NEAR_EDGES = 3.0, 2.0


def outline_pixels(labels: np.ndarray) -> np.ndarray:
    """Where objects end, on their own side, bool (height, width)."""
    labels = labels.astype(np.int32)
    return (labels != ndimage.grey_erosion(labels, 3)) & (labels > 0)


def outline_steepness(foreground: Foreground, labels: np.ndarray) -> float:
    """Median steepness along the outlines of objects, over that of the whole picture."""
    steepness = ndimage.gaussian_gradient_magnitude(foreground.signal, FINE_BLUR)
    edge = outline_pixels(labels) & foreground.valid
    if not edge.any():
        return 0.0
    return float(np.median(steepness[edge]) / max(np.median(steepness[foreground.valid]), 1e-3))


def edge_blur(foreground: Foreground, labels: np.ndarray) -> float:
    """Standard deviation of a beam that would make the edges as wide as they are, in field pixels.

    From the slope at the outlines: a step of height h has the slope h / (2.5 blur).
    """
    steepness = ndimage.gaussian_gradient_magnitude(foreground.signal, FINE_BLUR)
    edge = outline_pixels(labels) & foreground.valid
    if not edge.any():
        return 0.0
    slope = max(float(np.median(steepness[edge])), 1e-6)
    return foreground.level / (np.sqrt(2 * np.pi) * slope)


def left_out(foreground: Foreground, labels: np.ndarray) -> float:
    """The share of all clear edges that lie away from all objects, 0 to 1."""
    steepness = ndimage.gaussian_gradient_magnitude(foreground.signal, BLUR)
    edge = outline_pixels(labels) & foreground.valid
    if not edge.any():
        return 0.0
    distance = ndimage.distance_transform_edt(labels == 0)
    away = foreground.valid & (distance > NEAR + NEAR_EDGES * edge_blur(foreground, labels))
    if not away.any():
        return 0.0
    least = max(
        AS_STEEP * float(np.median(steepness[edge])),
        OVER_GROUND * float(np.median(steepness[away])),
    )
    strong = (steepness > least) & foreground.valid
    inner = ndimage.distance_transform_edt(labels > 0) > NEAR
    outside = int((strong & away).sum())
    at_outlines = int((strong & ~away & ~inner).sum())
    return outside / max(outside + at_outlines, 1)
