"""Calibration and settings from vendors' TIFF tags and sidecar files."""

import numpy as np
import pytest
import tifffile
from support.microscope_files import (
    FEI_INI,
    TESCAN_HDR,
    ZEISS_IMAGE_PIXEL,
    ZEISS_TEXT,
    text_tag,
    write_olympus,
)

from mvaema.micrographs.microscope import Micrograph, UnreadableMicrograph, read_micrograph

RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> np.ndarray:
    return RNG.integers(60, 200, (height, width), dtype=np.uint8)


@pytest.fixture
def read(tmp_path):
    """Writes pixels as TIFF with the given tags, and reads them."""

    def read(pixels, *tags, **options) -> Micrograph:
        tifffile.imwrite(tmp_path / "image.tif", pixels, extratags=tags, **options)
        return read_micrograph(tmp_path / "image.tif")

    return read


@pytest.mark.parametrize("code", [34680, 34682])
def test_fei(read, code):
    micrograph = read(noise(64, 60), text_tag(code, FEI_INI.format(width=64, height=48)))
    assert micrograph.pixel_size_nm == pytest.approx(100)
    assert micrograph.info_bar == (0, 48, 64, 60)  # 60 rows are stored, 48 were scanned
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 5.0,
        "working_distance_mm": 4.03,
        "magnification": 20_000.0,
        "detector": "ETD",
    }


def test_fei_without_a_calibration(read):
    resized = read(noise(32, 24), text_tag(34682, FEI_INI.format(width=64, height=48)))
    assert resized.pixel_size_nm is None and resized.info_bar is None
    ion = FEI_INI.format(width=64, height=48).replace("Beam=EBeam", "Beam=IBeam")
    assert read(noise(64, 48), text_tag(34682, ion)).instrument["technique"] == "FIB"
    camera = "[Beam]\r\nBeam=IRBeam\r\n[IRBeam]\r\nHFW=0.2\r\n[Image]\r\nResolutionX=64\r\n"
    assert read(noise(64, 48), text_tag(34682, camera)).pixel_size_nm is None


def test_zeiss(read):
    micrograph = read(noise(2048, 24), text_tag(34118, ZEISS_TEXT + ZEISS_IMAGE_PIXEL))
    assert micrograph.pixel_size_nm == pytest.approx(9.766)  # of the stored image, not of the scan
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 5.0,
        "working_distance_mm": 4.6,
        "magnification": 5720.0,
        "detector": "SE2",
    }


def test_zeiss_with_the_scan_pixel_only(read):
    for width in (512, 1024, 2048):
        micrograph = read(noise(width, 24), text_tag(34118, ZEISS_TEXT))
        assert micrograph.pixel_size_nm * width == pytest.approx(19.53 * 1024)  # one field of view


def test_zeiss_resized(read):
    stored = "DP_IMAGE_STORE\r\nStore resolution = 2048 * 1536\r\n"
    tag = text_tag(34118, ZEISS_TEXT + ZEISS_IMAGE_PIXEL + stored)
    assert read(noise(1024, 24), tag).pixel_size_nm is None


@pytest.mark.parametrize("unit", ["nm", "µm", "Å"])
def test_gatan(read, unit):
    tags = [(code, 2, len(unit.encode()), unit.encode(), True) for code in (65003, 65004)]
    scales = [(code, "d", 1, 0.25, True) for code in (65009, 65010)]
    nanometres = {"nm": 1, "µm": 1000, "Å": 0.1}[unit]
    micrograph = read(noise(64, 48), *tags, *scales)
    assert micrograph.pixel_size_nm == pytest.approx(0.25 * nanometres)


def test_gatans_first_axis_is_x(read):
    """The scale of x is in the lower tag, that of y in the higher one."""
    tags = [(code, 2, 3, "nm", True) for code in (65003, 65004)]
    scales = [(65009, "d", 1, 0.25, True), (65010, "d", 1, 2.5, True)]
    micrograph = read(noise(64, 48), *tags, *scales)
    assert micrograph.pixel_size_nm == pytest.approx(0.25)
    assert micrograph.image.size == (64, 480)


@pytest.mark.parametrize("unit", [None, "", "-", "0"])
def test_gatan_without_a_unit_is_not_calibrated(read, unit):
    tags = [(code, "d", 1, 1.0, True) for code in (65009, 65010)]
    if unit is not None:
        tags += [(code, "s", 0, unit, True) for code in (65003, 65004)]
    micrograph = read(noise(64, 48), *tags, resolution=(72, 72), resolutionunit="INCH")
    assert micrograph.pixel_size_nm is None


def test_gatan_diffraction(read):
    tags = [(code, "d", 1, 0.1, True) for code in (65009, 65010)]
    tags += [(code, "s", 0, "1/nm", True) for code in (65003, 65004)]
    with pytest.raises(UnreadableMicrograph, match="diffraction") as error:
        read(noise(64, 48), *tags)
    assert error.value.reason == "diffraction"


def test_olympus(tmp_path):
    write_olympus(tmp_path / "a.tif", noise(64, 48), 5.96e-9, 6500.0)
    micrograph = read_micrograph(tmp_path / "a.tif")
    assert micrograph.pixel_size_nm == pytest.approx(5.96)
    assert micrograph.instrument == {"magnification": 6500.0, "detector": "Quemesa"}


def test_tescan_tag(read):
    text = "\0\x01binary" + TESCAN_HDR.format(strip=12)
    micrograph = read(noise(64, 60), text_tag(50431, text))
    assert micrograph.pixel_size_nm == pytest.approx(50)
    assert micrograph.info_bar == (0, 48, 64, 60)
    assert micrograph.instrument == {
        "technique": "SEM",
        "accelerating_voltage_kv": 20.0,
        "working_distance_mm": 9.5,
        "magnification": 1000.0,
        "detector": "SE",
    }


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("nm", 0.5), ("um", 500), ("micron", 500), ("\\u00B5m", 500), ("inch", None), ("pixel", None)],
)
def test_imagej(read, unit, expected):
    metadata = {"unit": unit}
    micrograph = read(noise(64, 48), imagej=True, resolution=(2, 2), metadata=metadata)
    assert micrograph.pixel_size_nm == (expected and pytest.approx(expected))


def test_imagej_may_state_another_unit_for_y(read):
    description = "ImageJ=1.54f\nunit=nm\nyunit=\\u00B5m\n"
    # 2 nm per pixel along x, 1/500 µm along y.
    options = {"description": description, "resolution": (0.5, 500), "metadata": None}
    micrograph = read(noise(64, 48), **options)
    assert micrograph.pixel_size_nm == pytest.approx(2)
    assert micrograph.image.size == (64, 48)


@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_print_resolution_is_no_calibration(read, unit):
    micrograph = read(noise(64, 48), resolution=(300, 300), resolutionunit=unit)
    assert micrograph.pixel_size_nm is None


def test_damaged_tags_cost_the_calibration_not_the_image(read, caplog):
    pixels = noise(64, 48)
    micrograph = read(pixels, metadata=None, description="<TemReporter><unclosed")
    assert np.array_equal(np.asarray(micrograph.image), pixels)
    assert micrograph.pixel_size_nm is None
    assert "tags not understood" in caplog.text


@pytest.mark.parametrize("value", ["0", "nan", "inf", "1e999", "", "unknown"])
def test_nonsense_is_no_calibration(read, value):
    text = FEI_INI.format(width=64, height=48).replace("=1e-07", f"={value}")
    assert read(noise(64, 48), text_tag(34682, text)).pixel_size_nm is None


def test_names_of_people_and_lots_are_not_read(read):
    for micrograph in (
        read(noise(64, 48), text_tag(34682, FEI_INI.format(width=64, height=48))),
        read(noise(64, 48), text_tag(34118, ZEISS_TEXT)),
    ):
        assert "secret" not in str(micrograph.instrument)
