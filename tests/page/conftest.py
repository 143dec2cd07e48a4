"""The page, `app.py`, with a tiny student, and Chromium in front of it."""

from pathlib import Path

import pytest
from PIL import Image
from support.drawn_structures import scattered_discs
from support.page_visitor import CHROMIUM, Server, Visitor, noise
from support.tiny_student import save_tiny_student


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    return save_tiny_student(tmp_path_factory.mktemp("page") / "student")


@pytest.fixture(scope="session")
def server(student, tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs the extra `demo`")
    server = Server(student, tmp_path_factory.mktemp("disk"))
    yield server
    assert server.stop() == 0
    assert not list(server.disk.iterdir())  # its private folder is gone
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")  # playwright leaves an event loop running until it is stopped
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens pages; all are closed at the end, and none may have asked another host."""
    visitors = []

    def open_page(**options) -> Visitor:
        visitors.append(Visitor(browser, server, **options))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()


@pytest.fixture(scope="session")
def micrograph(tmp_path_factory) -> Path:
    """Drawn particles as a PNG whose name tells a secret."""
    path = tmp_path_factory.mktemp("lab") / "secret_customer.png"
    scattered_discs().image.save(path)
    return path


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.png"
    Image.fromarray(noise()).save(path)
    return path
