"""A sidecar calibrates the image that it belongs to, and no other."""

import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.microscope_files import HITACHI_TXT, JEOL_TXT, TESCAN_HDR

from mvaema.micrographs.microscope import Micrograph, read_micrograph

# TESCAN states no width, but a field of view: 0.32 m / 40,000 = 8 µm, of 160 pixels.
TESCAN = TESCAN_HDR.replace("Magnification=1000", "Magnification=40000") + (
    "MagnificationReference=0.32\r\n"
)
STRIP = 24


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(60, 200, (height, width), dtype=np.uint8))


@pytest.fixture
def read(tmp_path):
    """Writes an image of noise beside the given text files, and reads it."""

    def read(width, height, name="image.tif", sidecars=()) -> Micrograph:
        for sidecar, text in dict(sidecars).items():
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / sidecar).write_bytes(data)
        picture(width, height).save(tmp_path / name)
        return read_micrograph(tmp_path / name)

    return read


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


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        ("image.tif", "image-tif.hdr"),
        ("image.png", "image-png.hdr"),
        ("image.tif", "image.hdr"),
        ("image.tif", "image.HDR"),
        ("image.tif", "image.Hdr"),
    ],
)
def test_tescan_sidecar(read, name, sidecar):
    text = TESCAN_HDR.format(strip=0)
    micrograph = read(64, 48, name=name, sidecars={sidecar: text})
    assert micrograph.pixel_size_nm == pytest.approx(50)
    assert micrograph.info_bar is None


@pytest.mark.parametrize("name", ["image.tif", "image.jpg", "image.bmp"])
def test_jeol_sidecar(read, name):
    micrograph = read(1280, 1024, name=name, sidecars={"image.txt": JEOL_TXT})
    assert micrograph.pixel_size_nm == pytest.approx(100_000 / 101)
    assert micrograph.info_bar == (0, 960, 1280, 1024)  # beyond $CM_FULL_SIZE
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 7.0,
        "working_distance_mm": 10.52,
        "magnification": 95.0,
        "detector": "SEI",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_hitachi_sidecar(read, encoding):
    sidecars = {"image.txt": HITACHI_TXT.encode(encoding)}
    micrograph = read(1280, 960, sidecars=sidecars)
    assert micrograph.pixel_size_nm == pytest.approx(24.8)
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 10.0,
        "working_distance_mm": 11.2,
        "magnification": 4000.0,
        "detector": "SE(UL)",
    }


@pytest.mark.parametrize("text", [JEOL_TXT, HITACHI_TXT], ids=["JEOL", "Hitachi"])
def test_a_resized_image_is_not_calibrated_by_its_old_sidecar(read, text):
    micrograph = read(640, 480, sidecars={"image.txt": text})
    assert micrograph.pixel_size_nm is None
    assert micrograph.instrument["technique"] == "SEM"


def test_other_text_files_are_no_sidecars(read):
    micrograph = read(64, 48, sidecars={"image.txt": "notes", "image.hdr": "PixelSize=3"})
    assert micrograph.pixel_size_nm is None and micrograph.instrument == {}


def test_names_of_lots_are_not_read(read):
    micrograph = read(1280, 960, sidecars={"image.txt": HITACHI_TXT})
    assert "secret" not in str(micrograph.instrument)
