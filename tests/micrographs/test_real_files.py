"""Real files, where they are at hand: what their metadata state, and what was once misread."""

import importlib.util
import os
import zipfile
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from support import ROOT
from support.pictures import by_hand
from support.reading import pixels

from mvaema.micrographs.microscope import read_micrograph
from pixels_mvaema import to_8bit

SHARED = os.environ.get("MVAEMA_SHARED")
pytestmark = pytest.mark.skipif(not SHARED, reason="MVAEMA_SHARED is not set")
FAILING = Path(SHARED or ".", "failing")


@pytest.mark.slow
def test_every_native_file_yields_what_its_metadata_states():
    script = ROOT / "benchmarks/native_files.py"
    spec = importlib.util.spec_from_file_location("native_files", script)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    paths = [path for path in Path(SHARED, "native").iterdir() if path.name != "README.md"]
    assert {path.name for path in paths} == set(native.EXPECTED)
    for path in paths:
        expected = native.EXPECTED[path.name][1]
        assert native.agrees(native.found(path), expected), path.name


@pytest.mark.parametrize(
    "name",
    [
        "olympus_sis_tem_myelin.tif",
        "gatan_tiff_dm_export.tif",
        "rsciio_fei_FEI-Helios-Ebeam-16bits.tif",
    ],
)
def test_the_processor_shows_real_deep_files_as_the_reader_does(name):
    path = Path(SHARED, "native", name)
    assert np.array_equal(np.asarray(to_8bit(path)), pixels(path))


# --- Files that were misread


@pytest.mark.parametrize(
    ("name", "size", "nanometres"),
    [
        ("20241021_00405_final.mrc", (8, 4), None),
        ("test_loading_image_saved_with_DM_stack.tif", (68, 680), 168.674),
        ("ilastik3091_yunit.tif", (128, 96), 2.0),
        ("ijunit_nanometers.tif", (128, 96), 0.25),
        ("ijunit_Aesc.tif", (128, 96), 0.025),
        ("mrc_int8.mrc", (128, 96), 0.25),
        ("minisblack-1c-i8b.tiff", (157, 151), None),
        ("rgb48_12bit.png", (128, 96), None),
        ("sidecar/shot.png", (1280, 1280), 1.5625),
        ("sidecar/shot.jpg", (640, 640), None),
    ],
)
def test_size_and_calibration(name, size, nanometres):
    micrograph = read_micrograph(FAILING / name)
    assert micrograph.image.size == size
    assert micrograph.pixel_size_nm == (nanometres and pytest.approx(nanometres, rel=1e-4))
    assert micrograph.info_bar is None


def test_signed_bytes():
    path = FAILING / "minisblack-1c-i8b.tiff"
    stored = tifffile.imread(path)
    assert stored.dtype == np.int8
    assert np.abs(pixels(path) - by_hand(stored)).max() <= 1
    assert np.array_equal(np.asarray(to_8bit(path)), pixels(path))
    path = FAILING / "mrc_int8.mrc"
    stored = np.frombuffer(path.read_bytes()[1024:], np.int8).reshape(96, 128)
    assert np.abs(pixels(path) - by_hand(stored)).max() <= 1


def test_colours_of_twelve_bits_in_sixteen():
    path = FAILING / "rgb48_12bit.png"
    stored = imagecodecs.imread(str(path))
    assert stored.dtype == np.uint16 and stored.max() < 4096
    shown = np.asarray(to_8bit(path))
    assert np.abs(shown - by_hand(stored)).max() <= 1
    assert np.array_equal(shown, np.dstack([pixels(path)] * 3))  # its three colours are one grey


def test_velox_image_among_maps_of_elements(tmp_path):
    with zipfile.ZipFile(FAILING / "velox_emd_version11.zip") as archive:
        archive.extractall(tmp_path)
    for path in tmp_path.glob("*.emd"):
        with h5py.File(path) as file:
            images = [group["Data"][..., 0] for group in file["Data/Image"].values()]
        (stored,) = (image for image in images if image.dtype == np.uint16)  # maps are floats
        micrograph = read_micrograph(path)
        assert micrograph.instrument["detector"] == "HAADF"
        assert np.abs(np.asarray(micrograph.image) - by_hand(stored)).max() <= 1


def test_a_grey_bar_is_cut():
    micrograph = read_micrograph(FAILING / "TESTE11.bmp")
    with Image.open(FAILING / "TESTE11.bmp") as image:
        rows = np.asarray(image.convert("L"))
    edge = int(np.flatnonzero((rows == 0).all(1))[0])  # the black frame of the bar
    assert micrograph.info_bar == (0, edge, 1376, 1096)
    assert micrograph.crop_info_bar().image.size == (1376, edge)
