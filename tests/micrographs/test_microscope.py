"""Reading micrographs: pixels, choices, and what is refused."""

import gzip
import os
import pickle
import struct
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from support.microscope_files import (
    write_dm3,
    write_emd_ncem,
    write_emd_velox,
    write_mrc,
    write_ser,
)
from support.pictures import by_hand
from support.reading import pixels, reason

from mvaema.micrographs.microscope import (
    SUFFIXES,
    Micrograph,
    UnreadableMicrograph,
    read_micrograph,
)
from pixels_mvaema import to_8bit

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
RGB = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
DEEP = RNG.integers(1000, 3000, (48, 64), dtype=np.uint16)
NM = [(2.0, "nm"), (2.0, "nm")]


# --- Pixels of the formats that Pillow decodes


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".webp"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["L", "RGB"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix, array):
    path = tmp_path / f"µ graph 试样{suffix}"
    Image.fromarray(array).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image = read_micrograph(path).image
    assert image.mode == ("L" if array.ndim == 2 else "RGB")
    assert np.array_equal(np.asarray(image), array)


def test_metadata_does_not_survive(tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "operator"
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, comment=b"lot 17", dpi=(300, 300))
    micrograph = read_micrograph(tmp_path / "a.jpg")
    assert micrograph.image.info == {} and not micrograph.image.getexif()
    assert micrograph.pixel_size_nm is None  # a print resolution is no calibration
    assert micrograph.instrument == {}


def test_a_viewers_orientation_is_applied(tmp_path):
    for name in ("a.png", "a.tif"):
        Image.fromarray(GREY).save(tmp_path / name, exif=turned_exif())
        assert np.array_equal(pixels(tmp_path / name), np.rot90(GREY, -1))


def test_grey_is_l_however_it_is_stored(tmp_path):
    palette = Image.fromarray(GREY).convert("P")
    palette.putpalette([value for level in range(256) for value in (level,) * 3])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)])).save(tmp_path / "rgba.png")
    for path in tmp_path.iterdir():
        assert read_micrograph(path).image.mode == "L"
        assert np.array_equal(pixels(path), GREY)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = 10, 20, 30, 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    result = pixels(tmp_path / "a.png")
    assert result[0, 0].tolist() == [10, 20, 30] and (result[1:] == 255).all()


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(GREY > 128).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.where(GREY > 128, 255, 0))


# --- More than 8 bits


@pytest.mark.parametrize(
    "dtype", ["uint16", "int16", "uint32", "int32", "float16", "float32", "float64", ">u2", ">f4"]
)
def test_deep_tiffs_are_stretched_not_clipped(tmp_path, dtype):
    array = DEEP.astype(dtype)
    if array.dtype.kind in "if":
        array = array - array.dtype.type(2000)
    if array.dtype == np.uint32:
        array = array * np.uint32(1_000_000)  # beyond what a signed integer holds
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=">" if dtype[0] == ">" else "<")
    assert np.abs(pixels(tmp_path / "a.tif") - by_hand(array.astype(float))).max() <= 1


def test_deep_png(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    assert np.abs(pixels(tmp_path / "a.png") - by_hand(DEEP)).max() <= 1


def test_deep_colour_png(tmp_path):
    """All its bits; and where one colour is transparent, which Pillow drops, a refusal."""
    deep = RGB.astype(np.uint16) * 8
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    assert np.abs(pixels(tmp_path / "a.png") - by_hand(deep)).max() <= 1
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT") - 4
    transparent = png_chunk(b"tRNS", struct.pack(">HHH", 8, 16, 24))
    (tmp_path / "b.png").write_bytes(data[:start] + transparent + data[start:])
    assert reason(tmp_path / "b.png") == "unsupported-pixels"


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_deep_colour(tmp_path, planar):
    deep = RGB.astype(np.uint16) * 8
    data = np.moveaxis(deep, -1, 0) if planar == "separate" else deep
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar)
    assert np.abs(pixels(tmp_path / "a.tif") - by_hand(deep)).max() <= 1


@pytest.mark.parametrize("array", [GREY, DEEP, DEEP.astype(np.float64)], ids=["8", "16", "64"])
def test_min_is_white_is_inverted(tmp_path, array):
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    expected = 255 - GREY.astype(int) if array is GREY else 255 - by_hand(array)
    assert np.abs(pixels(tmp_path / "a.tif") - expected).max() <= 1


def test_a_narrow_range_far_from_zero_is_not_lost(tmp_path):
    array = 1e9 + DEEP.astype(np.float64)
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert np.abs(pixels(tmp_path / "a.tif") - by_hand(array)).max() <= 1


def test_hot_pixels_nan_and_constants(tmp_path):
    hot = DEEP.copy()
    hot[5, 5] = 65535
    tifffile.imwrite(tmp_path / "hot.tif", hot)
    assert pixels(tmp_path / "hot.tif").std() > 50  # the other pixels still fill the range
    broken = DEEP.astype(np.float32)
    broken[0], broken[1] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "nan.tif", broken)
    result = pixels(tmp_path / "nan.tif")
    assert (result[:2] == 0).all() and result[2:].std() > 50
    tifffile.imwrite(tmp_path / "flat.tif", np.full((8, 8), 7, np.uint16))
    assert (pixels(tmp_path / "flat.tif") == 0).all()
    tifffile.imwrite(tmp_path / "void.tif", np.full((8, 8), np.nan, np.float32))
    assert reason(tmp_path / "void.tif") == "damaged"


def test_the_info_bar_does_not_set_black_and_white(tmp_path):
    header = "[Image]\r\nResolutionX=64\r\nResolutionY=48\r\n[Beam]\r\nBeam=EBeam\r\n"
    bar = np.zeros((12, 64), np.uint16)
    bar[4:8, ::2] = 65535
    data = header.encode()
    tifffile.imwrite(
        tmp_path / "a.tif", np.vstack([DEEP, bar]), extratags=[(34682, 7, len(data), data, True)]
    )
    micrograph = read_micrograph(tmp_path / "a.tif")
    assert micrograph.info_bar == (0, 48, 64, 60)
    picture = np.asarray(micrograph.crop_info_bar().image)
    assert picture.shape == (48, 64)
    assert np.abs(picture - by_hand(DEEP)).max() <= 1


def info_bar(width: int, height: int = 24) -> np.ndarray:
    """White print with soft edges on black, in the full range of 16 bits, as FEI stores it."""
    bar = Image.new("L", (width, height))
    ImageDraw.Draw(bar).text((4, 4), "HV 5.00 kV  WD 4.0 mm  ETD", fill=255)
    return np.asarray(bar).astype(np.uint16) * 257


def test_an_info_bar_in_pixels_alone_does_not_set_black_and_white(tmp_path):
    """Also where its soft print has every level between black and white."""
    picture = RNG.integers(20_000, 22_000, (150, 200), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", np.vstack([picture, info_bar(200)]))
    assert np.abs(pixels(tmp_path / "a.tif")[:150] - by_hand(picture)).max() <= 1


DEEP_FILES = {
    "a.png": lambda path: Image.fromarray(DEEP).save(path),
    "a.tif": lambda path: tifffile.imwrite(path, DEEP),
    "big endian.tif": lambda path: tifffile.imwrite(path, DEEP, byteorder=">"),
    "signed.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.int32) - 2000),
    "float.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.float32) / 7),
    "holes.tif": lambda path: tifffile.imwrite(
        path, np.where(GREY > 250, np.nan, np.where(GREY < 5, np.inf, GREY)).astype(np.float32)
    ),
    "hot.tif": lambda path: tifffile.imwrite(path, np.where(GREY == 7, 65535, DEEP).astype("u2")),
    "constant.tif": lambda path: tifffile.imwrite(path, np.full_like(DEEP, 700)),
    "bar.tif": lambda path: tifffile.imwrite(
        path, np.vstack([RNG.integers(20_000, 22_000, (150, 200), np.uint16), info_bar(200)])
    ),
    "turned.png": lambda path: Image.fromarray(GREY).save(path, exif=turned_exif()),
}


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    return exif


@pytest.mark.parametrize("name", DEEP_FILES)
def test_the_reader_and_the_processor_show_the_same_picture(tmp_path, name):
    """A student answers about a file as it was trained on it."""
    path = tmp_path / name
    DEEP_FILES[name](path)
    assert np.array_equal(np.asarray(to_8bit(path)), pixels(path))


# --- Pages, stacks, sides


def test_pixels_that_are_not_square_are_resampled_to_the_finer_side(tmp_path):
    array = np.repeat(np.linspace(0, 255, 64, dtype=np.float32)[None], 48, 0)
    write_dm3(tmp_path / "a.dm3", array, [(1.0, "nm"), (2.5, "nm")])
    micrograph = read_micrograph(tmp_path / "a.dm3")
    assert micrograph.image.size == (64, 120)
    assert micrograph.pixel_size_nm == pytest.approx(1.0)
    rows = np.asarray(micrograph.image).astype(int)
    assert (rows == rows[0]).all()  # only stretched downwards


def test_no_picture_is_stretched_beyond_reason(tmp_path, caplog):
    """Two axes of a stack, of which one is no length on the specimen: 64 x 97500 pixels."""
    for side, size in ((16.0, (64, 48 * 16)), (17.0, (64, 48)), (1 / 17, (64, 48))):
        write_dm3(tmp_path / "a.dm3", DEEP, [(1.0, "nm"), (side, "nm")])
        caplog.clear()
        micrograph = read_micrograph(tmp_path / "a.dm3")
        assert micrograph.image.size == size
        assert micrograph.pixel_size_nm == (1.0 if side == 16 else None)
        assert (str(tmp_path / "a.dm3") in caplog.text) == (side != 16)


def test_the_pixel_size_follows_resizing_and_cropping():
    image = Image.fromarray(RNG.integers(0, 256, (600, 800), dtype=np.uint8))
    micrograph = Micrograph(image, 2.0, {"technique": "SEM"}, (0, 540, 800, 600))
    small = micrograph.resize(200)
    assert small.image.size == (200, 150)
    assert small.pixel_size_nm * 200 == pytest.approx(2.0 * 800)  # the field of view stays
    assert small.info_bar == (0, 135, 200, 150)
    cropped = small.crop_info_bar()
    assert cropped.image.size == (200, 135)
    assert cropped.pixel_size_nm == small.pixel_size_nm
    assert cropped.info_bar is None and cropped.instrument == {"technique": "SEM"}
    assert micrograph.resize(800) is micrograph and micrograph.resize(5000) is micrograph
    assert cropped.crop_info_bar() is cropped
    with pytest.raises(ValueError, match="max_side"):
        micrograph.resize(0)


def test_the_larger_side_of_an_inner_bar_is_kept():
    image = Image.fromarray(RNG.integers(0, 256, (100, 100), dtype=np.uint8))
    for bar, size in (((0, 80, 100, 90), (100, 80)), ((0, 0, 100, 9), (100, 91))):
        assert Micrograph(image, None, {}, bar).crop_info_bar().image.size == size


def test_tif_gz(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif")
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress((tmp_path / "a.tif").read_bytes()))
    assert np.array_equal(pixels(tmp_path / "a.tif.gz"), GREY)


# --- Bad input


def test_what_is_not_a_file(tmp_path):
    assert reason(tmp_path / "nothing.png") == "not-found"
    assert reason(tmp_path) == "not-a-file"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert reason(tmp_path / "loop.png") == "symlink-loop"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "not-a-file"
    (tmp_path / "empty.tif").touch()
    assert reason(tmp_path / "empty.tif") == "empty"


def test_permission_denied():
    """As an ordinary user: root may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        Image.fromarray(GREY).save(path)
        path.chmod(0)
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert reason(path) == "permission-denied"
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if not suffix.endswith(".gz")])
def test_a_text_file_under_every_suffix(tmp_path, suffix):
    path = tmp_path / f"notes{suffix}"
    path.write_text("EHT = 5 kV, and other things that are no image.\n" * 20)
    assert reason(path) in {"not-an-image", "damaged"}


def test_gz_of_something_else(tmp_path):
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress(b"text"))
    assert reason(tmp_path / "a.tif.gz") == "not-an-image"
    (tmp_path / "b.tif.gz").write_bytes(b"text")
    assert reason(tmp_path / "b.tif.gz") == "damaged"


WRITERS = {
    "a.png": lambda path: Image.fromarray(GREY).save(path),
    "a.jpg": lambda path: Image.fromarray(GREY).save(path),
    "a.webp": lambda path: Image.fromarray(GREY).save(path),
    "a.bmp": lambda path: Image.fromarray(GREY).save(path),
    "raw.tif": lambda path: Image.fromarray(GREY).save(path),
    "lzw.tif": lambda path: Image.fromarray(GREY).save(path, compression="tiff_lzw"),
    "double.tif": lambda path: tifffile.imwrite(path, DEEP.astype(float)),
    "zip.tif": lambda path: tifffile.imwrite(path, DEEP.astype(float), compression="zlib"),
    "colour.tif": lambda path: tifffile.imwrite(path, RGB.astype("u2"), photometric="rgb"),
    "a.dm3": lambda path: write_dm3(path, DEEP, NM),
    "a.mrc": lambda path: write_mrc(path, DEEP, (640.0, 480.0)),
    "a.ser": lambda path: write_ser(path, DEEP, 2e-10),
    "ncem.emd": lambda path: write_emd_ncem(path, DEEP, 0.5, "nm"),
    "velox.emd": lambda path: write_emd_velox(path, {"HAADF": (DEEP, 2e-10)}),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_never_gives_half_an_image(tmp_path, name):
    whole, cut = tmp_path / name, tmp_path / f"cut{Path(name).suffix}"
    WRITERS[name](whole)
    expected, data = pixels(whole), whole.read_bytes()
    refused = 0
    for share in np.linspace(0.02, 0.98, 13):
        cut.write_bytes(data[: int(len(data) * share)])
        try:
            assert np.array_equal(pixels(cut), expected)
        except UnreadableMicrograph as error:
            refused += error.reason in {"damaged", "not-an-image"}
    assert refused >= 10


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0"))
    )


def test_decompression_bombs(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png_header(100_000, 100_000))
    assert reason(tmp_path / "a.png") == "too-large"
    write_mrc(tmp_path / "a.mrc", DEEP, (640.0, 480.0))
    Image.fromarray(GREY).save(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", DEEP.astype(float))
    write_dm3(tmp_path / "a.dm3", DEEP[:16, :16], [(1.0, "nm"), (15.0, "nm")])
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress(bytes(10_000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("a.mrc", "a.tif", "b.tif", "a.dm3", "a.tif.gz"):
        assert reason(tmp_path / name) == "too-large"


@pytest.mark.parametrize("name", ["a.png", "a.tif", "b.tif"])
def test_a_large_picture_is_read_and_pillows_warning_names_it(tmp_path, monkeypatch, name):
    tifffile.imwrite(tmp_path / "b.tif", np.dstack([DEEP] * 3), photometric="rgb")
    for small in ("a.png", "a.tif"):
        Image.fromarray(GREY).save(tmp_path / small)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    with pytest.warns(Image.DecompressionBombWarning) as caught:
        assert read_micrograph(tmp_path / name).image.size == (64, 48)
    (warning,) = caught
    assert str(tmp_path / name) in str(warning.message)
    assert "read all the same" in str(warning.message)
    assert warning.filename == __file__  # where the reader was called


def test_whoever_turns_pillows_warning_into_an_error_gets_a_refusal(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert reason(tmp_path / "a.png") == "too-large"


def test_errors_travel_between_processes(tmp_path):
    with pytest.raises(UnreadableMicrograph) as caught:
        read_micrograph(tmp_path / "nothing.png")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reason) == (str(caught.value), "not-found")


# --- Without the extra


@pytest.fixture
def no_extra(monkeypatch):
    """As if neither tifffile nor RosettaSciIO were installed."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("tifffile", "rsciio")]
    for name in {"tifffile", "rsciio", *loaded}:
        monkeypatch.setitem(sys.modules, name, None)  # makes importing it an ImportError


def test_plain_files_read_the_same_without_the_extra(tmp_path, request):
    tifffile.imwrite(tmp_path / "deep.tif", DEEP)
    tifffile.imwrite(tmp_path / "white.tif", DEEP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "unsigned.tif", DEEP.astype(np.uint32) * 1_000_000)
    Image.fromarray(RGB).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    Image.fromarray(GREY).save(tmp_path / "a.png")
    paths = sorted(tmp_path.iterdir())
    before = [read_micrograph(path) for path in paths]
    request.getfixturevalue("no_extra")
    assert [read_micrograph(path) for path in paths] == before


def test_a_native_file_names_the_extra(tmp_path, no_extra):
    write_mrc(tmp_path / "a.mrc", DEEP, (640.0, 480.0))
    data = b"[Beam]\r\nHV=5000\r\n"
    tifffile.imwrite(tmp_path / "fei.tif", GREY, extratags=[(34682, 7, len(data), data, True)])
    tifffile.imwrite(tmp_path / "imagej.tif", GREY, imagej=True, metadata={"unit": "nm"})
    tifffile.imwrite(tmp_path / "double.tif", DEEP.astype(float))
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "planes.tif", np.stack([DEEP] * 3), **planes)
    with tifffile.TiffWriter(tmp_path / "later.tif") as tiff:
        tiff.write(GREY, metadata=None)
        tiff.write(GREY, extratags=[(34682, 7, len(data), data, True)], metadata=None)
    for path in tmp_path.iterdir():
        assert reason(path) == "missing-extra"
        with pytest.raises(UnreadableMicrograph, match=r"mvaema\[microscopy\]"):
            read_micrograph(path)
