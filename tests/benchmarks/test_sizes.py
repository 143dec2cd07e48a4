"""The benchmark of sizes: its truth, its limits and its counting."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from benchmarks import sizes
from mvaema.synthetic.canvas import Canvas
from mvaema.synthetic.specimen import Facts, Specimen


def scene_of(canvas: Canvas, **facts) -> SimpleNamespace:
    """As `render` returns it, of a canvas 1.25 times as fine as the image."""
    specimen = Specimen(canvas, Facts("spheres", **facts))
    image = Image.new("L", (round(canvas.width / 1.25), round(canvas.height / 1.25)))
    return SimpleNamespace(
        image=image, specimen=specimen, facts=specimen.facts, pixel_size_nm=canvas.nm * 1.25
    )


def spheres(places, radius: float) -> Canvas:
    canvas = Canvas(400, 300, 2.0)
    for x, y in places:
        canvas.begin(2 * radius)
        canvas.sphere(x, y, radius, radius)
    return canvas


def test_true_sizes_are_of_objects_that_the_border_does_not_cut():
    inside = [(60 + 90 * i, 60 + 90 * j) for i in range(4) for j in range(2)]
    canvas = spheres([*inside, (0, 240)], 20.0)
    truth = sizes.truth_of(scene_of(canvas), "particles")
    assert truth.count == 8
    assert truth.size == pytest.approx(40 / 1.25, rel=0.02)
    assert sizes.truth_of(scene_of(spheres(inside[:3], 20.0)), "particles") is None


def test_true_widths_count_by_the_length_that_is_seen():
    canvas = Canvas(400, 300, 2.0)
    for y, width, end in ((50, 10.0, 60), (150, 20.0, 390), (250, 10.0, 60)):
        canvas.begin(width)
        canvas.capsule((10, y, width), (end, y, width), width / 2)
    truth = sizes.truth_of(scene_of(canvas), "fibres")
    assert truth.count == 3 and truth.size == pytest.approx(20 / 1.25)


def test_the_truth_of_layers_and_pitches_is_stated():
    canvas = Canvas(400, 300, 2.0)
    layers = sizes.truth_of(scene_of(canvas, size_mean_nm=50.0, count=3), "films")
    assert (layers.size, layers.count) == (20.0, 3)
    assert sizes.truth_of(scene_of(canvas, spacing_nm=50.0), "pattern").size == 20.0
    tilted = scene_of(canvas, spacing_nm=50.0, tilt_deg=30.0)
    assert sizes.truth_of(tilted, "pattern") is None


def test_a_difficulty_has_limits():
    canvas = spheres([(60, 60)], 20.0)
    scene = scene_of(canvas, noise_grey=10.0, touching=0.1)
    owner = np.asarray(Image.fromarray((canvas.owner > 0).astype(np.uint8)).resize((320, 240), 0))
    scene.clean = 100.0 + 50.0 * owner
    assert sizes.contrast_of(scene) == pytest.approx(5, rel=0.1)
    truth = sizes.Truth(9.0, 10)
    low, medium = sizes.LEVELS["low"], sizes.LEVELS["medium"]
    assert not sizes.is_of(scene, "particles", low, truth)  # too noisy
    assert sizes.is_of(scene, "particles", medium, truth)
    assert not sizes.is_of(scene, "particles", medium, sizes.Truth(5.0, 10))  # too small
    scene.facts.touching = 0.7
    assert not sizes.is_of(scene, "particles", medium, truth)


def test_the_table_counts_what_is_trusted_and_wrong():
    row = {"kind": "fibres", "level": "low", "trusted": True}
    rows = [
        {**row, "size_error": -0.01, "count_error": 0.0},
        {**row, "size_error": 0.3},
        {**row, "size_error": 0.03, "count_error": -0.5},
        {**row, "trusted": False},
    ]
    line = "| fibres | low | 4 | 1 | 0 | 3.0 % | 24.6 % | 1 of 3 | 25.0 % | 1 of 2 |"
    assert sizes.table(rows)[2:] == [line]
    assert sizes.table([{**row, "trusted": False}])[2] == (
        "| fibres | low | 1 | 1 | 0 | – | – | – | – | – |"
    )


@pytest.mark.slow
def test_a_scene_is_rendered_and_measured():
    row = sizes.one_scene(2, "pattern", "low")
    assert sizes.may_be(2, "pattern") and row["specimen"] == "pits"
    assert row["trusted"] and abs(row["size_error"]) < 0.01
