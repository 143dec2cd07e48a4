"""The process that serves the page: its privacy, its address, its end.

    python app.py --model runs/first

Without --model, the student in the folder of app.py is asked. One that `mvaema export` wrote is
asked without torch, and does not show where its words looked. The page listens to this machine
only, unless --host says otherwise or it runs as a Space, which must be reached from outside.

What is special about it:
- telemetry is off before gradio is imported, and the browser is told to load
  nothing from any other host (Content-Security-Policy);
- what is uploaded lies in a private temporary folder that is removed at the end.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mvaema.page.limits import PageLimits
from mvaema.serving.logs import log_to_stderr
from mvaema.serving.service import Service
from mvaema.serving.student import Student, find_student

PORT = 7860
# Everything is from this server or in the page itself. gradio runs scripts of its own in the page.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def main(folder: Path, argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status.

    Args:
        folder: that has a student, if --model names none.
    """
    args = _parser().parse_args(argv)
    try:
        found = find_student(args.model, folder)
        student = found.load()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log_to_stderr()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with served(student, found.name, args.host, args.port) as url:
            print(f"{found.name} at {url}", flush=True)
            stopped.wait()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def served(
    student: Student,
    name: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: PageLimits | None = None,
) -> Iterator[str]:
    """The page for a student, as long as the block lasts; gives its address.

    Args:
        student: who is asked.
        name: that visitors know it by.
        port: None takes one that is free.

    Raises:
        OSError: the port is taken.
    """
    limits = limits or PageLimits()
    with tempfile.TemporaryDirectory(prefix="mvaema-page-") as folder:
        _keep_private(folder)
        import gradio as gr

        from mvaema.page.blocks import CSS, make_blocks, theme
        from mvaema.page.parts import Workers

        service = Service(lambda: student, name, limits.serving)
        service.start().join()
        if service.failure is not None:
            raise service.failure
        workers = Workers(service, limits)
        page = make_blocks(workers)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                max_file_size=limits.serving.max_body_bytes,
                state_session_capacity=limits.max_visitors,
                theme=theme(),
                css=CSS.read_text(encoding="utf-8"),
                app_kwargs={"middleware": [_policy()]},
            )
            yield url
        finally:
            page.close(verbose=False)
            workers.close()
            service.close()
            gr.close_all(verbose=False)


def _keep_private(folder: str) -> None:
    """What gradio and the hub's client read when they are imported."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_SHARE": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _policy():
    """Middleware that tells browsers to load nothing from elsewhere, and to keep nothing."""
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware

    class Policy:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def sent(message):
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["Content-Security-Policy"] = POLICY
                    headers["Referrer-Policy"] = "no-referrer"
                    headers["X-Content-Type-Options"] = "nosniff"
                await send(message)

            await self.app(scope, receive, sent)

    return Middleware(Policy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    everywhere = "SPACE_ID" in os.environ
    parser.add_argument(
        "--model",
        metavar="STUDENT",
        help="folder or Hub id of a student or of adapters, or folder of an exported student "
        "(default: the one beside app.py)",
    )
    parser.add_argument(
        "--host",
        default="0.0.0.0" if everywhere else "127.0.0.1",
        help="address to listen at (127.0.0.1: this machine only; 0.0.0.0 in a Space)",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port ({PORT})")
    return parser
