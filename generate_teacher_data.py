"""Micrographs in, instruction dataset out, from any OpenAI-compatible vision model.

    python generate_teacher_data.py --images micrographs/ --output teacher/ --teacher-model NAME \
        --endpoint http://localhost:8000/v1

Every reply is kept in a journal in the output folder before anything else happens to it: a run
that was killed goes on with the same command and pays for nothing twice. The dataset is in
`teacher/dataset`. Further commands:

    python generate_teacher_data.py export --output teacher/       while a run goes on, or after it
    python generate_teacher_data.py merge --output all/ --parts shard-*/       of a job array
    python generate_teacher_data.py --help                         all arguments
"""

import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from mvaema.teacher.arguments import AskArguments
from mvaema.teacher.endpoint import EndpointError
from mvaema.teacher.journal import Journal, JournalError, journals
from mvaema.teacher.merging import merge
from mvaema.teacher.money import load_price
from mvaema.teacher.run import run, write_dataset


@dataclass
class ExportArguments:
    """What is written from the journals of a folder."""

    output: str = field(metadata={"help": "Output folder of a run."})
    prices: str | None = field(
        default=None, metadata={"help": "Prices file instead of mvaema/teacher/prices.yaml."}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Repository (user/name) to upload the dataset to."}
    )
    public: bool = field(
        default=False, metadata={"help": "Make that repository public; it is private otherwise."}
    )


@dataclass
class MergeArguments(ExportArguments):
    """Which output folders become one."""

    parts: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of the shards."}
    )


def export_command(args: ExportArguments) -> int:
    folder = Path(args.output)
    paths = journals(folder)
    if not paths:
        raise JournalError(f"{folder}: no journal of the teacher is there; check --output.")
    with Journal(paths[0], read_only=True) as journal:
        model = (journal.configuration or {}).get("teacher_model", "")
    write_dataset(folder, load_price(model, args.prices), args.push_to_hub, args.public)
    return 0


def merge_command(args: MergeArguments) -> int:
    if not args.parts:
        raise ValueError("--parts: name the output folders to merge.")
    copied = merge(Path(args.output), [Path(part) for part in args.parts])
    print(f"{copied:,} replies copied.")
    return export_command(args)


COMMANDS = {
    "export": (ExportArguments, export_command),
    "merge": (MergeArguments, merge_command),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments, command = AskArguments, run
    if argv and argv[0] in COMMANDS:
        (arguments, command), argv = COMMANDS[argv[0]], argv[1:]
    try:
        [args] = HfArgumentParser(
            arguments, description=__doc__.split("\n")[0]
        ).parse_args_into_dataclasses(argv)
        return command(args)
    except (JournalError, EndpointError, ValueError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
