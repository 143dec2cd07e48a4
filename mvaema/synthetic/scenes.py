"""From a seed to a micrograph: the specimen, a view of it, and the finished image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mvaema.synthetic import biology, devices, grains, optics, surfaces, wires
from mvaema.synthetic.answers import answer_all
from mvaema.synthetic.infobar import InfoBar, settings
from mvaema.synthetic.specimen import Facts, Specimen, Stage
from processing_mvaema import format_length

# One function for each of the ten categories of `configuration_mvaema.CATEGORY_CAPTIONS`.
CATEGORIES = {
    "Biological": biology.biological,
    "Fibres": wires.fibres,
    "Films_Coated_Surface": surfaces.films,
    "MEMS_devices_and_electrodes": devices.devices,
    "Nanowires": wires.nanowires,
    "Particles": grains.particles,
    "Patterned_surface": surfaces.patterned,
    "Porous_Sponge": surfaces.porous,
    "Powder": grains.powder,
    "Tips": wires.tips,
}


@dataclass
class Scene:
    """A simulated micrograph and everything that is known about it."""

    image: Image.Image  # mode "L", square, info bar included
    category: str
    pixel_size_nm: float
    scale_bar: str | None  # the length that the scale bar in the image states; None without a bar
    facts: Facts
    answers: dict[str, str]  # question id -> answer
    clean: np.ndarray  # grey levels (float) above the info bar, before noise and charging
    specimen: Specimen  # the surface itself, on its canvas


def render(
    seed: int,
    category: str | None = None,
    difficulty: float = 0.5,
    size: int = 224,
    view: int = 0,
) -> Scene:
    """Simulate the micrograph of a specimen. The same arguments give the same pixels and answers.

    Args:
        seed: selects the specimen: its material, sizes and kind of arrangement.
        category: one of the ten categories; None draws it from the seed.
        difficulty: 0 (clean, sharp) to 1 (few electrons, wide beam, charging, drift).
        size: width and height of the image in pixels, at least 64.
        view: selects a view of the specimen: place, magnification, tilt and instrument settings.

    Raises:
        ValueError: unknown category, difficulty outside [0, 1] or size below 64.
    """
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}; got {category!r}.")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be in [0, 1]; got {difficulty}.")
    if size < 64:
        raise ValueError(f"size must be at least 64 pixels; got {size}.")
    specimen_rng = np.random.default_rng([seed, 0])
    rng = np.random.default_rng([seed, 1, view])
    drawn = list(CATEGORIES)[int(specimen_rng.integers(len(CATEGORIES)))]
    category = category or drawn

    bar = InfoBar.draw(rng, size)
    height = size - (bar.height if bar else 0)
    specimen = CATEGORIES[category](Stage(size, height, specimen_rng, rng, difficulty))
    facts = specimen.facts
    pixel_nm = specimen.canvas.nm * specimen.canvas.width / size
    facts.pixel_size_nm, facts.field_of_view_nm = pixel_nm, pixel_nm * size

    scope = optics.Microscope.draw(rng, difficulty, pixel_nm)
    clean, grey = _expose(specimen, scope, rng, (height, size), pixel_nm)
    pixels = (grey + 0.5).astype(np.uint8)
    scale_bar = None
    if bar:
        length = bar.choose_length(rng, facts.field_of_view_nm)
        scale_bar, facts.bar = format_length(length), bar.style
        words = settings(
            scope.kilovolts, scope.detector, facts.field_of_view_nm, scope.working_distance_mm
        )
        pixels, facts.printed = bar.burn(pixels, pixel_nm, length, words)
    answers = answer_all(facts, scale_bar, np.random.default_rng([seed, 2, view]))
    return Scene(
        Image.fromarray(pixels), category, pixel_nm, scale_bar, facts, answers, clean, specimen
    )


def _expose(
    specimen: Specimen, scope: optics.Microscope, rng, shape: tuple[int, int], pixel_nm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels of a specimen, without and with noise and charging, float (height, width).

    The specimen's facts take up what the imaging adds to them.
    """
    facts = specimen.facts
    signal = optics.emission(specimen.canvas, specimen.material(), scope)
    signal = optics.scan(signal, shape, pixel_nm, scope, rng)
    exposure = optics.Exposure.of(signal, scope)
    clean = before_noise = exposure.grey(signal)
    if scope.charging:
        charged = optics.charge(signal, scope.charging, rng)
        # Charging too weak to be seen is left out, so that the fact is true either way.
        if np.abs(exposure.grey(charged) - clean).mean() > 1.5:
            signal, before_noise, facts.charging = charged, exposure.grey(charged), True
    grey = exposure.grey(optics.count_electrons(signal, scope.dose, rng))
    facts.noise_grey = float(np.std(grey - before_noise))
    facts.blur_px = scope.spot_nm / pixel_nm
    facts.astigmatism, facts.drift_px = scope.astigmatism, scope.drift_px
    return clean, grey
