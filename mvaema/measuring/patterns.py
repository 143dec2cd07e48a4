"""Periodic patterns: pitch and direction from the picture's autocorrelation.

What is special about it:
- peaks are found at a fraction of a pixel, and those of higher order sharpen the first;
- the same pitch must come out of the four quarters of the picture: their scatter is given, and a
  pattern that does not repeat gives no pitch;
- it is the pitch in the plane of the image. A tilt shortens it, which pixels cannot tell.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

# Least height of the autocorrelation's first peak; share of the highest that a nearer one needs.
MIN_PEAK, NEAREST_SHARE = 0.2, 0.75
# Periods that must be in view. Of less than twice as many the quarters of the picture say nothing:
# then the peak must be this high, for noise repeats a few times by chance.
MIN_PERIODS, MIN_PEAK_OF_FEW = 3.0, 0.5
# Shortest pitch, in pixels of the field, and the longest lag, as a share of the shorter side.
MIN_PITCH, MAX_LAG = 4.0, 0.5
# A peak is one if the correlation dips below this share of it on the way from lag 0, looked at
# in this many points.
VALLEY, WAY_POINTS = 0.6, 33
# Steps that are drawn over the picture.
DRAWN_STEPS = 5
# Curvature along a ridge, relative to that across, below which it is lines, not dots.
LINE_CURVATURE = 0.15


@dataclass(frozen=True)
class Lattice:
    """What repeats.

    Attributes:
        vectors: (1, 2) for lines or (2, 2) for a lattice: (x, y) steps to the next element, y
            down, in pixels of the field; for lines the step across them.
        peak: height of the autocorrelation at the first step, 1 for a perfect pattern.
    """

    vectors: np.ndarray
    peak: float

    @property
    def pitches(self) -> np.ndarray:
        return np.hypot(*self.vectors.T)

    @property
    def cell(self) -> float | None:
        """Area of one element's cell, None for lines."""
        if len(self.vectors) == 1:
            return None
        (a, b), (c, d) = self.vectors
        return float(abs(a * d - b * c))

    def labels(self, shape: tuple[int, int]) -> np.ndarray:
        """Steps drawn from the middle of the field's `shape`, int32: step by step 1, 2, 1, 2 …"""
        labels = np.zeros(shape, np.int32)
        middle = np.array([shape[1], shape[0]]) / 2
        for vector in self.vectors:
            for step in range(DRAWN_STEPS):
                way = np.linspace(step, step + 1, 1 + 2 * round(np.hypot(*vector)))[:, None]
                x, y = np.round(middle + way * vector).astype(int).T
                inside = (x > 0) & (x < shape[1] - 2) & (y > 0) & (y < shape[0] - 2)
                for i in (0, 1):
                    labels[y[inside] + i, x[inside] + 1 - i] = 1 + step % 2
        return labels


def find_lattice(grey: np.ndarray, near: float | None = None) -> Lattice | None:
    """What repeats in a picture (height, width), or None.

    Args:
        near: a pitch, if known: only steps within a quarter of it are looked for.
    """
    correlation = autocorrelation(grey)
    middle = np.array(correlation.shape) // 2
    longest = MAX_LAG * min(grey.shape)
    places, heights = _peaks(correlation, middle, longest)
    if near is not None:
        close = np.abs(np.hypot(*places.T) / near - 1) < 0.25
        places, heights = places[close], heights[close]
    if not len(places) or heights.max() < MIN_PEAK:
        return None
    lengths = np.hypot(*places.T)
    strong = np.flatnonzero(heights >= NEAREST_SHARE * heights.max())
    first = strong[np.argmin(lengths[strong])]
    step, lines = _refined(correlation, middle, places[first])
    if lines:
        return Lattice(step[None], float(heights[first]))
    unit = places[first] / lengths[first]
    aside = np.abs(places @ np.array([-unit[1], unit[0]])) / lengths
    others = strong[aside[strong] > np.sin(np.deg2rad(25))]
    if not len(others):
        return Lattice(step[None], float(heights[first]))
    second, _ = _refined(correlation, middle, places[others[np.argmin(lengths[others])]])
    return Lattice(np.stack([step, second]), float(heights[first]))


def autocorrelation(grey: np.ndarray) -> np.ndarray:
    """The normalised autocorrelation (height, width), lag 0 in the middle where it is 1.

    Shading much wider than a sixth of the picture is taken off, and the loss of overlap at long
    lags is made up for.
    """
    grey = grey - ndimage.gaussian_filter(grey, min(grey.shape) / 6)
    grey = grey - grey.mean()
    window = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])[None]
    window = window.astype(np.float32)
    size = [fft.next_fast_len(2 * side, real=True) // 2 * 2 for side in grey.shape]
    raw, overlap = (
        np.roll(fft.irfft2(np.abs(fft.rfft2(part, size)) ** 2, size), grey.shape, axis=(0, 1))[
            : 2 * grey.shape[0], : 2 * grey.shape[1]
        ]
        for part in (grey * window, window)
    )
    result = raw / np.maximum(overlap, 1e-3 * overlap.max())
    result /= max(result[grey.shape[0], grey.shape[1]], 1e-9)
    height, width = grey.shape
    return result[height // 2 : height // 2 + height, width // 2 : width // 2 + width]


def _peaks(correlation, middle, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) lags (n, 2) and heights (n,) of the maxima in the lower half plane."""
    smooth = ndimage.gaussian_filter(correlation, 1.0)
    highest = smooth == ndimage.maximum_filter(smooth, size=7)
    rows, columns = np.nonzero(highest)
    y, x = rows - middle[0], columns - middle[1]
    length = np.hypot(x, y)
    keep = ((y > 0) | ((y == 0) & (x > 0))) & (length >= MIN_PITCH) & (length <= longest)
    x, y, heights = x[keep], y[keep], smooth[rows[keep], columns[keep]]
    # Not on the ridge or hill of lag 0: there is a valley on the way.
    way = np.linspace(0, 1, WAY_POINTS)[:, None]
    valley = ndimage.map_coordinates(smooth, [middle[0] + way * y, middle[1] + way * x], order=1)
    apart = valley.min(axis=0, initial=1.0) < VALLEY * heights
    return np.stack([x[apart], y[apart]], 1).astype(float), heights[apart]


def _refined(correlation, middle, step: np.ndarray) -> tuple[np.ndarray, bool]:
    """The step at a fraction of a pixel, and whether it leads across lines."""
    radius = int(np.clip(0.15 * np.hypot(*step), 2, 12))
    height, width = correlation.shape
    sums, weights, lines = np.zeros(2), 0.0, False
    current = step
    for order in range(1, 5):
        x, y = current * order
        column, row = round(x + middle[1]), round(y + middle[0])
        inside = radius < row < height - radius - 1 and radius < column < width - radius - 1
        if not inside:
            break
        patch = correlation[row - radius : row + radius + 1, column - radius : column + radius + 1]
        fit = _paraboloid(patch, radius)
        if fit is None:
            break
        place, steep, flat, axis = fit
        if order == 1:
            lines = flat < LINE_CURVATURE * steep
        peak = np.array([column - middle[1], row - middle[0]]) + place
        if lines:  # only the part across them is determined
            peak = axis * (axis @ peak)
        sums += order * peak
        weights += order * order
        current = sums / weights
    return (current if weights else step), lines


def _paraboloid(patch: np.ndarray, radius: int):
    """((x, y) of the top, curvature across, curvature along, unit vector across), or None."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(float)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    _, b, c, d, e, f = np.linalg.lstsq(terms, patch.reshape(-1), rcond=None)[0]
    hessian = np.array([[2 * d, e], [e, 2 * f]])
    values, vectors = np.linalg.eigh(hessian)
    if values[0] >= 0:
        return None
    steep, flat = -values[0], max(-values[1], 0.0)
    axis = vectors[:, 0]
    gradient = np.array([b, c])
    place = axis * (axis @ gradient) / steep
    if flat > LINE_CURVATURE * steep:
        place = place + vectors[:, 1] * (vectors[:, 1] @ gradient) / flat
    if np.abs(place).max() > radius:
        return None
    return place, steep, flat, axis


def quarters(grey: np.ndarray, lattice: Lattice) -> np.ndarray:
    """The first pitch in each quarter of the picture in which it is found, (up to 4,)."""
    height, width = grey.shape
    pitch = lattice.pitches[0]
    found = []
    for rows in (slice(0, height // 2), slice(height // 2, None)):
        for columns in (slice(0, width // 2), slice(width // 2, None)):
            part = find_lattice(grey[rows, columns], near=pitch)
            if part is not None:
                found.append(part.pitches[np.argmin(np.abs(part.pitches - pitch))])
    return np.array(found)
