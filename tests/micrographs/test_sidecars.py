"""A sidecar calibrates the image that it belongs to, and no other."""

import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.microscope_files import HITACHI_TXT, JEOL_TXT, TESCAN_HDR

from mvaema.micrographs.microscope import read_micrograph

# TESCAN states no width, but a field of view: 0.32 m / 40,000 = 8 µm, of 160 pixels.
TESCAN = TESCAN_HDR.replace("Magnification=1000", "Magnification=40000") + (
    "MagnificationReference=0.32\r\n"
)
STRIP = 24


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(60, 200, (height, width), dtype=np.uint8))


def with_strip(image: Image.Image, level: int) -> Image.Image:
    """The image above a flat strip with print on it."""
    whole = Image.new("L", (image.width, image.height + STRIP), level)
    whole.paste(image)
    ink = 255 if level < 128 else 0
    ImageDraw.Draw(whole).text((8, image.height + 8), "HV: 20 kV  WD 9 mm", fill=ink)
    return whole


def test_a_copy_without_the_strip_loses_no_picture_and_a_smaller_one_has_no_scale(tmp_path, caplog):
    """`shot.hdr` is that of a TIFF; beside it are exported copies."""
    (tmp_path / "shot.hdr").write_text(TESCAN.format(strip=STRIP))
    picture(160, 120).save(tmp_path / "shot.png")
    picture(80, 60).save(tmp_path / "shot.jpg")
    full, half = (read_micrograph(tmp_path / name) for name in ("shot.png", "shot.jpg"))
    assert full.pixel_size_nm == pytest.approx(50) and full.info_bar is None
    assert half.pixel_size_nm is None and half.info_bar is None
    assert half.instrument["detector"] == "SE"  # this is true of the copy too
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "shot.jpg" in record.getMessage() and "160 pixels wide" in record.getMessage()


@pytest.mark.parametrize("level", [0, 90, 255])
@pytest.mark.parametrize("name", ["shot.tif", "shot.png"])
def test_a_strip_that_is_there_is_found(tmp_path, level, name):
    """Of any grey level: the sidecar says where it begins."""
    (tmp_path / "shot.hdr").write_text(TESCAN.format(strip=STRIP))
    with_strip(picture(160, 120), level).save(tmp_path / name)
    assert read_micrograph(tmp_path / name).info_bar == (0, 120, 160, 120 + STRIP)


@pytest.mark.parametrize("name", ["image.tif", "image.png"])
def test_a_cropped_file_beside_its_old_sidecar_is_not_cut_again(tmp_path, name):
    (tmp_path / "image-png.hdr").write_text(TESCAN.format(strip=STRIP))
    (tmp_path / "image.hdr").write_text(TESCAN.format(strip=STRIP))
    picture(160, 120).save(tmp_path / name)
    assert read_micrograph(tmp_path / name).info_bar is None


@pytest.mark.parametrize(
    ("image", "sidecar", "text", "nanometres"),
    [
        ("a.tif", "a.hdr", TESCAN_HDR.format(strip=0), 50),
        ("a.png", "a-png.hdr", TESCAN_HDR.format(strip=0), 50),
        ("a.png", "a.hdr", TESCAN_HDR.format(strip=0), None),
        ("a.tif", "a.txt", JEOL_TXT.replace("$CM_FULL_SIZE 1280 960", ""), 100_000 / 101),
        ("a.jpg", "a.txt", JEOL_TXT.replace("$CM_FULL_SIZE 1280 960", ""), None),
        ("a.bmp", "a.txt", HITACHI_TXT.replace("DataSize=1280x960", ""), None),
    ],
)
def test_a_sidecar_without_a_size_counts_only_where_it_must_belong(
    tmp_path, image, sidecar, text, nanometres
):
    (tmp_path / sidecar).write_text(text)
    picture(64, 48).save(tmp_path / image)
    assert read_micrograph(tmp_path / image).pixel_size_nm == pytest.approx(nanometres)


def test_the_sidecar_that_was_read_is_named(tmp_path):
    (tmp_path / "a.hdr").write_text(TESCAN_HDR.format(strip=0))
    (tmp_path / "b.txt").write_text("Dear colleague,\n")
    for name in ("a.tif", "b.tif"):
        picture(64, 48).save(tmp_path / name)
    assert read_micrograph(tmp_path / "a.tif").sidecar == str(tmp_path / "a.hdr")
    assert read_micrograph(tmp_path / "b.tif").sidecar is None
