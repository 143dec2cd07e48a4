"""A folder is measured into tables and pictures; a run that was killed goes on where it was."""

import csv
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support import drawn_structures as drawn

pytest.importorskip("skimage")

from mvaema.__main__ import main
from mvaema.measuring.folder import Settings, find_files, measure_folder
from mvaema.measuring.text import MissingExtra


@pytest.fixture
def micrographs(tmp_path):
    folder = tmp_path / "micrographs"
    (folder / "more").mkdir(parents=True)
    drawn.scattered_discs().image.save(folder / "discs.png")
    drawn.scattered_discs(seed=3).image.save(folder / "more" / "others.tif")
    Image.new("L", (160, 160)).save(folder / "black.png")
    (folder / "broken.tif").write_bytes(b"II*\0 not a TIFF")
    (folder / "notes.txt").write_text("no micrograph")
    return folder


def run(source, output, *arguments):
    fixed = ["--category", "Particles", "--pixel_size_nm", "2"]
    return main(["measure", str(source), "--output_dir", str(output), *fixed, *arguments])


def table(path):
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def test_tables_and_pictures_of_a_folder(micrographs, tmp_path, capsys):
    output = tmp_path / "sizes"
    assert run(micrographs, output) == 0
    told = capsys.readouterr().out
    assert "2 measured, 1 without numbers that can be trusted, 1 could not be read" in told
    rows = {row["file"]: row for row in table(output / "images.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "black": "abstained",
        "broken": "unreadable",
        "discs": "measured",
        "more__others": "measured",
    }
    true = np.median(drawn.scattered_discs().sizes)
    assert float(rows["discs"]["median"]) == pytest.approx(2 * true, rel=0.03)
    assert rows["discs"]["unit"] == "nm" and rows["discs"]["scale_source"] == "typed"
    assert rows["black"]["median"] == rows["broken"]["median"] == ""
    assert "one grey level" in rows["black"]["reasons"]

    objects = table(output / "objects.csv")
    sizes = [float(row["diameter_nm"]) for row in objects if row["file"] == "discs"]
    assert len(sizes) == int(rows["discs"]["count"])
    assert np.median(sizes) == pytest.approx(float(rows["discs"]["median"]))
    as_json = json.loads((output / "objects.json").read_text("utf-8"))["objects"]
    assert len(as_json) == len(objects)
    images = json.loads((output / "images.json").read_text("utf-8"))
    assert images["settings"]["pixel_size_nm"] == 2
    counts = {i["file"]: i["statistics"]["histogram"] for i in images["images"] if i.get("count")}
    assert sum(counts["discs"]["counts"]) == len(sizes)

    assert "One pixel is 2 nm" in (output / "methods.txt").read_text("utf-8")
    with Image.open(output / "overlays" / "discs.png") as overlay:
        green = (np.asarray(overlay) == (0, 220, 90)).all(2)
        assert green[30:].sum() > 12 * 20  # outlines, beside the line of text
    with Image.open(output / "histograms" / "discs.png") as histogram:
        assert histogram.width > 300
    assert {path.stem for path in (output / "histograms").iterdir()} == {"discs", "more__others"}


def test_lengths_and_areas_have_their_unit_in_the_name(micrographs, tmp_path):
    run(micrographs / "discs.png", tmp_path / "sizes")
    (header, *_) = (tmp_path / "sizes" / "objects.csv").read_text("utf-8").splitlines()
    assert header == "file,kind,object,x_px,y_px,diameter_nm,area_nm2,aspect_ratio,circularity"
    for row in table(tmp_path / "sizes" / "images.csv"):
        assert row["unit"] in ("nm", "µm", "px")


@pytest.mark.slow
def test_a_second_run_measures_what_is_new_or_changed(micrographs, tmp_path):
    output, settings = tmp_path / "sizes", Settings("particles", None, 2.0)
    assert measure_folder(micrographs, output, settings).measured == 4
    again = measure_folder(micrographs, output, settings)
    assert again.measured == 1  # the broken one is tried again
    drawn.scattered_discs(14, seed=5).image.save(micrographs / "discs.png")
    (micrographs / "black.png").unlink()
    shown = []
    report = measure_folder(micrographs, output, settings, show=shown.append)
    assert report.measured == 2 and any(line.startswith("discs: Measured") for line in shown)
    assert [row["file"] for row in table(output / "images.csv")] == [
        "broken",
        "discs",
        "more__others",
    ]


def test_other_settings_are_refused(micrographs, tmp_path, capsys):
    output = tmp_path / "sizes"
    run(micrographs / "discs.png", output)
    before = (output / "images.csv").read_bytes()
    assert run(micrographs / "discs.png", output, "--region", "0", "0", "100", "100") == 1
    error = capsys.readouterr().err
    assert "other settings (region: None before, [0, 0, 100, 100] now)" in error
    assert "--output_dir" in error and (output / "images.csv").read_bytes() == before


def test_a_folder_without_micrographs_and_a_wrong_path_are_errors(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "sizes") == 1
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "sizes") == 1
    assert "no micrograph in this folder" in capsys.readouterr().err


def test_files_of_one_stem_keep_their_suffix(tmp_path):
    for name in ("a.png", "a.tif", "b.png"):
        (tmp_path / name).touch()
    assert list(find_files(tmp_path)) == ["a.png", "a.tif", "b"]


@pytest.mark.slow
def test_two_processes_give_the_tables_of_one(micrographs, tmp_path):
    run(micrographs, tmp_path / "one")
    run(micrographs, tmp_path / "two", "--workers", "2")
    for name in ("images.csv", "objects.csv", "images.json", "methods.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_after_the_last_file(tmp_path):
    folder, output = tmp_path / "micrographs", tmp_path / "sizes"
    folder.mkdir()
    for k in range(8):
        drawn.scattered_discs(seed=k).image.save(folder / f"{k}.png")
    command = [sys.executable, "-m", "mvaema", "measure", str(folder), "--output_dir", str(output)]
    command += ["--category", "Particles", "--pixel_size_nm", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    journal = output / "measured.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 0 < done < 8 and not (output / "images.csv").exists()
    with journal.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b'{"file": "7", "sta')
    report = measure_folder(folder, output, Settings(None, "Particles", 2.0))
    assert report.measured == 8 - done
    assert [row["status"] for row in table(output / "images.csv")] == ["measured"] * 8


def test_a_missing_reader_is_told_once_and_before_any_work(tmp_path, capsys, monkeypatch):
    def missing():
        raise MissingExtra("reading print needs the extra `measuring`")

    monkeypatch.setattr("mvaema.commands.measure.require_reader", missing)
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", tmp_path / "sizes") == 1
    assert capsys.readouterr().err == "error: reading print needs the extra `measuring`\n"
    assert not (tmp_path / "sizes").exists()
