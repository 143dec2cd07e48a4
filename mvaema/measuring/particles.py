"""Particles: found, taken apart where they touch, and sized one by one.

What is special about it:
- touching particles are split where a neck is clearly narrower than both of them, relative to
  their own width, so that large and small ones are treated alike;
- a particle that the border cuts has no size, but it covers area;
- holes are filled where a particle is brighter at its rim, not where particles surround a gap.
"""

import numpy as np
from scipy import ndimage
from skimage.measure import regionprops_table
from skimage.segmentation import expand_labels, watershed

from mvaema.measuring.foreground import Foreground

# A neck below this share of the smaller width on both sides separates two particles.
NECK = 0.82
# Least equivalent diameter, in pixels of the image.
MIN_DIAMETER = 3.0
# Shares of an object's own level at which its outline may run, and the power that weighs them by
# their steepness. A step is 0.72 times as steep at a share of 0.2 as in its middle. Where a dark
# object is steeper there, it is seen in transmission and thins out towards its rim: its outline is
# the lowest share that is nearly as steep as the steepest.
OWN_SHARES, STEEP_POWER = np.linspace(0.1, 0.8, 8), 12
THIN_SHARE, THIN, NEARLY = 1, 0.77, 0.8
# How far an outline may move outwards, in widths of a typical object and in pixels of the field;
# and the least signal of an outline, in standard deviations of the ground.
GROWTH, MOST_GROWTH, OWN_NOISE = 0.25, (2, 16), 2.0
# A hole is filled if it is this much of its way to the threshold, or this small a share.
FILL_SIGNAL, FILL_SHARE = 0.4, 0.05


def segment(foreground: Foreground, zoom: float, shift: float = 0.0) -> np.ndarray:
    """Particles by number, int32 (height, width); 0 is ground."""
    mask = foreground.mask(shift)
    mask = ndimage.binary_opening(mask, iterations=max(1, round(zoom / 2)))
    mask = fill_holes(mask, foreground.signal, (foreground.share + shift) * foreground.level)
    return without_small(split(mask), zoom)


def segment_finely(foreground: Foreground, zoom: float, shift: float = 0.0) -> np.ndarray:
    """As `segment`, with the outline of each particle where its own edge is steepest."""
    labels = own_outlines(segment(foreground, zoom, shift), foreground, shift)
    return without_small(labels, zoom)


def own_outlines(labels: np.ndarray, foreground: Foreground, shift: float = 0.0) -> np.ndarray:
    """The labels, each object's outline drawn anew where its own edge is steepest.

    One threshold for all makes a faint object beside strong ones too small. Seen in transmission an
    object is thinnest at its rim, and its edge is far below half of its level.
    """
    count = int(labels.max(initial=0))
    if not count:
        return labels
    areas = np.bincount(labels.ravel())[1:]
    typical = float(np.sqrt(np.median(areas[areas > 0])))
    zones = expand_labels(labels, float(np.clip(GROWTH * typical, *MOST_GROWTH)))
    levels = np.ones(count + 1)
    levels[1:] = ndimage.median(foreground.signal, labels, np.arange(1, count + 1))
    levels = np.maximum(np.nan_to_num(levels, nan=1.0), 1e-3)
    relative = np.where(zones > 0, foreground.signal / levels[zones], 0)
    steepness = ndimage.gaussian_gradient_magnitude(foreground.signal, 1.0)
    means = np.zeros((len(OWN_SHARES), count + 1))
    for k, share in enumerate(OWN_SHARES):
        inside = relative > share
        edge = ndimage.maximum_filter(inside, 3) ^ ndimage.minimum_filter(inside, 3)
        edge &= (zones > 0) & foreground.valid
        sums = np.bincount(zones[edge], steepness[edge], count + 1)
        means[k] = sums / np.maximum(np.bincount(zones[edge], minlength=count + 1), 1)
        means[k][share * levels < OWN_NOISE * foreground.spread] = 0
    steepest = means.max(0)
    ratios = means / np.maximum(steepest, 1e-6)
    weights = ratios**STEEP_POWER
    shares = (weights * OWN_SHARES[:, None]).sum(0) / np.maximum(weights.sum(0), 1e-6)
    if not foreground.bright:
        lowest = OWN_SHARES[(ratios >= NEARLY).argmax(0)]
        shares = np.where(ratios[THIN_SHARE] > THIN, lowest, shares)
    shares = np.where(steepest > 0, shares, foreground.share) + shift
    inside = (relative > shares[zones]) & foreground.valid
    inside |= (labels > 0) & ~foreground.mask(shift)  # a hole that was filled
    return np.where(inside, zones, 0)


def without_small(labels: np.ndarray, zoom: float) -> np.ndarray:
    """The labels, those of less than `MIN_DIAMETER` pixels of the image set to 0."""
    small = np.bincount(labels.ravel()) < np.pi / 4 * (MIN_DIAMETER * zoom) ** 2
    return np.where(small[labels], 0, labels)


def fill_holes(mask: np.ndarray, signal: np.ndarray, threshold: float) -> np.ndarray:
    """The mask with those holes filled that lie inside an object."""
    holes, count = ndimage.label(~mask)
    if count < 2:
        return mask
    numbers = np.arange(1, count + 1)
    areas = np.bincount(holes.ravel())[1:]
    levels = ndimage.mean(signal, holes, numbers)
    rim = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
    inner = ~np.isin(numbers, rim)
    typical = 4 * np.square(2 * ndimage.distance_transform_edt(mask)[mask].mean())
    fill = inner & ((levels > FILL_SIGNAL * threshold) | (areas < FILL_SHARE * typical))
    return mask | np.concatenate([[False], fill])[holes]


def split(mask: np.ndarray, neck: float = NECK) -> np.ndarray:
    """The parts of a mask by number, int32, cut at their necks.

    Basins of the distance transform are joined again, the widest neck first, unless the neck
    between two is below `neck` of the smaller of their two half widths.
    """
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    depth = np.where(mask, depth, 0).astype(np.float32)
    peaks = mask & (depth == ndimage.maximum_filter(depth, size=5)) & (depth > 0.5)
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    if count == 0:
        return np.zeros(mask.shape, np.int32)
    basins = watershed(-depth, markers, mask=mask)
    parent = np.arange(count + 1)
    heights = np.zeros(count + 1)
    np.maximum.at(heights, markers[peaks], depth[peaks])  # a basin is deepest at its marker

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second, saddle in _saddles(basins, depth):
        first, second = root(first), root(second)
        if first != second and saddle > neck * min(heights[first], heights[second]):
            keep, drop = (first, second) if heights[first] >= heights[second] else (second, first)
            parent[drop] = keep
    roots = np.array([root(number) for number in range(count + 1)])
    _, numbers = np.unique(roots, return_inverse=True)
    return numbers.astype(np.int32)[basins]


def _saddles(basins: np.ndarray, depth: np.ndarray) -> list[tuple[int, int, float]]:
    """(first, second, depth) of the widest place between adjacent basins, the deepest first."""
    pairs, depths = [], []
    for a, b in (
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[1:], np.s_[:-1]),
        (np.s_[1:, 1:], np.s_[:-1, :-1]),
        (np.s_[1:, :-1], np.s_[:-1, 1:]),
    ):
        meet = (basins[a] != basins[b]) & (basins[a] > 0) & (basins[b] > 0)
        pairs.append(np.sort(np.stack([basins[a][meet], basins[b][meet]], 1), axis=1))
        depths.append(np.minimum(depth[a][meet], depth[b][meet]))
    pair, height = np.concatenate(pairs), np.concatenate(depths)
    if not len(pair):
        return []
    unique, which = np.unique(pair, axis=0, return_inverse=True)
    saddle = np.zeros(len(unique), np.float32)
    np.maximum.at(saddle, which.ravel(), height)
    order = np.argsort(-saddle)
    return [(int(unique[k, 0]), int(unique[k, 1]), float(saddle[k])) for k in order]


def cut_labels(labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Numbers of the objects that the border or print cuts, (n,)."""
    beside = ndimage.binary_dilation(~valid, iterations=2)
    edges = (labels[:2], labels[-2:], labels[:, :2], labels[:, -2:], labels[beside])
    return np.setdiff1d(np.concatenate([edge.ravel() for edge in edges]), [0])


def quick_sizes(labels: np.ndarray, zoom: float, valid: np.ndarray) -> np.ndarray:
    """Equivalent diameters of the objects that nothing cuts, in pixels of the image."""
    areas = np.bincount(labels.ravel())
    areas[cut_labels(labels, valid)] = 0
    areas[0] = 0
    return 2 * np.sqrt(areas[areas > 0] / np.pi) / zoom


def measure_objects(labels: np.ndarray, zoom: float, valid: np.ndarray) -> dict[str, np.ndarray]:
    """One entry per object, in pixels of the image: each value is (n,).

    `border` says whether the border of the field, or print (not `valid`), cuts the object.
    """
    names = ("label", "area", "centroid", "axis_major_length", "axis_minor_length")
    names += ("perimeter_crofton", "solidity")
    table = regionprops_table(labels, properties=names)
    area = table["area"] / zoom**2
    minor = np.maximum(table["axis_minor_length"], 1e-6)
    border = np.isin(table["label"], cut_labels(labels, valid))
    perimeter = np.maximum(table["perimeter_crofton"] / zoom, 1e-6)
    return {
        "label": table["label"],
        "x": (table["centroid-1"] + 0.5) / zoom,
        "y": (table["centroid-0"] + 0.5) / zoom,
        "area": area,
        "diameter": 2 * np.sqrt(area / np.pi),
        "aspect_ratio": np.maximum(table["axis_major_length"] / minor, 1.0),
        "circularity": np.minimum(4 * np.pi * area / perimeter**2, 1.0),
        "solidity": table["solidity"],
        "border": border,
    }


def touching_share(labels: np.ndarray) -> float:
    """Share of all objects' edges that runs between two objects, where no ground shows."""
    between = ground = 0
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = labels[a] != labels[b]
        both = differ & (labels[a] > 0) & (labels[b] > 0)
        between += 2 * int(both.sum())
        ground += int(differ.sum()) - int(both.sum())
    return between / max(between + ground, 1)
