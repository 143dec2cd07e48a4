"""python -m benchmarks.page --image docs/example.png

How long a visitor of the page waits, in a headless browser: from the start of the process to the
page, the picture, the first word and the whole answer; then for all ten questions about the same
micrograph, and for the report. `--model` is a student (default: that of this repository).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parent.parent
PATIENCE = 600_000  # milliseconds


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(args.port)]
    command += ["--model", args.model] if args.model else []
    from playwright.sync_api import sync_playwright  # of the extra `test-page`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        began = time.monotonic()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        try:
            address = next(line for line in server.stdout if " at http" in line).split()[-1]
            _report("the page takes visitors", began)
            _visit(page, address, args.image, began)
        finally:
            server.terminate()
            server.wait()
            browser.close()
    return 0


def _visit(page: "Page", address: str, image: Path, began: float) -> None:
    page.goto(address)
    page.get_by_label("Your question").wait_for()
    _report("the page is shown", began)
    page.locator("input[type=file]").first.set_input_files(image)
    page.locator(".mv-stage img").wait_for()
    _report("the picture is shown", began)
    asked = time.monotonic()
    page.get_by_role("button", name="Basics").click()
    page.locator(".mv-answer .mv-text").wait_for()
    _report("first words", began)
    page.locator(".mv-word").first.wait_for()
    _report("whole answer with the maps of its words", began)
    _report("... of these since it was asked", asked)
    page.locator(".mv-bars").wait_for()
    _report("scale bar read and categories ranked", began)
    page.get_by_role("button", name="All ten questions").click()
    asked = time.monotonic()
    page.get_by_role("button", name="Ask all ten").click()
    page.locator(".mv-answers[aria-busy=false]").wait_for()
    _report("all ten answers, since they were asked", asked)
    page.locator(".mv-download").first.wait_for()
    _report("and the report in three forms", asked)


def _report(what: str, began: float) -> None:
    print(f"{time.monotonic() - began:7.2f} s  {what}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True, help="a micrograph")
    parser.add_argument("--model", metavar="STUDENT", help="folder or Hub id of a student")
    parser.add_argument("--port", type=int, default=7861, help="port of the page (7861)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
