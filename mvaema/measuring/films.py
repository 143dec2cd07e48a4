"""Films and layers in section: thickness between edges that run through the picture.

What is special about it:
- layers may lie at any angle: the picture is turned until they are level;
- an edge counts only if it is found again in nearly every strip of the picture, each strip by
  itself; the scatter of the strips is the scatter of the thickness;
- a film seen from above has no such edges, and then there is no thickness.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.signal import find_peaks

from mvaema.measuring.field import Field

# Strips across the layers, the share of them in which an edge must be found.
STRIPS, MIN_FOUND = 24, 0.8
# Blur along a profile, in pixels of the field, before its slope is taken.
BLUR = 2.0
# An edge's slope, as a share of the steepest one, and over the noise of a strip's profile.
MIN_SLOPE, MIN_SLOPE_NOISE = 0.03, 6.0
# The number of layers must not change when edges may be fainter or must be stronger by this.
SENSITIVITIES = (0.75, 1.33)
# How far an edge may move from strip to strip: share of the height.
DRIFT = 0.015
# An angle in degrees below which the picture is not turned.
LEVEL_ENOUGH = 0.1
# The side, in pixels, of the picture in which the direction is looked for.
COARSE_SIDE = 192
# An edge nearer than this, in pixels of the image, to one that is steeper is its rim if it has less
# than this share of its slope: edges are bright in a scanning microscope, and dark or bright behind
# a filter. A nearly as steep one may be a thin layer, which cannot be told.
RIM, RIM_SLOPE = 8.0, 0.6


@dataclass(frozen=True)
class Layers:
    """Edges of layers, in the turned field.

    Attributes:
        edges: (edges, strips) positions across the layers in pixels of the image, NaN where an
            edge was not found.
        angle_deg: direction of the layers from the horizontal, counter-clockwise.
        turned: float32 (height, width), the field turned so that layers are level.
        zoom: pixels of `turned` per pixel of the image.
        ambiguous: whether two edges are so near that they may be a rim or a thin layer.
    """

    edges: np.ndarray
    angle_deg: float
    turned: np.ndarray
    zoom: float
    ambiguous: bool = False

    @property
    def thickness(self) -> np.ndarray:
        """(layers, strips), in pixels of the image; NaN where an edge was not found."""
        return np.diff(self.edges, axis=0)

    def labels(self, shape: tuple[int, int]) -> np.ndarray:
        """Layers by number from the top, int32 of the field's `shape`; 0 is no layer."""
        height, width = self.turned.shape
        labels = np.zeros((height, width), np.int32)
        middles = (np.arange(STRIPS) + 0.5) * width / STRIPS
        rows = np.arange(height)[:, None]
        for track in self.edges * self.zoom:
            found = np.isfinite(track)
            labels += rows >= np.interp(np.arange(width), middles[found], track[found])
        labels[labels == len(self.edges)] = 0
        quarter = abs(self.angle_deg) > 45
        whole = np.zeros(shape[::-1] if quarter else shape, np.int32)
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        whole[top : top + height, left : left + width] = labels
        rest = self.angle_deg - quarter * np.sign(self.angle_deg) * 90
        if abs(rest) >= LEVEL_ENOUGH:
            whole = ndimage.rotate(whole, rest, reshape=False, order=0)
        return np.rot90(whole, 1 if self.angle_deg > 0 else -1) if quarter else whole


def find_layers(field: Field, sensitivity: float = 1.0) -> Layers:
    """The layers of a field; a lower `sensitivity` asks for steeper edges."""
    angle = _direction(field.grey)
    turned = _turned(field.grey, angle)
    height = len(turned)
    strips = np.array_split(turned, STRIPS, axis=1)
    slopes = np.stack([ndimage.gaussian_filter1d(s.mean(1), BLUR, order=1) for s in strips])
    whole = np.median(slopes, axis=0)
    noise = 1.4826 * np.median(np.abs(np.diff(slopes, axis=0)), axis=0).mean() / np.sqrt(2)
    steepest = float(np.abs(whole).max())
    least = max(MIN_SLOPE * steepest, MIN_SLOPE_NOISE * noise / np.sqrt(STRIPS)) / sensitivity
    peaks = np.concatenate(
        [find_peaks(sign * whole, height=least, prominence=0.5 * least)[0] for sign in (1, -1)]
    )
    margin = 3 * BLUR
    peaks = np.sort(peaks[(peaks > margin) & (peaks < height - margin)])
    kept, heights = [], []
    for peak in peaks:
        track = _track(slopes, int(peak), float(np.sign(whole[peak])), least / 2, height)
        if np.isfinite(track).mean() >= MIN_FOUND:
            kept.append(track)
            heights.append(abs(float(whole[peak])))
    edges, ambiguous = _without_rims(np.array(kept).reshape(-1, STRIPS), heights, field.zoom)
    return Layers(edges / field.zoom, angle, turned, field.zoom, ambiguous)


def _without_rims(edges: np.ndarray, heights: list[float], zoom: float) -> tuple[np.ndarray, bool]:
    """The edges (n, strips) that are no rim of a steeper one, and whether a thin layer is possible.

    Args:
        heights: slope of each edge.
        zoom: as in `Layers`.
    """
    places = np.nanmedian(edges, axis=1) if len(edges) else np.empty(0)
    kept: list[int] = []
    ambiguous = False
    for k in sorted(range(len(edges)), key=lambda k: -heights[k]):
        near = [j for j in kept if abs(places[j] - places[k]) < RIM * zoom]
        if not near:
            kept.append(k)
        elif abs(places[near[0]] - places[k]) > 2 * BLUR:  # else one edge found twice
            ambiguous |= heights[k] > RIM_SLOPE * max(heights[j] for j in near)
    return edges[sorted(kept)], ambiguous


def _track(slopes: np.ndarray, start: int, sign: float, least: float, height: int) -> np.ndarray:
    """An edge's position in each strip (strips,), from the middle outwards; NaN if not found."""
    reach = max(4, round(DRIFT * height))
    found = np.full(len(slopes), np.nan)
    middle = len(slopes) // 2
    for order in (range(middle, len(slopes)), range(middle - 1, -1, -1)):
        last = start if np.isnan(found[middle]) else found[middle]
        for k in order:
            low = max(1, round(last) - reach)
            window = sign * slopes[k, low : min(height - 1, round(last) + reach + 1)]
            if not window.size or window.max() < least:
                continue
            at = low + int(window.argmax())
            before, here, after = sign * slopes[k, at - 1 : at + 2]
            bend = before - 2 * here + after
            last = found[k] = at + (0.5 * (before - after) / bend if bend < 0 else 0.0)
    return found


def _direction(grey: np.ndarray) -> float:
    """The direction along which grey levels change least, in degrees from -90 to 90, y up.

    The one for which the means of rows differ most from row to row: columns within a layer, or a
    box of print, have steep edges too, but not all along one line.
    """
    step = max(1, min(grey.shape) // COARSE_SIDE)
    coarse = ndimage.gaussian_filter(grey, 1.5 * step)[::step, ::step]
    side = min(coarse.shape)
    top, left = ((length - side) // 2 for length in coarse.shape)
    square = coarse[top : top + side, left : left + side]
    square = square - ndimage.gaussian_filter(square, side / 4)
    y, x = np.indices((side, side)) - (side - 1) / 2
    disc = np.hypot(x, y) < side / 2

    def steepness(angle: float) -> float:
        # Means over rows of the turned picture, without turning it.
        a = np.deg2rad(angle)
        place = y[disc] * np.cos(a) + x[disc] * np.sin(a) + side / 2
        row = np.floor(place).astype(int)
        part = place - row
        counts, sums = (
            np.bincount(row, (1 - part) * values, side + 2)
            + np.bincount(row + 1, part * values, side + 2)
            for values in (1.0, square[disc])
        )
        means = sums[counts > side / 3] / counts[counts > side / 3]
        return float(np.square(np.diff(means)).sum())

    best = max(np.arange(-90, 90, 2.0), key=steepness)
    for finer in (0.5, 0.1):
        best = max(best + finer * np.arange(-5, 6), key=steepness)
    return float((best + 90) % 180 - 90)


def _turned(grey: np.ndarray, angle: float) -> np.ndarray:
    """The largest upright part of the picture, turned so that `angle` becomes level."""
    if abs(angle) > 45:  # a quarter turn first, which keeps all pixels
        grey = np.rot90(grey, -1 if angle > 0 else 1)
        angle -= np.sign(angle) * 90
    if abs(angle) < LEVEL_ENOUGH:
        return np.ascontiguousarray(grey)
    height, width = grey.shape
    turned = ndimage.rotate(grey, -angle, reshape=False, order=1, mode="nearest")
    lost = np.tan(np.deg2rad(abs(angle)))
    rows, columns = int(width / 2 * lost), int(height / 2 * lost)
    rows, columns = min(rows, height // 3), min(columns, width // 3)
    return turned[rows : height - rows, columns : width - columns]
