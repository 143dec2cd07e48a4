"""What the tests of the teacher share: micrographs, arguments, clocks, and the journal as seen by
plain SQLite."""

import asyncio
import sqlite3
import time
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from PIL import Image

from mvaema.teacher.accounts import Tally
from mvaema.teacher.arguments import AskArguments
from mvaema.teacher.run import TeacherRun

QUESTIONS = 10
SPEED = 200.0  # of the run's clock against ours


def make_images(folder: Path, count: int, size=(32, 24), category="Nanowires", grow=0) -> Path:
    """A folder tree of distinct random micrographs, as a microscope might have named them. Each has
    `grow` more rows and columns than the one before."""
    rng = np.random.default_rng(0)
    (folder / category).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, [side + i * grow for side in size], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / category / f"CUSTOMER_lot{i}.png")
    return folder


def arguments(images: Path, output: Path, url: str, **changes) -> AskArguments:
    changes = {"concurrency": 4, "teacher_model": "teacher", "timeout": 20.0, **changes}
    return AskArguments(images=str(images), output_dir=str(output), endpoint=url, **changes)


class SteppingClock:
    """Time that passes only while somebody sleeps, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float):
        self.now += max(seconds, 1e-6)  # less might be lost to rounding
        await asyncio.sleep(0)


def hurried(args: AskArguments) -> TeacherRun:
    """A run whose waits (backoff, Retry-After, rates) pass 200 times as fast. Requests and their
    timeouts keep real time."""
    return TeacherRun(
        args,
        clock=lambda: time.monotonic() * SPEED,
        sleep=lambda seconds: asyncio.sleep(seconds / SPEED),
    )


def ask(images: Path, output: Path, url: str, **changes) -> Tally:
    """Ask what is missing, hurried, and tell what was done. Prints and exports nothing."""
    return hurried(arguments(images, output, url, **changes)).ask().tally


def load(dataset: Path, cache: Path) -> Dataset:
    """The rows of an exported dataset, as anybody would load them."""
    return load_dataset(str(dataset), split="train", cache_dir=str(cache / "cache"))


def replies(output: Path) -> list[sqlite3.Row]:
    """All attempts in the journals of a folder, read with plain SQLite."""
    rows = []
    for path in sorted(output.glob("journal-*.sqlite")):
        db = sqlite3.connect(path)
        db.row_factory = sqlite3.Row
        rows += db.execute("SELECT * FROM replies ORDER BY id").fetchall()
        db.close()
    return rows


def outcomes(output: Path) -> Counter:
    """Outcome of the last settled attempt of each question."""
    last = {row["fingerprint"]: row["outcome"] for row in replies(output) if row["settled"]}
    return Counter(last.values())


def no_answer_lost_or_repeated(server, output: Path):
    """Every good answer that left the server is in the journal, raw, once; none was asked for
    again."""
    delivered = server.delivered()
    assert len(delivered) == len(set(delivered)), "a question was answered twice"
    kept = Counter(bytes(row["raw"] or b"") for row in replies(output))
    for name in delivered:
        holding = [raw for raw in kept if f"chatcmpl-{name}".encode() in raw]
        assert len(holding) == 1 and kept[holding[0]] == 1, name
