"""What a picture of pixels should be, computed naively."""

import numpy as np


def by_hand(pixels: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
    """The documented stretch to 0 to 255, not rounded to bytes; percentiles of the `shown` ones."""
    low, high = np.percentile(
        (pixels if shown is None else pixels[shown]).astype(float), [0.1, 99.9]
    )
    clipped = np.minimum(np.maximum((pixels.astype(float) - low) / (high - low), 0), 1)
    return np.round(clipped * 255)


def expected_picture(samples: np.ndarray, photometric: str, extra: str | None) -> np.ndarray:
    """The picture of a TIFF's samples (height, width[, samples]), as its specification has it.

    `photometric` is miniswhite, minisblack, rgb or separated (CMYK); `extra` is None or what
    the last sample is: unspecified, assocalpha or unassalpha.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    deep = samples.dtype not in (np.uint8, np.bool_)
    full = float(np.iinfo(samples.dtype).max) if samples.dtype.kind in "iu" else 1.0
    shares = samples.astype(float) / full
    colours, alpha = (shares[..., :-1] if extra else shares), np.ones(samples.shape[:2])
    if extra in ("assocalpha", "unassalpha"):
        alpha = shares[..., -1].clip(0, 1)
    if extra == "assocalpha":
        colours = (colours / np.where(alpha > 0, alpha, np.inf)[..., None]).clip(0, 1)
    if photometric == "separated":
        colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
    if photometric == "miniswhite":
        colours = 1 - colours
    colours = by_hand(colours, alpha > 0) if deep else 255 * colours
    return (255 - alpha[..., None] * (255 - colours)).squeeze()
