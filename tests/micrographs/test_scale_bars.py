"""A build that reads pixel sizes off scale bars: what is read, kept and reported."""

import numpy as np
import pytest
from PIL import Image

from mvaema.micrographs.build import build
from mvaema.micrographs.dataset import load_micrographs
from mvaema.micrographs.reading import ReadOptions, read_entry
from mvaema.micrographs.rows import FileColumns, merge
from mvaema.micrographs.sources import FolderSource, TableSource


def reads_four(image):
    """A reader that knows the size of the whole image."""
    assert image.size == (96, 64)
    return 4.0


def reads_nothing(image):
    return None


@pytest.fixture
def file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96)).astype(np.uint8)
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def test_the_bar_is_read_at_full_size_and_marked(file):
    options = ReadOptions(max_side=48, read_scale_bar=reads_four)
    read = read_entry(file, ".png", None, options)
    assert (read.pixel_size_nm, read.pixel_size_source) == (8.0, "read")
    assert read.scale_bar_check is None


@pytest.mark.parametrize(("typed", "check"), [(4.1, "agrees"), (9.0, "contradicts")])
def test_a_stated_size_is_kept_and_checked(file, typed, check):
    read = read_entry(file, ".png", typed, ReadOptions(read_scale_bar=reads_four))
    assert (read.pixel_size_nm, read.pixel_size_source) == (typed, "typed")
    assert read.scale_bar_check == check


def test_an_unread_bar_leaves_the_size_unknown(file):
    read = read_entry(file, ".png", None, ReadOptions(read_scale_bar=reads_nothing))
    assert read.pixel_size_nm is None and read.pixel_size_source is None


def test_a_build_marks_counts_and_reads_again_when_asked(file, tmp_path):
    source = FolderSource(file.parent)
    out = tmp_path / "out"
    assert build(source, out).with_pixel_size == 0
    report = build(FolderSource(file.parent), out, options=ReadOptions(read_scale_bar=reads_four))
    assert report.read == 1 and report.scales_read == 1 and "1 pixel sizes were read" in str(report)
    row = load_micrographs(out)[0]
    assert (row["pixel_size_nm"], row["pixel_size_source"]) == (4.0, "read")


def test_a_contradiction_is_reported(file, tmp_path):
    table = tmp_path / "files" / "table.csv"
    table.write_text("path,pixel_size_nm\na.png,9\n")
    options = ReadOptions(read_scale_bar=reads_four)
    report = build(TableSource(table), tmp_path / "out", options=options)
    assert report.scales_contrary == 1 and "contradict the recorded" in str(report)
    row = load_micrographs(tmp_path / "out")[0]
    assert (row["pixel_size_nm"], row["pixel_size_source"]) == (9.0, "typed")


def test_what_is_stated_comes_before_what_is_read():
    read = FileColumns({"pixel_size_nm": 4.1, "pixel_size_source": "read"})
    recorded = FileColumns({"pixel_size_nm": 4.0, "pixel_size_source": "recorded"})
    for files in ([read, recorded], [recorded, read]):
        row, contradictions = merge("a", files)
        assert (row["pixel_size_nm"], row["pixel_size_source"]) == (4.0, "recorded")
        assert not contradictions
    assert merge("a", [read])[0]["pixel_size_source"] == "read"
