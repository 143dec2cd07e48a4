"""The physics from a height field to the image that a scanning electron microscope shows.

What is special about it:
- there is one step per effect, in the order of the instrument: emission of secondary electrons,
  collection by a detector at the side, scan and beam, charging, counting of electrons, brightness
  and contrast;
- every effect is a few array operations, fast enough for 100 images of 224 pixels per second.

Sources: the secant law of the secondary yield, edge (diffusion) contrast and the shadowing by a
side-mounted detector are those of L. Reimer, Scanning Electron Microscopy, 2nd ed. 1998, ch. 4
and 6; the counting noise is Poisson in the number of electrons per pixel (ibid., section 4.2.4).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.signal import lfilter

from mvaema.synthetic.canvas import CLOUDY, Canvas, noise, resize, smooth


@dataclass
class Microscope:
    """Settings of the instrument, and its flaws."""

    kilovolts: float
    working_distance_mm: float
    detector: str  # "SE" (at the side), "InLens" (in the column: no shadowing) or "BSE"
    azimuth: float  # direction of the side detector in the image, radians
    secant: float  # how strongly the yield rises on slopes
    edge_nm: float  # escape length of the electrons that brighten an edge
    edge: float  # strength of the edge contrast
    shadow: float  # strength of the shading toward the detector
    occlusion: float  # how strongly walls around a point keep its electrons
    spot_nm: float  # standard deviation of the beam
    astigmatism: float  # ratio of the long to the short axis of the beam, minus 1
    astigmatism_angle: float
    dose: float  # electrons counted per pixel at unit yield
    charging: float  # 0: none
    drift_px: float  # how far the specimen wanders during the scan
    vibration_px: float
    black: float  # grey levels that the darkest and brightest percent of the signal get
    white: float
    gamma: float

    @classmethod
    def draw(cls, rng: np.random.Generator, difficulty: float, pixel_nm: float) -> "Microscope":
        """Random settings: the higher `difficulty` (0 to 1), the more flaws."""
        d = difficulty
        detector = str(rng.choice(["SE", "InLens", "BSE"], p=[0.63, 0.22, 0.15]))
        # Backscattered electrons come from deep inside: composition shows, slopes and edges hardly.
        relief = 0.2 if detector == "BSE" else 1.0
        black = float(rng.uniform(5, 60) if rng.random() < 0.7 else rng.uniform(40, 110))
        kilovolts = float(rng.choice([1, 2, 3, 5, 5, 10, 10, 15, 15, 20]))
        return cls(
            kilovolts=kilovolts,
            working_distance_mm=round(
                float(rng.uniform(2.5, 6 if detector == "InLens" else 16)), 1
            ),
            detector=detector,
            azimuth=float(rng.uniform(-2.6, -0.5)),
            secant=float(relief * rng.uniform(0.8, 1.3)),
            edge_nm=float(rng.uniform(1.0, 3.0) * pixel_nm),
            edge=float(relief * rng.uniform(0.25, 0.7)),
            shadow=0.0 if detector != "SE" else float(rng.uniform(0.15, 0.5)),
            occlusion=float(relief**0.5 * rng.uniform(0.7, 1.5)),
            spot_nm=float(
                pixel_nm * (rng.uniform(0.3, 0.55) + max(0, rng.normal(0.9, 0.6)) * d**2)
            ),
            astigmatism=float(max(0, rng.normal(0, 1.2)) * d * d),
            astigmatism_angle=float(rng.uniform(0, np.pi)),
            dose=float(10 ** rng.uniform(2.7 - 2.0 * d, 3.4 - 1.6 * d)),
            charging=float(rng.uniform(0.3, 1)) if rng.random() < 0.45 * d else 0.0,
            drift_px=float(rng.uniform(1, 4) * d) if rng.random() < 0.4 * d else 0.0,
            vibration_px=float(rng.uniform(0.3, 0.8) * d) if rng.random() < 0.25 * d else 0.0,
            black=(
                black := float(rng.uniform(5, 60) if rng.random() < 0.7 else rng.uniform(40, 110))
            ),
            white=float(min(250, black + rng.uniform(90, 230))),
            gamma=float(rng.uniform(0.75, 1.15)),
        )


def _slopes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes along x and y. At a step it is the slope of the smoother side, so that the ground
    beside a tall object does not count as a wall."""
    across, down = np.diff(z, axis=1), np.diff(z, axis=0)
    gx, gy = np.empty_like(z), np.empty_like(z)
    gx[:, 0], gx[:, -1], gy[0], gy[-1] = across[:, 0], across[:, -1], down[0], down[-1]
    size = np.abs(across)
    gx[:, 1:-1] = np.where(size[:, :-1] < size[:, 1:], across[:, :-1], across[:, 1:])
    size = np.abs(down)
    gy[1:-1] = np.where(size[:-1] < size[1:], down[:-1], down[1:])
    return gx, gy


def emission(canvas: Canvas, material: np.ndarray, scope: Microscope) -> np.ndarray:
    """Collected secondary electrons per beam electron (relative), for every canvas pixel."""
    z = canvas.z
    gx, gy = _slopes(z)
    secant = np.sqrt(1 + gx * gx + gy * gy)
    # The yield cannot grow beyond what leaves within the range of the beam.
    excess = secant - 1
    signal = 1 + scope.secant * excess / (1 + excess / 2.2)
    # Edges let electrons out sideways; inner corners take them back.
    width = max(0.8, scope.edge_nm / canvas.nm)
    signal += (scope.edge / width) * np.clip(z - smooth(z, width), -0.8 * width, 1.6 * width)
    if scope.shadow:
        toward = gx * np.float32(np.cos(scope.azimuth)) + gy * np.float32(np.sin(scope.azimuth))
        signal *= 1 - scope.shadow * toward / secant
    # Electrons that leave a pit hit its walls instead of the detector.
    coarse = resize(z, (z.shape[0] // 2, z.shape[1] // 2), Image.BOX)
    hidden = np.ones_like(coarse)
    for length in (0.02 * canvas.width, 0.07 * canvas.width):
        around = smooth(coarse, length / 2)
        # Below a certain depth nothing gets darker; the rest comes from the chamber.
        hidden += scope.occlusion * np.clip((around - coarse) / length, 0, 1.5)
    signal *= material
    signal /= resize(hidden, z.shape, Image.BILINEAR)
    return signal


def _shift_rows(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The image with each row shifted by its own, fractional number of pixels."""
    columns = np.arange(image.shape[1])[None] + shift[:, None]
    columns = np.clip(columns, 0, image.shape[1] - 1.001)
    left = columns.astype(np.int64)
    part = (columns - left).astype(np.float32)
    row = np.arange(image.shape[0])[:, None]
    return image[row, left] * (1 - part) + image[row, left + 1] * part


def scan(signal: np.ndarray, shape, pixel_nm: float, scope: Microscope, rng) -> np.ndarray:
    """The signal sampled on the scan raster `shape` (height, width) with a beam of finite size."""
    image = resize(signal, shape, Image.HAMMING)
    sigma = scope.spot_nm / pixel_nm
    if scope.astigmatism > 0.15:
        image = _elliptic(image, sigma, scope.astigmatism, scope.astigmatism_angle)
    elif sigma > 0.35:
        image = smooth(image, sigma)
    shift = np.zeros(shape[0])
    if scope.drift_px:
        walk = np.cumsum(rng.normal(size=shape[0]))
        walk += np.linspace(0, rng.normal() * 2 * np.sqrt(shape[0]), shape[0])
        shift += scope.drift_px * walk / (np.ptp(walk) + 1e-6)
    if scope.vibration_px:
        period = rng.uniform(3, 14)
        shift += scope.vibration_px * np.sin(2 * np.pi * np.arange(shape[0]) / period)
    if shift.any():
        image = _shift_rows(image, shift)
    return np.maximum(image, 0.02)


def _elliptic(image, sigma, astigmatism, angle):
    """Blur by a Gaussian beam: standard deviation `sigma` across, (1 + astigmatism) times along."""
    pad = int(np.ceil(3 * sigma * (1 + astigmatism))) + 1
    padded = np.pad(image, pad, mode="reflect")
    fy = np.fft.fftfreq(padded.shape[0])[:, None]
    fx = np.fft.rfftfreq(padded.shape[1])[None]
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = fy * np.cos(angle) - fx * np.sin(angle)
    power = (along * (1 + astigmatism)) ** 2 + across**2
    kernel = np.exp(-2 * (np.pi * sigma) ** 2 * power)
    blurred = np.fft.irfft2(np.fft.rfft2(padded) * kernel, s=padded.shape)
    return blurred[pad:-pad, pad:-pad].astype(np.float32)


def charge(signal: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The effects of trapped charge: a glow around bright parts, streaks along the scan behind
    them, and lines whose brightness jumps when charge flows off."""
    bright = np.maximum(signal - np.float32(np.percentile(signal[::4, ::4], 60)), 0)
    glow = smooth(bright, 0.03 * signal.shape[1])
    trail = lfilter([0.06], [1, -0.94], bright, axis=1).astype(np.float32)
    jumps = np.zeros(signal.shape[0], np.float32)
    for row in rng.integers(signal.shape[0], size=rng.integers(2, 9)):
        jumps[row : row + rng.integers(1, 4)] += rng.normal(0, 0.12)
    spread = float(signal.std()) + 0.1
    out = signal + strength * (1.1 * glow - 1.3 * trail + spread * jumps[:, None] * 2)
    return np.maximum(out, 0.02)


def count_electrons(signal: np.ndarray, dose: float, rng: np.random.Generator) -> np.ndarray:
    """Electrons counted in every pixel (Poisson), in units of the signal.

    Above half a dozen electrons, the square root of a Poisson number is about normal with variance
    1/4 (Anscombe 1948), which is five times faster to draw.
    """
    expected = signal * np.float32(dose)
    if float(expected.mean()) < 6:
        return (rng.poisson(expected) / dose).astype(np.float32)
    root = np.sqrt(expected) + 0.5 * rng.standard_normal(signal.shape, dtype=np.float32)
    return root * root / np.float32(dose)


@dataclass
class Exposure:
    """Brightness and contrast, set so that percentiles of a signal reach given grey levels."""

    low: float
    span: float
    scope: Microscope

    @classmethod
    def of(cls, signal: np.ndarray, scope: Microscope) -> "Exposure":
        ordered = np.sort(signal[::3, ::3], axis=None)
        low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
        # A featureless view is stretched less, so that noise does not fill the range.
        return cls(float(low), max(float(high - low), 0.35 * float(high)), scope)

    def grey(self, signal: np.ndarray) -> np.ndarray:
        """Grey levels (float, 0 to 255)."""
        value = (signal - self.low) / self.span
        # Below black the response is linear, so that noise is not cut off there.
        value = np.where(value > 0, np.maximum(value, 0) ** np.float32(self.scope.gamma), value)
        value *= self.scope.white - self.scope.black
        value += self.scope.black
        return np.clip(value, 0, 255, out=value)


def mottle(canvas: Canvas, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Slow variation of the yield over a surface (contamination, thickness of a coating)."""
    return 1 + strength * noise(rng, canvas.shape, CLOUDY)
