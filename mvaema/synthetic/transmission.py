"""The physics from a transparent specimen to the image of a transmission electron microscope.

What is special about it:
- TEM is bright field: mass and thickness take electrons away, so the support is bright. STEM is
  high-angle annular dark field: what is thick or heavy is bright, and vacuum is dark;
- a TEM out of focus draws a Fresnel fringe along every edge, and the support's grain is phase
  contrast; the dark field has neither, but it is scanned, so it has line noise.

Sources: L. Reimer and H. Kohl, Transmission Electron Microscopy, 5th ed. 2008, ch. 3 (Fresnel
fringes) and 6 (scattering contrast); P. Nellist and S. Pennycook, Adv. Imaging Electron Phys. 113,
147 (2000) for the dark field.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mvaema.synthetic.canvas import WHITE, bumps, noise, resize, smooth
from mvaema.synthetic.optics import count_electrons


@dataclass
class TransmissionMicroscope:
    """Settings of the instrument, and its flaws. Grey levels are those of the finished image."""

    technique: str  # "TEM" or "STEM"
    kilovolts: float
    detector: str  # "CCD" or "HAADF"
    darkest: float  # share of the beam that passes the thickest parts (TEM)
    fringe: float  # strength of the Fresnel fringe (TEM)
    fringe_px: float  # its width
    grain: float  # strength of the support's grain, in shares of the beam
    grain_px: float
    spot_nm: float  # standard deviation of the blur
    dose: float  # electrons counted per pixel of the full signal
    lines: float  # noise from line to line, in shares of the signal (STEM)
    uneven: float  # how much the illumination falls off over the field
    support: float  # signal of the support film (STEM)
    black: float  # grey level without any electron
    white: float  # grey level of the empty support (TEM), of the brightest parts (STEM)
    gamma: float

    @classmethod
    def draw(
        cls, rng: np.random.Generator, difficulty: float, pixel_nm: float, technique: str
    ) -> "TransmissionMicroscope":
        """Random settings: the higher `difficulty` (0 to 1), the more flaws."""
        d, tem = difficulty, technique == "TEM"
        sharp = rng.uniform(0.3, 0.7) + max(0, rng.normal(0.7, 0.6)) * d**2
        out_of_focus = rng.uniform(1, 5) * d if rng.random() < 0.2 else 0
        return cls(
            technique=technique,
            kilovolts=float(rng.choice([80, 100, 120, 200, 200, 300])),
            detector="CCD" if tem else "HAADF",
            darkest=float(np.exp(rng.uniform(np.log(0.06), np.log(0.7)))),
            fringe=float(max(0, rng.normal(0.35, 0.35))) * float(rng.choice([1, 1, -0.6])),
            fringe_px=float(rng.uniform(0.8, 2.2)),
            grain=float(
                max(0, rng.normal(0.03, 0.03)) if rng.random() < 0.75 else rng.uniform(0.05, 0.2)
            ),
            grain_px=float(rng.uniform(0.6, 1.8)),
            spot_nm=float(pixel_nm * (sharp + out_of_focus)),
            dose=float(10 ** rng.uniform(3.2 - 1.7 * d, 4.0 - 1.6 * d)),
            lines=float(rng.uniform(0, 0.05) * d),
            uneven=float(max(0, rng.normal(0.08, 0.12))),
            support=float(rng.uniform(0.0, 0.15)),
            black=float(rng.uniform(0, 35)),
            white=float(rng.uniform(130, 240)) if tem else float(rng.uniform(190, 255)),
            gamma=float(rng.uniform(0.8, 1.2)) if tem else float(rng.uniform(0.6, 1.0)),
        )

    def signal(
        self, mass: np.ndarray, film: np.ndarray | float, shape, pixel_nm: float, rng
    ) -> np.ndarray:
        """Electrons per pixel (height, width), 1 for the empty support (TEM) or for the thickest
        parts (STEM).

        Args:
            mass: thickness times density on the specimen's canvas, in any unit.
            film: thickness of the support on the same canvas, 1 where it is whole, 0 in its holes.
            shape: (height, width) of the image.
            pixel_nm: nanometres per pixel of the image.
        """
        image = resize(mass, shape, Image.HAMMING)
        film = resize(film, shape, Image.HAMMING) if isinstance(film, np.ndarray) else film
        # The thickest hundredth of what is there sets the scale, however little is there.
        some = image[image > 0.02 * float(image.max())]
        scale = float(np.percentile(some[::7], 97)) if some.size > 50 else 1.0
        image = np.maximum(image, 0) / max(scale, 1e-6)
        grain = self.grain * _grain(rng, shape, self.grain_px) * (0.3 + 0.7 * film)
        blur = self.spot_nm / pixel_nm
        if self.technique == "TEM":
            image = np.exp(np.float32(np.log(self.darkest)) * image) * (1 + 0.12 * (1 - film))
            image = image + np.float32(self.fringe) * (image - smooth(image, self.fringe_px))
            image = image + grain * np.sqrt(np.maximum(image, 0.05))
        else:
            image = image + self.support * film + grain
            image = image * (1 + self.lines * rng.normal(size=(shape[0], 1)))
        image = smooth(image.astype(np.float32), blur) if blur > 0.35 else image
        return np.maximum(image * self._illumination(rng, shape), 1e-3).astype(np.float32)

    def _illumination(self, rng, shape) -> np.ndarray | float:
        """Brightest at some place of the field, falling off toward the border."""
        if self.uneven < 0.02:
            return 1.0
        y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
        cx, cy = rng.normal(0, 0.5, 2).astype(np.float32)
        return 1 - np.float32(self.uneven) * ((x[None] - cx) ** 2 + (y[:, None] - cy) ** 2) / 2

    def grey(self, signal: np.ndarray) -> np.ndarray:
        """Grey levels (float, 0 to 255)."""
        value = np.maximum(signal, 0) ** np.float32(self.gamma)
        return np.clip(self.black + (self.white - self.black) * value, 0, 255)

    def count(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The signal with the noise of the electrons that are counted."""
        return count_electrons(signal, self.dose, rng)


def _grain(rng: np.random.Generator, shape: tuple[int, int], width: float) -> np.ndarray:
    """Speckle of one preferred size, unit variance: amorphous carbon a little out of focus."""
    white = noise(rng, shape, WHITE)
    speckle = smooth(white, 0.5 * width) - smooth(white, 1.1 * width)
    return speckle / np.float32(speckle.std() + 1e-6)


def support_film(canvas, rng: np.random.Generator, kind: str) -> np.ndarray | float:
    """Thickness of the support, 1 where it is whole: "plain", or with "holes" or as "lace"."""
    if kind == "plain":
        return 1.0
    length = canvas.width * rng.uniform(0.12, 0.5)
    field = bumps(rng, canvas.shape, length)
    width = rng.uniform(0.15, 0.4)
    inside = (rng.uniform(0.5, 1.2) - field) if kind == "holes" else width - np.abs(field)
    return np.clip(inside * 0.3 * length, 0, 1).astype(np.float32)
