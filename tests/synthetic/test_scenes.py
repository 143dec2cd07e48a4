"""Scenes: facts are checked against the pixels by other means than those that made them, such as
labelling and autocorrelation.
"""

import collections
import itertools

import numpy as np
import pytest
from scipy import ndimage

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.micrographs.schema import pixel_hash
from mvaema.synthetic.scenes import CATEGORIES, render


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
@pytest.mark.slow
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
@pytest.mark.slow
def test_sizes_of_powder_grains_are_those_shown(kind):
    """Against the area that the grains on top of the heap take in the picture."""
    shown, stated = [], []
    for shot in scenes_of("Powder", kind, lambda f: f.tilt_deg == 0, count=8):
        canvas = shot.specimen.canvas
        for grain in whole_bodies(canvas.owner, canvas.z):
            shown.append(2 * np.sqrt(np.count_nonzero(canvas.owner == grain) / np.pi) * canvas.nm)
            stated.append(canvas.sizes[grain] * canvas.nm)
    assert len(shown) > 20
    assert np.mean(shown) == pytest.approx(np.mean(stated), rel=0.1)


def whole_bodies(owner: np.ndarray, z: np.ndarray) -> list[int]:
    """Bodies that nothing hides: within the picture, and higher than all that is beside them."""
    found = []
    for body in range(1, int(owner.max()) + 1):
        mask = owner == body
        cut = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        if cut or np.count_nonzero(mask) < 60:
            continue
        hidden = False
        for axis in (0, 1):
            for step in (1, -1):
                beside = np.roll(mask, step, axis) & ~mask
                hidden |= bool((z[beside] > np.roll(z, step, axis)[beside]).mean() > 0.02)
        if not hidden:
            found.append(body)
    return found


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
        # A line may answer with its two bright edges, a lattice with a diagonal.
        orders = [1, 0.5] if kind == "grating" else [1, 2**-0.5]
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


def test_half_of_the_particles_and_no_powder_are_seen_in_transmission():
    def share(category):
        techniques = [render(seed, category, size=64).facts.technique for seed in range(60)]
        assert set(techniques) <= {"SEM", "TEM", "STEM"}
        return np.mean([technique != "SEM" for technique in techniques])

    assert 0.3 < share("Particles") < 0.65
    assert share("Powder") == 0


@pytest.mark.slow
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
    """Against the noise-free image, where neither charging nor prints nor JPEG change it."""
    checked = 0
    for scene in scenes:
        facts = scene.facts
        if facts.charging or facts.bar == "overlay" or facts.marks or facts.jpeg:
            continue
        shown = np.asarray(scene.image, float)[: len(scene.clean)]
        assert np.std(shown - scene.clean) == pytest.approx(scene.facts.noise_grey, abs=0.4)
        checked += 1
    assert checked > 15
