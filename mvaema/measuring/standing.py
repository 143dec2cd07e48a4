"""Objects that stand out by themselves, each cut where its own edge is steepest.

What is special about it:
- one threshold for all fails where objects are of many levels, lie on a textured ground or fill the
  picture. Here the parts at many thresholds are candidates, and of those that overlap the one whose
  outline is clear, convex and large wins;
- an object counts only if its outline is clear nearly all around. What is hidden behind another,
  clumps and texture have none, and are left out;
- so sizes are of the objects that stand out. How many there are in all stays unknown.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import regionprops_table

from mvaema.measuring.field import Field
from mvaema.measuring.outlines import outline_pixels
from mvaema.measuring.particles import MIN_DIAMETER, split

# Thresholds that are tried, between two percentiles of the grey levels; at every n-th of them parts
# that touch are also taken apart.
LEVELS, RANGE, SPLIT_EVERY = 18, (1, 99), 3
# A place of an outline is clear from this many times the picture's typical slope on, and from this
# share of the steepest slopes on.
OVER_TYPICAL, OF_STEEPEST = 1.6, 0.2
# Share of the outline that must be clear, area over that of the ellipse of the same moments, and
# over the convex hull's, at least; area as a share of the field, at most.
CLEAR, ELLIPTIC, CONVEX, LARGEST = 0.8, 0.84, 0.88, 0.2
# How much completeness and shape count beside steepness; steepness beyond which it counts no more,
# in least clear slopes.
CLEAR_POWER, SHAPE_POWER, STEEP = 2, 3, 2.5
# Two parts are forms of one object from this share of their united area on.
SAME = 0.6
# Parts narrower than this share of the typical object are specks, of its texture or of dirt.
SPECK = 0.25
# Blur before slopes are taken, in pixels of the field; pixels around an outline that are its edge.
BLUR, NEAR = 1.0, 3


@dataclass(frozen=True)
class Standing:
    """Objects that stand out.

    Attributes:
        labels: int32 (height, width) of the field, 0 is none.
        specks: how many parts were left out as specks.
        area: that of the objects, weighted by their scores, to compare bright with dark.
        explained: share of the picture's clear edges that are edges of these objects.
        blur: standard deviation of the blur of their edges, in pixels of the field.
    """

    labels: np.ndarray
    specks: int
    area: float
    explained: float
    blur: float


@dataclass(frozen=True)
class Candidate:
    """A part at one threshold: its score, how steep its outline is, and its pixels."""

    score: float
    steep: float
    level: int
    pixels: np.ndarray  # flat indices of the field


class Candidates:
    """All parts of a field with a clear outline at any threshold."""

    def __init__(self, field: Field, bright: bool) -> None:
        self.shape = field.grey.shape
        self.signal = field.grey if bright else -field.grey
        self.steepness = ndimage.gaussian_gradient_magnitude(field.grey, BLUR)
        slopes = self.steepness[field.valid]
        self.least = max(
            OVER_TYPICAL * float(np.median(slopes)), OF_STEEPEST * float(np.percentile(slopes, 98))
        )
        self.valid = field.valid
        low, high = np.percentile(self.signal[field.valid], RANGE)
        smallest = np.pi / 4 * (MIN_DIAMETER * field.zoom) ** 2
        self.parts: list[Candidate] = []
        for k, level in enumerate(np.linspace(low, high, LEVELS + 2)[1:-1]):
            mask = (self.signal > level) & field.valid
            mask = ndimage.binary_opening(mask, iterations=max(1, round(field.zoom / 2)))
            mask = ndimage.binary_fill_holes(mask)
            self.parts += self._clear_parts(ndimage.label(mask)[0], k, smallest)
            if k % SPLIT_EVERY == 1:
                self.parts += self._clear_parts(split(mask), k, smallest)

    def _clear_parts(self, labels: np.ndarray, level: int, smallest: float) -> list[Candidate]:
        """Those of the parts of one threshold that have a clear outline and a plain shape."""
        count = int(labels.max(initial=0))
        areas = np.bincount(labels.ravel(), minlength=count + 1).astype(float)
        # An outline is the pixels on both its sides, so that it is not drawn inwards.
        grown = ndimage.maximum_filter(labels, 3)
        inner, outer = outline_pixels(labels), (labels == 0) & (grown > 0)
        at = np.concatenate([labels[inner], grown[outer]])
        slopes = np.concatenate([self.steepness[inner], self.steepness[outer]])
        edge = np.maximum(np.bincount(at, minlength=count + 1), 1)
        clear = np.bincount(at, slopes >= self.least, count + 1) / edge
        steep = np.bincount(at, slopes, count + 1) / edge
        keep = (areas >= smallest) & (areas <= LARGEST * labels.size) & (clear >= CLEAR)
        keep[0] = False
        rows, columns = np.nonzero(keep[labels])
        own = labels[rows, columns]
        elliptic = _elliptic(own, rows, columns, areas)
        score = np.minimum(steep / self.least, STEEP) * clear**CLEAR_POWER * elliptic**SHAPE_POWER
        order = np.argsort(own, kind="stable")
        flat = (rows * labels.shape[1] + columns)[order]
        ends = np.searchsorted(own[order], np.arange(count + 2))
        return [
            Candidate(float(score[k]), float(steep[k]), level, flat[ends[k] : ends[k + 1]])
            for k in np.flatnonzero(keep & (elliptic >= ELLIPTIC))
        ]

    def stand_out(self, levels: slice = slice(None)) -> Standing:
        """The best parts that do not overlap, of some of the thresholds.

        A part replaces those inside it if it is convex and its area times its score is more than
        the sum of theirs. Then each takes the threshold at which its own outline is steepest.
        """
        wanted = set(range(LEVELS)[levels])
        parts = [part for part in self.parts if part.level in wanted]
        flat = np.zeros(self.shape[0] * self.shape[1], np.int32)
        values = [0.0]
        for number, part in enumerate(sorted(parts, key=lambda part: len(part.pixels)), start=1):
            values.append(len(part.pixels) * part.score)
            inside = np.unique(flat[part.pixels])
            inside = inside[inside > 0]
            if len(inside):
                better = values[number] > sum(values[k] for k in inside)
                if not better or _solidity(part.pixels, self.shape[1]) < CONVEX:
                    continue
                flat[np.isin(flat, inside)] = 0
            flat[part.pixels] = number
        kept = np.union1d([0], flat)  # parts may cover all of the field
        labels = np.searchsorted(kept, flat).astype(np.int32)
        labels = _at_their_steepest(labels, parts).reshape(self.shape)
        labels, specks = _without_specks(_convex(labels))
        kept_values = sum(values[k] for k in kept[np.unique(labels[labels > 0])] if k)
        edges = (self.steepness >= self.least) & self.valid
        near = ndimage.binary_dilation(outline_pixels(labels), iterations=NEAR)
        explained = float((edges & near).sum() / max(edges.sum(), 1))
        return Standing(labels, specks, kept_values, explained, self._blur(labels))

    def _blur(self, labels: np.ndarray) -> float:
        """As `mvaema.measuring.outlines.edge_blur`, from each object's own contrast."""
        outline = outline_pixels(labels)
        if not outline.any():
            return 0.0
        ring = (ndimage.binary_dilation(labels > 0, iterations=2 * NEAR)) & (labels == 0)
        inside = float(np.median(self.signal[labels > 0]))
        height = inside - float(np.median(self.signal[ring])) if ring.any() else 0.0
        slope = max(float(np.median(self.steepness[outline])), 1e-6)
        return max(height, 0.0) / (np.sqrt(2 * np.pi) * slope)


def _elliptic(
    own: np.ndarray, rows: np.ndarray, columns: np.ndarray, areas: np.ndarray
) -> np.ndarray:
    """Area of each part over that of the ellipse of the same moments, at most 1: (parts,)."""
    count, n = len(areas), np.maximum(areas, 1)
    y, x = rows.astype(float), columns.astype(float)
    mean_y, mean_x = (np.bincount(own, place, count) / n for place in (y, x))
    y, x = y - mean_y[own], x - mean_x[own]
    yy, xx, xy = (np.bincount(own, product, count) / n for product in (y * y, x * x, x * y))
    determinant = np.maximum((yy + 1 / 12) * (xx + 1 / 12) - xy * xy, 1e-9)
    return np.minimum(areas / (4 * np.pi * np.sqrt(determinant)), 1.0)


def _solidity(pixels: np.ndarray, width: int) -> float:
    """Area over that of the convex hull."""
    rows, columns = np.divmod(pixels, width)
    try:
        hull = ConvexHull(np.stack([rows, columns], 1))
    except QhullError:  # a line of pixels
        return 1.0
    # Pixels are squares around their centres.
    return len(pixels) / (hull.volume + hull.area / 2 + 1)


def _at_their_steepest(labels: np.ndarray, parts: list[Candidate]) -> np.ndarray:
    """The labels (pixels,), each object as that of its forms whose outline is steepest."""
    areas = np.bincount(labels)
    best: dict[int, Candidate] = {}
    for part in parts:
        numbers, shared = np.unique(labels[part.pixels], return_counts=True)
        shared = np.where(numbers > 0, shared, 0)
        number, both = int(numbers[shared.argmax()]), shared.max()
        same = both > SAME * (areas[number] + len(part.pixels) - both)
        if same and (number not in best or part.steep > best[number].steep):
            best[number] = part
    drawn = np.zeros_like(labels)
    for number, part in best.items():
        drawn[part.pixels] = number
    return drawn


def _convex(labels: np.ndarray) -> np.ndarray:
    """The labels of convex objects only."""
    table = regionprops_table(labels, properties=("label", "solidity"))
    hollow = np.zeros(int(labels.max(initial=0)) + 1, bool)
    hollow[table["label"][table["solidity"] < CONVEX]] = True
    return np.where(hollow[labels], 0, labels)


def _without_specks(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """The labels without parts far smaller than those that have the area; how many those are."""
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    total = np.cumsum(np.sort(areas))
    if not total[-1]:
        return labels, 0
    typical = np.sort(areas)[np.searchsorted(total, total[-1] / 2)]
    small = (areas > 0) & (areas < SPECK**2 * typical)
    return np.where(small[labels], 0, labels), int(small.sum())
