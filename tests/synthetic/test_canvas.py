"""Shapes on the canvas, against geometry."""

import numpy as np
import pytest

from mvaema.synthetic import canvas
from mvaema.synthetic.canvas import Canvas


def test_a_tilt_foreshortens_and_shows_walls():
    tilt = np.deg2rad(40)
    canvas = Canvas(100, 100, 1.0, tilt)
    plane = canvas.plane(20)
    plane.z[60:90, 30:70] = 20
    plane.owner[60:90, 30:70] = 1
    canvas.view(plane)
    rows_seen = np.flatnonzero(canvas.owner[:, 50])
    # Top face and front wall: depth * cos t + height * sin t.
    assert len(rows_seen) == pytest.approx(30 * np.cos(tilt) + 20 * np.sin(tilt), abs=2)
    assert rows_seen[0] == pytest.approx(60 * np.cos(tilt) - 20 * np.sin(tilt), abs=2)
    across = np.flatnonzero(canvas.owner[rows_seen[5]])
    assert (across[0], across[-1]) == (30, 69)


def test_shapes_have_the_heights_of_geometry():
    canvas = Canvas(100, 100, 1.0)
    canvas.begin(40)
    canvas.sphere(50, 50, 20, 20)
    assert canvas.z[50, 50] == pytest.approx(40) and canvas.z[50, 60] == pytest.approx(
        20 + 300**0.5
    )
    assert (canvas.owner > 0).sum() == pytest.approx(np.pi * 400, rel=0.02)
    same = Canvas(100, 100, 1.0)
    same.begin(40)
    same.ellipsoid(50, 50, 20, [20, 20, 20], np.eye(3))
    inner = np.hypot(same.xs - 50, same.ys - 50) < 19.5
    assert np.abs(same.z - canvas.z)[inner].max() < 0.05
    box = Canvas(100, 100, 1.0)
    box.begin(10)
    faces = np.concatenate([np.eye(3), -np.eye(3)])
    box.polyhedron(50, 50, 5, faces, [10, 10, 5, 10, 10, 5])
    assert (box.z == 10).sum() == pytest.approx(21 * 21, abs=45)


@pytest.mark.parametrize("side", [1022, 1023, 1025, 1049, 2048])
def test_noise_fills_pictures_of_any_size(side):
    """Also where rounding would ask for one row more than the tile has."""
    for shape in ((side, side), (side, side // 2 + 1)):
        assert canvas.noise(np.random.default_rng(0), shape, canvas.WHITE).shape == shape
