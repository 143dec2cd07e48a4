"""mvaema build folder ~/micrographs data/sem

    mvaema build table files.csv data/sem --columns path=file category=label
    mvaema build dataset owner/name data/sem --split train
    mvaema build aversa ~/aversa data/aversa --download

Builds a micrograph dataset, or brings one up to date. Rerun the same command to resume a build
that was stopped, or to add new files. `mvaema build SOURCE --help` explains each source.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from mvaema.micrographs import aversa
from mvaema.micrographs.build import build
from mvaema.micrographs.labelling import GROUPINGS, STEM_PATTERN, Labelling
from mvaema.micrographs.reading import ReadOptions
from mvaema.micrographs.schema import FEATURES
from mvaema.micrographs.shards import SPLITS
from mvaema.micrographs.sources import (
    DatasetSource,
    FolderSource,
    TableSource,
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Build a dataset. Returns the exit status: 1 after an error or if the split has no rows."""
    args = _parser(prog).parse_args(argv)
    try:
        reader = _scale_bar_reader() if args.read_scale_bars else None
        report = build(
            _source(args),
            args.output_dir,
            args.output_split,
            options=ReadOptions(args.crop_info_bar, args.max_side, reader),
            workers=args.workers,
            prune=args.prune,
            retry_failed=args.retry_failed,
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Rerun the same command to resume.", file=sys.stderr)
        return 130
    print(report)
    return 0 if report.rows else 1


def _scale_bar_reader() -> Callable[[Image.Image], float | None]:
    """What reads pixel sizes, imported only where it is asked for.

    Raises:
        ValueError: a package of the extra `measuring` is not installed.
    """
    try:
        from mvaema.measuring.scale import pixel_size_read
        from mvaema.measuring.text import require_reader

        require_reader()
    except ModuleNotFoundError as error:
        raise ValueError(f"--read_scale_bars: {error}.") from error
    return pixel_size_read


def _source(
    args: argparse.Namespace,
) -> FolderSource | TableSource | DatasetSource | aversa.AversaSource:
    grouping = {"group_by": args.group_by, "group_pattern": args.group_pattern}
    if args.kind == "aversa":
        if args.download:
            aversa.fetch_archives(args.input, aversa.RECORD_URL)
        return aversa.AversaSource(args.input, Labelling(**grouping))
    stated = {name: getattr(args, name) for name in ("category", "source", "licence")}
    defaults = {name: value for name, value in stated.items() if value is not None}
    labelling = Labelling(dict(args.synonyms), defaults=defaults, **grouping)
    if args.kind == "folder":
        return FolderSource(args.input, labelling)
    if args.kind == "table":
        return TableSource(args.input, labelling, dict(args.columns), tuple(args.ignore))
    source = DatasetSource(args.input, args.split, labelling, dict(args.columns), args.config)
    if source.left_out:
        print(f"Columns left out: {', '.join(source.left_out)}")
    return source


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog, description="Build a micrograph dataset, or bring one up to date.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE")

    def add(name: str, help: str, description: str, *parents: argparse.ArgumentParser):
        return kinds.add_parser(
            name, parents=parents, help=help, description=description, allow_abbrev=False
        )

    common, labels, columns = _common(), _labels(), _columns()
    add(
        "folder",
        "a folder of files",
        "INPUT is a folder; all micrographs in it and below are read. A folder named like a "
        "category, or like a synonym of one, labels its files.",
        *(common, labels),
    )
    table = add(
        "table",
        "a CSV, JSONL or Parquet table of files",
        f"INPUT is a table with the columns {', '.join(TableSource.COLUMNS)}. Only path (or "
        "file_name) is required.",
        *(common, labels, columns),
    )
    table.add_argument("--ignore", nargs="+", default=[], help="columns of the table to leave out")
    dataset = add(
        "dataset",
        "a Hugging Face dataset, local or on the Hub",
        "INPUT is a Hub id or the folder of a dataset. Columns of the schema "
        f"({', '.join(FEATURES)}) are kept, others are left out.",
        *(common, labels, columns),
    )
    dataset.add_argument("--split", default="train", help="split to read (train)")
    dataset.add_argument("--config", help="configuration of the dataset, if it has several")
    archives = add(
        "aversa",
        "the public SEM dataset of Aversa et al. 2018",
        "INPUT is a folder with the archives of that dataset (Biological.tar, ...).",
        common,
    )
    archives.add_argument("--download", action="store_true", help="first fetch missing archives")
    return parser


def _common() -> argparse.ArgumentParser:
    """The arguments of every source."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("input", metavar="INPUT", help="what to build from: see above")
    add(
        "output_dir",
        metavar="OUTPUT_DIR",
        type=Path,
        help="folder of the dataset; OUTPUT_DIR.private beside it keeps the file names",
    )
    add("--output_split", choices=SPLITS, default="train", help="split to build (train)")
    add("--crop_info_bar", action="store_true", help="cut off burnt-in info bars")
    add("--max_side", type=int, help="scale larger images down to this many pixels")
    add(
        "--read_scale_bars",
        action="store_true",
        help="read the pixel size off the scale bar where no file states it, and mark it as read "
        "(extra measuring; about a second per file)",
    )
    add("--workers", type=int, default=1, help="processes that read files (1)")
    add("--prune", action="store_true", help="drop the rows of files that are gone")
    add(
        "--retry_failed",
        action="store_true",
        help="read also files that could not be read before and have not changed",
    )
    add(
        "--group_by",
        choices=GROUPINGS,
        default="image",
        help="micrographs of one specimen, if no column states it: each image by itself (image, "
        "the default), the files of one folder (folder), or files whose names share a stem "
        "(stem); the dataset holds only a pseudonym of the name",
    )
    add(
        "--group_pattern",
        default=STEM_PATTERN,
        metavar="REGEX",
        help="for --group_by stem: matches the whole stem, and its first group is the specimen "
        "(default: the stem without the number at its end)",
    )
    return parser


def _labels() -> argparse.ArgumentParser:
    """The arguments for what a source does not state itself."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--synonyms",
        type=_pair,
        nargs="+",
        default=[],
        metavar="NAME=CATEGORY",
        help="other names of categories, such as wires=Nanowires",
    )
    for name in ("category", "source", "licence"):
        parser.add_argument(f"--{name}", help=f"{name} of micrographs without one")
    return parser


def _columns() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--columns",
        type=_pair,
        nargs="+",
        default=[],
        metavar="COLUMN=THEIRS",
        help="columns that have another name in INPUT, such as category=label",
    )
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
