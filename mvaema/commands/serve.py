"""mvaema serve --model runs/first --port 8000

Answers questions about micrographs over the network, as OpenAI's Chat Completions API does: any
client of that API can ask. Without --model, the student of this repository. One that
`mvaema export` wrote is served without torch.

Keys that clients must send come from --api_key_file or the environment variable MVAEMA_API_KEY.
SIGTERM or Ctrl-C: requests in progress are finished, then it ends with status 0. The log goes to
stderr, a JSON object a line; no image, question or answer is in it.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from candidates_mvaema import DECODINGS
from mvaema.serving.keys import Keys
from mvaema.serving.limits import Limits
from mvaema.serving.logs import log_to_stderr
from mvaema.serving.running import listen, serve
from mvaema.serving.service import Service
from mvaema.serving.student import find_student

logger = logging.getLogger("mvaema.serving")

LOOPBACK = ("127.0.0.1", "localhost", "::1")

HELP = {
    "max_body_mb": "largest request, in MB",
    "max_images": "most images in a conversation",
    "max_megapixels": "largest image, in millions of pixels",
    "max_queue": "most requests in progress; further ones get status 429",
    "max_uploads": "most requests whose images are in memory",
    "upload_seconds": "longest time for a request to arrive",
    "timeout_seconds": "longest time until the answer",
    "max_batch": "most questions answered at once",
    "batch_wait_ms": "how long a question waits for others",
    "shutdown_seconds": "longest time to finish what is in progress",
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        limits = Limits(**{field.name: getattr(args, field.name) for field in _limits()})
        keys = Keys.found(args.api_key_file)
        found = find_student(args.model)
        at = listen(args.host, args.port)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    name = args.name or found.name
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{at.getsockname()[1]}/v1"
    log_to_stderr(logging.DEBUG if args.verbose else logging.INFO)
    if not keys and args.host not in LOOPBACK:
        logger.warning("everybody who reaches this machine may ask: there is no API key")
    service = Service(found.load, name, limits, args.decoding)
    try:
        serve(service, keys, at, lambda: print(f"{name} at {url}", flush=True))
    except (OSError, ValueError) as error:
        print(f"error: the model {found.source!r} cannot be loaded: {error}", file=sys.stderr)
        return 1
    return 0


def _limits() -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(Limits)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="STUDENT",
        help="folder or Hub id of a student or of adapters, or folder of an exported student "
        "(default: that of this repository)",
    )
    add("--name", help="what clients call it (default: the Hub id, or the folder's name)")
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="port (8000); 0 takes one that is free")
    add("--api_key_file", type=Path, metavar="FILE", help="file of API keys, one a line")
    add(
        "--decoding",
        choices=list(DECODINGS),
        help="how answers are decoded (default: as the checkpoint says)",
    )
    add("--verbose", action="store_true", help="log health checks too")
    group = parser.add_argument_group("limits")
    for field in _limits():
        what = f"{HELP[field.name]} ({field.default:g})"
        group.add_argument(f"--{field.name}", type=field.type, default=field.default, help=what)
    return parser
