"""mvaema eval --model runs/first --dataset data/sem --output_dir runs/first-report

Asks a trained student, or any other image-text-to-text model, every question of a dataset's
validation split. Scores the answers beside references and writes a report. Rerun the same command
to resume.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.evaluation.sight_tables import twins_table
from mvaema.evaluation.table import markdown
from mvaema.evaluation.tables import accuracy_table, intervals_table


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    parser = HfArgumentParser(
        EvaluationArguments, prog=prog, description=__doc__, allow_abbrev=False
    )
    args = EvaluationArguments(**vars(parser.parse_args(argv)))
    datasets.disable_progress_bars()
    disable_progress_bar()
    # It warns of every dataset folder whose README is not a Hub card.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    try:
        results = evaluate(args)
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
    print(f"report: {Path(args.output_dir) / 'index.html'}")
    return 0
