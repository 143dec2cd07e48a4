"""Writes a synthetic micrograph dataset: Parquet shards, and a card that says what it is.

What is special about it:
- rows that are there already are not made again, so a stopped run is resumed and a larger count
  adds rows;
- a folder made with another seed or other settings is refused before anything is written.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.files import write_text
from mvaema.micrographs.shards import shard_paths, write_shards
from mvaema.synthetic.dataset import LICENCE, SOURCE, SyntheticSplit, rows

SHARD_BYTES = 100 * 2**20  # a run that is stopped loses about a minute

_CARD = """\
---
pretty_name: MVaEMa synthetic micrographs
license: {licence}
language: en
tags:
- synthetic
- electron-microscopy
task_categories:
- visual-question-answering
- image-classification
---

# Synthetic electron micrographs

**Every image in this dataset is simulated.** No microscope, specimen or photograph was involved:
{source} computed each image from a specimen with known dimensions and the physics of a scanning or
transmission electron microscope, and wrote the answers from the same facts. The `imaging` and
`application` answers of every image say so too.

- {train:,} training and {validation:,} validation images, {size} × {size} pixels, of the categories
  {categories}.
- `group` is the scene. Up to {views} views (place, magnification, settings) show the same scene; no
  scene is in two splits.
- `pixel_size_nm` is exact. `scale_bar` is the text of the bar in the image, or null without a bar.
- Where no scale bar is visible, the answers give lengths as a percentage of the image width.
- Made with `mvaema synthetic {arguments}`. The same command gives the same pixels with the same
  versions of NumPy, SciPy and Pillow.

The scenes are simplified: ideal shapes, no particular vendor's instrument. `technique` says which
are SEM, TEM (bright field) and STEM (dark field). Scores on this dataset say nothing about real
micrographs; measure those on real ones.
"""


def write_dataset(
    folder: Path,
    settings: SyntheticSplit,
    count: int,
    validation: float = 0.1,
    workers: int | None = None,
) -> None:
    """Bring the splits `train` and `validation` of a dataset to `count` rows together.

    Args:
        folder: of the dataset; created when missing.
        settings: seed and settings; their `name` is not used.
        count: number of rows in both splits.
        validation: fraction of them in the split `validation`, in [0, 1).
        workers: processes (None: one per core, 0: this process).

    Raises:
        ValueError: a number is out of range, or the folder was made from something else.
    """
    if count < 1 or not 0 <= validation < 1:
        raise ValueError(
            "count must be at least 1 and validation at least 0 and below 1; got "
            f"{count} and {validation:g}."
        )
    counts = {"validation": round(count * validation)}
    counts["train"] = count - counts["validation"]
    splits = {name: replace(settings, name=name) for name in ("train", "validation")}
    # Both splits are checked before anything is written.
    existing = {name: _existing_rows(folder, split) for name, split in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: max(counts[name], existing[name]) for name in splits}
    write_text(folder / "README.md", _card(settings, sizes, count, validation))
    for name, split in splits.items():
        start = existing[name]
        made = rows(split, counts[name], start=start, workers=workers)
        total = max(0, counts[name] - start)
        write_shards(made, folder, name, shard_bytes=SHARD_BYTES, total=total)


def _existing_rows(folder: Path, split: SyntheticSplit) -> int:
    """How many rows of the split are there already.

    Raises:
        ValueError: the folder holds rows that were made from something else.
    """
    shards = shard_paths(folder, split.name)
    if not shards:
        return 0
    first = next(pq.ParquetFile(shards[0]).iter_batches(1, columns=["image_id"]))
    if first["image_id"][0].as_py() != split.row(0)["image_id"]:
        raise ValueError(
            f"{shards[0]} was made with another seed or other settings. Give those settings, or "
            "another --output_dir."
        )
    return sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards)


def _card(settings: SyntheticSplit, sizes: dict[str, int], count: int, validation: float) -> str:
    low, high = settings.difficulty
    arguments = f"--count {count} --seed {settings.seed} --validation {validation:g}"
    arguments += f" --views {settings.views} --size {settings.size} --difficulty {low:g} {high:g}"
    if settings.categories:
        arguments += f" --categories {' '.join(settings.categories)}"
    return _CARD.format(
        licence=LICENCE.lower(),
        source=SOURCE,
        size=settings.size,
        views=settings.views,
        categories=", ".join(settings.categories or CATEGORY_CAPTIONS),
        arguments=arguments,
        **sizes,
    )
