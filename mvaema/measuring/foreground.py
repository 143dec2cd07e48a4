"""Objects apart from their ground: levelled grey levels and one threshold for all kinds.

What is special about it:
- uneven ground is levelled by a surface of second order, fitted to the ground alone;
- the threshold is where edges are steepest, which is where the beam's blur does not move them;
- all of it can be run again with the threshold shifted, which tells a stable result from one that
  depends on where the line was drawn.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from mvaema.measuring.field import Field

# Thresholds that are tried, as shares of the way from ground to objects.
SHARES = np.linspace(0.25, 0.6, 8)
# Deviations of the ground, in its standard deviation, that are an object, where objects are few.
SPARSE_DEVIATIONS, SPARSE_SHARE = 5.0, 0.12
# Pixels from which on every second one is enough to find the threshold.
COARSE_ENOUGH = 1_200_000
# Every n-th pixel in each direction is used to fit the ground.
GROUND_STEP = 4


@dataclass(frozen=True)
class Foreground:
    """The objects of a field.

    Attributes:
        signal: float32 (height, width): levelled, 0 at the ground, positive in objects.
        valid: bool (height, width), False where there is print.
        bright: whether objects are brighter than their ground.
        level: median signal of the objects.
        spread: standard deviation of the ground's signal.
        share: the threshold, as a share of `level`.
    """

    signal: np.ndarray
    valid: np.ndarray
    bright: bool
    level: float
    spread: float
    share: float

    @property
    def contrast_to_noise(self) -> float:
        return self.level / max(self.spread, 1e-3)

    def mask(self, shift: float = 0.0) -> np.ndarray:
        """Where objects are, bool (height, width); `shift` is added to `share`."""
        return (self.signal > (self.share + shift) * self.level) & self.valid


def find_foreground(field: Field, bright: bool) -> Foreground:
    """The objects of a field, which are brighter or darker than their ground."""
    sign = np.float32(1 if bright else -1)
    signal = sign * field.grey
    threshold = _first_threshold(signal[field.valid])
    for _ in range(2):
        ground = _ground(signal, (signal <= threshold) & field.valid)
        if ground is None:
            break
        signal = signal - ground
        threshold = _first_threshold(signal[field.valid])
    values = signal[field.valid]
    below, above = values[values <= threshold], values[values > threshold]
    if not below.size or not above.size:
        return Foreground(signal, field.valid, bright, 1e-3, 1.0, 0.5)
    zero = float(np.median(below))
    signal = signal - zero
    level = float(np.median(above)) - zero
    spread = 1.4826 * float(np.median(np.abs(below - zero)))
    share = _steepest_share(signal, field.valid, level, spread)
    return Foreground(signal, field.valid, bright, level, spread, share)


def _first_threshold(values: np.ndarray) -> float:
    """A threshold between ground and objects, also where objects fill a hundredth."""
    values = values[:: max(1, values.size // 200_000)]
    otsu = threshold_otsu(values)
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    outliers = values[values > middle + SPARSE_DEVIATIONS * spread]
    few = 0.0002 < outliers.size / values.size < SPARSE_SHARE
    if few and (values > otsu).mean() > 2 * outliers.size / values.size:
        return max(middle + 3 * spread, (middle + float(np.median(outliers))) / 2)
    return float(otsu)


def _ground(signal: np.ndarray, ground: np.ndarray) -> np.ndarray | None:
    """A surface of second order through the ground; None where there is too little of it."""
    height, width = signal.shape
    step = GROUND_STEP
    rows, columns = np.nonzero(ground[::step, ::step])
    if len(rows) < 0.2 * (height // step) * (width // step):
        return None
    y, x = rows * step / height - 0.5, columns * step / width - 0.5
    values = signal[::step, ::step][rows, columns]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], 1)
    factors = np.linalg.lstsq(terms, values, rcond=None)[0].astype(np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    a, b, c, d, e, f = factors
    return a + b * x + c * y + d * x * y + e * x * x + f * y * y


def _steepest_share(signal: np.ndarray, valid: np.ndarray, level: float, spread: float) -> float:
    """The share of `level` at which the contours run along the steepest edges.

    A contour is the pixels on both its sides, so that it is not drawn inwards.
    """
    if signal.size > COARSE_ENOUGH:
        signal, valid = signal[::2, ::2], valid[::2, ::2]
    steepness = ndimage.gaussian_gradient_magnitude(signal, 1.0)[valid]
    lowest = min(2.5 * spread / max(level, 1e-3), 0.5)
    best, best_steepness = 0.5, -1.0
    for share in SHARES[lowest <= SHARES]:
        mask = signal > share * level
        edge = (ndimage.maximum_filter(mask, 3) ^ ndimage.minimum_filter(mask, 3))[valid]
        if edge.any() and (mean := float(steepness[edge].mean())) > best_steepness:
            best, best_steepness = float(share), mean
    return best
