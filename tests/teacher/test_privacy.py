"""What leaves the lab, and what never does: captured at the server and searched on the disk."""

import io
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from support.teacher_helpers import arguments, ask, make_images, outcomes
from support.teacher_server import FakeTeacher, image_of

from mvaema.commands.teach import ask_command, main
from mvaema.micrographs.schema import pixel_hash

KEY = "sk-verysecret-0123456789abcdef"
SECRETS = ["LOT4711", "OperatorMiller", "fab12-recipe"]


@pytest.fixture
def labelled_files(tmp_path) -> Path:
    """Files whose names, EXIF, TIFF tags and comments name what must not leave."""
    folder = tmp_path / "LOT4711" / "Particles"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def image():
        return Image.fromarray(rng.integers(0, 256, (40, 48), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x9286] = "LOT4711", "OperatorMiller", "fab12-recipe"
    image().save(folder / "OperatorMiller_1.jpg", exif=exif, comment=b"fab12-recipe")
    text = PngInfo()
    text.add_text("Comment", "LOT4711 by OperatorMiller, fab12-recipe")
    image().save(folder / "fab12-recipe_2.png", pnginfo=text, exif=exif)
    tags = ImageFileDirectory_v2()
    tags[270], tags[315], tags[65000] = "LOT4711", "OperatorMiller", "fab12-recipe"
    tags.tagtype[65000] = 2
    deep = Image.fromarray(rng.integers(0, 65535, (40, 48)).astype(np.uint16))
    deep.save(folder / "LOT4711_3.tif", tiffinfo=tags)
    return folder.parent


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_nothing_but_pixels_leaves(image_format, labelled_files, tmp_path):
    with FakeTeacher() as server:
        args = arguments(
            labelled_files, tmp_path / "out", server.url, image_format=image_format, export=True
        )
        ask_command(args)
    assert outcomes(tmp_path / "out") == {"ok": 30}
    originals = [path.read_bytes() for path in labelled_files.rglob("*") if path.is_file()]
    for secret in SECRETS:  # the search would find them
        assert any(secret.encode() in original for original in originals)
    sent = [exchange.body for exchange in server.exchanges]
    sent += [image_of(json.loads(body)) for body in sent]
    sent += [repr(headers).encode() for headers in server.headers]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    names = [str(path.relative_to(tmp_path)).encode() for path in (tmp_path / "out").rglob("*")]
    for secret in SECRETS:
        needle = secret.encode()
        for data in sent + written + names:
            assert needle not in data
            assert needle.decode().encode("utf-16-le") not in data
    for body in sent[:30]:
        image = Image.open(io.BytesIO(image_of(json.loads(body))))
        assert image.format.lower() == image_format
        assert not image.getexif() and not getattr(image, "text", None)
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "loop",
                                   "background", "timestamp", "duration"}  # fmt: skip


@pytest.mark.skipif("MVAEMA_SHARED" not in os.environ, reason="real files: set MVAEMA_SHARED")
def test_nothing_of_real_microscope_files_leaves(tmp_path):
    """Runs of 20 printable characters in the vendors' files (tags, settings, operators) are looked
    for in what was sent and written."""
    native = Path(os.environ["MVAEMA_SHARED"]) / "native"
    with FakeTeacher() as server:
        ask_command(
            arguments(native, tmp_path / "out", server.url, max_side=256, questions=["basics"])
        )
    assert len(server.exchanges) >= 15
    data = [image_of(json.loads(exchange.body)) for exchange in server.exchanges]
    data += [json.loads(e.body)["messages"][0]["content"][1]["text"].encode()
             for e in server.exchanges]  # fmt: skip
    data += [path.read_bytes() for path in (tmp_path / "out").rglob("*")
             if path.is_file() and path.suffix != ".ballast"]  # fmt: skip
    haystack = b"\n".join(data)
    searched = 0
    for path in native.rglob("*"):
        if not path.is_file() or path.name == "README.md":
            continue
        texts = {path.stem.encode()}
        for match in re.finditer(rb"[A-Za-z][ -~]{19,}", path.read_bytes()):
            texts.add(match[0][:20])
        texts = sorted(texts)
        for text in texts[:: 1 + len(texts) // 100]:  # a hundred of them at most
            searched += 1
            assert text not in haystack, (path.name, text)
    assert searched > 200


def test_sent_pixels_are_those_of_the_dataset(tmp_path):
    images = make_images(tmp_path / "images", 2)
    with FakeTeacher() as server:
        ask(images, tmp_path / "out", server.url)
    sent = {image_of(json.loads(exchange.body)) for exchange in server.exchanges}
    assert len(sent) == 2
    stored = {path.stem: path.read_bytes() for path in (tmp_path / "out" / "images").rglob("*.png")}
    assert sent == set(stored.values())
    for name, data in stored.items():
        assert name == pixel_hash(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("kind", "batch"),
    [(None, True), *((kind, False) for kind in (None, "401", "echo key", "html", "drop", "400"))],
)
def test_key_is_nowhere(kind, batch, tmp_path, monkeypatch, capfd, caplog):
    """Not in the journal, images, dataset, log (at debug level) or messages, even when the
    server repeats it."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    with FakeTeacher() as server:
        if kind:
            server.fail(kind, times=2)
        main(
            [
                *("--images", str(images), "--output_dir", str(output), "--endpoint", server.url),
                *("--teacher_model", "teacher", "--api_key_env", "TEACHER_KEY"),
                *("--concurrency", "2", "--batch", str(batch), "--batch_poll", "0.01"),
            ]
        )
        if not batch:
            assert server.headers[0]["Authorization"] == f"Bearer {KEY}", "the server did get it"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    told = capfd.readouterr()
    assert KEY not in told.out + told.err + caplog.text


def test_private_endpoint_does_not_get_a_key_meant_for_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    images = make_images(tmp_path / "images", 1)
    with FakeTeacher() as server:
        ask(images, tmp_path / "out", server.url)
    assert server.headers and not any(KEY in str(headers) for headers in server.headers)


def test_private_endpoint_is_not_reached_through_a_proxy(tmp_path, monkeypatch):
    """A proxy of the environment would take micrographs elsewhere."""
    images = make_images(tmp_path / "images", 1)
    with FakeTeacher() as server, FakeTeacher() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert ask(images, tmp_path / "out", server.url).stopped is None
        assert len(server.exchanges) == 10 and not proxy.exchanges
