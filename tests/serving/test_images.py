"""Images in requests: every format by its content, and hostile ones refused cheaply."""

import gzip
import struct
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image
from support.microscope_files import (
    write_dm3,
    write_emd_ncem,
    write_mrc,
    write_olympus,
    write_ser,
)
from support.student_server import data_uri, picture

from mvaema.micrographs.microscope import read_micrograph
from mvaema.serving.images import limit_pixels, read_image
from mvaema.serving.refusals import Refusal

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def limited():
    undo = limit_pixels(LIMIT)
    yield
    undo()


def refusal(uri: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_image(uri, LIMIT)
    return caught.value


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid black-and-white PNG; 20,000 x 20,000 pixels are 50 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((1 + width // 8) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    )


def test_every_format_is_read_as_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 40_000, (48, 64), dtype=np.uint16)
    write_dm3(tmp_path / "a.dm3", deep, [(0.5, "nm"), (0.5, "nm")], 200_000.0)
    write_ser(tmp_path / "a.ser", deep, 2e-10)
    write_mrc(tmp_path / "a.mrc", deep.astype(np.float32), (640.0, 480.0))
    write_emd_ncem(tmp_path / "a.emd", deep, 0.3, "nm")
    write_olympus(tmp_path / "a.tif", (deep >> 8).astype(np.uint8), 2.5e-9, 40_000)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    for kind in ("png", "jpg", "webp", "bmp"):
        picture().save(tmp_path / f"a.{kind}")
    sizes = {}
    for file in sorted(tmp_path.iterdir()):
        expected = read_micrograph(file)
        found = read_image(data_uri(file, "application/octet-stream"), LIMIT)
        assert np.array_equal(np.asarray(found.image), np.asarray(expected.image)), file.name
        assert found.pixel_size_nm == expected.pixel_size_nm
        sizes[file.name] = found.pixel_size_nm
    assert sizes["a.dm3"] == pytest.approx(0.5) and sizes["a.tif"] == pytest.approx(2.5)
    assert sizes["a.ser"] == pytest.approx(0.2) and sizes["a.mrc"] == pytest.approx(1.0)
    assert sizes["deep.tif"] is None and len(sizes) == 10


def test_what_the_client_calls_it_does_not_matter(tmp_path):
    secret = tmp_path / "image.txt"
    secret.write_text("[SemImageFile]\nPixelSize=5\n")
    uri = data_uri(picture()).replace("image/png", f"image/png;name=../../{secret}")
    assert np.array_equal(np.asarray(read_image(uri, LIMIT).image), np.asarray(picture()))


def test_a_png_bomb_is_refused_before_it_is_decoded():
    bomb = png_of_zeros(20_000, 20_000)
    assert len(bomb) < 100_000
    tracemalloc.start()
    found = refusal(data_uri(bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.status, found.code) == (413, "image_too_large") and "1 million" in str(found)
    assert peak < 5_000_000  # pixels would be 50 MB as bits and 400 MB as bytes
    assert read_image(data_uri(png_of_zeros(1000, 1000)), LIMIT).image.size == (1000, 1000)


def test_bombs_of_other_formats(tmp_path):
    side = 1200
    Image.new("L", (side, side)).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    write_mrc(tmp_path / "a.mrc", np.zeros((side, side), np.int8), (640.0, 480.0))
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/single")
        group.attrs["emd_group_type"] = 1
        # 20 TB that take no place at all.
        group.create_dataset("data", (5_000_000, 2_000_000), "u2", chunks=(1000, 1000))
        for index in (1, 2):
            axis = group.create_dataset(f"dim{index}", data=np.arange(3.0))
            axis.attrs["name"], axis.attrs["units"] = "yx"[index - 1], "nm"
    for file in tmp_path.iterdir():
        found = refusal(data_uri(file))
        assert (found.status, found.code) == (413, "image_too_large"), (file.name, str(found))
    packed = gzip.compress(bytes(50_000_000))
    found = refusal(data_uri(packed))
    assert (found.status, found.code) == (400, "image_not_an_image")


def test_files_that_are_no_images(tmp_path):
    picture().save(tmp_path / "whole.png")
    Image.fromarray(np.zeros((500, 500), np.uint16) + np.arange(500, dtype=np.uint16)).save(
        tmp_path / "whole.tif"
    )
    whole, tiff = ((tmp_path / f"whole.{kind}").read_bytes() for kind in ("png", "tif"))
    cases = {
        "image_not_an_image": [b"a text file named .tif", b"PK\x03\x04" + bytes(100), b"<svg/>"],
        "image_damaged": [whole[:100], tiff[:1000], b"\0\0\0\x03" + bytes(60), b"II\x97\x01"],
        "image_empty": [b""],
    }
    for code, contents in cases.items():
        for content in contents:
            found = refusal(data_uri(content))
            assert (found.status, found.code) == (400, code), content[:20]
            assert "/tmp" not in str(found) and "mvaema-" not in str(found)
    for uri in ("data:image/png,plain", "data:;base64,&&&&", "data:", "data:image/png;base64"):
        assert refusal(uri).code == "image_not_base64"


def test_hdf5_that_points_at_other_files_is_refused(tmp_path):
    """It would show the client what lies on the server."""
    target = tmp_path / "secret.h5"
    with h5py.File(target, "w") as file:
        file["pixels"] = np.ones((48, 64), np.uint16)

    def emd(name: str, fill) -> bytes:
        path = tmp_path / name
        write_emd_ncem(path, np.zeros((48, 64), np.uint16), 0.3, "nm")
        with h5py.File(path, "r+") as file:
            group = file["data/single"]
            del group["data"]
            fill(group)
        return path.read_bytes()

    def linked(group):
        group["data"] = h5py.ExternalLink(str(target), "pixels")

    def raw(group):
        group.create_dataset("data", (48, 64), "u2", external=[(str(target), 0, 48 * 64 * 2)])

    def virtual(group):
        layout = h5py.VirtualLayout((48, 64), "u2")
        layout[:] = h5py.VirtualSource(str(target), "pixels", (48, 64))
        group.create_virtual_dataset("data", layout)

    def loop(group):
        group["data"] = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
        group["again"], group["soft"] = group, h5py.SoftLink("/data/single/data")

    assert read_image(data_uri(emd("loop.emd", loop)), LIMIT).image.size == (64, 48)
    for number, fill in enumerate((linked, raw, virtual)):
        content = emd(f"{number}.emd", fill)
        assert refusal(data_uri(content)).code == "image_linked"


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    read_image(data_uri(picture()), LIMIT)
    refusal(data_uri(b"no image"))
    assert not list(tmp_path.iterdir())
