"""python -m benchmarks.serving --model . --requests 64 --total 1000

What a server of a student carries: `mvaema serve` in a process of its own, asked about simulated
micrographs by 1, 8 and 64 clients at once, beside the same questions to `model.answer` one by one
in this process, in the same run. Every answer is compared with that of `model.answer` about all
images at once.

- one by one: no server, the first `--alone` questions; the images are read from PNG, as the server
  reads them. One client asks as many;
- vanishing: 64 clients, of which every second closes its connection while it waits;
- memory: resident, of the server's process, when it is ready and after `--total` requests,
  of which those beyond the table's end after two tokens;
- cold start: from the command to the first answer, imports and all.

The clients share the machine with the server. Compare lines of one run only.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.table import Table, markdown
from mvaema.micrographs.microscope import read_micrograph
from mvaema.serving.images import read_image
from mvaema.serving.limits import Limits
from mvaema.students.loading import load_student
from mvaema.synthetic.dataset import SyntheticSplit, rows

CLIENTS = (1, 8, 64)
NAME = "student"
PATIENCE = 600.0  # seconds


@dataclass
class Load:
    """What one line of the table is made of.

    Attributes:
        seconds: of all requests together.
        latencies: of each request that was answered, in seconds.
        lost: requests without an answer.
        different: answers that are not `model.answer`'s.
    """

    name: str
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    different: int = 0

    def cells(self, alone: float) -> list[str]:
        rate = len(self.latencies) / self.seconds
        ordered = sorted(self.latencies)
        high = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
        return [
            self.name,
            f"{len(self.latencies)}",
            f"{rate:.2f}",
            f"{rate / alone:.2f} ×",
            f"{statistics.median(ordered):.2f} s",
            f"{high:.2f} s",
            f"{self.lost}",
            f"{self.different}",
        ]


class Server:
    """`mvaema serve` in a process; use as a context manager.

    Attributes:
        url: of Chat Completions.
        cold_start: seconds from the command to `/ready`.
    """

    def __init__(self, model: str, decoding: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1/chat/completions"
        command = [sys.executable, "-m", "mvaema", "serve", "--model", model, "--name", NAME]
        command += ["--port", str(port), "--decoding", decoding]
        command += ["--timeout_seconds", str(PATIENCE)]
        self.started = time.perf_counter()
        environment = {n: v for n, v in os.environ.items() if n != "MVAEMA_API_KEY"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )

    def __enter__(self) -> "Server":
        while self.process.poll() is None:
            try:
                if httpx.get(f"{self.root}/ready").status_code == 200:
                    self.cold_start = time.perf_counter() - self.started
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        sys.exit(f"error: the server ended with status {self.process.returncode}.")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.status = self.process.wait(60)

    def state(self) -> dict:
        return httpx.get(f"{self.root}/ready").json()

    def memory(self) -> str:
        """Resident memory, where the system tells it."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return f"{int(found[1]) / 1024:.0f} MiB" if found else "unknown"


@dataclass(frozen=True)
class Asked:
    """A question about the image in a data URI, and the student's own answer."""

    uri: str
    question: str
    answer: str

    def body(self, **fields) -> dict:
        """The request."""
        parts = [
            {"type": "text", "text": self.question},
            {"type": "image_url", "image_url": {"url": self.uri}},
        ]
        return {"model": NAME, "messages": [{"role": "user", "content": parts}], **fields}


def prepare(
    model: MVaEMaModel, pngs: list[bytes], count: int, alone: int, decoding: str
) -> tuple[list[Asked], Load]:
    """`count` questions about the images in turn, and the time of the first ones one by one."""
    each = -(-count // len(pngs))
    questions = list(model.config.questions.values())[:each]
    uris = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pngs]
    images = [read_image(uri, Limits().max_pixels).image for uri in uris]
    rows = model.answer(images, questions, decoding=decoding)
    # Every image once, then every image again with another question.
    asked = [
        Asked(uri, question, row[number])
        for number, question in enumerate(questions)
        for uri, row in zip(uris, rows, strict=True)
    ][:count]
    load = Load("`model.answer`, one by one")
    for one in asked[:alone]:
        began = time.perf_counter()
        image = read_image(one.uri, Limits().max_pixels).image
        answer = model.answer(image, one.question, decoding=decoding)
        load.latencies.append(time.perf_counter() - began)
        load.different += answer != one.answer
    load.seconds = sum(load.latencies)
    return asked, load


async def ask(
    url: str, asked: list[Asked], clients: int, name: str, vanish: bool = False, **fields
) -> Load:
    """All questions by so many clients at once, each of which asks again when it was answered.

    `fields` are added to each request. Where they `vanish`, every second question's client gives up
    within a second.
    """
    load, waiting = Load(name), list(enumerate(asked))[::-1]

    async def client() -> None:
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as http:
            while waiting:
                number, one = waiting.pop()
                began = time.perf_counter()
                if vanish and number % 2:
                    try:
                        left = 0.1 * (number % 9)
                        await asyncio.wait_for(http.post(url, json=one.body()), left)
                    except (TimeoutError, httpx.TransportError):
                        pass
                    continue
                try:
                    reply = await http.post(url, json=one.body(**fields))
                    text = reply.json()["choices"][0]["message"]["content"]
                except (httpx.TransportError, KeyError, ValueError):
                    load.lost += 1
                    continue
                load.latencies.append(time.perf_counter() - began)
                load.different += text != one.answer

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began
    return load


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", default=".", help="folder of a student (.)")
    parser.add_argument("--decoding", default="consensus", help="how answers are decoded")
    parser.add_argument("--requests", type=int, default=64, help="questions for each line (64)")
    parser.add_argument("--alone", type=int, default=16, help="of them one by one (16)")
    parser.add_argument("--total", type=int, default=1000, help="requests before memory is read")
    parser.add_argument("--images", type=int, default=16, help="simulated micrographs (16)")
    parser.add_argument("--image", type=Path, help="a file to ask about too")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    args = parser.parse_args(argv)
    disable_progress_bar()

    made = rows(SyntheticSplit(seed=20261126), args.images, workers=0)
    pngs = [row["image"]["bytes"] for row in made]
    if args.image:
        pngs.append(_png(read_micrograph(args.image).image))
    model = load_student(args.model).eval()
    model.answer(Image.open(io.BytesIO(pngs[0])), "Is it rough?", decoding=args.decoding)
    asked, alone = prepare(model, pngs, args.requests, args.alone, args.decoding)
    rate = len(alone.latencies) / alone.seconds
    lines, facts = [alone.cells(rate)], []
    with Server(args.model, args.decoding) as server:
        first = asyncio.run(ask(server.url, asked[:1], 1, "first"))
        facts += [
            f"cold start: ready after {server.cold_start:.1f} s, first answer after "
            f"{server.cold_start + first.seconds:.1f} s",
            f"memory when ready: {server.memory()}",
        ]
        sent = 1
        for clients in args.clients:
            name = f"server, {clients} client{'s' * (clients > 1)}"
            part = asked[: args.alone] if clients == 1 else asked
            lines.append(asyncio.run(ask(server.url, part, clients, name)).cells(rate))
            print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
            sent += len(part)
        name = f"server, {max(args.clients)} clients, every second vanishes"
        vanished = asyncio.run(ask(server.url, asked, max(args.clients), name, vanish=True))
        lines.append(vanished.cells(rate))
        sent += len(asked)
        while server.state()["working"]:
            time.sleep(0.05)
        facts.append(f"after clients vanished: {server.state()}")
        while sent < args.total:
            part = asked[: args.total - sent]
            asyncio.run(ask(server.url, part, max(args.clients), "more", max_tokens=2))
            sent += len(part)
        facts.append(f"memory after {sent} requests: {server.memory()}")
    facts.append(f"exit status: {server.status}")
    header = ["", "answers", "per second", "of one by one", "median", "95th percentile"]
    header += ["lost", "different"]
    print(markdown(Table(f"{args.model}, {args.decoding}", header, lines)))
    print("\n".join(f"- {fact}" for fact in facts))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
