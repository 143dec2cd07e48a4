"""Near-duplicates and folds, against copies made on the spot and against comparing all with all."""

import io
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import ImageDraw, ImageEnhance
from sklearn.model_selection import StratifiedKFold
from support import ROOT
from support.micrograph_data import write_dataset

from mvaema.commands.folds import main
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.micrographs.folds import LeakError, assign_folds, check_no_leak, report_folds
from mvaema.micrographs.near_duplicates import cluster, describe, near_duplicate_clusters
from mvaema.micrographs.schema import pixel_hash
from mvaema.micrographs.shards import write_shards


def micrograph(seed: int, size=(160, 120), background=60) -> PILImage.Image:
    """Discs of many sizes on a dark ground, with a little noise."""
    random = np.random.default_rng(seed)
    image = PILImage.new("L", size, background)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, r, grey = random.uniform((0, 0, 2, 80), (*size, 14, 250))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=int(grey))
    noise = random.normal(0, 4, size[::-1])
    return PILImage.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def dataset_of(images: list, groups=None, categories=None) -> Dataset:
    count = len(images)
    columns = {
        "image": images,
        "image_id": [pixel_hash(image) for image in images],
        "group": groups or [f"g{i}" for i in range(count)],
        "category": categories or ["Particles"] * count,
    }
    return Dataset.from_dict(columns).cast_column("image", Image())


def compressed(image: PILImage.Image) -> PILImage.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return PILImage.open(buffer)


def barred(image: PILImage.Image) -> PILImage.Image:
    """With an info bar below."""
    taller = PILImage.new("L", (image.width, image.height + 14), 255)
    taller.paste(image, (0, 0))
    ImageDraw.Draw(taller).text((4, image.height + 1), "5.0 kV  x20,000", fill=0)
    return taller


COPIES = {
    "smaller": lambda i: i.resize((100, 75)),
    "larger": lambda i: i.resize((320, 240)),
    "jpeg": compressed,
    "contrast": lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    "gamma": lambda i: i.point(lambda v: 255 * (v / 255) ** 0.7),
    "bar added": barred,
    "bar cut": lambda i: i.crop((0, 0, i.width, i.height - 10)),
    "mirrored": lambda i: i.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda i: i.transpose(PILImage.Transpose.FLIP_TOP_BOTTOM),
    "turned": lambda i: i.transpose(PILImage.Transpose.ROTATE_270),
    "colour": lambda i: i.convert("RGB"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(copy):
    images = [micrograph(seed) for seed in range(20)]
    copies = [COPIES[copy](image) for image in images]
    clusters = near_duplicate_clusters(dataset_of(images + copies))
    assert clusters.tolist() == list(range(20)) * 2


def test_the_same_info_bar_does_not_make_images_alike():
    """Flat images with a bar are nearly equal pixel by pixel, and still different micrographs."""
    images = [barred(micrograph(seed).point(lambda v: 100 + v // 16)) for seed in range(20)]
    assert len(set(near_duplicate_clusters(dataset_of(images)))) == 20


def test_images_without_content_are_no_duplicates_of_anything():
    images = [PILImage.new("L", (80, 60), grey) for grey in (0, 128, 255)] + [micrograph(0)]
    images.append(PILImage.new("L", (1, 1)))
    assert near_duplicate_clusters(dataset_of(images)).tolist() == [0, 1, 2, 3, 4]
    assert near_duplicate_clusters(dataset_of(images).select([])).tolist() == []


def test_the_search_finds_what_comparing_all_with_all_finds():
    """Cells of 50 among 600 descriptions, against a single cell."""
    images = [micrograph(seed, (80, 60)) for seed in range(200)]
    images += [image.resize((100, 75)) for image in images]
    images += [image.transpose(PILImage.Transpose.ROTATE_90) for image in images[:200]]
    descriptions = np.stack([describe(image) for image in images])
    everything = cluster(descriptions, cell=10_000)
    assert (everything == np.tile(np.arange(200), 3)).mean() > 0.99
    assert (cluster(descriptions, cell=50) == everything).mean() > 0.97


def test_a_crowd_of_near_duplicates_is_one_cluster():
    """One film of one specimen: every frame is like every other; links stay few."""
    still = micrograph(0, (80, 60))
    random = np.random.default_rng(0)
    frames = [
        PILImage.fromarray(
            np.clip(np.asarray(still) + random.normal(0, 3, (60, 80)), 0, 255).astype(np.uint8)
        )
        for _ in range(150)
    ]
    assert set(cluster(np.stack([describe(frame) for frame in frames]), cell=40)) == {0}


# Folds


@pytest.fixture(scope="module")
def study() -> Dataset:
    """90 micrographs of 30 specimens in 3 categories, and copies of 10 under other groups."""
    images = [micrograph(seed) for seed in range(90)]
    groups = [f"specimen {i // 3}" for i in range(90)]
    categories = [("Tips", "Powder", "Fibres")[i // 3 % 3] for i in range(90)]
    copied = range(0, 90, 9)
    images += [compressed(images[i]).convert("L") for i in copied]
    groups += [f"from the web {i}" for i in copied]
    categories += [categories[i] for i in copied]
    return dataset_of(images, groups, categories)


@pytest.mark.parametrize("k", [2, 5, 10, 30])
def test_folds_keep_specimens_and_near_duplicates_together(study, k):
    folds = np.array(assign_folds(study, k, seed=1))
    assert set(folds) == set(range(k))
    for group in set(study["group"]):
        rows = [i for i, name in enumerate(study["group"]) if name == group]
        assert len(set(folds[rows])) == 1
    assert folds[90:].tolist() == folds[0:90:9].tolist()
    for fold in range(k):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        check_no_leak(study.select(outside), study.select(inside))


def test_folds_are_stratified(study):
    folds = np.array(assign_folds(study, 5))
    for category in set(study["category"]):
        rows = [i for i, name in enumerate(study["category"]) if name == category]
        counts = np.bincount(folds[rows], minlength=5)
        assert counts.min() >= 3 and counts.max() <= 10


@pytest.mark.slow
def test_folds_are_the_same_in_another_process(study, tmp_path):
    write_shards(({**row} for row in study), tmp_path / "data")
    command = [sys.executable, "-m", "mvaema", "folds", str(tmp_path / "data"), "--k", "4"]
    done = subprocess.run(
        [*command, "--seed", "7", "--csv", str(tmp_path / "folds.csv")],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (tmp_path / "folds.csv").read_text().splitlines()[1:]
    there = dict(line.split(",") for line in lines)
    here = assign_folds(study, 4, seed=7)
    assert [int(there[image_id]) for image_id in study["image_id"]] == here
    assert here != assign_folds(study, 4, seed=8)
    assert "20 have a near-duplicate, in 10 clusters" in done.stdout


def test_the_report_counts_what_ordinary_folds_leak(study):
    """Against a count by hand over all pairs."""
    report = report_folds(study, 5, seed=0)
    assert (report.rows, report.groups, report.independent) == (100, 40, 30)
    assert (report.near_duplicates, report.clusters) == (20, 10)
    ordinary = np.empty(100, int)
    splitter = StratifiedKFold(5, shuffle=True, random_state=0)
    names = study["category"][:]
    for fold, (_, rows) in enumerate(splitter.split(names, names)):
        ordinary[rows] = fold
    torn = [i for i in range(10) if ordinary[90 + i] != ordinary[9 * i]]
    assert report.leaked_ordinary == 2 * len(torn) > 0
    assert 0 < report.leaked_by_specimen <= 20
    assert sum(sum(counts) for _, counts in report.categories) == 100
    assert str(report.leaked_ordinary) in str(report)


@pytest.mark.slow
def test_importing_the_folds_brings_no_microscope_readers():
    """Training imports them, on machines that read no instrument files."""
    code = "import sys, mvaema.micrographs.folds; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "mvaema.micrographs.folds" in loaded
    assert not loaded & {
        *("mvaema.micrographs.microscope", "mvaema.micrographs.sources"),
        *("mvaema.micrographs.aversa", "mvaema.synthetic", "tifffile", "rsciio"),
    }


def test_more_folds_than_independent_groups_are_refused(study, capsys):
    with pytest.raises(ValueError, match="30 independent groups"):
        assign_folds(study, 31)
    assert main(["/nowhere", "--k", "3"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_shared_groups_are_named(study):
    train, validation = study.select(range(60)), study.select(range(57, 90))
    with pytest.raises(LeakError, match="'specimen 19'"):
        check_no_leak(train, validation)
    check_no_leak(study.select(range(57)), validation)
    renamed = validation.remove_columns("group").add_column("group", ["x"] * 33)
    with pytest.raises(LeakError, match="image_id"):
        check_no_leak(train, renamed)
    # Rows that state no group share none.
    nameless = [study.select(r).remove_columns("group") for r in (range(3), range(3, 6))]
    check_no_leak(*(part.add_column("group", [None] * 3) for part in nameless))


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_the_first_fold_is_held_out_as_a_split(kind, study, tmp_path, capsys):
    source, own = tmp_path / "source", tmp_path / "own"
    if kind == "imagefolder":
        write_dataset(source)  # its images are files with names
    else:
        write_shards(({**row} for row in study), source)
    command = [str(source), "--k", "5", "--hold_out", str(own)]
    assert main(command) == 0
    before = load_micrographs(source)
    parts = {split: load_micrographs(own, split) for split in ("train", "validation")}
    check_no_leak(parts["train"], parts["validation"])
    held_out = [i for i, fold in enumerate(assign_folds(before, 5)) if fold == 0]
    assert parts["validation"]["image_id"][:] == before.select(held_out)["image_id"][:]
    after = {row["image_id"]: row for part in parts.values() for row in part}
    assert len(after) == len(before) == sum(map(len, parts.values()))
    for row in before:
        kept = after[row["image_id"]]
        assert np.array_equal(decode_image(kept), decode_image(row))
        assert kept["image"]["path"] is None
        assert {n: v for n, v in kept.items() if n != "image"}.items() <= row.items()
    assert {file.name for file in own.parent.iterdir()} == {"source", "own"}
    assert main(command) == 1
    assert "own is not empty" in capsys.readouterr().err
