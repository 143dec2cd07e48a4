"""python eval.py --model runs/first --dataset ../micrographs --output_dir runs/first-report

Answers every question of a dataset's validation split with a trained student, or with any other
image-text-to-text model, scores the answers beside honest references and writes a report. Run the
same command again to continue after an interruption.
"""

import logging
import sys
from pathlib import Path

import datasets
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from mvaema.evaluation.report import figure_tables, markdown
from mvaema.evaluation.run import EvaluationArguments, evaluate


def main() -> None:
    parser = HfArgumentParser(EvaluationArguments, description=__doc__)
    (args,) = parser.parse_args_into_dataclasses()
    datasets.disable_progress_bars()
    disable_progress_bar()
    # It warns of every dataset folder whose README is not a Hub card.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    try:
        results = evaluate(args)
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
    for table in figure_tables(results):
        if table.title in ("Answers, with 95 % intervals", "Classification"):
            print(markdown(table))
    print(f"report: {Path(args.output_dir) / 'index.html'}")


if __name__ == "__main__":
    main()
