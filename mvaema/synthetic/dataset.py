"""Rows of the micrograph schema from the synthetic microscope, made by several processes.

What is special about it:
- a row depends on the settings, the split and its index alone, so any number of workers makes the
  same rows, and a stopped run can be resumed;
- a group is a scene, and each split has its own scenes, so views of one scene never fall into
  different splits.
"""

import io
import os
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from mvaema.micrographs.schema import pixel_hash
from mvaema.micrographs.shards import SPLITS
from mvaema.synthetic.scenes import render

SOURCE = "MVaEMa synthetic microscope"
LICENCE = "Apache-2.0"
_CHUNK = 16  # rows per task


@dataclass(frozen=True)
class SyntheticSplit:
    """One split of a synthetic dataset: all that its rows depend on.

    Attributes:
        seed: of the whole dataset.
        name: `train`, `validation` or `test`; each has its own scenes.
        views: number of consecutive rows that show the same scene.
        difficulty: range from which the difficulty of each view is drawn, within 0 to 1.
        size: width and height of the images in pixels.
        categories: the categories in turn, scene by scene; None for all ten.

    Raises:
        ValueError: a value is out of range.
    """

    seed: int = 0
    name: str = "train"
    views: int = 2
    difficulty: tuple[float, float] = (0.0, 1.0)
    size: int = 224
    categories: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {self.name!r}.")
        if self.views < 1:
            raise ValueError(f"views must be at least 1; got {self.views}.")
        low, high = self.difficulty
        if not 0 <= low <= high <= 1:
            raise ValueError(f"difficulty must be a range within 0 to 1; got {low} to {high}.")
        unknown = set(self.categories or ()) - set(CATEGORY_CAPTIONS)
        if unknown or self.categories == ():
            raise ValueError(
                f"categories must be some of {', '.join(CATEGORY_CAPTIONS)}; "
                f"got {', '.join(sorted(unknown)) or 'none'}."
            )

    def row(self, index: int) -> dict:
        """Row `index`: columns of `mvaema.micrographs.schema.FEATURES`, the image as PNG bytes."""
        scene, view = divmod(index, self.views)
        stream = np.random.SeedSequence([self.seed, SPLITS.index(self.name), scene])
        seed = int(stream.generate_state(1, np.uint64)[0])
        categories = self.categories or tuple(CATEGORY_CAPTIONS)
        category = categories[scene % len(categories)]
        difficulty = np.random.default_rng([seed, 3, view]).uniform(*self.difficulty)
        shot = render(seed, category, float(difficulty), self.size, view)
        png = io.BytesIO()
        # Noise has no long matches: run lengths give the size of level 6 in half the time.
        shot.image.save(png, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        return {
            "image": {"bytes": png.getvalue(), "path": None},
            "image_id": pixel_hash(shot.image),
            "category": category,
            "caption": CATEGORY_CAPTIONS[category],
            "pixel_size_nm": shot.pixel_size_nm,
            "pixel_size_source": "recorded",
            "scale_bar": shot.scale_bar,
            "technique": shot.facts.technique,
            "group": f"synthetic-{seed:016x}",
            "qa": [
                {
                    "question_id": question_id,
                    "question": question,
                    "answer": shot.answers[question_id],
                    "outcome": "ok",
                }
                for question_id, question in QUESTIONS.items()
            ],
            "source": SOURCE,
            "licence": LICENCE,
        }

    def rows(self, start: int, stop: int) -> list[dict]:
        """Rows `start` to `stop`, made in this process."""
        return [self.row(index) for index in range(start, stop)]


def rows(
    split: SyntheticSplit, count: int, *, start: int = 0, workers: int | None = None
) -> Iterator[dict]:
    """Rows `start` to `count` of a split, in order; few of them are in memory at a time.

    Args:
        split: which rows; they do not depend on the other arguments.
        count: index after the last row.
        start: index of the first row.
        workers: processes that make rows (None: one per core, 0: this process).

    Raises:
        ValueError: `count` or `start` is negative.
    """
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative; got {count} and {start}.")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        return map(split.row, range(start, count))
    return _made_by_workers(split, start, count, workers)


def _made_by_workers(split: SyntheticSplit, start: int, stop: int, workers: int) -> Iterator[dict]:
    """Rows from a pool that is never more than a few chunks ahead of the reader."""
    pool = ProcessPoolExecutor(workers)
    try:
        waiting = deque()
        for first in range(start, stop, _CHUNK):
            waiting.append(pool.submit(split.rows, first, min(first + _CHUNK, stop)))
            if len(waiting) == 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
