"""mvaema export runs/student --onnx bench/student

Writes a student as ONNX graphs, with all that runs them: the folder answers questions on a computer
that has neither torch nor a network. `mvaema ask --model bench/student` asks it too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from mvaema.students.exporting import PRECISIONS, export_onnx
from mvaema.students.loading import load_student


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the folder. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("student", metavar="STUDENT", help="folder or Hub id of the student, or of adapters")
    add("--onnx", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the weights: float16 halves the files, int8 computes matrix products in 8 bits "
        "(float32)",
    )
    args = parser.parse_args(argv)
    disable_progress_bar()
    card = Path(args.student) / "README.md"
    try:
        model = load_student(args.student)
        export_onnx(model, args.onnx, args.precision, card if card.is_file() else None)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in args.onnx.iterdir()) / 1e6
    print(f"saved to {args.onnx} ({size:.0f} MB)")
    return 0
