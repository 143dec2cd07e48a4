"""mvaema eval --model runs/first --dataset data/sem --output_dir runs/first-report

Asks a trained student, or any other image-text-to-text model, every question of a dataset's
validation split. Scores the answers beside references, writes a report, and prints what it says:
whether the student sees, is better than not looking, and where it fails. Rerun the same command to
resume.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from mvaema.evaluation.run import EvaluationArguments, JudgeArguments, evaluate
from mvaema.evaluation.sight_tables import twins_table
from mvaema.evaluation.table import markdown
from mvaema.evaluation.tables import accuracy_table, intervals_table, judge_tables
from mvaema.evaluation.verdict import verdict_lines


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    parser = HfArgumentParser(
        (EvaluationArguments, JudgeArguments), prog=prog, description=__doc__, allow_abbrev=False
    )
    try:
        args, judging, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if rest:  # without values: one may be a key
        flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
        parser.error(f"unrecognized arguments: {' '.join(flags) or 'a value without a flag'}")
    datasets.disable_progress_bars()
    disable_progress_bar()
    # It warns of every dataset folder whose README is not a Hub card.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    try:
        results = evaluate(args, judging)
    except (OSError, ValueError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Rerun the same command to resume.", file=sys.stderr)
        return 130
    print(markdown(twins_table(results)))
    print(markdown(intervals_table(results)))
    if results["classification"]:
        print(markdown(accuracy_table(results["classification"])))
    for table in judge_tables(results)[:1]:
        print(markdown(table))
    print("\n".join(verdict_lines(results["verdict"])))
    print(f"report: {Path(args.output_dir) / 'index.html'}")
    if stopped := results.get("judge", {}).get("stopped"):
        print(f"The judge was stopped: {stopped} Rerun to resume.", file=sys.stderr)
        return 130 if stopped == "Interrupted." else 1
    return 0
