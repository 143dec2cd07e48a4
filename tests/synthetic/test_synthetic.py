"""The synthetic microscope: facts are checked against the pixels by other means than those that
made them (labelling, autocorrelation, reading the drawn bar, parsing the answers)."""

import collections
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from scipy import ndimage
from support import ROOT

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.micrographs.schema import FEATURES, pixel_hash
from mvaema.synthetic import CATEGORIES, canvas, render, rows
from mvaema.synthetic.__main__ import main
from mvaema.synthetic.canvas import Canvas
from mvaema.synthetic.optics import Microscope, count_electrons, emission, scan

UNITS = {"nm": 1.0, "µm": 1e3, "mm": 1e6}


@pytest.fixture(scope="module")
def scenes():
    """A few scenes of every category, difficulty and info bar."""
    return [
        render(100 * n + k, category, difficulty=k / 11)
        for n, category in enumerate(CATEGORIES)
        for k in range(12)
    ]


def scenes_of(category: str, kind: str, wanted, count: int = 2):
    """The first clean scenes of a kind that fit `wanted` (a predicate on the facts)."""
    found = (render(seed, category, difficulty=0.0) for seed in range(400))
    fitting = (s for s in found if s.facts.kind == kind and wanted(s.facts))
    return list(itertools.islice(fitting, count))


def otsu(grey: np.ndarray) -> float:
    """The grey level that splits the histogram with the greatest variance between classes."""
    counts, edges = np.histogram(grey, 256)
    middle = (edges[1:] + edges[:-1]) / 2
    low, high = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    below = np.cumsum(counts * middle) / np.maximum(low, 1)
    above = (np.cumsum((counts * middle)[::-1]) / np.maximum(high[::-1], 1))[::-1]
    between = low[:-1] * high[1:] * (below[:-1] - above[1:]) ** 2
    return float(middle[np.argmax(between)])


def test_ten_categories_ten_answers(scenes):
    assert {s.category for s in scenes} == set(CATEGORY_CAPTIONS) == set(CATEGORIES)
    for scene in scenes:
        assert scene.image.mode == "L" and scene.image.size == (224, 224)
        assert list(scene.answers) == list(QUESTIONS)
        assert np.asarray(scene.image).std() > 5
        for answer in scene.answers.values():
            assert 9 <= len(answer.split()) <= 50
            assert answer[0].isupper() and answer.endswith(".")
            assert "{" not in answer and "None" not in answer and "  " not in answer


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = (render(seed, "Powder") for seed in (5, 5, 6))
    assert pixel_hash(first.image) == pixel_hash(again.image)
    assert first.answers == again.answers and first.facts == again.facts
    assert pixel_hash(first.image) != pixel_hash(other.image)


def test_views_show_the_same_specimen_elsewhere():
    views = [render(11, "Patterned_surface", view=view) for view in range(3)]
    assert len({pixel_hash(v.image) for v in views}) == 3
    assert len({v.facts.kind for v in views}) == 1
    assert len({round(v.facts.spacing_nm, 6) for v in views}) == 1
    assert len({v.pixel_size_nm for v in views}) == 3


def test_other_sizes_keep_the_lengths():
    small, large = render(3, "Fibres", size=128), render(3, "Fibres", size=320)
    assert small.image.size == (128, 128) and large.image.size == (320, 320)
    ratio = small.facts.field_of_view_nm / large.facts.field_of_view_nm
    assert ratio == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    "arguments", [{"category": "Cats"}, {"difficulty": 1.5}, {"size": 10}], ids=str
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        render(0, **arguments)


@pytest.mark.parametrize("category, kind", [("Particles", "spheres"), ("Particles", "crystals")])
def test_counts_and_sizes_agree_with_labelling(category, kind):
    """Separate bodies, thresholded and labelled in the noise-free image."""
    shots = scenes_of(
        category,
        kind,
        lambda f: f.touching == 0 and f.debris == 0 and f.tilt_deg == 0 and f.count >= 6,
    )
    assert shots
    for shot in shots:
        mask = ndimage.binary_fill_holes(shot.clean > otsu(shot.clean))
        labels, _ = ndimage.label(mask)
        area = np.bincount(labels.ravel())[1:]
        # Slivers at the border, of a few pixels, may be counted or not.
        surely, perhaps = np.count_nonzero(area >= 16), np.count_nonzero(area >= 4)
        assert surely <= shot.facts.count <= perhaps
        if kind == "spheres":
            rim = np.unique(np.r_[labels[0], labels[-1], labels[:, 0], labels[:, -1]])
            whole = [a for i, a in enumerate(area, 1) if i not in rim and a >= 16]
            diameter = 2 * np.sqrt(np.mean(whole) / np.pi) * shot.pixel_size_nm
            assert diameter == pytest.approx(shot.facts.size_mean_nm, rel=0.08)


@pytest.mark.parametrize("kind", ["atomised", "fragments", "agglomerates", "flakes"])
def test_sizes_of_powder_grains_are_those_shown(kind):
    """Against the area that each grain, hidden parts included, takes in the image."""
    areas, stated = [], []
    for shot in scenes_of("Powder", kind, lambda f: True):
        canvas = shot.specimen.canvas
        owner = canvas.owner
        cut = np.concatenate([owner[0], owner[-1], owner[:, 0], owner[:, -1]])
        for i in np.setdiff1d(np.arange(1, len(canvas.sizes)), cut):
            if canvas.drawn[i] > 60:
                areas.append(2 * np.sqrt(canvas.drawn[i] / np.pi))
                stated.append(canvas.sizes[i])
    assert len(areas) > 20
    assert np.mean(areas) == pytest.approx(np.mean(stated), rel=0.1)


@pytest.mark.parametrize("kind", ["grating", "pillars", "holes"])
def test_spacing_agrees_with_the_spectrum(kind):
    """The strongest spatial frequency of the noise-free image is one over the pitch."""
    shots = scenes_of("Patterned_surface", kind, lambda f: f.tilt_deg == 0 and f.missing == 0)
    assert shots
    for shot in shots:
        grey = shot.clean - shot.clean.mean()
        window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
        size = 2048  # zero padding gives a fine frequency scale
        power = np.abs(np.fft.rfft2(grey * window, s=(size, size)))
        power[:8, :8] = power[-8:, :8] = 0
        y, x = np.unravel_index(np.argmax(power), power.shape)
        frequency = np.hypot(np.fft.fftfreq(size)[y], x / size)
        ratio = shot.pixel_size_nm / frequency / shot.facts.spacing_nm
        # A lattice may answer with a diagonal or a second order.
        orders = [1] if kind == "grating" else [1, 2**-0.5]
        assert min(abs(ratio / order - 1) for order in orders) < 0.04


def test_lengths_of_wires_on_the_ground():
    """The mean width of lying wires: area over skeleton-free length, by their pixels."""
    shots = scenes_of("Nanowires", "lying", lambda f: f.touching == 0 and f.tilt_deg == 0)
    assert shots
    for shot in shots:
        mask = shot.clean > otsu(shot.clean)
        inner = ndimage.distance_transform_edt(np.kron(mask, np.ones((4, 4), bool))) / 4
        ridge = inner[(inner == ndimage.maximum_filter(inner, 9)) & (inner > 0.8)]
        width = 2 * np.median(ridge) * shot.pixel_size_nm
        assert width == pytest.approx(shot.facts.size_mean_nm, rel=0.25, abs=shot.pixel_size_nm)


@pytest.mark.parametrize("kind", ["membrane", "honeycomb", "foam"])
def test_pore_fraction_is_that_of_the_height_field(kind):
    """Pores are where the surface lies deep."""
    shots = scenes_of("Porous_Sponge", kind, lambda f: f.tilt_deg == 0)
    assert shots
    for shot in shots:
        z = shot.specimen.canvas.z
        deep = (z < otsu(z)).mean() if kind != "foam" else (z < -0.1 * np.ptp(z)).mean()
        if kind == "foam":  # the deeper layer of struts is part of what pores show
            assert shot.facts.pore_fraction >= deep - 0.06
        assert shot.facts.pore_fraction == pytest.approx(deep, abs=0.12 if kind == "foam" else 0.06)


def test_the_scale_bar_is_true(scenes):
    """Its length in pixels, times the pixel size, is what its text states."""
    styles = collections.Counter()
    for scene in scenes:
        if scene.scale_bar is None:
            continue
        value, unit = scene.scale_bar.split()
        stated = float(value) * UNITS[unit]
        pixels = np.asarray(scene.image).astype(int)
        ink = 0 if scene.facts.bar == "white strip" else 255
        below = len(scene.clean) if scene.facts.bar != "overlay" else int(0.8 * len(pixels))
        longest = 0
        for row in pixels[below:, pixels.shape[1] // 2 :]:
            runs = (len(list(g)) for value, g in itertools.groupby(row) if value == ink)
            # The border of a white strip is paper, not ink.
            longest = max(longest, *runs, 0, 0)
        assert longest * scene.pixel_size_nm == pytest.approx(stated, abs=scene.pixel_size_nm)
        assert 0.1 < stated / scene.facts.field_of_view_nm < 0.35
        styles[scene.facts.bar] += 1
    assert set(styles) == {"black strip", "white strip", "overlay"}


LENGTH = re.compile(r"([\d.]+) (nm|µm|mm|percent)")


def lengths(text: str, scene) -> list[float]:
    """All lengths of an answer, in nanometres."""
    scale = UNITS | {"percent": scene.facts.field_of_view_nm / 100}
    return [float(value) * scale[unit] for value, unit in LENGTH.findall(text)]


def test_numbers_in_the_answers_are_the_facts(scenes):
    checked = collections.Counter()
    for scene in scenes:
        facts, answers = scene.facts, scene.answers
        text = answers["size_distribution"]
        if facts.size_mean_nm:
            assert lengths(text, scene)[0] == pytest.approx(facts.size_mean_nm, rel=0.051)
            checked["size"] += 1
        if span := re.search(r"([\d.]+) to ([\d.]+) (nm|µm|mm|percent)", text):
            low = lengths(f"{span[1]} {span[3]}", scene)[0]
            high = lengths(f"{span[2]} {span[3]}", scene)[0]
            assert low == pytest.approx(facts.size_min_nm, rel=0.051)
            assert high == pytest.approx(facts.size_max_nm, rel=0.051)
            checked["range"] += 1
        units = "particles|grains|wires|fibres|pores|cells|holes|pillars|lines|bodies|filaments"
        if number := re.search(rf"(\d+) ({units})", text):
            exact = facts.count <= 12
            assert int(number[1]) == pytest.approx(facts.count, rel=0 if exact else 0.051)
            checked["count"] += 1
        if pitch := re.search(r"(?:pitch is about|repeat every) ([\d.]+ \S+)", text):
            assert lengths(pitch[1].rstrip("."), scene)[0] == pytest.approx(
                facts.spacing_nm, rel=0.051
            )
            checked["pitch"] += 1
        if open_area := re.search(r"([\d.]+) percent of the area", answers["surface"]):
            assert float(open_area[1]) == pytest.approx(100 * facts.pore_fraction, rel=0.051)
            checked["pores"] += 1
        if contact := re.search(r"([\d.]+) percent", answers["interfaces"]):
            assert float(contact[1]) == pytest.approx(100 * facts.touching, rel=0.051)
    assert all(checked[name] >= 8 for name in ("size", "range", "count", "pitch", "pores")), checked


def test_answers_claim_only_what_the_image_shows(scenes):
    for scene in scenes:
        text = " ".join(scene.answers.values())
        if scene.scale_bar is None:
            assert not re.search(r"\d (nm|µm|mm)\b", text)
            assert "scale bar" in scene.answers["basics"]
            assert "kV" not in text
        else:
            assert scene.scale_bar in scene.answers["basics"]
        assert bool(re.search("charg", text, re.IGNORECASE)) == scene.facts.charging
        assert re.search(r"simulat|synthetic|computed", scene.answers["imaging"])
        assert re.search(r"simulated|synthetic", scene.answers["application"])
        assert "is visible" not in scene.answers["imaging"] or scene.facts.noise_grey > 7
        for setting in scene.facts.printed:
            assert setting in scene.answers["imaging"]


def test_wording_varies_and_facts_do_not():
    shots = [render(seed, "Nanowires") for seed in range(60)]
    for question_id in QUESTIONS:
        skeletons = {re.sub(r"[\d.]+", "#", shot.answers[question_id]) for shot in shots}
        assert len(skeletons) >= 10, question_id


def test_category_is_not_given_away_by_the_magnification():
    """A guess from the pixel size alone: the category whose median is nearest."""
    sample = [(s.category, np.log(s.pixel_size_nm)) for s in map(_plain, range(200))]
    size = collections.defaultdict(list)
    for category, value in sample[::2]:
        size[category].append(value)
    medians = {category: np.median(values) for category, values in size.items()}
    guess = [min(medians, key=lambda c: abs(medians[c] - value)) for _, value in sample[1::2]]
    right = np.mean([g == c for g, (c, _) in zip(guess, sample[1::2], strict=True)])
    assert right < 0.35
    wires = [render(seed, "Nanowires").facts.size_mean_nm for seed in range(40)]
    assert max(wires) / min(wires) > 30


def _plain(seed: int):
    return render(seed, difficulty=0.3, size=96)


def test_difficulty_brings_noise():
    noise = [
        np.mean([render(seed, "Films_Coated_Surface", d).facts.noise_grey for seed in range(8)])
        for d in (0, 0.5, 1)
    ]
    assert noise[0] < 5 < noise[1] < noise[2]


def test_the_noise_that_is_stated_is_in_the_pixels(scenes):
    """Against the noise-free image, where neither charging nor an overlay changes it."""
    checked = 0
    for scene in scenes:
        if scene.facts.charging or scene.facts.bar == "overlay":
            continue
        shown = np.asarray(scene.image, float)[: len(scene.clean)]
        assert np.std(shown - scene.clean) == pytest.approx(scene.facts.noise_grey, abs=0.4)
        checked += 1
    assert checked > 30


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


def test_rows_do_not_depend_on_the_workers():
    here = list(rows(20, 7, size=96, workers=0))
    pool = list(rows(20, 7, size=96, workers=2))
    assert here == pool
    assert [r["image_id"] for r in rows(20, 7, start=9, size=96, workers=0)] == [
        r["image_id"] for r in here[9:]
    ]
    code = (
        "from mvaema.synthetic import rows\n"
        "print(*[r['image_id'] for r in rows(6, 7, size=96, workers=0)])"
    )
    root = ROOT
    fresh = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert fresh.stdout.split() == [r["image_id"] for r in here[:6]]


def test_rows_have_the_schema_and_groups_are_scenes():
    made = list(rows(40, 1, size=96, workers=0))
    assert len({row["image_id"] for row in made}) == 40
    assert {row["category"] for row in made} == set(CATEGORY_CAPTIONS)
    groups = [row["group"] for row in made]
    assert len(set(groups)) == 20 and groups[0] == groups[1] != groups[2]
    for row in made:
        assert set(row) == set(FEATURES)
        assert "synthetic" in row["source"] and row["licence"]
        assert [item["question_id"] for item in row["qa"]] == list(QUESTIONS)
    other = {row["group"] for row in rows(40, 1, split="validation", size=96, workers=0)}
    assert not other & set(groups)


@pytest.mark.parametrize(
    "settings",
    [{"split": "dev"}, {"views": 0}, {"difficulty": (0.5, 2)}, {"categories": ("Cats",)}],
    ids=str,
)
def test_bad_settings_are_refused_before_the_first_row(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        rows(3, **settings)


def test_the_command_writes_resumes_and_refuses(tmp_path, capsys):
    folder = tmp_path / "synthetic"
    common = ["--output", str(folder), "--size", "96", "--workers", "0", "--validation", "0.25"]
    assert main(["--count", "24", *common]) == 0
    dataset = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in dataset.items()} == {"train": 18, "validation": 6}
    assert dataset["train"].features == FEATURES
    assert not set(dataset["train"]["group"]) & set(dataset["validation"]["group"])
    first = dataset["train"][0]
    assert pixel_hash(first["image"]) == first["image_id"] and first["image"].size == (96, 96)
    card = (folder / "README.md").read_text("utf-8")
    assert "Every image in this dataset is simulated" in card

    # A larger count adds rows, and keeps those that are there.
    assert main(["--count", "32", *common]) == 0
    grown = load_dataset(str(folder), cache_dir=str(tmp_path / "cache2"))
    assert grown["train"]["image_id"][:18] == dataset["train"]["image_id"]
    assert grown["train"].num_rows == 24 and len(set(grown["train"]["image_id"])) == 24

    # Other settings do not mix into it.
    before = sorted(path.name for path in folder.iterdir())
    assert main(["--count", "32", "--seed", "1", *common]) == 1
    assert "was made from something else" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.slow
def test_no_two_of_many_images_are_the_same():
    made = [row["image_id"] for row in rows(3000, 5, size=96)]
    assert len(set(made)) == 3000


@pytest.mark.parametrize("side", [1022, 1023, 1025, 1049, 2048])
def test_noise_fills_pictures_of_any_size(side):
    """Also where rounding would ask for one row more than the tile has."""
    for shape in ((side, side), (side, side // 2 + 1)):
        assert canvas.noise(np.random.default_rng(0), shape, canvas.WHITE).shape == shape
