"""What a build remembers: failures, and datasets of the layout before this one."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from datasets import Features, load_dataset
from PIL import Image
from support import ROOT
from support.microscope_files import FEI_INI, TESCAN_HDR, text_tag

from mvaema.commands.build import main
from mvaema.micrographs.build import build
from mvaema.micrographs.dataset import load_micrographs
from mvaema.micrographs.ledger import Ledger
from mvaema.micrographs.reading import ReadOptions
from mvaema.micrographs.schema import FEATURES, INSTRUMENT_COLUMNS, pixel_hash
from mvaema.micrographs.shards import shard_paths, write_shards
from mvaema.micrographs.sources import FolderSource


def pixels(seed: int, size=(60, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 200, size, dtype=np.uint8)


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


def save_fei(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = text_tag(34682, FEI_INI.format(width=64, height=48))
    tifffile.imwrite(path, pixels(seed), extratags=[tag])
    return path


def load(folder: Path, split: str = "train"):
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(str(folder), split=split, cache_dir=cache, keep_in_memory=True)


# The row of several files


@pytest.mark.parametrize("names", [("a.png", "b.tif"), ("b.png", "a.tif")])
def test_the_scale_is_from_whichever_file_states_it(tmp_path, names):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / names[0])
    save_fei(folder / names[1], 0)
    report = build(FolderSource(folder), out)
    (row,) = load(out)
    assert row["pixel_size_nm"] == pytest.approx(100) and row["technique"] == "SEM"
    assert row["accelerating_voltage_kv"] == 5 and row["detector"] == "ETD"
    assert (report.rows, report.with_pixel_size, report.duplicates) == (1, 1, 1)
    # The TIFF is moved to an archive: what it stated stays true of these pixels.
    (folder / names[1]).unlink()
    build(FolderSource(folder), out)
    assert load(out)[0]["pixel_size_nm"] == pytest.approx(100)
    build(FolderSource(folder), out, prune=True)
    assert load(out)[0]["pixel_size_nm"] is None


def test_scales_that_contradict_each_other_are_reported(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    save_fei(folder / "a.tif", 0)
    (folder / "b.hdr").write_text(TESCAN_HDR.format(strip=0))
    Image.fromarray(pixels(0)).save(folder / "b.tif")
    report = build(FolderSource(folder), out)
    assert load(out)[0]["pixel_size_nm"] is None and load(out)[0]["technique"] == "SEM"
    assert report.contradictions == {"pixel_size_nm": 1}
    table = report.table.read_text()
    assert table.count("contradict each other about pixel_size_nm") == 2 and ",50.0," in table


def test_black_frames_of_different_specimens_are_not_one_row(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for specimen in ("wafer1", "wafer2"):
        (folder / specimen).mkdir(parents=True)
        Image.new("L", (64, 48)).save(folder / specimen / "beam_off.png")
    save(folder / "wafer1" / "good.png")
    report = build(FolderSource(folder), out)
    assert (report.rows, report.duplicates, report.failed) == (1, 0, {"blank": 2})


# The report


def test_the_report_counts_pixel_sizes_bars_and_sidecars(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed in range(3):
        save_fei(folder / f"{seed}.tif", seed)
    save(folder / "3.png", 3)
    (folder / "3-png.hdr").write_text(TESCAN_HDR.format(strip=0))
    (folder / "notes.txt").write_text("Dear colleague,\n")
    save(folder / "4.png", 4)
    left = build(FolderSource(folder), tmp_path / "left")
    assert (left.bars_cut, left.bars_left) == (0, 3) and "--crop_info_bar" in str(left)
    for _ in range(2):  # the second build reads no file and counts the same
        report = build(FolderSource(folder), out, options=ReadOptions(crop_info_bar=True))
        assert (report.rows, report.with_pixel_size) == (5, 4)
        assert (report.bars_cut, report.bars_left) == (3, 0)
        assert (report.sidecars, report.ignored) == (1, {".txt": 1})
    assert report.read == 0
    for line in ("4 rows have a pixel size", "3 had an info bar", "1 sidecars were read"):
        assert line in str(report)


# Failures


def test_a_failure_is_remembered_until_the_file_changes(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    whole = save(folder / "broken.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[:300])
    (folder / "zero.tif").write_bytes(b"")
    save(folder / "good.png", 1)
    first = build(FolderSource(folder), out)
    assert (first.read, first.not_tried, first.failed.total()) == (3, 0, 2)
    again = build(FolderSource(folder), out)
    assert (again.read, again.not_tried, again.failed) == (0, 2, first.failed)
    assert again.table.read_text() == first.table.read_text()
    assert "2 of these have not changed" in str(again) and "--retry_failed" in str(again)
    assert build(FolderSource(folder), out, retry_failed=True).read == 2
    (folder / "broken.png").write_bytes(whole)
    repaired = build(FolderSource(folder), out)
    assert (repaired.read, repaired.not_tried, repaired.rows) == (1, 1, 2)


def test_other_options_or_another_size_limit_try_again(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "large.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert build(FolderSource(folder), out).failed == {"too-large": 1}
        assert build(FolderSource(folder), out).read == 0
    assert build(FolderSource(folder), out).rows == 1
    (folder / "zero.png").write_bytes(b"")
    build(FolderSource(folder), out)
    assert build(FolderSource(folder), out, options=ReadOptions(max_side=20)).read == 2


def test_another_version_of_the_reader_tries_again(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "good.png")
    (folder / "zero.png").write_bytes(b"")
    build(FolderSource(folder), out)
    with sqlite3.connect(tmp_path / "out.private" / "train.sqlite") as db:
        # As a build with another Pillow would have left it.
        db.execute("UPDATE files SET reading = reading || ' older' WHERE reason IS NOT NULL")
    db.close()
    report = build(FolderSource(folder), out)
    assert (report.read, report.unchanged, report.not_tried) == (1, 1, 0)


def test_what_the_system_refused_is_tried_again():
    """Permissions change without a trace in the file's size and time. As an ordinary user."""
    with tempfile.TemporaryDirectory() as name:
        tmp_path = Path(name)
        path = save(tmp_path / "in" / "a.png")
        path.chmod(0o000)
        tmp_path.chmod(0o777)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            report = build(FolderSource(tmp_path / "in"), tmp_path / "out")
            assert report.failed == {"permission-denied": 1}
            if root:
                os.seteuid(0)
            path.chmod(0o444)
            if root:
                os.seteuid(65534)
            report = build(FolderSource(tmp_path / "in"), tmp_path / "out")
        finally:
            if root:
                os.seteuid(0)
        assert (report.rows, report.failed.total()) == (1, 0)


def test_a_refusal_of_the_same_content_takes_its_row_away(tmp_path):
    """As a reader that learnt to tell black frames does; but damage keeps the row."""
    folder, out = tmp_path / "in", tmp_path / "out"
    path = save(folder / "a.png")
    time = path.stat().st_mtime_ns
    build(FolderSource(folder), out)
    content = path.read_bytes()
    black = folder / "black.png"
    Image.new("L", (64, 60)).save(black)
    assert black.stat().st_size <= len(content)
    path.write_bytes(black.read_bytes().ljust(len(content), b"\0"))
    black.unlink()
    os.utime(path, ns=(time, time))  # for the ledger, it is the file that gave the row
    report = build(FolderSource(folder), out, options=ReadOptions(max_side=50))
    assert (report.rows, report.failed) == (0, {"blank": 1})


# A dataset of the layout before


OLD_LEDGER = """
CREATE TABLE files (name TEXT PRIMARY KEY, version TEXT, run INTEGER, position INTEGER,
    image_id TEXT, pixel_size_nm REAL, columns TEXT, reason TEXT, message TEXT);
CREATE INDEX files_by_image ON files (image_id);
CREATE TABLE rows (image_id TEXT PRIMARY KEY, shard TEXT, columns TEXT);
CREATE VIEW owners AS SELECT image_id, name, columns, MIN(position) FROM files
    WHERE image_id IS NOT NULL GROUP BY image_id;
"""


def write_old_dataset(folder: Path, out: Path) -> None:
    """The files of a folder as a build of the layout before would have written them."""
    features = Features({n: f for n, f in FEATURES.items() if n not in INSTRUMENT_COLUMNS})
    private = out.with_name(f"{out.name}.private")
    private.mkdir()
    rows = []
    with sqlite3.connect(private / "train.sqlite") as db:
        db.executescript(OLD_LEDGER)
        for position, path in enumerate(sorted(folder.iterdir())):
            with Image.open(path) as image:
                image_id = pixel_hash(image)
                columns = {"qa": [], "pixel_size_nm": None, "group": image_id, "licence": "MIT"}
                rows.append({"image": image.copy(), "image_id": image_id, **columns})
            info = path.stat()
            version = f"{info.st_size} {info.st_mtime_ns} {ReadOptions()} None"
            text = json.dumps(columns)
            values = (str(path), version, 1, position, image_id, None, text, None, None)
            db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            db.execute(
                "INSERT INTO rows VALUES (?, ?, ?)",
                (image_id, f"train-{position:05}.parquet", text),
            )
    db.close()
    write_shards(rows, out, features=features, shard_bytes=1)
    assert len(shard_paths(out, "train")) == len(rows)


def test_an_old_dataset_gets_the_columns_and_loses_no_row(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed in range(3):
        save_fei(folder / f"{seed}.tif", seed)
    Image.new("L", (64, 48)).save(folder / "black.png")
    write_old_dataset(folder, out)
    (folder / "1.tif").unlink()  # gone since: its row stays
    (folder / "2.tif").write_bytes(b"II*\0")  # damaged since: its row stays
    save_fei(folder / "3.tif", 3)

    report = build(FolderSource(folder), out)
    assert {tuple(pq.read_schema(p).names) for p in shard_paths(out, "train")} == {tuple(FEATURES)}
    dataset = load(out)
    assert dataset.features == FEATURES
    rows = {row["image_id"]: row for row in dataset}
    assert set(rows) == {pixel_hash(pixels(seed)) for seed in range(4)}  # and no black frame
    techniques = [rows[pixel_hash(pixels(seed))]["technique"] for seed in range(4)]
    assert techniques == ["SEM", None, None, "SEM"]  # read again, gone, damaged, new
    assert rows[pixel_hash(pixels(1))]["licence"] == "MIT"
    assert report.missing == 1 and report.failed == {"blank": 1, "damaged": 1}
    again = build(FolderSource(folder), out)
    assert (again.read, again.unchanged, again.not_tried) == (0, 2, 2)
    assert load(out).to_list() == dataset.to_list()


def test_an_old_dataset_loads_as_it_is(tmp_path):
    save(tmp_path / "in" / "a.png")
    write_old_dataset(tmp_path / "in", tmp_path / "out")
    dataset = load_micrographs(tmp_path / "out")
    for name in INSTRUMENT_COLUMNS:
        assert dataset[name][:] == [None] and dataset.features[name] == FEATURES[name]


def test_one_split_may_be_old(tmp_path):
    save(tmp_path / "in" / "a.png")
    write_old_dataset(tmp_path / "in", tmp_path / "out")
    build(FolderSource(tmp_path / "in"), tmp_path / "out", "validation")
    for split in ("train", "validation"):
        assert load_micrographs(tmp_path / "out", split)["image_id"][0] == pixel_hash(pixels(0))


@pytest.mark.slow
def test_a_kill_while_an_old_dataset_is_completed_loses_nothing(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed in range(6):
        save_fei(folder / f"{seed}.tif", seed)
    write_old_dataset(folder, out)
    script = tmp_path / "build.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "replace, left = Path.replace, [int(sys.argv[1])]\n"
        "def killed(self, target):\n"
        "    replace(self, target)\n"
        "    left[0] -= Path(target).suffix == '.parquet'\n"
        "    if left[0] == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.replace = killed\n"
        "from mvaema.commands.build import main\n"
        f"sys.exit(main(['folder', {str(folder)!r}, {str(out)!r}]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    expected = {pixel_hash(pixels(seed)) for seed in range(6)}
    for kills in (2, 5, 3):  # while columns are added; while they are filled
        run = subprocess.run(
            [sys.executable, script, str(kills)], env=environment, capture_output=True, check=False
        )
        assert run.returncode == -9, run.stderr.decode()
        kept = [pq.read_table(p, columns=["image_id"]) for p in shard_paths(out, "train")]
        assert {i for table in kept for i in table["image_id"].to_pylist()} == expected
    assert main(["folder", str(folder), str(out)]) == 0
    assert set(load(out)["image_id"]) == expected
    assert load(out)["pixel_size_nm"][:] == pytest.approx([100] * 6)


# Where the ledger cannot be


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "train.sqlite").write_text("no database " * 100)
    with pytest.raises(OSError, match=r"train\.sqlite cannot be used .*free space"):
        Ledger(tmp_path / "train.sqlite", set())
    with pytest.raises(OSError, match=r"train\.sqlite cannot be used"):
        Ledger(tmp_path / "nowhere" / "train.sqlite", set())


@pytest.mark.parametrize("what", ["ledger", "dataset"])
def test_a_read_only_place_is_named(capsys, what):
    with tempfile.TemporaryDirectory() as name:
        tmp_path = Path(name)
        save(tmp_path / "in" / "a.png")
        (tmp_path / "out.private").mkdir()
        Ledger(tmp_path / "out.private" / "train.sqlite", set()).close()
        (tmp_path / "out").mkdir()
        tmp_path.chmod(0o755)
        (tmp_path / "out.private").chmod(0o777)
        (tmp_path / "out.private" / "train.sqlite").chmod(0o444 if what == "ledger" else 0o666)
        (tmp_path / "out").chmod(0o777 if what == "ledger" else 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            status = main(["folder", str(tmp_path / "in"), str(tmp_path / "out")])
        finally:
            if root:
                os.seteuid(0)
        error = capsys.readouterr().err
        place = {"ledger": r"out\.private/train\.sqlite cannot be used", "dataset": "/out/"}[what]
        assert status == 1 and re.search(rf"error: .*{place}", error), error
        assert "wait until" not in error
