"""What a build keeps of one file, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from support.microscope_files import FEI_INI, text_tag

from mvaema.micrographs.reading import ReadMicrograph, ReadOptions, read_entry


def read(path: Path, **options):
    return read_entry(path, path.suffix, None, ReadOptions(**options))


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_an_image_of_one_grey_level_shows_nothing(tmp_path, level, name):
    Image.new("L", (40, 30), level).save(tmp_path / name)
    reason, message = read(tmp_path / name)
    assert reason == "blank" and "leave it out" in message


def test_a_black_frame_is_blank_under_its_info_bar_too(tmp_path):
    pixels = np.zeros((60, 64), np.uint8)
    pixels[48:, ::3] = 255
    tag = text_tag(34682, FEI_INI.format(width=64, height=48))
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[tag])
    for crop in (True, False):
        assert read(tmp_path / "a.tif", crop_info_bar=crop)[0] == "blank"
    pixels[20, 20] = 9  # one particle
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[tag])
    assert isinstance(read(tmp_path / "a.tif"), ReadMicrograph)


def test_nearly_constant_images_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(7, 10, (30, 40), dtype=np.uint8)).save(tmp_path / "noise.png")
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "red.png")
    dark = Image.new("RGB", (40, 30), (200, 0, 0))
    ImageDraw.Draw(dark).line((0, 0, 39, 29), (200, 0, 40))
    dark.save(tmp_path / "line.png")
    assert read(tmp_path / "noise.png")[0] == read(tmp_path / "red.png")[0] == "blank"
    assert isinstance(read(tmp_path / "line.png"), ReadMicrograph)


def test_settings_and_the_info_bar_are_kept_and_nothing_else(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 200, (60, 64), dtype=np.uint8)
    tag = text_tag(34682, FEI_INI.format(width=64, height=48))
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[tag])
    expected = {
        "pixel_size_nm": 100.0,
        "pixel_size_source": "recorded",
        "technique": "SEM",
        "accelerating_voltage_kv": 5.0,
        "working_distance_mm": 4.03,
        "detector": "ETD",
    }
    assert read(tmp_path / "a.tif").facts == pytest.approx(expected | {"info_bar": "left"})
    cut = read(tmp_path / "a.tif", crop_info_bar=True)
    assert cut.facts == pytest.approx(expected | {"info_bar": "cut"})
