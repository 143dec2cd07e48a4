"""A large dataset written, read and built, with time and peak memory of each stage.

    python benchmarks/million_rows.py --rows 20000 --files 2000
    nice python benchmarks/million_rows.py --rows 1000000 --files 20000

`--rows` small micrographs, each different, go through `mvaema.micrographs.shards.write_shards` and
are read back. `--files` of them go through `mvaema.micrographs.build.build`, which decodes, looks
for info bars and keeps its ledger, and then through it again with nothing to do. Each stage runs in
its own process. Memory is given twice: what the process owns (anonymous), and its resident set,
which includes pages of files that the kernel keeps while nobody else needs the memory.
"""

import argparse
import functools
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.build import build
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.micrographs.schema import pixel_hash
from mvaema.micrographs.shards import clean_png, write_shards
from mvaema.micrographs.sources import Entry

SIDE, TEXTURES = 64, 256
CATEGORIES = list(CATEGORY_CAPTIONS)


@functools.cache
def textures() -> list[np.ndarray]:
    """A few pictures of discs; each gives SIDE² different micrographs by shifting it."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    pictures = []
    for _ in range(TEXTURES):
        picture = random.uniform(20, 60) + x * random.uniform(-1, 1)
        for cx, cy, radius, grey in random.uniform((0, 0, 3, 80), (SIDE, SIDE, 12, 220), (6, 4)):
            picture[np.hypot(x - cx, y - cy) < radius] = grey
        pictures.append(picture.clip(0, 255).astype(np.uint8))
    return pictures


def drawn(number: int) -> np.ndarray:
    """uint8 (SIDE, SIDE), different for each number below a million."""
    shift, texture = divmod(number, TEXTURES)
    return np.roll(textures()[texture], divmod(shift, SIDE), axis=(0, 1))


def fields(number: int) -> dict:
    return {"category": CATEGORIES[number // 10 % 10], "group": f"s{number // 10}"}


class Drawn:
    """A source of `count` drawn micrographs."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Entry]:
        for number in range(self.count):
            content = functools.partial(encoded, number)
            yield Entry(f"image {number}", "1", content, ".png", fields(number))


def encoded(number: int) -> bytes:
    return clean_png(drawn(number))


def stage_write(folder: Path, count: int) -> str:
    rows = (
        {"image": image, "image_id": pixel_hash(image), **fields(number)}
        for number, image in ((number, drawn(number)) for number in range(count))
    )
    write_shards(rows, folder, total=count)
    shards = list(folder.iterdir())
    size = sum(path.stat().st_size for path in shards)
    return f"{len(shards)} shards, {size / 2**30:.2f} GiB"


def stage_load(folder: Path, count: int) -> str:
    dataset = load_micrographs(folder)
    assert len(dataset) == count
    return f"{len(dataset.features)} columns"


def stage_read(folder: Path, count: int) -> str:
    """Every row, every image decoded; each 1000th is compared with what was drawn."""
    dataset = load_micrographs(folder)
    for number, row in enumerate(dataset):
        image = decode_image(row)
        if number % 1000 == 0:
            assert pixel_hash(image) == row["image_id"]
            assert np.array_equal(image, drawn(number))
    assert number + 1 == count
    return "all images decoded"


def stage_build(folder: Path, count: int) -> str:
    report = build(Drawn(count), folder.with_name("built"))
    assert report.rows == count, report
    return "every file read"


def stage_rebuild(folder: Path, count: int) -> str:
    report = build(Drawn(count), folder.with_name("built"))
    assert (report.read, report.unchanged) == (0, count), report
    return "nothing read again"


def measured(stage: Callable, folder: Path, count: int, results: multiprocessing.Queue):
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
        said = stage(folder, count)
    finally:
        done.set()
        watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((said, time.perf_counter() - start, peak / 2**20, resident / 2**20))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    args = parser.parse_args()
    stages = [(stage, args.rows) for stage in (stage_write, stage_load, stage_read)]
    stages += [(stage, args.files) for stage in (stage_build, stage_rebuild)]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        # The cache of `datasets` is removed with the rest.
        os.environ["HF_DATASETS_CACHE"] = f"{name}/cache"
        print(f"{'stage':10}{'rows':>10}{'seconds':>9}{'rows/s':>9}{'own GiB':>9}{'resident':>10}")
        for stage, count in stages:
            results = context.Queue()
            process = context.Process(
                target=measured, args=(stage, Path(name) / "data", count, results)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{stage.__name__} failed; see above.")
            said, seconds, own, resident = results.get()
            rate = count / seconds
            print(
                f"{stage.__name__.removeprefix('stage_'):10}{count:10,}{seconds:9.1f}{rate:9.0f}"
                f"{own:9.2f}{resident:10.2f}   {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
