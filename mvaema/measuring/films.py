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
MIN_SLOPE, MIN_SLOPE_NOISE = 0.18, 4.0
# How far an edge may move from strip to strip: share of the height.
DRIFT = 0.015
# An angle in degrees below which the picture is not turned.
LEVEL_ENOUGH = 0.1
# Least thickness, in pixels of the field.
MIN_THICKNESS = 5.0


@dataclass(frozen=True)
class Layers:
    """Edges of layers, in the turned field.

    Attributes:
        edges: (edges, strips) positions across the layers in pixels of the image, NaN where an
            edge was not found.
        angle_deg: direction of the layers from the horizontal, counter-clockwise.
        turned: float32 (height, width), the field turned so that layers are level.
        zoom: pixels of `turned` per pixel of the image.
    """

    edges: np.ndarray
    angle_deg: float
    turned: np.ndarray
    zoom: float

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
    kept = []
    for peak in peaks:
        track = _track(slopes, int(peak), float(np.sign(whole[peak])), least / 2, height)
        if np.isfinite(track).mean() >= MIN_FOUND:
            kept.append(track)
    edges = np.array(kept).reshape(-1, STRIPS)
    if len(edges) > 1:  # one edge found twice
        gaps = np.nanmedian(np.diff(edges, axis=0), axis=1)
        edges = edges[np.concatenate([[True], gaps >= MIN_THICKNESS])]
    return Layers(edges / field.zoom, angle, turned, field.zoom)


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
    """The direction along which grey levels change least, in degrees from -90 to 90, y up."""
    smooth = ndimage.gaussian_filter(grey, 3.0)
    gy, gx = np.gradient(smooth)
    weight = np.hypot(gx, gy)
    strong = weight >= np.percentile(weight, 80)
    gx, gy = gx[strong], gy[strong]
    double = ((gx + 1j * -gy) ** 2).sum()
    across = np.rad2deg(np.angle(double)) / 2
    return float((across + 90 + 90) % 180 - 90)


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
