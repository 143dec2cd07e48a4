"""mvaema teach --images micrographs/ --output_dir teacher/ --teacher_model NAME \\
    --endpoint http://localhost:8000/v1

Asks a large vision model (any OpenAI-compatible endpoint) about each micrograph. Every reply is
kept in a journal in the output folder before anything else happens to it: rerun the same command
to resume, and nothing is paid for twice. The dataset is in `teacher/dataset`. Further commands:

    mvaema teach export --output_dir teacher/                   while a run continues, or after it
    mvaema teach merge --output_dir all/ --parts shard-*/       the shards of a job array
    mvaema teach --help                                         all arguments
"""

import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import HfArgumentParser

from mvaema.hub import require_token
from mvaema.micrographs.schema import OUTCOMES
from mvaema.teacher.arguments import AskArguments, ExportArguments, MergeArguments
from mvaema.teacher.endpoint import EndpointError
from mvaema.teacher.estimating import estimate
from mvaema.teacher.export import export, push
from mvaema.teacher.journal import Journal, JournalError, journals
from mvaema.teacher.merging import merge
from mvaema.teacher.money import Price, dollars, load_price
from mvaema.teacher.run import INTERRUPTED, RunResult, TeacherRun

RESUME = "All replies received so far are saved. Rerun the same command to resume."


def ask_command(args: AskArguments) -> int:
    """Ask a large vision model about each micrograph. Every reply is kept in a journal: rerun the
    same command to resume, and nothing is paid for twice. The dataset is written at the end."""
    run = TeacherRun(args)
    if run.columns_left_out:
        print(f"{args.images}: these columns are not kept: {', '.join(run.columns_left_out)}.")
    if args.dry_run:
        print(f"{estimate(run)}\nNothing was sent.")
        return 0
    check_upload(args)
    result = run.ask()
    report(run, result)
    stopped = result.tally.stopped
    if stopped == INTERRUPTED:
        print(f"{INTERRUPTED} {RESUME}")
        return 130  # the shell's convention
    if stopped is not None:
        print(f"Stopped: {stopped} {RESUME}", file=sys.stderr)
    if args.export and not result.outcomes and (result.in_batches or stopped):
        print("No dataset was written: there are no replies yet.")
    elif args.export:
        export_and_push(run.folder, run.price, args)
    return 0 if stopped is None else 1


def report(run: TeacherRun, result: RunResult) -> None:
    """Print what a run came to."""
    args, tally = run.args, result.tally
    outcomes = [f"{result.outcomes[name]:,} {name}" for name in OUTCOMES if name in result.outcomes]
    print(
        f"{tally.questions:,} questions answered in {result.seconds:,.0f} s. In the journal: "
        f"{', '.join(outcomes) or 'nothing'}."
    )
    if run.price is not None:
        print(f"Spent so far: {dollars(result.spent)} (prices of {run.price.as_of}).")
    if result.problems:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in result.problems.most_common())
        print(f"Not read: {reasons}. Repair these files and rerun; only they will be asked about.")
    if result.duplicates:
        print(f"{result.duplicates:,} files have the pixels of an earlier file: asked once.")
    same = re.compile(re.escape(args.teacher_model) + r"([-@:](main|latest|\d[\d-]*))?")
    others = [name for name in tally.models if not same.fullmatch(name)]
    if others:
        print(
            f"Note: {args.teacher_model} was asked, but the server reports {', '.join(others)}. "
            "The dataset records what the server reports."
        )
    if result.in_batches:
        print(
            f"{result.in_batches:,} questions are in open batches. Rerun with --batch to collect "
            "them."
        )
    if args.pilot is not None and tally.questions:
        rest = estimate(run, len(run.source))
        days = result.seconds / tally.questions * rest.requests / 86400
        print(f"All micrographs. {rest}\n  at this pace  {days:.2f} days")
    failed = result.outcomes.get("error", 0)
    if failed:
        last = f" (the last one: {tally.last_error})" if tally.last_error else ""
        print(f"{failed:,} questions ended in an error{last}. --retry error asks them again.")


def export_command(args: ExportArguments) -> int:
    """Write the dataset of an output folder, while a run continues or after it."""
    check_upload(args)
    folder = Path(args.output_dir)
    paths = journals(folder)
    if not paths:
        raise JournalError(f"{folder} holds no journal of the teacher. Check --output_dir.")
    with Journal(paths[0], read_only=True) as journal:
        model = (journal.configuration or {}).get("teacher_model", "")
    export_and_push(folder, load_price(model, args.prices), args)
    return 0


def merge_command(args: MergeArguments) -> int:
    """Merge the output folders of a job array into one, and write its dataset."""
    check_upload(args)
    copied = merge(Path(args.output_dir), [Path(part) for part in args.parts])
    print(f"{copied:,} replies copied.")
    return export_command(args)


def check_upload(args: ExportArguments) -> None:
    """Fail before long work that would only fail at its end.

    Raises:
        PermissionError: a dataset is to be uploaded, and there is no token for the Hub.
    """
    if args.push_to_hub:
        require_token()


def export_and_push(folder: Path, price: Price | None, args: ExportArguments) -> None:
    dataset, summary = export(folder, price)
    print(f"{dataset}: {summary}")
    if args.push_to_hub:
        print(push(dataset, args.push_to_hub, public=args.public))


COMMANDS = {
    "export": (ExportArguments, export_command),
    "merge": (MergeArguments, merge_command),
}


def parse(parser: HfArgumentParser, argv: Sequence[str]):
    """The arguments of a command. Unknown ones are an error that shows no value: it may be a key.

    Raises:
        SystemExit: the command line cannot be parsed.
        ValueError: an argument is not permitted.
    """
    args, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest:
        words = [argument.partition("=")[0] for argument in rest]
        flags = [word for word in words if word.startswith("--") or re.fullmatch("-[a-z]", word)]
        hint = " (keys are read from the environment variable that --api_key_env names)"
        parser.error(
            f"unknown argument {', '.join(flags)}{hint if 'key' in str(flags) else ''}"
            if flags
            else "a value without a flag; every argument is written as --flag value"
        )
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    prog = prog or Path(sys.argv[0]).name
    arguments, command = AskArguments, ask_command
    epilog = f"Further commands: {prog} export --help, {prog} merge --help."
    if argv and argv[0] in COMMANDS:
        arguments, command = COMMANDS[argv[0]]
        prog, argv, epilog = f"{prog} {argv[0]}", argv[1:], None
    parser = HfArgumentParser(
        arguments, prog=prog, description=command.__doc__, epilog=epilog, allow_abbrev=False
    )
    try:
        return command(parse(parser, argv))
    except (JournalError, EndpointError, ValueError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{INTERRUPTED} {RESUME}", file=sys.stderr)
        return 130
