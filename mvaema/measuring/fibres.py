"""Fibres and wires: their width along the skeleton, and where they point.

What is special about it:
- the width is read from the grey levels across the fibre, at a fraction of a pixel, wherever its
  two edges are seen: not at crossings, not at ends;
- pieces of a fibre that go on straight behind a crossing are one fibre again;
- percentiles are over length, so that a long fibre counts more than a stub.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from mvaema.measuring.foreground import Foreground
from mvaema.measuring.particles import fill_holes

# A piece of skeleton is a fibre's if it is this many of its widths long.
MIN_LENGTH = 1.5
# Pieces join across a crossing if their directions differ by less than this, in degrees, and the
# gap is at most this many of their widths, for fibres may cross at a slant.
STRAIGHT_ON, ACROSS = 25.0, 8
# Skeleton pixels used for the direction at each of them, on each side.
REACH = 6
# Profiles are sampled this finely, in pixels of the field, and at most this many of them.
STEP, MOST_PROFILES = 0.25, 6000
# A width that differs by more than this factor from the mask's is no width: a neighbour was hit.
AGREEMENT = 1.6
# How far from where the threshold is crossed the steepest place of a profile may lie: pixels of the
# field, and half widths; and how much profiles are smoothed for it, in pixels of the field.
NEAR, NEAR_HALF, PROFILE_BLUR = 2.0, 0.35, 1.0
# Most that the grey levels on both sides may differ, as a share of the contrast.
MAX_ASYMMETRY = 0.3


@dataclass(frozen=True)
class Fibres:
    """Widths and directions along all fibres, in pixels of the image.

    Attributes:
        widths: (n,) one per place along a skeleton.
        angles: (n,) direction there in degrees, 0 to 180, from the horizontal counter-clockwise.
        fibre: (n,) the number of the fibre, from 0.
        x, y: (n,) the places.
        steps: (n,) the length along the skeleton that each place stands for.
        measured_share: share of the skeleton's places at which both edges were found.
        skeleton: bool (height, width) of the field, what was measured.
        mask: bool (height, width) of the field.
        crossings: how many places there are at which fibres cross, touch or branch.
    """

    widths: np.ndarray
    angles: np.ndarray
    fibre: np.ndarray
    x: np.ndarray
    y: np.ndarray
    steps: np.ndarray
    measured_share: float
    skeleton: np.ndarray
    mask: np.ndarray
    crossings: int = 0


def trace(foreground: Foreground, zoom: float, shift: float = 0.0) -> Fibres:
    """The fibres of a foreground."""
    threshold = (foreground.share + shift) * foreground.level
    mask = ndimage.binary_opening(foreground.mask(shift), iterations=max(1, round(zoom / 2)))
    mask = fill_holes(mask, foreground.signal, threshold)
    depth = ndimage.distance_transform_edt(mask)
    skeleton = skeletonize(mask)
    pieces, count = _pieces(skeleton, depth)
    rows, columns = np.nonzero(pieces)
    if not len(rows):
        return _nothing(mask)
    angles = _directions(pieces, rows, columns)
    every = max(1, -(-len(rows) // MOST_PROFILES))
    chosen = np.arange(0, len(rows), every)
    widths, ok = _widths(
        foreground, threshold, rows[chosen], columns[chosen], angles[chosen], depth
    )
    chosen, widths, share = chosen[ok], widths[ok], float(ok.mean())
    # A diagonal step of the skeleton is longer than a straight one.
    steps = every / np.maximum(np.abs(np.cos(angles[chosen])), np.abs(np.sin(angles[chosen])))
    fibre_of_piece = _joined(pieces, count, rows, columns, angles, depth)
    fibre = fibre_of_piece[pieces[rows, columns]]
    kept = np.zeros_like(skeleton)
    kept[rows[chosen], columns[chosen]] = True
    return Fibres(
        widths / zoom,
        np.rad2deg(angles[chosen]) % 180,
        np.unique(fibre[chosen], return_inverse=True)[1].ravel(),
        (columns[chosen] + 0.5) / zoom,
        (rows[chosen] + 0.5) / zoom,
        steps / zoom,
        share,
        kept,
        mask,
        _crossings(skeleton)[1],
    )


def _nothing(mask: np.ndarray) -> Fibres:
    none = np.empty(0)
    nowhere = np.zeros_like(mask)
    return Fibres(none, none, none.astype(int), none, none, none, 0.0, nowhere, mask)


def _crossings(skeleton: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Pixels where the skeleton branches, how many such places there are, neighbours per pixel."""
    neighbours = ndimage.convolve(skeleton.astype(np.uint8), np.ones((3, 3), np.uint8)) - 1
    crossings = skeleton & (neighbours > 2)
    return crossings, int(ndimage.label(crossings, np.ones((3, 3)))[1]), neighbours


def _pieces(skeleton: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, int]:
    """The skeleton without crossings, ends and stubs: pieces by number from 1, and their count."""
    crossings, _, neighbours = _crossings(skeleton)
    ends = skeleton & (neighbours == 1)
    height, width = skeleton.shape
    # The skeleton leaves the middle of a fibre within a width of a crossing, an end, the border.
    near = np.zeros_like(skeleton)
    for places, factor in ((crossings, 1.3), (ends, 1.0)):
        if places.any():
            distance, nearest = ndimage.distance_transform_edt(~places, return_indices=True)
            near |= distance < factor * depth[tuple(nearest)] + 1.5
    rows, columns = np.indices(skeleton.shape, sparse=True)
    rim = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    pieces, count = ndimage.label(skeleton & ~near & (rim > 2), np.ones((3, 3)))
    if not count:
        return pieces, 0
    numbers = np.arange(1, count + 1)
    lengths = ndimage.sum(skeleton, pieces, numbers)
    half = ndimage.mean(depth, pieces, numbers)
    long_enough = lengths >= np.maximum(2 * MIN_LENGTH * half - 2 * half, 4)
    renumber = np.concatenate([[0], np.where(long_enough, np.cumsum(long_enough), 0)])
    return renumber[pieces], int(long_enough.sum())


def _directions(pieces: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The direction of the skeleton at each of its pixels, in radians (y up).

    From the second moments of the piece's pixels in a window around it.
    """
    padded = np.pad(pieces, REACH)
    sums = np.zeros((3, len(rows)))
    mean, n = np.zeros((2, len(rows))), np.zeros(len(rows))
    own = pieces[rows, columns]
    offsets = [(i, j) for i in range(-REACH, REACH + 1) for j in range(-REACH, REACH + 1)]
    for i, j in offsets:
        here = padded[rows + REACH + i, columns + REACH + j] == own
        n += here
        mean += here * np.array([[j], [-i]])
        sums += here * np.array([[j * j], [i * i], [-i * j]])
    mean /= n
    xx, yy, xy = sums / n - np.stack([mean[0] ** 2, mean[1] ** 2, mean[0] * mean[1]])
    return 0.5 * np.arctan2(2 * xy, xx - yy)


def _widths(
    foreground: Foreground,
    threshold: float,
    rows: np.ndarray,
    columns: np.ndarray,
    angles: np.ndarray,
    depth: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Widths across the fibre in pixels of the field (n,), and which of them can be trusted."""
    half = depth[rows, columns]
    reach = float(np.percentile(half, 98)) * 3 + 6
    steps = np.arange(0, reach, STEP)
    places = np.arange(len(rows))
    widths, ok, levels = np.zeros(len(rows)), np.ones(len(rows), bool), []
    for sign in (1, -1):
        # The normal of (cos a, -sin a) in (column, row) is (sin a, cos a).
        y = rows[:, None] + sign * np.cos(angles)[:, None] * steps
        x = columns[:, None] + sign * np.sin(angles)[:, None] * steps
        profile = ndimage.map_coordinates(foreground.signal, [y, x], order=1, mode="nearest")
        outside = (profile < threshold) & (steps > 0.6 * half[:, None])
        first = outside.argmax(1)
        ok &= outside.any(1) & (first > 0)
        widths += _steepest(profile, first, half) * STEP
        # What lies beside the fibre: a little beyond its edge, further for a wide one.
        beyond = first + ((2.5 + 0.5 * half) / STEP).astype(int)
        levels.append(profile[places, np.minimum(beyond, len(steps) - 1)])
    ratio = widths / (2 * half)
    ok &= (ratio < AGREEMENT) & (ratio > 1 / AGREEMENT)
    # Beside a bright rim lies ground on one side and the fibre itself on the other.
    ok &= np.abs(levels[0] - levels[1]) < MAX_ASYMMETRY * foreground.level
    return np.where(ok, widths, 0), ok


def _steepest(profile: np.ndarray, first: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Where each profile (n, steps) falls most steeply near its step `first` (n,), in steps (n,).

    That is the edge, whatever the profile inside: a wire seen in transmission is darkest in its
    middle, one seen in a scanning microscope brightest at its rim.
    """
    fall = -ndimage.gaussian_filter1d(profile, PROFILE_BLUR / STEP, axis=1, order=1)
    near = (NEAR + NEAR_HALF * half) / STEP
    steps = np.arange(profile.shape[1])
    fall = np.where(np.abs(steps - first[:, None]) <= near[:, None], fall, -np.inf)
    at = np.clip(fall.argmax(1), 1, profile.shape[1] - 2)
    places = np.arange(len(at))
    before, here, after = (fall[places, at + k] for k in (-1, 0, 1))
    bend = before - 2 * here + after
    peaked = np.isfinite(before) & np.isfinite(after) & (bend < 0)
    part = np.where(peaked, 0.5 * (before - after) / np.where(peaked, bend, 1.0), 0.0)
    return at + np.clip(part, -0.5, 0.5)


def _joined(
    pieces: np.ndarray,
    count: int,
    rows: np.ndarray,
    columns: np.ndarray,
    angles: np.ndarray,
    depth: np.ndarray,
) -> np.ndarray:
    """The fibre of each piece, (count + 1,): pieces that go on straight behind a gap are one."""
    ends = []  # (piece, row, column, outward row, outward column, half width)
    number = pieces[rows, columns]
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(1, count + 2))
    for piece in range(1, count + 1):
        mine = order[bounds[piece - 1] : bounds[piece]]
        y, x = rows[mine].astype(float), columns[mine].astype(float)
        along = np.stack([y - y.mean(), x - x.mean()])
        main = np.linalg.svd(along, full_matrices=False)[0][:, 0]
        place = main @ along
        for k in (int(place.argmin()), int(place.argmax())):
            half = depth[rows[mine[k]], columns[mine[k]]]
            # Outwards from the middle of the last few widths: a single pixel's direction is rough.
            near = np.hypot(y - y[k], x - x[k]) <= max(4 * half, 12)
            out = np.array([y[k] - y[near].mean(), x[k] - x[near].mean()])
            out /= max(np.hypot(*out), 1e-6)
            ends.append((piece, y[k], x[k], *out, half))
    parent = np.arange(count + 1)
    if len(ends) < 3:
        return parent
    table = np.array(ends)
    least = np.cos(np.deg2rad(STRAIGHT_ON))
    pairs = []
    for i in range(len(table)):
        gap = table[:, 1:3] - table[i, 1:3]
        distance = np.hypot(*gap.T)
        reach = ACROSS * (table[:, 5] + table[i, 5])
        towards = gap @ table[i, 3:5] / np.maximum(distance, 1e-6)
        back = -(gap * table[:, 3:5]).sum(1) / np.maximum(distance, 1e-6)
        facing = -(table[:, 3:5] @ table[i, 3:5])
        ratio = table[:, 5] / table[i, 5]
        fits = (distance < reach) & (facing > least) & (towards > least) & (back > least)
        fits &= (table[:, 0] != table[i, 0]) & (ratio < 1.6) & (ratio > 1 / 1.6)
        for j in np.flatnonzero(fits):
            if j > i:
                pairs.append((facing[j] + towards[j] + back[j], i, int(j)))
    taken = set()
    for _, i, j in sorted(pairs, reverse=True):
        if i in taken or j in taken:
            continue
        taken |= {i, j}
        a, b = int(table[i, 0]), int(table[j, 0])
        while parent[a] != a:
            a = parent[a]
        while parent[b] != b:
            b = parent[b]
        parent[b] = a
    for piece in range(1, count + 1):
        root = piece
        while parent[root] != root:
            root = parent[root]
        parent[piece] = root
    return parent


def order_parameter(angles: np.ndarray) -> tuple[float, float]:
    """(mean direction in degrees, 0 to 180; alignment from 0, random, to 1, parallel)."""
    double = np.exp(2j * np.deg2rad(angles)).mean()
    return float(np.rad2deg(np.angle(double)) / 2 % 180), float(np.abs(double))
