"""Links in a folder, and what a table may state."""

import csv
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from mvaema.micrographs.build import build
from mvaema.micrographs.labelling import Labelling
from mvaema.micrographs.sources import FolderSource, TableSource


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def load(folder: Path):
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(str(folder), split="train", cache_dir=cache, keep_in_memory=True)


def statuses(out: Path) -> dict[str, str]:
    with (out.with_name(f"{out.name}.private") / "train.csv").open(newline="") as file:
        return {line["file"]: line["status"] for line in csv.DictReader(file)}


def test_a_link_does_not_label_the_file_it_leads_to(tmp_path):
    """Although it comes first. The same for a link to a folder."""
    folder, out = tmp_path / "in", tmp_path / "out"
    whole = save(folder / "Nanowires" / "wire.png")
    save(folder / "Powder" / "grain.png", 1)
    (folder / "Fibres").mkdir()
    (folder / "Fibres" / "link.png").symlink_to(whole)
    (folder / "Biological").symlink_to(folder / "Powder")
    report = build(FolderSource(folder), out)
    assert sorted(load(out)["category"]) == ["Nanowires", "Powder"]
    assert (report.rows, report.read, report.links) == (2, 2, 2)
    assert not report.failed and "2 links lead to" in str(report)
    assert statuses(out) == {
        str(folder / "Biological"): "link",
        str(folder / "Fibres" / "link.png"): "link",
        str(whole): "row",
        str(folder / "Powder" / "grain.png"): "row",
    }


def test_a_file_that_became_a_link_gives_its_row_to_the_original(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    early = save(folder / "Fibres" / "a.png")
    build(FolderSource(folder), out)
    (folder / "Nanowires").mkdir()
    early.replace(folder / "Nanowires" / "a.png")
    early.symlink_to(folder / "Nanowires" / "a.png")
    assert build(FolderSource(folder), out).rows == 1
    assert load(out)["category"][:] == ["Nanowires"]


def test_links_out_of_the_folder_and_to_hidden_files_are_followed(tmp_path):
    """As git-annex and shared drives have them: the link is the only way to the file."""
    folder = tmp_path / "in"
    store = save(folder / ".store" / "0f3a.png")
    (folder / "Tips").mkdir()
    (folder / "Tips" / "tip.png").symlink_to(store)
    save(tmp_path / "elsewhere" / "b.png", 1)
    (folder / "Powder").symlink_to(tmp_path / "elsewhere")
    (folder / "more").symlink_to(tmp_path / "elsewhere")  # the same folder once more
    report = build(FolderSource(folder), tmp_path / "out")
    assert sorted(load(tmp_path / "out")["category"]) == ["Powder", "Tips"]
    assert report.links == 1


def test_hard_links_are_of_equal_rank(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    one = save(folder / "Fibres" / "a.png")
    for name in ("Nanowires", "selected"):
        (folder / name).mkdir()
        os.link(one, folder / name / "a.png")
    report = build(FolderSource(folder), out)
    assert load(out)["category"][:] == [None]
    assert report.contradictions == {"category": 1} and "1 rows have no category" in str(report)
    one.unlink()
    report = build(FolderSource(folder), out)
    assert load(out)["category"][:] == ["Nanowires"]  # `selected` is none, and says nothing
    assert not report.contradictions


def test_a_link_from_a_table_is_what_the_table_says_it_is(tmp_path):
    save(tmp_path / "Fibres" / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "Fibres" / "a.png")
    (tmp_path / "list.csv").write_text("path,category\nlink.png,Tips\n")
    build(TableSource(tmp_path / "list.csv"), tmp_path / "out")
    assert load(tmp_path / "out")["category"][:] == ["Tips"]


def test_a_table_states_settings_in_the_types_of_the_schema(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", 1)
    names = "path,technique,accelerating_voltage_kv,working_distance_mm,detector"
    (tmp_path / "list.csv").write_text(f"{names}\na.png,SEM,15,4.2,SE2\nb.png,TEM,high,,\n")
    report = build(TableSource(tmp_path / "list.csv"), tmp_path / "out")
    (row,) = load(tmp_path / "out")
    assert [row[name] for name in names.split(",")[1:]] == ["SEM", 15.0, 4.2, "SE2"]
    assert report.failed == {"bad-value": 1}


@pytest.mark.parametrize(
    ("image", "sidecar"),
    [("a.tif", "a.txt"), ("a.tif", "a-tif.hdr"), ("a.png", "a.HDR"), ("a.tif.gz", "a.txt")],
)
def test_a_new_or_changed_sidecar_is_a_new_version(tmp_path, image, sidecar):
    save(tmp_path / "in" / "a.tif").rename(tmp_path / "in" / image)

    def version() -> str:
        (entry,) = FolderSource(tmp_path / "in", Labelling())
        return entry.version

    versions = [version()]
    (tmp_path / "in" / sidecar).write_text("[MAIN]")
    versions.append(version())
    (tmp_path / "in" / sidecar).write_text("[MAIN] and more")
    versions.append(version())
    assert len(set(versions)) == 3
