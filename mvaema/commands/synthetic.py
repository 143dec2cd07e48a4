"""mvaema synthetic --count 1000 --output_dir data/synthetic

Writes a dataset of simulated micrographs, which `load_dataset("data/synthetic")` reads. Rerun the
same command to resume a run that was stopped; a larger --count adds to the rows that are there.
`mvaema synthetic --help` explains every argument.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.synthetic.dataset import SyntheticSplit
from mvaema.synthetic.writing import write_dataset


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write a dataset. Returns the exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        settings = SyntheticSplit(
            seed=args.seed,
            views=args.views,
            difficulty=tuple(args.difficulty),
            size=args.size,
            categories=tuple(args.categories) if args.categories else None,
        )
        write_dataset(args.output_dir, settings, args.count, args.validation, args.workers)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Rerun the same command to resume.", file=sys.stderr)
        return 130
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog, description="Write a dataset of simulated micrographs.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--count", type=int, required=True, help="number of images in all splits together")
    add("--output_dir", type=Path, required=True, help="folder of the dataset")
    add("--seed", type=int, default=0, help="seed of the dataset (0)")
    add("--validation", type=float, default=0.1, help="fraction of images for validation (0.1)")
    add("--views", type=int, default=2, help="images of each scene (2)")
    add("--size", type=int, default=224, help="width and height in pixels (224)")
    add(
        "--difficulty",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of difficulty, from 0 (clean) to 1 (noise, blur, charging, drift) (0 1)",
    )
    add(
        "--categories",
        nargs="+",
        choices=CATEGORY_CAPTIONS,
        metavar="CATEGORY",
        help=f"some of {', '.join(CATEGORY_CAPTIONS)} (all)",
    )
    add("--workers", type=int, help="processes (one per core; 0: this process)")
    return parser
