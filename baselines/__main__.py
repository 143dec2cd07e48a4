"""python -m baselines list | run ROW ... | table FOLDER

The paper's comparisons, and what people use today, under the same folds and budget. `table` prints
what finished runs came to, and writes it into their folder as tables.md and accuracy.png.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import baselines.environment  # noqa: F401  (first)
from baselines.registry import all_rows, choose, group_name
from baselines.runs import run_rows
from baselines.settings import Settings
from baselines.table import COSTS, accuracy_against_cost, read_results, tables
from mvaema.files import replacing, write_text
from mvaema.memory import keep_freed_memory
from mvaema.micrographs.folds import LeakError


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments)
    except (OSError, ValueError, LeakError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Rerun the same command: finished rows are kept, this one begins anew.",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m baselines", description=__doc__.partition("\n\n")[2], allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("list", help="all rows, by group", allow_abbrev=False)
    one.set_defaults(command=_list)

    run = commands.add_parser("run", help="train and score rows", allow_abbrev=False)
    run.set_defaults(command=_run)
    run.add_argument("rows", nargs="+", metavar="ROW", help="rows, groups, or 'all'")
    run.add_argument("--dataset", required=True, help="micrograph dataset: a folder or a Hub id")
    run.add_argument(
        "--output_dir", required=True, type=Path, help="rerun the same command to resume it"
    )
    run.add_argument(
        "--fold", type=int, nargs="+", default=[0], help="folds to run (default: 0)", metavar="K"
    )
    run.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)", metavar="S")
    run.add_argument(
        "--pretrained", metavar="NAME", help="folder or Hub id to start from, for rows that do"
    )
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    for name, kind, text in (
        ("split", str, "split of the dataset that is divided into folds"),
        ("folds", int, "folds; no two share a specimen"),
        ("test_split", str, "split to test on, fold k validates (default: fold k tests)"),
        ("mix", str, "how often an epoch shows each micrograph of each dataset, as in 3:0.5"),
        ("balance", float, "categories: 0 as in the data, 1 equally frequent"),
        ("epochs", int, "passes over the training micrographs, at most"),
        ("batch_size", int, "micrographs in a step"),
        ("image_size", int, "height and width in pixels"),
        ("budget", float, "minutes a row may train, of processor time on a CPU (default: no end)"),
        ("patience", int, "epochs without a lower validation loss that halve the learning rate"),
        ("stop_after", int, "such epochs before training stops"),
        ("workers", int, "processes that prepare batches; 0 on a CPU, where the budget counts all"),
    ):
        default = defaults[name]
        shown = "" if default is None else f" (default: {default})"
        run.add_argument(f"--{name}", type=kind, default=default, help=text + shown)
    run.add_argument(
        "--train_also", nargs="+", default=[], help="further datasets to train on", metavar="NAME"
    )
    run.add_argument(
        "--questions",
        nargs="+",
        default=[],
        help="ids of the questions that rows which answer are tested on (default: all)",
        metavar="ID",
    )

    table = commands.add_parser("table", help="what runs came to", allow_abbrev=False)
    table.set_defaults(command=_table)
    table.add_argument("folder", type=Path, help="the --output_dir of `run`", metavar="FOLDER")
    table.add_argument(
        "--cost", choices=COSTS, default="minutes", help="of the picture (default: minutes)"
    )
    return parser


def _list(arguments: argparse.Namespace) -> int:
    group = None
    for row in all_rows().values():
        if row.group != group:
            group = row.group
            table = f", table {row.table} of the paper" if row.table else ""
            print(f"\n{group} ({group_name(group)}){table}")
        figures = ", ".join(f"{name} {value:.3f}" for name, value in row.paper.items())
        print(f"  {row.name:24} {row.library:16} {figures}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    names = [f.name for f in dataclasses.fields(Settings)]
    values = {name: getattr(arguments, name) for name in names}
    several = {name: tuple(getattr(arguments, name)) for name in ("train_also", "questions")}
    settings = Settings(**values | several)
    wrong = [k for k in arguments.fold if not 0 <= k < settings.folds]
    if wrong:
        raise ValueError(f"--fold must be in [0, {settings.folds}); got {wrong[0]}.")
    rows = choose(arguments.rows, arguments.pretrained)
    keep_freed_memory()
    report = run_rows(rows, settings, arguments.output_dir, arguments.fold, arguments.seeds)
    print(
        f"{len(report.done)} done, {len(report.skipped)} done before, {len(report.busy)} left to "
        f"another process, {len(report.failed)} failed."
    )
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if report.failed else 0


def _table(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    lines, failed = read_results(folder)
    text = tables(lines, failed, folder)
    print(text)
    write_text(folder / "tables.md", text)
    try:
        figure = accuracy_against_cost(lines, arguments.cost)
    except ValueError as error:
        print(f"There is no picture: {error}", file=sys.stderr)
        return 0
    with replacing(folder / "accuracy.png") as file:
        figure.savefig(file, format="png")
    print(f"written to {folder / 'tables.md'} and {folder / 'accuracy.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
