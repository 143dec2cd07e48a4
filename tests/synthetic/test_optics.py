"""The physics of the image, effect by effect, against theory."""

import numpy as np
import pytest

from mvaema.synthetic.canvas import Canvas
from mvaema.synthetic.optics import Microscope, count_electrons, emission, scan


def plain_microscope(**changes) -> Microscope:
    scope = Microscope.draw(np.random.default_rng(0), 0.0, 1.0)
    quiet = {"edge": 0.0, "shadow": 0.0, "occlusion": 0.0, "astigmatism": 0.0, "spot_nm": 0.0}
    for name, value in (quiet | changes).items():
        setattr(scope, name, value)
    return scope


def test_yield_rises_with_the_slope_toward_the_secant():
    flat = Canvas(60, 60, 1.0)
    scope = plain_microscope(secant=1.0)
    signals = []
    for angle in (0, 10, 20, 30, 60):
        flat.z = (flat.xs * np.tan(np.deg2rad(angle)) + 0 * flat.ys).astype(np.float32)
        signals.append(float(emission(flat, 1.0, scope)[30, 30]))
    assert signals[0] == pytest.approx(1)
    assert np.all(np.diff(signals) > 0)
    for signal, angle in zip(signals[1:4], (10, 20, 30), strict=True):
        assert signal == pytest.approx(1 / np.cos(np.deg2rad(angle)), rel=0.02)


def test_a_step_has_a_bright_edge_above_and_a_dark_one_below():
    canvas = Canvas(80, 80, 1.0)
    canvas.z[:, 40:] = 20
    signal = emission(canvas, 1.0, plain_microscope(edge=0.5, edge_nm=2.0))
    assert signal[40, 41] > 1.3 and signal[40, 38] < 0.8
    assert signal[40, 10] == pytest.approx(1, abs=0.02) == pytest.approx(signal[40, 70], abs=0.02)


def test_slopes_toward_the_detector_are_brighter():
    canvas = Canvas(80, 80, 1.0)
    canvas.sphere(40, 40, 0, 25)
    signal = emission(canvas, 1.0, plain_microscope(shadow=0.4, azimuth=0.0))
    assert signal[40, 55] > 1.1 * signal[40, 25]  # the detector is at the right


@pytest.mark.parametrize("dose", [3.0, 20.0, 300.0])
def test_counting_noise_is_poisson(dose):
    signal = np.full((300, 300), 1.7, np.float32)
    counted = count_electrons(signal, dose, np.random.default_rng(0))
    assert counted.mean() == pytest.approx(1.7, rel=0.01 + 0.15 / dose)
    assert counted.var() == pytest.approx(1.7 / dose, rel=0.03)


def test_the_beam_has_the_size_it_is_given():
    signal = np.zeros((150, 150), np.float32)
    signal[75, 75] = 1e6
    image = scan(signal, (150, 150), 1.0, plain_microscope(spot_nm=3.0), None)
    x = np.arange(150) - 75
    profile = image.sum(0)
    assert np.sqrt((profile * x**2).sum() / profile.sum()) == pytest.approx(3.0, rel=0.1)
