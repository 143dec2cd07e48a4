"""The microscopes' own formats."""

import numpy as np
import pytest
from support.microscope_files import (
    write_dm3,
    write_emd_ncem,
    write_emd_velox,
    write_mrc,
    write_ser,
)
from support.pictures import by_hand
from support.reading import pixels, reason

from mvaema.micrographs.microscope import read_micrograph

RNG = np.random.default_rng(0)
DEEP = RNG.integers(1000, 3000, (48, 64), dtype=np.uint16)
GREY = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
RGB = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
NM = [(2.0, "nm"), (2.0, "nm")]


@pytest.mark.parametrize(
    ("name", "write", "pixel_nm"),
    [
        ("a.dm3", lambda path: write_dm3(path, DEEP, NM), 2.0),
        ("a.dm3", lambda path: write_dm3(path, DEEP, [(0.5, "µm"), (0.5, "µm")]), 500.0),
        ("a.dm3", lambda path: write_dm3(path, DEEP, [(1.0, ""), (1.0, "")]), None),
        ("a.mrc", lambda path: write_mrc(path, DEEP, (128.0, 96.0)), 0.2),
        ("a.mrc", lambda path: write_mrc(path, DEEP, (64.0, 48.0)), None),  # 1 Å: not set
        ("a.mrc", lambda path: write_mrc(path, DEEP, (0.0, 0.0)), None),
        ("a.ser", lambda path: write_ser(path, DEEP, 3e-10), 0.3),
        ("a.emd", lambda path: write_emd_ncem(path, DEEP, 0.5, "n_m"), 0.5),
        ("a.emd", lambda path: write_emd_velox(path, {"HAADF": (DEEP, 2e-10)}), 0.2),
    ],
)
def test_native_formats(tmp_path, name, write, pixel_nm):
    write(tmp_path / name)
    micrograph = read_micrograph(tmp_path / name)
    assert np.abs(np.asarray(micrograph.image) - by_hand(DEEP)).max() <= 1
    assert micrograph.pixel_size_nm == (pixel_nm and pytest.approx(pixel_nm))
    assert not {"secret operator", "secret name"} & set(micrograph.instrument.values())


def test_native_settings(tmp_path):
    write_dm3(tmp_path / "a.dm3", DEEP, NM, voltage=80_000.0)
    assert read_micrograph(tmp_path / "a.dm3").instrument == {
        "technique": "STEM",
        "accelerating_voltage_kv": 80.0,
        "magnification": 40_000.0,
    }
    write_emd_velox(tmp_path / "a.emd", {"HAADF": (DEEP, 2e-10)})
    assert read_micrograph(tmp_path / "a.emd").instrument == {
        "accelerating_voltage_kv": 200.0,
        "magnification": 320_000.0,
        "detector": "HAADF",
    }


def test_the_largest_of_several_images_is_read(tmp_path):
    write_emd_velox(tmp_path / "a.emd", {"BF": (DEEP[:16, :16], 1e-9), "HAADF": (DEEP, 2e-10)})
    assert read_micrograph(tmp_path / "a.emd").image.size == (64, 48)


def test_dm3_in_colour(tmp_path):
    bgra = np.dstack([RGB[..., ::-1], np.zeros_like(GREY)])
    write_dm3(tmp_path / "a.dm3", np.ascontiguousarray(bgra).view(np.uint32)[..., 0], NM)
    assert np.array_equal(pixels(tmp_path / "a.dm3"), RGB)


@pytest.mark.parametrize(
    ("slug", "write"),
    [
        ("spectrum", lambda path: write_dm3(path, DEEP[:1], [(0.1, "eV"), (1.0, "")])),
        ("spectrum", lambda path: write_dm3(path, np.stack([DEEP] * 3), [*NM, (0.1, "eV")])),
        ("diffraction", lambda path: write_dm3(path, DEEP, [(2.0, "1/nm"), (2.0, "1/nm")])),
    ],
)
def test_what_is_no_image_of_a_specimen_is_refused_by_name(tmp_path, slug, write):
    write(tmp_path / "a.dm3")
    assert reason(tmp_path / "a.dm3") == slug


def test_a_ser_diffraction_pattern_is_refused_although_it_names_no_unit(tmp_path):
    write_ser(tmp_path / "a.ser", DEEP, 2e7)  # 1/m
    assert reason(tmp_path / "a.ser") == "diffraction"


def test_a_velox_spectrum_is_refused_by_name(tmp_path):
    write_emd_velox(tmp_path / "a.emd", {})
    assert reason(tmp_path / "a.emd") == "spectrum"


def test_the_first_slice_of_a_stack_is_read(tmp_path):
    stack = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
    write_mrc(tmp_path / "a.mrc", stack, (128.0, 96.0))
    write_dm3(tmp_path / "a.dm3", stack, [*NM, (0.5, "s")])
    for path in tmp_path.iterdir():
        assert np.abs(pixels(path) - by_hand(DEEP)).max() <= 1


@pytest.mark.parametrize("order", [("SuperXG2", "HAADF"), ("HAADF", "SuperXG2")])
def test_a_map_of_x_ray_counts_is_not_taken_for_the_micrograph(tmp_path, order):
    """Maps of elements have the size of the image, and may come first."""
    sparse = RNG.poisson(0.1, (48, 64)).astype(np.float32)
    images = {"SuperXG2": (sparse, 2e-10), "HAADF": (DEEP, 2e-10)}
    write_emd_velox(tmp_path / "a.emd", {name: images[name] for name in order}, ("SuperXG2",))
    micrograph = read_micrograph(tmp_path / "a.emd")
    assert micrograph.instrument["detector"] == "HAADF"
    assert np.abs(np.asarray(micrograph.image) - by_hand(DEEP)).max() <= 1
    write_emd_velox(tmp_path / "b.emd", {"SuperXG2": images["SuperXG2"]}, ("SuperXG2",))
    assert reason(tmp_path / "b.emd") == "spectrum"


@pytest.mark.parametrize(
    ("cell", "pixel_nm"),
    [
        ((128.0, 96.0), 0.2),
        ((64.0, 48.0), None),  # 1 Å per pixel
        ((1.0, 1.0), None),
        ((0.0, 0.0), None),
        ((-80.0, -60.0), None),
        ((float("nan"), float("nan")), None),
    ],
)
def test_an_mrc_cell_that_a_program_only_filled_in_is_no_calibration(tmp_path, cell, pixel_nm):
    write_mrc(tmp_path / "a.mrc", DEEP, cell)
    assert read_micrograph(tmp_path / "a.mrc").pixel_size_nm == (pixel_nm and pytest.approx(0.2))


@pytest.mark.parametrize(
    ("flags", "signed"), [(None, True), (1, True), (0, False)], ids=["MRC2014", "IMOD", "old IMOD"]
)
def test_bytes_in_mrc_have_a_sign_except_in_old_imods(tmp_path, flags, signed):
    levels = np.arange(-120, 120, dtype=np.int8).repeat(16).reshape(60, 64)
    write_mrc(tmp_path / "a.mrc", levels, (128.0, 120.0), imod_flags=flags)
    expected = by_hand(levels) if signed else levels.view(np.uint8)
    assert np.abs(pixels(tmp_path / "a.mrc") - expected).max() <= 1


@pytest.mark.parametrize(
    ("unit", "reciprocal"), [("n_m", "n_m^-1"), ("[n_m]", "[n_m^-1]"), ("nm", "1/nm")]
)
def test_units_as_ncempy_writes_them(tmp_path, unit, reciprocal):
    write_emd_ncem(tmp_path / "a.emd", DEEP, 0.5, unit)
    assert read_micrograph(tmp_path / "a.emd").pixel_size_nm == pytest.approx(0.5)
    write_emd_ncem(tmp_path / "b.emd", DEEP, 0.5, reciprocal)
    assert reason(tmp_path / "b.emd") == "diffraction"
