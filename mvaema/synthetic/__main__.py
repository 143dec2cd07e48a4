"""Write a synthetic micrograph dataset: Parquet shards and a card that says what it is.

    python -m mvaema.synthetic --count 1000 --seed 0 --output data/synthetic

`load_dataset("data/synthetic")` reads it. A run that was stopped goes on with the same command; a
larger --count adds to what is there. `--help` explains every argument.
"""

import argparse
import sys
from pathlib import Path

import pyarrow.parquet as pq

from mvaema.micrographs.shards import shard_paths, write_shards

from .dataset import LICENCE, SOURCE, Recipe, rows
from .scenes import CATEGORIES

# Small enough that a run that is stopped loses a minute.
_SHARD_BYTES = 100 * 2**20

_CARD = """\
---
pretty_name: MVaEMa synthetic micrographs
license: {licence_id}
language: en
tags:
- synthetic
- electron-microscopy
task_categories:
- visual-question-answering
- image-classification
---

# Synthetic electron micrographs

**Every image in this dataset is simulated.** No microscope, no specimen and no photograph was
involved: {source} computed each image from a surface with known dimensions and the physics of a
scanning electron microscope, and wrote the answers from the same facts. Of every image, the
`imaging` and `application` answers say so too.

- {train} training and {validation} validation images, {size} × {size} pixels, of the categories
  {categories}.
- `group` is the scene. Up to {views} views (place, magnification, settings) show the same scene; no
  scene is in two splits.
- `pixel_size_nm` is exact. `scale_bar` is the text of the bar in the image, null without one.
- Where no scale bar is visible, the answers give lengths as a percentage of the image width.
- Made by `python -m mvaema.synthetic {arguments}`; the same command makes the same pixels with the
  same versions of NumPy, SciPy and Pillow.

The scenes are simplified: secondary-electron images only, ideal shapes, no instrument of a
particular vendor. Scores on this dataset say nothing about real micrographs until they are measured
there.
"""


def _resume(folder: Path, split: str, recipe: Recipe) -> int:
    """How many rows of the split are there already.

    Raises:
        ValueError: the folder holds rows that this command did not make.
    """
    shards = shard_paths(folder, split)
    if not shards:
        return 0
    first = next(pq.ParquetFile(shards[0]).iter_batches(1, columns=["image_id"]))
    if first["image_id"][0].as_py() != recipe.row(0)["image_id"]:
        raise ValueError(
            f"{shards[0]} was made from something else (another seed or other settings): give "
            "another --output, or the settings it was made with."
        )
    return sum(pq.ParquetFile(shard).metadata.num_rows for shard in shards)


def write_card(folder: Path, text: str) -> None:
    """Write the dataset card, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".README.md.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / "README.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mvaema.synthetic", description="Write a synthetic micrograph dataset."
    )
    add = parser.add_argument
    add("--count", type=int, required=True, help="images, all splits together")
    add("--output", type=Path, required=True, help="folder of the dataset")
    add("--seed", type=int, default=0, help="of the dataset (0)")
    add("--validation", type=float, default=0.1, help="fraction of images for validation (0.1)")
    add("--views", type=int, default=2, help="images of each scene (2)")
    add("--size", type=int, default=224, help="width and height in pixels (224)")
    add(
        "--difficulty",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of difficulty, 0 (clean) to 1 (noise, blur, charging, drift) (0 1)",
    )
    add("--categories", nargs="+", choices=CATEGORIES, help="some of the ten (all)")
    add("--workers", type=int, help="processes (one per core)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    counts = {"validation": round(args.count * args.validation)}
    counts["train"] = args.count - counts["validation"]
    settings = {
        "views": args.views,
        "difficulty": tuple(args.difficulty),
        "size": args.size,
        "categories": tuple(args.categories) if args.categories else None,
    }
    try:
        if args.count < 1 or not 0 <= args.validation < 1:
            raise ValueError("--count must be at least 1 and --validation in [0, 1).")
        # Both splits are checked before anything is written.
        there = {s: _resume(args.output, s, Recipe(args.seed, s, **settings)) for s in counts}
        card = _CARD.format(
            licence_id=LICENCE.lower(),
            source=SOURCE,
            train=f"{max(counts['train'], there['train']):,}",
            validation=f"{max(counts['validation'], there['validation']):,}",
            categories=", ".join(args.categories or CATEGORIES),
            size=args.size,
            views=args.views,
            arguments=_command(args),
        )
        write_card(args.output, card)
        for split in ("train", "validation"):
            count, start = counts[split], there[split]
            made = rows(
                count, args.seed, start=start, split=split, workers=args.workers, **settings
            )
            write_shards(
                made,
                args.output,
                split,
                shard_bytes=_SHARD_BYTES,
                total=max(0, count - start),
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Complete shards are kept; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _command(args: argparse.Namespace) -> str:
    """The arguments that decide what is made (no path, no number of workers)."""
    words = [f"--count {args.count} --seed {args.seed} --validation {args.validation:g}"]
    words.append(f"--views {args.views} --size {args.size}")
    words.append("--difficulty {:g} {:g}".format(*args.difficulty))
    if args.categories:
        words.append("--categories " + " ".join(args.categories))
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
