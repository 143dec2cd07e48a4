"""mvaema folds data/sem --k 10

    mvaema folds data/sem --k 10 --csv folds.csv
    mvaema folds data/sem --k 5 --hold_out data/sem-split

Assigns cross-validation folds, and prints how the categories spread over them and what ordinary
folds would leak. With --hold_out it writes the dataset again, with fold 0 as the split
`validation`, for `mvaema eval`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mvaema.micrographs.dataset import load_micrographs
from mvaema.micrographs.folds import hold_out, report_folds, write_folds


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Assign folds. Returns the exit status."""
    args = _parser(prog).parse_args(argv)
    try:
        dataset = load_micrographs(args.dataset, args.split)
        report = report_folds(dataset, args.k, args.seed, args.workers)
        if args.hold_out:
            hold_out(dataset, report.folds, args.hold_out)
        if args.csv:
            write_folds(dataset, report.folds, args.csv)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        description="Assign cross-validation folds and report what ordinary folds would leak.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="folder of a dataset, or a Hub id")
    add("--split", default="train", help="split to divide (train)")
    add("--k", type=int, default=10, help="number of folds (10)")
    add("--seed", type=int, default=0, help="selects one of many good assignments (0)")
    add("--workers", type=int, help="processes that decode images (this process)")
    add("--csv", type=Path, metavar="FILE", help="table to write: image_id, fold")
    add(
        "--hold_out",
        type=Path,
        metavar="FOLDER",
        help="dataset to write, with fold 0 as its split `validation`",
    )
    return parser
