"""The page as a visitor meets it: `app.py` in a process of its own, and a browser before it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from support import ROOT

CHROMIUM = next(
    (p for p in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser")) if p.exists()), None
)
# Milliseconds in which something happens on a machine that has time for it.
PATIENCE = 60_000


class Server:
    """`app.py` with a student; `url` is its address, `disk` the only place for its files.

    Args:
        path: folders of packages that go before all others.
    """

    def __init__(self, student: Path, disk: Path, path: tuple[Path, ...] = ()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.disk, self.url = disk, f"http://127.0.0.1:{port}"
        self.log = disk.with_suffix(".log")
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        environment |= {
            "TMPDIR": str(disk),
            "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
        }
        command = [sys.executable, ROOT / "app.py", "--model", student, "--port", str(port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=disk, stdout=log, stderr=subprocess.STDOUT
            )
        while " at http" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def kept(self) -> list[Path]:
        """The files with content that it has on the disk."""
        return [p for p in self.disk.rglob("*") if p.is_file() and p.stat().st_size]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE / 1000)


class Visitor:
    """A page in the browser, which notes each host that it asks for anything."""

    def __init__(self, browser, server: Server, width: int = 1280, scheme: str = "light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(server.url)
        self.page.get_by_role("heading", name="Ask about a micrograph").wait_for()
        self.server = server

    def drop(self, file, field: int = 0) -> None:
        """Give a file, a path or one of playwright's payloads, to a field of the tab in front."""
        tab = self.page.get_by_role("tabpanel")
        tab.locator("input[type=file]").nth(field).set_input_files(file)

    def drop_batch(self, files: list) -> None:
        """Give files to the batch, and wait until all are there."""
        self.page.get_by_role("tab", name="Batch").click()
        self.drop(files)
        self.page.locator(".file-preview tr").nth(len(files) - 1).wait_for()

    def drop_and_wait(self, file) -> None:
        """Until the micrograph's categories are known, which come last."""
        self.drop(file)
        self.page.locator(".mv-bars:visible").wait_for()

    def ask(self, question: str) -> str:
        """The whole answer to a free question."""
        self.page.get_by_label("Your question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.page.locator(".mv-question", has_text=question).wait_for()
        self.page.locator(".mv-answer .mv-spoken").wait_for()
        return self.page.locator(".mv-text:visible").inner_text()

    def other_hosts(self) -> list[str]:
        ours = (self.server.url, "data:", "blob:")
        return [url for url in self.asked if not url.startswith(ours)]

    def close(self) -> None:
        self.context.close()
        assert not self.other_hosts()
        assert not self.faults


def noise(width: int = 96, height: int = 64, seed: int = 0, deep: bool = False) -> np.ndarray:
    """Pixels of nothing in particular."""
    kind, top = (np.uint16, 40_000) if deep else (np.uint8, 256)
    return np.random.default_rng(seed).integers(0, top, (height, width), dtype=kind)
