"""Uploads to bytes, and off the disk."""

import io
import zipfile
import zlib

import pytest

from mvaema.page.limits import PageLimits
from mvaema.page.uploads import count_files, files_in, last_part, taken
from mvaema.serving.limits import Limits
from mvaema.serving.refusals import Refusal

SMALL = PageLimits(serving=Limits(max_body_mb=0.001), max_files=3, max_unpacked_mb=0.0025)


@pytest.fixture
def tmp_path(tmp_path):
    """With something in it, so that it stays when the last upload is gone."""
    (tmp_path / "stays").touch()
    return tmp_path


def archive(path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return str(path)


def test_a_file_is_in_memory_and_no_longer_on_the_disk(tmp_path):
    folder = tmp_path / "hash"
    folder.mkdir()
    (folder / "a.tif").write_bytes(b"pixels")
    assert taken(str(folder / "a.tif")) == b"pixels"
    assert not folder.exists()
    with pytest.raises(Refusal, match="Drop the file again"):
        taken(str(folder / "a.tif"))


def test_a_folder_that_holds_another_upload_stays(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    taken(str(tmp_path / "a"))
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "name, last",
    [
        ("a.tif", "a.tif"),
        ("../../etc/a.tif", "a.tif"),
        ("C:\\lab\\a.tif", "a.tif"),
        ("a\x00\n.tif", "a.tif"),
        ("..", ".."),
        ("", "unnamed"),
        ("x" * 500, "x" * 120),
    ],
)
def test_of_a_name_the_last_part_is_kept(name, last):
    assert last_part(name) == last


def test_archives_are_opened_and_litter_is_left_out(tmp_path):
    (tmp_path / "one.png").write_bytes(b"1")
    packed = archive(
        tmp_path / "more.zip",
        {"lot/two.png": b"2", "lot/": b"", "__MACOSX/lot/._two.png": b"x", "lot/.hidden": b"x"},
    )
    paths = [str(tmp_path / "one.png"), packed]
    assert count_files(paths, SMALL) == 2
    assert list(files_in(paths, SMALL)) == [("one.png", b"1"), ("two.png", b"2")]
    assert [path.name for path in tmp_path.iterdir()] == ["stays"]


def test_what_an_archive_says_about_sizes_is_not_believed(tmp_path):
    path = tmp_path / "bomb.zip"
    archive(path, {"a.tif": bytes(900), "b.tif": bytes(900), "c.tif": bytes(900)})
    content = path.read_bytes()
    # The directory now says that each file has one byte.
    path.write_bytes(content.replace((900).to_bytes(4, "little"), (1).to_bytes(4, "little")))
    found = list(files_in([str(path)], SMALL))
    assert all(isinstance(f, Refusal) or len(f) <= 1 for _, f in found)
    archive(path, {"a.tif": bytes(900), "b.tif": bytes(900), "c.tif": bytes(900)})
    files = files_in([str(path)], SMALL)
    assert [len(next(files)[1]), len(next(files)[1])] == [900, 900]
    with pytest.raises(Refusal, match="unpacks to more than"):
        next(files)


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    path = tmp_path / "mixed.zip"
    archive(path, {"large.tif": bytes(1_500), "good.tif": b"good", "torn.tif": bytes(range(200))})
    content = bytearray(path.read_bytes())
    torn = zlib.compressobj(wbits=-15)
    packed = torn.compress(bytes(range(200))) + torn.flush()
    content[content.index(packed) + 40] ^= 0xFF
    path.write_bytes(bytes(content))
    found = dict(files_in([str(path)], SMALL))
    assert found["good.tif"] == b"good"
    assert "larger than 0.001 MB" in str(found["large.tif"])
    assert "damaged in its archive" in str(found["torn.tif"])


def test_too_many_files_are_refused_before_any_is_unpacked(tmp_path):
    packed = archive(tmp_path / "many.zip", {f"{n}.png": b"x" for n in range(4)})
    with pytest.raises(Refusal, match="more than 3 files"):
        count_files([packed], SMALL)
    assert (tmp_path / "many.zip").exists()


def test_an_archive_with_a_torn_end_is_a_file_like_any_other(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("a.png", b"x" * 100)
    (tmp_path / "torn.zip").write_bytes(stream.getvalue()[:60])
    ((name, content),) = files_in([str(tmp_path / "torn.zip")], SMALL)
    assert name == "torn.zip" and content.startswith(b"PK")
