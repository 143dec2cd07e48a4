"""Hostile and clumsy visitors: the page says plainly what is wrong, keeps nothing, and lives on."""

import io
import struct
import zipfile
import zlib

import httpx2 as httpx
import pytest
from PIL import Image
from support.page_visitor import noise

pytestmark = pytest.mark.slow


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid black-and-white PNG; 20,000 x 20,000 pixels are 50 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = zlib.compress(bytes((1 + width // 8) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zip_bomb(megabytes: int) -> bytes:
    """An archive a thousandth as large as what is in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(megabytes // 40):
            archive.writestr(f"{number}.tif", bytes(40_000_000))
    return stream.getvalue()


def payload(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(seed=seed)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("huge.png", png_of_zeros(20_000, 20_000), "more than 32 million pixels"),
        ("text.tif", b"II*\0 this is a text", "truncated or damaged"),
        ("plain.tif", b"nothing but a text", "no format that is read here"),
        ("half.png", png()[:300], "truncated or damaged"),
        ("tiny.png", png_of_zeros(8, 8), "too small"),
        ("empty.png", b"", "is empty"),
        ("bomb.zip", zip_bomb(80), "no format that is read here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_micrograph_is_refused_in_plain_words(visit, server, name, content, said):
    visitor = visit()
    visitor.drop(payload(name, content))
    refused = visitor.page.locator(".mv-none", has_text="Not read:")
    refused.wait_for()
    assert said in refused.inner_text()
    shown = visitor.page.locator("body").inner_text()
    assert "Traceback" not in shown and str(server.disk) not in shown
    assert not server.kept()
    visitor.page.get_by_role("button", name="Basics").click()
    visitor.page.get_by_text("Drop a micrograph first.").wait_for()
    visitor.drop_and_wait(payload("good.png", png()))  # it lives on


def test_an_archive_that_unpacks_to_too_much_stops_the_batch(visit, server):
    visitor = visit()
    visitor.drop_batch([payload("bomb.zip", zip_bomb(480))])
    visitor.page.get_by_role("button", name="Run").click()
    visitor.page.get_by_text("unpacks to more than 400 MB").wait_for()
    assert not server.kept()


def test_names_with_separators_stay_in_the_private_folder(visit, server, tmp_path):
    names = ("../../outside.png", "..\\..\\outside.png", "/etc/outside.png", "a/b/outside.png")
    for name in names:
        reply = httpx.post(
            f"{server.url}/gradio_api/upload", files={"files": (name, png())}, trust_env=False
        )
        assert reply.status_code in (200, 400)
    found = list(server.disk.parent.rglob("*outside.png"))
    assert all(server.disk in path.parents for path in found)
    for path in found:
        path.unlink()
    visitor = visit()
    visitor.drop_batch([payload("/etc/outside.png", png(1)), payload("a/b/outside.png", png(2))])
    visitor.page.get_by_role("button", name="Run").click()
    visitor.page.locator(".mv-download").wait_for()
    assert visitor.page.locator("td:first-child").all_inner_texts() == ["outside.png"] * 2


def test_what_a_visitor_types_is_shown_and_not_run(visit):
    typed = "${document.title='x'} {{value}} <img src=x onerror=\"document.title='y'\">"
    visitor = visit()
    visitor.drop_and_wait(payload("good.png", png()))
    visitor.ask(typed)
    assert typed in visitor.page.locator(".mv-question").inner_text()
    assert visitor.page.title() not in ("x", "y") and not visitor.page.locator("h3 img").count()


def test_a_path_of_the_server_is_not_read(server, tmp_path):
    (tmp_path / "private.png").write_bytes(png())
    for path in (tmp_path / "private.png", "/etc/passwd", "https://example.org/x.png"):
        reply = httpx.get(f"{server.url}/gradio_api/file={path}", trust_env=False)
        assert reply.status_code >= 400
    reply = httpx.get(server.url, trust_env=False)
    assert "default-src 'self'" in reply.headers["content-security-policy"]


def test_an_upload_that_is_too_large_is_not_kept(server):
    content = bytes(49_000_000)
    try:
        reply = httpx.post(
            f"{server.url}/gradio_api/upload", files={"files": ("a.tif", content)}, trust_env=False
        )
        assert reply.status_code == 413
    except httpx.TransportError:
        pass  # it hung up, which is as good
    assert not [path for path in server.kept() if path.stat().st_size >= len(content)]


def test_ten_at_once_are_all_answered(visit, server):
    visitors = [visit() for _ in range(10)]
    for seed, visitor in enumerate(visitors):
        visitor.drop(payload("same_name.png", png(seed)))
    for visitor in visitors:
        visitor.page.locator(".mv-bars").wait_for()
        visitor.page.get_by_role("button", name="Morphology").click()
    for visitor in visitors:
        visitor.page.locator(".mv-answer .mv-spoken").wait_for()
    assert not server.kept()


def test_who_leaves_does_not_hold_up_the_others(visit, server):
    visitor = visit()
    visitor.drop_and_wait(payload("gone.png", png()))
    visitor.page.get_by_role("button", name="Morphology").click()
    visitor.page.goto("about:blank")
    visitor.asked = []
    other = visit()
    other.drop_and_wait(payload("next.png", png(1)))
    assert other.ask("What is it?") is not None
