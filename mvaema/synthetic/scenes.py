"""From a seed to a micrograph: the specimen, a view of it, and the finished image."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lengths_mvaema import format_length
from mvaema.synthetic import (
    aggregates,
    annotations,
    biology,
    coatings,
    devices,
    grains,
    optics,
    patterns,
    projected,
    sections,
    surfaces,
    transmission,
    wires,
)
from mvaema.synthetic.answers import answer_all
from mvaema.synthetic.infobar import InfoBar, choose_length, settings
from mvaema.synthetic.specimen import Facts, Specimen, Stage, choose

# What each of the ten categories of `configuration_mvaema.CATEGORY_CAPTIONS` shows: functions that
# make a specimen, the technique that images it, and their weights. Half of the particles and a
# third of the nanowires and the biological specimens are seen in transmission, as in publications.
CATEGORIES = {
    "Biological": (
        (biology.biological, "SEM", 6.0),
        (biology.outlined_cells, "SEM", 0.8),
        (sections.stained, "TEM", 4.0),
    ),
    "Fibres": ((wires.fibres, "SEM", 1.0),),
    "Films_Coated_Surface": (
        (surfaces.films, "SEM", 5.0),
        (coatings.nanosheets, "SEM", 1.0),
        (coatings.folds, "SEM", 1.0),
        (coatings.plain, "SEM", 1.2),
        (coatings.flaky, "SEM", 1.0),
        (coatings.embedded_section, "SEM", 1.6),
        (coatings.columns, "SEM", 1.0),
        (coatings.trench, "SEM", 0.6),
        (sections.thin_films, "TEM", 1.0),
        (sections.thin_films, "STEM", 0.4),
    ),
    "MEMS_devices_and_electrodes": ((devices.devices, "SEM", 1.0),),
    "Nanowires": (
        (wires.nanowires, "SEM", 6.5),
        (projected.thin_wires, "TEM", 3.0),
        (projected.thin_wires, "STEM", 0.4),
    ),
    "Particles": (
        (grains.particles, "SEM", 4.0),
        (aggregates.particle_aggregates, "SEM", 1.2),
        (aggregates.packed_cubes, "SEM", 0.8),
        (aggregates.specks, "SEM", 0.7),
        (aggregates.inclusions, "SEM", 0.7),
        (projected.nanoparticles, "TEM", 5.0),
        (projected.nanoparticles, "STEM", 1.0),
    ),
    "Patterned_surface": (
        (patterns.patterned, "SEM", 4.0),
        (patterns.trenches, "SEM", 1.3),
        (patterns.small_array, "SEM", 1.3),
    ),
    "Porous_Sponge": (
        (surfaces.porous, "SEM", 6.0),
        (surfaces.round_pores, "SEM", 1.8),
        (aggregates.granular_sponge, "SEM", 1.1),
        (projected.networks, "TEM", 0.7),
        (projected.networks, "STEM", 0.5),
    ),
    "Powder": (
        (grains.powder, "SEM", 4.0),
        (aggregates.fine_powder, "SEM", 1.8),
        (aggregates.dusty_powder, "SEM", 2.2),
        (aggregates.loose_grains, "SEM", 1.4),
    ),
    "Tips": ((wires.tips, "SEM", 1.0),),
}

# Where the scale bar is, with the shares of all images, and how many went through JPEG.
_BARS = {"strip": 0.33, "overlay": 0.42, "none": 0.25}
_COMPRESSED = 0.4


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

    bar = choose(rng, _BARS)
    strip = InfoBar.draw(rng, size) if bar == "strip" else None
    height = size - (strip.height if strip else 0)
    weights = np.array([weight for *_, weight in CATEGORIES[category]])
    chosen = specimen_rng.choice(len(weights), p=weights / weights.sum())
    make, technique, _ = CATEGORIES[category][chosen]
    specimen = make(Stage(size, height, specimen_rng, rng, difficulty, technique))
    facts = specimen.facts
    pixel_nm = specimen.canvas.nm * specimen.canvas.width / size
    facts.pixel_size_nm, facts.field_of_view_nm = pixel_nm, pixel_nm * size

    expose = _scanned if technique == "SEM" else _transmitted
    clean, grey, words = expose(specimen, rng, (height, size), difficulty)
    pixels = (grey + 0.5).astype(np.uint8)
    length = choose_length(rng, facts.field_of_view_nm)
    image = Image.fromarray(pixels)
    facts.marks = annotations.mark(rng, image)
    if strip:
        image, facts.printed = strip.burn(image, pixel_nm, length, words)
        facts.bar = strip.style
    if bar == "overlay":
        annotations.ScaleBar.draw(rng, size).burn(image, pixel_nm, length)
        facts.bar = "overlay"
    if rng.random() < _COMPRESSED:
        image, facts.jpeg = _compress(image, int(rng.integers(40, 95)))
    scale_bar = None if bar == "none" else format_length(length)
    answers = answer_all(facts, scale_bar, np.random.default_rng([seed, 2, view]))
    return Scene(image, category, pixel_nm, scale_bar, facts, answers, clean, specimen)


def _compress(image: Image.Image, quality: int) -> tuple[Image.Image, int]:
    """The image after JPEG compression, and the quality."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    with Image.open(data) as compressed:
        return compressed.convert("L"), quality


def _scanned(
    specimen: Specimen, rng, shape: tuple[int, int], difficulty: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A specimen in a scanning microscope.

    The specimen's facts take up what the imaging adds to them.

    Returns:
        Grey levels without and with noise and charging, float (height, width), and the settings
        that an info bar states.
    """
    facts = specimen.facts
    pixel_nm = facts.pixel_size_nm
    scope = optics.Microscope.draw(rng, difficulty, pixel_nm)
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
    facts.detector = scope.detector
    facts.noise_grey = float(np.std(grey - before_noise))
    facts.blur_px = scope.spot_nm / pixel_nm
    facts.astigmatism, facts.drift_px = scope.astigmatism, scope.drift_px
    words = settings(scope.kilovolts, facts.field_of_view_nm, scope.detector)
    return clean, grey, [*words, f"WD {scope.working_distance_mm:g} mm"]


def _transmitted(
    specimen: Specimen, rng, shape: tuple[int, int], difficulty: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A specimen in a transmission microscope; as `_scanned`."""
    facts = specimen.facts
    pixel_nm = facts.pixel_size_nm
    draw = transmission.TransmissionMicroscope.draw
    scope = draw(rng, difficulty, pixel_nm, facts.technique)
    signal = scope.signal(specimen.canvas.mass, specimen.film, shape, pixel_nm, rng)
    clean = scope.grey(signal)
    grey = scope.grey(scope.count(signal, rng))
    facts.detector = scope.detector
    facts.noise_grey = float(np.std(grey - clean))
    facts.blur_px = scope.spot_nm / pixel_nm
    return clean, grey, settings(scope.kilovolts, facts.field_of_view_nm, scope.detector)
