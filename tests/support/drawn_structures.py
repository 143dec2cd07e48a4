"""Pictures of structures whose sizes are known because they were drawn here, for measuring."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage


@dataclass(frozen=True)
class Drawn:
    """A picture, and the sizes in pixels of what lies whole in it."""

    image: Image.Image
    sizes: np.ndarray


def finished(inside: np.ndarray, *, objects=190.0, ground=70.0, noise=5.0, blur=1.0, seed=0):
    """A picture of a share (height, width) of object in each pixel."""
    rng = np.random.default_rng(seed)
    grey = ground + (objects - ground) * ndimage.gaussian_filter(inside.astype(float), blur)
    grey = grey + rng.normal(0, noise, grey.shape)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def discs(centres, radii, size: int = 160, **look) -> Drawn:
    """Discs with edges at a fraction of a pixel."""
    y, x = np.mgrid[:size, :size] + 0.5
    inside, whole = np.zeros((size, size)), []
    for (cx, cy), r in zip(centres, radii, strict=True):
        inside = np.maximum(inside, np.clip(r - np.hypot(x - cx, y - cy) + 0.5, 0, 1))
        if r + 1 < cx < size - r - 1 and r + 1 < cy < size - r - 1:
            whole.append(2 * r)
    return Drawn(finished(inside, **look), np.array(whole))


def scattered_discs(count=12, radius=9.0, spread=0.15, size=160, seed=0, **look) -> Drawn:
    """Discs apart from each other; some are cut by the border."""
    rng = np.random.default_rng(seed)
    centres: list = []
    radii: list = []
    while len(centres) < count:
        place, r = rng.uniform(0, size, 2), radius * np.exp(rng.normal(0, spread))
        if np.abs(np.append(place, size - place) - r).min() < 2:
            continue  # whether the border cuts it would depend on a pixel
        if all(np.hypot(*(place - c)) > r + q + 4 for c, q in zip(centres, radii, strict=True)):
            centres.append(place)
            radii.append(r)
    return discs(centres, radii, size, seed=seed, **look)


def lines(width: float, angles, size: int = 200, **look) -> Image.Image:
    """Straight fibres through the middle's surroundings, at angles in degrees (y up)."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] + 0.5
    inside = np.zeros((size, size))
    for angle in np.deg2rad(angles):
        cx, cy = rng.uniform(0.25, 0.75, 2) * size
        distance = np.abs((x - cx) * np.sin(angle) + (y - cy) * np.cos(angle))
        inside = np.maximum(inside, np.clip(width / 2 - distance + 0.5, 0, 1))
    return finished(inside, **look)


def grating(pitch: float, angle: float, size: int = 140, **look) -> Image.Image:
    """Lines of half the pitch; `angle` in degrees (y up) is the direction across them."""
    y, x = np.mgrid[:size, :size]
    a = np.deg2rad(angle)
    return finished(np.sin(2 * np.pi * (x * np.cos(a) - y * np.sin(a)) / pitch) > 0, **look)


def stack(edges, slope: float = 0.0, size: int = 190, noise: float = 6.0) -> Image.Image:
    """Layers between edges (pixels from the top, on the left), which fall by `slope`."""
    y, x = np.mgrid[:size, :size].astype(float)
    layer = sum((y - slope * x >= edge).astype(int) for edge in edges)
    grey = np.array([40, 170, 90, 210, 120])[layer]
    grey = ndimage.gaussian_filter(grey.astype(float), 1.0)
    grey += np.random.default_rng(0).normal(0, noise, grey.shape)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def noise_only(size: int = 128, level: float = 120.0, sigma: float = 20.0) -> Image.Image:
    """A picture of nothing."""
    grey = np.random.default_rng(0).normal(level, sigma, (size, size))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
