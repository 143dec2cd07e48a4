"""Transmission: grey levels against theory, particles against labelling."""

import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mvaema.synthetic.canvas import Canvas
from mvaema.synthetic.scenes import render
from mvaema.synthetic.transmission import TransmissionMicroscope


def quiet(technique: str, **changes) -> TransmissionMicroscope:
    scope = TransmissionMicroscope.draw(np.random.default_rng(0), 0.0, 1.0, technique)
    still = {"fringe": 0.0, "grain": 0.0, "spot_nm": 0.0, "lines": 0.0, "uneven": 0.0}
    for name, value in (still | {"support": 0.0} | changes).items():
        setattr(scope, name, value)
    return scope


def steps() -> np.ndarray:
    """A staircase of thickness 0, 1, 2 and 3."""
    return np.repeat(np.arange(4, dtype=np.float32), 30)[None] * np.ones((40, 1), np.float32)


def signal(scope: TransmissionMicroscope) -> np.ndarray:
    """What each step of the staircase gives."""
    rng = np.random.default_rng(1)
    return scope.signal(steps(), 1.0, (40, 120), 1.0, rng)[20, 15::30]


def test_bright_field_falls_off_exponentially_with_thickness():
    empty, one, two, three = signal(quiet("TEM", darkest=0.2))
    assert empty == pytest.approx(1) and three == pytest.approx(0.2, rel=0.02)
    assert two / one == pytest.approx(one, rel=0.02) == pytest.approx(three / two, rel=0.02)


def test_dark_field_is_proportional_to_thickness():
    empty, one, two, three = signal(quiet("STEM"))
    assert empty == pytest.approx(0, abs=0.01)
    assert two == pytest.approx(2 * one, rel=0.02) and three == pytest.approx(3 * one, rel=0.02)


def test_out_of_focus_edges_have_a_bright_fringe_outside():
    rng = np.random.default_rng(1)
    scope = quiet("TEM", darkest=0.3, fringe=0.8, fringe_px=1.5)
    profile = scope.signal(steps(), 1.0, (40, 120), 1.0, rng)[20]
    assert profile[20:30].max() > 1.05 > profile[:15].max()


def test_a_transparent_canvas_sums_what_the_beam_passes():
    canvas = Canvas(120, 120, 1.0, transparent=True)
    canvas.begin(60, 2.0)
    canvas.sphere(60, 60, 30, 30)
    canvas.begin(40)
    canvas.sphere(60, 60, 100, 20)
    assert canvas.mass[60, 60] == pytest.approx(2 * 60 + 40)
    balls = 2 * 4 / 3 * np.pi * 30**3 + 4 / 3 * np.pi * 20**3
    assert canvas.mass.sum() == pytest.approx(balls, rel=0.01)
    rod = Canvas(120, 120, 1.0, transparent=True)
    rod.begin(20)
    rod.capsule((30, 40, 10), (90, 70, 10), 10)
    solid = np.pi * 100 * np.hypot(60, 30) + 4 / 3 * np.pi * 1000
    assert rod.mass.sum() == pytest.approx(solid, rel=0.02)


def test_many_spheres_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(3)
    x, y, z = rng.uniform(-5, 105, (3, 60))
    radius = rng.uniform(4, 7, 60)
    at_once, single = (Canvas(100, 100, 1.0, transparent=True) for _ in range(2))
    at_once.spheres(x, y, z, radius)
    for values in zip(x, y, z, radius, strict=True):
        single.begin(2 * values[3])
        single.sphere(*values)
    np.testing.assert_allclose(at_once.z, single.z, atol=1e-3)
    np.testing.assert_allclose(at_once.mass, single.mass, atol=1e-2)
    assert (at_once.owner == single.owner).mean() > 0.999
    assert at_once.drawn[1:] == single.drawn[1:]


def separate_spheres(technique: str, count: int):
    """Scenes of separate round particles on a whole support."""
    found = (render(seed, "Particles", difficulty=0.0) for seed in range(900))
    fitting = (
        shot
        for shot in found
        if shot.facts.technique == technique
        and shot.facts.kind in ("nanospheres", "core_shells")
        and shot.facts.touching == 0
        and isinstance(shot.specimen.film, float)
    )
    return list(itertools.islice(fitting, count))


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "count"), [("TEM", 5), ("STEM", 2)])
def test_particles_are_dark_in_tem_and_bright_in_stem_and_of_the_size_stated(technique, count):
    shots = separate_spheres(technique, count)
    assert len(shots) == count
    sizes = 0
    for shot in shots:
        grey = shot.clean
        owner = Image.fromarray((shot.specimen.canvas.owner > 0).astype(np.uint8) * 255)
        inside = np.asarray(owner.resize(grey.shape[::-1], Image.BOX)) > 250
        around = ~ndimage.binary_dilation(inside, iterations=6)
        difference = np.median(grey[inside]) - np.median(grey[around])
        assert difference < -8 if technique == "TEM" else difference > 8
        # The outline is where half of the rise at the border of the disc is reached.
        level = np.median(grey[around]) + 0.25 * difference
        mask = grey < level if technique == "TEM" else grey > level
        labels, _ = ndimage.label(ndimage.binary_fill_holes(mask))
        area = np.bincount(labels.ravel())[1:]
        border = np.unique(np.r_[labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        whole = [a for i, a in enumerate(area, 1) if i not in border and a >= 30]
        assert np.count_nonzero(area >= 24) <= shot.facts.count
        if len(whole) >= 2 and shot.facts.kind == "nanospheres":
            diameter = 2 * np.sqrt(np.mean(whole) / np.pi) * shot.pixel_size_nm
            assert diameter == pytest.approx(shot.facts.size_mean_nm, rel=0.15)
            sizes += 1
    assert sizes or technique == "STEM"
