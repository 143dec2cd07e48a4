"""Sizes of drawn structures come out as they were drawn, and nothing is invented."""

import re

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from support import drawn_structures as drawn

pytest.importorskip("skimage")

from mvaema.measuring.kinds import KINDS
from mvaema.measuring.measure import measure
from mvaema.measuring.methods import facts
from mvaema.measuring.scale import Scale, ScaleReading

# No bar is drawn here, so none is looked for.
IN_PIXELS = Scale(None, None)
TWO_NM = Scale(2.0, "typed")


def measured(image, **arguments):
    return measure(image, **{"scale": IN_PIXELS, **arguments})


SLOW = pytest.mark.slow


@pytest.mark.parametrize("bright", [True, pytest.param(False, marks=SLOW)])
def test_discs_have_the_diameters_they_were_drawn_with(bright):
    look = {} if bright else {"objects": 60, "ground": 180}
    picture = drawn.scattered_discs(**look)
    result = measured(picture.image, category="Particles", scale=TWO_NM)
    assert result.trusted and result.unit == "nm"
    assert result.count == len(picture.sizes) and result.seen == 12
    assert result.statistics.median == pytest.approx(2 * np.median(picture.sizes), rel=0.02)
    for percent, value in result.statistics.percentiles.items():
        assert value == pytest.approx(2 * np.percentile(picture.sizes, percent), rel=0.05)
    assert result.facts["objects_are"] == ("brighter" if bright else "darker")
    circles = [row["circularity"] for row in result.objects]
    assert np.median(circles) > 0.9 and len(circles) == result.count
    areas = [row["area_nm2"] for row in result.objects]
    assert np.median(areas) == pytest.approx(np.pi * np.median(picture.sizes) ** 2, rel=0.04)


def test_touching_discs_are_split():
    r = 12.0
    centres = [
        (26 + 56 * i + dx, 26 + 54 * j) for i in range(3) for j in range(3) for dx in (0, 22)
    ]
    picture = drawn.discs(centres, [r] * 18, size=180)
    result = measured(picture.image, kind="particles")
    assert result.count == 18
    assert result.statistics.median == pytest.approx(2 * r, rel=0.03)


@SLOW
def test_long_particles_are_not_split():
    rows = [(40 + i, 20 + 24 * j) for j in range(6) for i in range(0, 60)]
    picture = drawn.discs(rows, [6.0] * len(rows))
    result = measured(picture.image, kind="particles")
    assert result.count == 6
    assert np.median([row["aspect_ratio"] for row in result.objects]) > 4


def test_a_disc_that_the_border_cuts_covers_area_but_has_no_size():
    centres = [(40 + 45 * i, 35 + 45 * j) for i in range(3) for j in range(3)] + [(0, 58)]
    result = measured(drawn.discs(centres, [10.0] * 10).image, kind="particles")
    assert (result.count, result.seen) == (9, 10)
    assert result.coverage == pytest.approx(9.5 * np.pi * 100 / 160**2, rel=0.05)
    assert "1 cut by the border or by print: counted in coverage, not in sizes" in result.notes


@pytest.mark.parametrize("width", [5.0, *(pytest.param(w, marks=SLOW) for w in (8.5, 14.0))])
def test_fibres_have_the_width_they_were_drawn_with(width):
    result = measured(drawn.lines(width, [10, 60, 100, 150]), category="Fibres")
    assert result.trusted, result.reasons
    assert result.statistics.median == pytest.approx(width, rel=0.05)


def test_parallel_fibres_point_where_they_were_drawn():
    result = measured(drawn.lines(6, [30] * 4), category="Nanowires")
    assert result.facts["direction_deg"] == pytest.approx(30, abs=2)
    assert result.facts["alignment"] > 0.95
    assert result.count == 4 and "the fibres do not cross, so they are counted" in result.notes
    crossed = measured(drawn.lines(6, [0, 90, 1, 89]), category="Nanowires")
    assert crossed.facts["alignment"] < 0.3
    # Which pieces are one fibre is unknown there, so no number is given.
    assert crossed.trusted and crossed.count is None
    assert crossed.sentence().startswith("Measured: fibres, median width 6")


def test_pores_have_their_diameter_and_their_share_of_the_area():
    centres = [(26 + 54 * i, 26 + 54 * j) for i in range(3) for j in range(3)]
    picture = drawn.discs(centres, [13.0] * 9, objects=50, ground=170)
    result = measured(picture.image, category="Porous_Sponge")
    assert result.count == 9 and result.statistics.median == pytest.approx(26, rel=0.03)
    assert result.facts["area_fraction"] == pytest.approx(9 * np.pi * 169 / 160**2, rel=0.05)


@pytest.mark.parametrize(
    ("pitch", "angle", "size"),
    [(9.3, 0, 140), (17.3, 33, 140), pytest.param(31.0, 100, 256, marks=SLOW)],
)
def test_a_grating_has_its_pitch_and_direction(pitch, angle, size):
    result = measured(drawn.grating(pitch, angle, size), category="Patterned_surface")
    assert result.trusted, result.reasons
    assert result.facts["order"] == "lines"
    assert result.statistics.median == pytest.approx(pitch, rel=0.01)
    assert abs((result.facts["direction_deg"] - angle + 90) % 180 - 90) < 1


def test_a_lattice_has_two_pitches():
    centres = [(10 + 20.5 * i, 10 + 26 * j) for i in range(8) for j in range(7)]
    result = measured(drawn.discs(centres, [6.0] * len(centres)).image, kind="pattern")
    assert result.facts["order"] == "lattice"
    pitches = sorted(row["pitch_px"] for row in result.objects)
    assert pitches == pytest.approx([20.5, 26], rel=0.01)


@pytest.mark.parametrize("slope", [pytest.param(0.0, marks=SLOW), 0.1])
def test_layers_have_their_thickness(slope):
    result = measured(drawn.stack([60, 100, 165], slope), category="Films_Coated_Surface")
    assert result.trusted, result.reasons
    thicknesses = [row["thickness_px"] for row in result.objects]
    upright = np.cos(np.arctan(slope))
    assert thicknesses == pytest.approx([40 * upright, 65 * upright], rel=0.02)


@SLOW
def test_layers_on_edge_are_turned():
    image = drawn.stack([60, 100, 165]).transpose(Image.Transpose.ROTATE_90)
    result = measured(image, kind="films")
    assert sorted(row["thickness_px"] for row in result.objects) == pytest.approx(
        [40, 65], rel=0.02
    )


@pytest.mark.slow
def test_the_kind_is_told_or_follows_from_category_or_picture():
    image = drawn.scattered_discs().image
    assert measured(image, kind="pores", category="Particles").kind == "pores"
    assert measured(image, category="Powder").chosen_by == "by the category Powder"
    seen = measured(image, category="Other")
    assert (seen.kind, seen.chosen_by) == ("particles", "from the picture")
    assert measured(drawn.lines(5, [10, 60, 100, 150])).kind == "fibres"
    assert measured(drawn.grating(16, 45)).kind == "pattern"
    with pytest.raises(ValueError, match="kind must be one of particles"):
        measured(image, kind="dots")


def test_only_the_region_is_measured():
    large = [(22 + 36 * i, 20 + 37 * j) for i in range(2) for j in range(5)]
    small = [(110 + 26 * i, 16 + 26 * j) for i in range(3) for j in range(7)]
    image = drawn.discs(large + small, [13.0] * 10 + [6.0] * 21, size=190).image
    left = measured(image, kind="particles", region=(0, 0, 90, 190))
    right = measured(image, kind="particles", region=(92, 0, 190, 190))
    assert left.count == 10 and left.statistics.median == pytest.approx(26, rel=0.03)
    assert right.count == 21 and right.statistics.median == pytest.approx(12, rel=0.04)
    assert max(row["x_px"] for row in right.objects) < 98  # from the left of the region
    outside = measured(image, kind="particles", region=(0, 0, 900, 100))
    assert not outside.trusted and "does not lie in the image" in outside.reasons[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (200, 200)),
        Image.new("RGB", (64, 64), (255, 255, 255)),
        Image.new("L", (3, 3)),
        Image.new("L", (900, 2)),
        drawn.noise_only(),
        pytest.param(drawn.noise_only(sigma=3), marks=SLOW),
    ],
    ids=["black", "white", "tiny", "thin", "noise", "faint noise"],
)
def test_nothing_is_measured_where_there_is_nothing(kind, image):
    result = measured(image, kind=kind)
    assert not result.trusted and result.reasons
    assert result.statistics is None and result.count is None and not result.objects
    assert result.sentence().startswith("Not measured: ")
    assert not re.search(r"\d (nm|µm)", result.sentence() + result.methods())


@SLOW
def test_one_huge_object_is_not_measured():
    result = measured(drawn.discs([(80, 80)], [65.0]).image, kind="particles")
    assert not result.trusted
    assert any("one object fills 52 % of the picture" in reason for reason in result.reasons)


def test_a_few_particles_are_too_few():
    result = measured(drawn.discs([(40, 40), (110, 110)], [15.0] * 2).image, kind="particles")
    assert not result.trusted and "only 2 particles lie whole" in result.reasons[0]


@SLOW
def test_faint_particles_are_not_measured():
    picture = drawn.scattered_discs(objects=124, ground=120, noise=25)
    assert not measured(picture.image, kind="particles").trusted


def test_every_length_in_words_has_a_unit():
    picture = drawn.scattered_discs()
    micrometres = measured(picture.image, kind="particles", scale=Scale(500.0, "read"))
    assert micrometres.unit == "µm"
    pattern = r"Measured: \d+ particles, median [\d.]+ µm, [\d.]+–[\d.]+ µm \(5–95 %\)\."
    assert re.fullmatch(pattern, micrometres.sentence())
    assert "One pixel is 500 nm, as read from the scale bar" in micrometres.methods()
    pixels = measured(picture.image, kind="particles")
    assert " px" in pixels.sentence() and "No scale is known" in pixels.methods()


def test_a_typed_pixel_size_counts_and_a_wrong_one_is_refused():
    image = drawn.scattered_discs().image
    result = measure(image, kind="particles", pixel_size_nm=3.0, recorded_nm=5.0)
    assert (result.pixel_size_nm, result.scale_source) == (3.0, "typed")
    with pytest.raises(ValueError, match="pixel_size_nm must be a positive length"):
        measure(image, kind="particles", pixel_size_nm=-1.0)


@SLOW
def test_print_over_the_picture_is_not_a_particle():
    picture = drawn.scattered_discs(count=16, size=200, objects=150)
    plain = measured(picture.image, kind="particles")
    pixels = np.asarray(picture.image).copy()
    pixels[:26, :56] = 0  # a label
    pixels[188:192, 120:180] = 255  # a scale bar that was not read
    marked = measured(Image.fromarray(pixels), kind="particles")
    assert marked.trusted
    assert not any(row["y_px"] > 184 and row["diameter_px"] > 12 for row in marked.objects)
    assert plain.count - 4 <= marked.count <= plain.count
    assert marked.statistics.median == pytest.approx(plain.statistics.median, rel=0.05)


def test_a_drawn_rectangle_is_not_measured_and_what_it_cuts_has_no_size():
    picture = drawn.scattered_discs(count=16, size=200, objects=150)
    pixels = np.asarray(picture.image).copy()
    for rows, columns in (
        (slice(60, 62), slice(40, 150)),
        (slice(140, 142), slice(40, 150)),
        (slice(60, 142), slice(40, 42)),
        (slice(60, 142), slice(148, 150)),
    ):
        pixels[rows, columns] = 0
    result = measured(Image.fromarray(pixels), kind="particles")
    assert result.trusted and result.count < result.seen
    least = min(row["diameter_px"] for row in result.objects)
    assert least > 0.9 * picture.sizes.min()


@SLOW
def test_missed_particles_are_suspected():
    strong = [(20 + 30 * i, 20 + 30 * j) for i in range(5) for j in range(2)]
    weak = [(20 + 30 * i, 90 + 30 * j) for i in range(5) for j in range(2)]
    y, x = np.mgrid[:160, :160] + 0.5
    grey = np.full((160, 160), 60.0)
    for level, centres in ((200.0, strong), (105.0, weak)):
        for cx, cy in centres:
            grey += (level - 60) * np.clip(9 - np.hypot(x - cx, y - cy) + 0.5, 0, 1)
    noisy = grey + np.random.default_rng(0).normal(0, 3, grey.shape)
    result = measured(Image.fromarray(noisy.astype(np.uint8)), kind="particles")
    # Either all are found, or the result is not trusted.
    assert result.count == 20 if result.trusted else result.reasons


def test_the_facts_name_the_scale_bar_where_it_was_believed():
    image = drawn.scattered_discs().image
    reading = ScaleReading(pixel_size_nm=2.0, length_nm=300.0, bar_pixels=150.0, text="300nm")
    result = measured(image, kind="particles", scale=Scale(2.0, "read", reading))
    assert facts(result) == f"{result.sentence()} Scale bar: 300 nm."
    contradicted = Scale(3.0, "recorded", reading, "the scale bar says otherwise.")
    told = facts(measured(image, kind="particles", scale=contradicted))
    assert "Scale bar" not in told and told.startswith("Measured: ")
    assert facts(measured(Image.new("L", (90, 90)), kind="films")).startswith("Not measured: ")


def test_an_uneven_ground_changes_nothing():
    picture = drawn.scattered_discs(ground=60, objects=130)
    slope = np.linspace(0, 70, 160)[None] * np.linspace(0.4, 1, 160)[:, None]
    pixels = np.clip(np.asarray(picture.image) + slope, 0, 255).astype(np.uint8)
    result = measured(Image.fromarray(pixels), kind="particles")
    assert result.count == len(picture.sizes)
    assert result.statistics.median == pytest.approx(np.median(picture.sizes), rel=0.03)


def clumped(seed=3, size=260):
    """Discs that stand alone on a ground of two levels, beside a heap of overlapping ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    grey = np.where(x < size / 2, 60.0, 105.0)
    for cx, cy in rng.uniform((150, 20), (250, 120), (40, 2)):
        grey += (rng.uniform(130, 200) - grey) * np.clip(9 - np.hypot(x - cx, y - cy), 0, 1)
    radii = []
    for place in range(12):
        cx, cy, r = 24 + 44 * (place % 6), 180 + 46 * (place // 6), rng.uniform(10, 14)
        radii.append(r)
        grey += (rng.uniform(150, 230) - grey) * np.clip(r + 0.5 - np.hypot(x - cx, y - cy), 0, 1)
    blurred = ndimage.gaussian_filter(grey, 0.8) + rng.normal(0, 3, grey.shape)
    return Image.fromarray(np.clip(blurred, 0, 255).astype(np.uint8)), 2 * np.array(radii)


@pytest.mark.slow
def test_where_some_are_in_a_heap_those_that_stand_out_are_sized():
    image, diameters = clumped()
    result = measured(image, kind="particles")
    assert result.trusted and result.partial and result.coverage is None
    assert result.statistics.median == pytest.approx(np.median(diameters), rel=0.06)
    assert "particles that stand out, median" in result.sentence()
    assert "how many particles there are in all is not known" in result.notes
    assert "how many there are in all is not known" in result.methods()
    assert not measured(drawn.scattered_discs().image, kind="particles").partial
