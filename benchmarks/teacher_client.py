"""Overhead of the teacher's client per answer, and its memory over many requests.

    python benchmarks/teacher_client.py --requests 100000

A server on loopback, in its own process, answers at once. The same requests are sent twice: by all
of `mvaema teach` (prepared images, journal with synchronous FULL, verdicts, accounts) and by the
bare openai client. Prints a table; --json FILE also writes the figures.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mvaema.teacher.arguments import AskArguments  # noqa: E402
from mvaema.teacher.endpoint import Endpoint  # noqa: E402
from mvaema.teacher.prompt import Prompt, Sampling, request_body, request_parameters  # noqa: E402
from mvaema.teacher.run import TeacherRun  # noqa: E402

QUESTIONS = 10
BARE_REQUESTS = 10_000


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(threading.Thread):
    """Resident memory of this process, against the number of requests answered so far."""

    def __init__(self, count):
        super().__init__(daemon=True)
        self.count, self.samples, self.ended = count, [], threading.Event()

    def run(self):
        while not self.ended.wait(0.5):
            self.samples.append((self.count(), resident_mib()))

    def at(self, requests: int) -> float | None:
        """MiB once so many requests were answered."""
        return next((mib for count, mib in self.samples if count >= requests), None)


def start_server() -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/teacher_server.py"), "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/batches", timeout=1).close()
            return process, f"http://127.0.0.1:{port}/v1"
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                raise RuntimeError("the server did not start") from None
            time.sleep(0.1)


def make_images(folder: Path, count: int, side: int):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.png", compress_level=1)


def whole(images: Path, output: Path, url: str, concurrency: int) -> dict:
    """`mvaema teach` without its export."""
    run = TeacherRun(
        AskArguments(
            images=str(images),
            output_dir=str(output),
            teacher_model="teacher",
            endpoint=url,
            concurrency=concurrency,
        )
    )
    database = output / "journal-00000-of-00001.sqlite"

    def answered() -> int:
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
                return db.execute("SELECT coalesce(max(id), 0) FROM replies").fetchone()[0]
        except sqlite3.Error:
            return 0

    memory = Memory(answered)
    memory.start()
    cpu, wall = time.process_time(), time.perf_counter()
    tally = run.ask().tally
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    memory.ended.set()
    return {"answers": tally.outcomes["ok"], "cpu_s": cpu, "wall_s": wall, "memory": memory}


def bare(output: Path, url: str, concurrency: int) -> dict:
    """The same requests, at most 10,000 of them, by the openai client alone."""
    files = sorted(output.glob("images/*/*.png"))[: BARE_REQUESTS // QUESTIONS]
    prompt, parameters = Prompt.load(), request_parameters("standard", Sampling())
    texts = [prompt.render(name, (64, 64)) for name in prompt.questions]
    client = Endpoint(url).async_client(concurrency)
    jobs = ((file, text) for file in files for text in texts)

    async def worker():
        for file, text in jobs:
            body = request_body("teacher", parameters, file, text)
            await client.chat.completions.with_raw_response.create(**body)

    async def main():
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        await client.close()

    cpu, wall = time.process_time(), time.perf_counter()
    asyncio.run(main())
    return {
        "answers": len(files) * QUESTIONS,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    images = -(-args.requests // QUESTIONS)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_images(folder / "images", images, args.side)
        server, url = start_server()
        try:
            ours = whole(folder / "images", folder / "out", url, args.concurrency)
            floor = bare(folder / "out", url, args.concurrency)
        finally:
            server.terminate()
            server.wait()
        journal = (folder / "out" / "journal-00000-of-00001.sqlite").stat().st_size

    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{machine}; {args.side} px images, concurrency {args.concurrency}")
    print("| per answer | CPU | wall |\n|---|---|---|")
    for name, result in (("whole client", ours), ("bare openai client", floor)):
        cpu, wall = (1e3 * result[key] / result["answers"] for key in ("cpu_s", "wall_s"))
        print(f"| {name} | {cpu:.2f} ms | {wall:.2f} ms |")
    print(f"\nJournal: {journal / ours['answers']:,.0f} bytes per answer.")
    print("| requests | resident memory |\n|---|---|")
    memory = {}
    for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.99):
        requests = int(share * args.requests)
        memory[requests] = ours["memory"].at(requests)
        if memory[requests] is not None:
            print(f"| {requests:,} | {memory[requests]:.0f} MiB |")
    if args.json:
        figures = {
            "requests": ours["answers"],
            "side": args.side,
            "concurrency": args.concurrency,
            "whole": {key: ours[key] for key in ("cpu_s", "wall_s")},
            "bare": {key: floor[key] for key in ("cpu_s", "wall_s")},
            "journal_bytes": journal,
            "resident_mib": memory,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
