"""A large dataset built, built again and read, with time and peak memory of each stage.

    python benchmarks/million_rows.py --rows 20000
    nice python benchmarks/million_rows.py --rows 1000000 --folds

Small micrographs are drawn on the spot and go the whole way of `mvaema.building.build`: reading,
hashing, ledger, shards. Each stage runs in a process of its own. Memory is given twice: what the
process owns (anonymous), and the resident set, in which the pages of files count that the kernel
holds as long as nobody else needs the room.
"""

import argparse
import io
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.building import build
from mvaema.dataset import decode_image, load_micrographs
from mvaema.folds import report_folds
from mvaema.schema import pixel_hash
from mvaema.sources import Entry

SIDE = 32
CATEGORIES = list(CATEGORY_CAPTIONS)


class Drawn:
    """A source of `count` different micrographs of particles, ten of each specimen."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Entry]:
        for number in range(self.count):
            fields = {"category": CATEGORIES[number // 10 % 10], "group": f"s{number // 10}"}
            yield Entry(f"image {number}", "1", lambda n=number: drawn(n), ".png", fields)


def drawn(number: int) -> bytes:
    """A PNG with a few discs on a slope."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = random.uniform(20, 60) + x * random.uniform(-1, 1) + y * random.uniform(-1, 1)
    for cx, cy, radius, grey in random.uniform((0, 0, 2, 80), (SIDE, SIDE, 6, 220), (4, 4)):
        image[np.hypot(x - cx, y - cy) < radius] = grey
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def stage_build(folder: Path, rows: int) -> str:
    report = build(Drawn(rows), folder)
    assert report.rows == rows, report
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{len(list(folder.iterdir()))} shards, {size / 2**30:.2f} GiB"


def stage_rebuild(folder: Path, rows: int) -> str:
    report = build(Drawn(rows), folder)
    assert (report.read, report.unchanged) == (0, rows), report
    return "nothing read again"


def stage_load(folder: Path, rows: int) -> str:
    dataset = load_micrographs(folder)
    assert len(dataset) == rows
    return f"{len(dataset.features)} columns"


def stage_read(folder: Path, rows: int) -> str:
    """Every row, every image decoded; each 1000th is compared with what was drawn."""
    dataset = load_micrographs(folder)
    for number, row in enumerate(dataset):
        image = decode_image(row)
        if number % 1000 == 0:
            assert pixel_hash(image) == row["image_id"]
            assert np.array_equal(image, Image.open(io.BytesIO(drawn(number))))
    assert number + 1 == rows
    return "all images decoded"


def stage_folds(folder: Path, rows: int) -> str:
    report = report_folds(load_micrographs(folder), 10)
    sizes = np.bincount(report.folds)
    return f"folds of {sizes.min():,} to {sizes.max():,}; {report.clusters:,} clusters"


def measured(stage: Callable, folder: Path, rows: int, results: multiprocessing.Queue):
    """Run one stage; put (what it says, seconds, own memory, resident memory in GiB)."""
    peak, done = 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.1):
            status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
            peak = max(peak, int(status.split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        said = stage(folder, rows)
    finally:
        done.set()
        watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((said, time.perf_counter() - start, peak / 2**20, resident / 2**20))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--folds", action="store_true", help="near-duplicates and folds as well")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    args = parser.parse_args()
    stages = [stage_build, stage_rebuild, stage_load, stage_read]
    if args.folds:
        stages.append(stage_folds)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        # The cache of `datasets` is taken down with the rest.
        os.environ["HF_DATASETS_CACHE"] = f"{name}/cache"
        print(f"{'stage':10}{'seconds':>9}{'rows/s':>9}{'own GiB':>9}{'resident':>10}")
        for stage in stages:
            results = context.Queue()
            process = context.Process(
                target=measured, args=(stage, Path(name) / "data", args.rows, results)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{stage.__name__} failed; see above.")
            said, seconds, own, resident = results.get()
            rate = args.rows / seconds
            print(
                f"{stage.__name__.removeprefix('stage_'):10}{seconds:9.1f}{rate:9.0f}"
                f"{own:9.2f}{resident:10.2f}   {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
