"""TIFFs of every kind: our pictures against what tifffile was told to write."""

import itertools
import logging
import random

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.microscope_files import FEI_INI, text_tag, write_olympus
from support.pictures import expected_picture

from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph
from pixels_mvaema import to_8bit

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
DEEP = RNG.integers(1000, 3000, (48, 64), dtype=np.uint16)

SAMPLES = {"miniswhite": 1, "minisblack": 1, "rgb": 3, "separated": 4}
EXTRAS = [None, "unspecified", "assocalpha", "unassalpha"]
DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8"]


def samples(dtype: str, count: int, alpha: bool) -> np.ndarray:
    """Noise over most of a dtype's range; alpha is noise too, and has holes."""
    dtype = np.dtype(dtype)
    noise = RNG.random((40, 48, count))
    if dtype.kind == "b":
        return (noise > 0.5).squeeze()
    if alpha:
        noise[..., -1] = RNG.choice([0, 0.25, 0.75, 1], (40, 48))
    if dtype.kind == "i":
        noise = (noise - 0.5) * 1.8 * np.iinfo(dtype).max
    if dtype.kind == "u":
        noise = noise * float(np.iinfo(dtype).max) * (1 - 2**-12)
    return noise.astype(dtype).squeeze()


def layouts(dtype: str) -> list[tuple]:
    """Every way to store samples of a dtype that tifffile writes and that means something."""
    ways = itertools.product(
        SAMPLES,
        EXTRAS,
        ["contig", "separate"],
        ["", "lzw", "lzw predictor", "zlib", "zlib predictor", "packbits", "zstd", "webp"],
        [None, (16, 16), (16, 32)],
        "<>",
    )

    def exists(photometric, extra, planar, compression, tile, order) -> bool:
        count = SAMPLES[photometric] + bool(extra)
        return (
            (planar == "contig" or count > 1)
            and (dtype != "?" or count == 1)
            and (dtype not in ("?", "u8") or "predictor" not in compression)
            # tifffile writes WebP of 8-bit RGB and RGBA only.
            and (compression != "webp" or (dtype == "u1" and photometric == "rgb"))
            and (compression != "webp" or (planar == "contig" and extra != "unspecified"))
            # A signed number is no share of light or ink, and a huge one no share either.
            and (dtype[0] != "i" or (photometric != "separated" and extra in EXTRAS[:2]))
            and (dtype[0] != "f" or photometric != "separated")
        )

    return [way for way in ways if exists(*way)]


def write(path, dtype: str, way: tuple) -> np.ndarray:
    """Writes a TIFF; returns the picture that it holds."""
    photometric, extra, planar, compression, tile, order = way
    alpha = extra in ("assocalpha", "unassalpha")
    data = samples(dtype, SAMPLES[photometric] + bool(extra), alpha)
    options = {"photometric": photometric, "byteorder": order, "tile": tile, "metadata": None}
    if data.ndim == 3:
        options["planarconfig"] = planar
    if extra:
        options["extrasamples"] = [extra]
    if compression:
        options["compression"], *predictor = compression.split()
        options["predictor"] = bool(predictor)
    if compression == "webp":
        options["compressionargs"] = {"lossless": True}
    stored = np.moveaxis(data, -1, 0) if data.ndim == 3 and planar == "separate" else data
    tifffile.imwrite(path, stored, **options)
    return expected_picture(data, photometric, extra)


def differs(picture: Image.Image, expected: np.ndarray) -> bool:
    """Whether a picture is more than a level off; alpha and ink are rounded on the way."""
    return np.abs(np.asarray(picture).astype(float) - expected).max() > 1.5


def misread(path, dtype: str, ways: list[tuple]) -> list[tuple]:
    """The ways of storage that the reader, or the processor, shows otherwise than written.

    The processor, which has Pillow only, may refuse.
    """
    wrong = []
    for way in ways:
        expected = write(path, dtype, way)
        if differs(read_micrograph(path).image, expected):
            wrong.append(("reader", *way))
        try:
            if differs(to_8bit(path), expected):
                wrong.append(("processor", *way))
        except ValueError as error:
            assert str(path) in str(error)
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiffs_are_read_as_they_were_written(tmp_path, dtype):
    """Forty of each dtype: the same ones each time."""
    ways = layouts(dtype)
    ways = random.Random(dtype).sample(ways, min(40, len(ways)))
    assert not misread(tmp_path / "a.tif", dtype, ways)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_tiff_is_read_as_it_was_written(tmp_path, dtype):
    """More than 6,000 of them."""
    assert not misread(tmp_path / "a.tif", dtype, layouts(dtype))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_the_processor_reads_the_usual_grey_tiffs(tmp_path, dtype, photometric):
    """What Pillow knows is not refused: of MinIsWhite 8 and 16 bits and floats."""
    if photometric == "miniswhite" and dtype in ("i1", "i2", "u4", "i4"):
        return
    for compression, order in itertools.product(("", "lzw"), "<>"):
        if order == ">" and (dtype == "u4" or (photometric == "miniswhite" and dtype == "u2")):
            continue
        way = (photometric, None, "contig", compression, None, order)
        expected = write(tmp_path / "a.tif", dtype, way)
        assert not differs(to_8bit(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["u1", "f8", "rgb48", "cmyk64 planes"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, kind):
    """As Pillow turns a PNG; whether Pillow or tifffile decodes the TIFF."""
    options = {"rgb48": {"photometric": "rgb"}, "cmyk64 planes": {"photometric": "separated"}}
    data = {
        "u1": GREY,
        "f8": GREY / 7,
        "rgb48": np.dstack([GREY] * 3).astype("u2") * 257,
        "cmyk64 planes": np.stack([65535 - GREY.astype("u2") * 257] * 3 + [0 * DEEP]),
    }[kind]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    upright = read_micrograph(tmp_path / "a.png").image
    tags = [(274, 3, 1, orientation, True)]
    # 2 nm wide and 1 nm high as stored: on its side it is wider than high no more.
    unit = [(code, 2, 3, "nm", True) for code in (65003, 65004)]
    scale = [(65009, 12, 1, 2.0, True), (65010, 12, 1, 1.0, True)]
    extra = options.get(kind, {"photometric": "minisblack"})
    tifffile.imwrite(tmp_path / "a.tif", data, extratags=tags, metadata=None, **extra)
    read = np.asarray(read_micrograph(tmp_path / "a.tif").image).astype(int)
    assert read.shape == (upright.height, upright.width)
    assert np.corrcoef(read.ravel(), np.asarray(upright).ravel())[0, 1] > 0.999
    tifffile.imwrite(tmp_path / "b.tif", data, extratags=tags + unit + scale, **extra)
    scaled = read_micrograph(tmp_path / "b.tif")
    assert scaled.pixel_size_nm == 1
    assert scaled.image.size == ((128, 48) if orientation < 5 else (48, 128))


def test_fewer_than_eight_bits_and_palettes(tmp_path):
    """Through both decoders: tifffile reads what Pillow is not asked to."""
    four = GREY >> 4
    for photometric, expected in (("minisblack", four * 17), ("miniswhite", 255 - four * 17)):
        for order in "<>":
            options = {"bitspersample": 4, "byteorder": order}
            tifffile.imwrite(tmp_path / "a.tif", four, photometric=photometric, **options)
            assert np.array_equal(np.asarray(read_micrograph(tmp_path / "a.tif").image), expected)
    colours = RNG.integers(0, 65536, (3, 65536), dtype=np.uint16)
    indices = DEEP * np.uint16(20)
    tifffile.imwrite(tmp_path / "b.tif", indices, photometric="palette", colormap=colours)
    expected = np.moveaxis(colours[:, indices] >> 8, 0, -1)
    assert np.array_equal(np.asarray(read_micrograph(tmp_path / "b.tif").image), expected)


def reason(path) -> str:
    with pytest.raises(UnreadableMicrograph) as error:
        read_micrograph(path)
    return error.value.reason


def test_what_is_intact_and_no_micrograph_is_not_called_damaged(tmp_path):
    lab = np.dstack([DEEP] * 3)
    tifffile.imwrite(tmp_path / "a.tif", lab, photometric="cielab", metadata=None)
    assert reason(tmp_path / "a.tif") == "not-an-image"


@pytest.mark.parametrize("compression", [None, "zlib", "webp"])
@pytest.mark.parametrize("cut", [0.4, 0.9])
def test_a_page_whose_data_are_not_all_there_is_damaged(tmp_path, compression, cut):
    """Also where Pillow fails on the whole file, and tifffile would fill what is missing."""
    path = tmp_path / "a.tif"
    colour = RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    tifffile.imwrite(path, colour, photometric="rgb", tile=(16, 16), compression=compression)
    assert np.asarray(read_micrograph(path).image).shape == (96, 96, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    assert reason(path) == "damaged"


def test_a_tile_that_was_never_written_is_not_invented(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP.astype(float), tile=(16, 16))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = tiff.pages[0].tags[325]
        counts.overwrite((0, *counts.value[1:]))
    assert reason(path) == "damaged"


def test_the_first_full_resolution_page_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY[::4, ::4], subfiletype=1)  # a thumbnail
        tiff.write(GREY)
        tiff.write(255 - GREY)
    assert np.array_equal(np.asarray(read_micrograph(tmp_path / "a.tif").image), GREY)


def test_complex_and_many_channel_tiffs_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "fft.tif", DEEP.astype(np.complex64))
    assert reason(tmp_path / "fft.tif") == "not-an-image"
    tifffile.imwrite(tmp_path / "map.tif", np.stack([DEEP] * 7, -1), photometric="minisblack")
    assert read_micrograph(tmp_path / "map.tif").image.size == (7, 64)  # 48 pages of 64 x 7
    tifffile.imwrite(
        tmp_path / "map.tif", np.stack([DEEP] * 7, -1), photometric="minisblack", planarconfig=1
    )
    assert reason(tmp_path / "map.tif") == "not-an-image"


def fei(width: int, height: int) -> tuple:
    return text_tag(34682, FEI_INI.format(width=width, height=height))


def test_a_later_page_may_describe_the_image(tmp_path):
    """As Olympus' software on JEOL's TEMs: the first page has no tag of the instrument."""
    write_olympus(tmp_path / "a.tif", 255 - GREY, 2.4e-11, 600_000.0, first=GREY)
    micrograph = read_micrograph(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(micrograph.image), GREY)
    assert micrograph.pixel_size_nm == pytest.approx(0.024)
    assert micrograph.instrument == {"magnification": 600_000.0, "detector": "Quemesa"}


def test_a_later_page_of_another_size_does_not_calibrate(tmp_path):
    write_olympus(tmp_path / "a.tif", GREY[:24, :32], 2.4e-11, 600_000.0, first=GREY)
    micrograph = read_micrograph(tmp_path / "a.tif")
    assert micrograph.image.size == (64, 48) and micrograph.pixel_size_nm is None
    assert micrograph.instrument["magnification"] == 600_000.0


def test_the_page_that_is_read_goes_before_the_others(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY, extratags=[text_tag(34682, "[Scan]\r\nPixelWidth=9e-9\r\n")])
        tiff.write(GREY, extratags=[fei(64, 48)])
    assert read_micrograph(tmp_path / "a.tif").pixel_size_nm is None
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(GREY[::2, ::2], subfiletype=1)
        tiff.write(GREY, extratags=[fei(64, 48)])
    assert read_micrograph(tmp_path / "b.tif").pixel_size_nm == pytest.approx(100)


def test_unreadable_tags_are_reported_with_the_file(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", GREY, description="<OME unclosed", metadata=None)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(np.asarray(read_micrograph(tmp_path / "a.tif").image), GREY)
    assert str(tmp_path / "a.tif") in caplog.text
