"""mvaema push runs/first lab/student --report runs/first-report --licence apache-2.0

Uploads a trained student with its model card to the Hugging Face Hub, or to the hub that
HF_ENDPOINT names. The repository is private unless --public. `mvaema train --push_to_hub
lab/student` does the same at the end of the training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mvaema.students.card import write_card
from mvaema.students.hub import push


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.partition("\n\n")[2], allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="output_dir of a training run")
    parser.add_argument("repo_id", help="repository, as in lab/student")
    parser.add_argument("--public", action="store_true", help="everybody may see the repository")
    parser.add_argument(
        "--report", type=Path, help="output_dir of an evaluation, for the scores in a new README.md"
    )
    parser.add_argument("--licence", help="licence in a new README.md, as in apache-2.0")
    args = parser.parse_args(argv)
    try:
        if args.report or args.licence:
            write_card(args.folder, args.repo_id, args.licence, args.report)
        print(push(args.folder, args.repo_id, public=args.public))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
