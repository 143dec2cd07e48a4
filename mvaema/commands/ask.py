"""mvaema ask wafer.tif -q "How large are the grains?"

Asks a student about micrographs, in any format that `mvaema build` reads. The pixel size that the
instrument recorded goes into the prompt. Without -q, it is asked all questions that it was trained
on; without --model, the student of this repository is asked.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from transformers.utils.logging import disable_progress_bar

from decoding_mvaema import DECODINGS
from mvaema.evaluation.answerers import ChatModel, Student, load_answerer
from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph
from mvaema.students.shipped import shipped_student
from processing_mvaema import format_length


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status, 1 if a micrograph was unreadable."""
    args = _parser(prog).parse_args(argv)
    disable_progress_bar()
    try:
        model = args.model or shipped_student()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        answerer = load_answerer(model, decoding=args.decoding)
    except (OSError, ValueError) as error:
        print(f"error: the model {model!r} cannot be loaded: {error}", file=sys.stderr)
        return 1
    status = 0
    for path in args.micrographs:
        try:
            found = _ask(answerer, path, args.questions)
        except UnreadableMicrograph as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps(found, ensure_ascii=False) if args.json else _readable(found), flush=True)
    return status


def _ask(answerer: Student | ChatModel, path: str, questions: list[str] | None) -> dict:
    micrograph = read_micrograph(path)
    asked = [(None, q) for q in questions] if questions else list(answerer.questions.items())
    (answers,) = answerer.answer(
        [micrograph.image],
        [question for _, question in asked],
        captions=[None],
        pixel_size_nm=[micrograph.pixel_size_nm],
        scale_bars=[None],
    )
    return {
        "micrograph": path,
        "pixel_size_nm": micrograph.pixel_size_nm,
        "answers": [
            {"question_id": question_id, "question": question, "answer": answer}
            for (question_id, question), answer in zip(asked, answers, strict=True)
        ],
    }


def _readable(found: dict) -> str:
    size = found["pixel_size_nm"]
    scale = "scale unknown" if size is None else f"{format_length(size)} per pixel"
    lines = [f"{found['micrograph']} ({scale})"]
    for answer in found["answers"]:
        lines += [f"  {answer['question']}", f"    {answer['answer'] or '(no answer)'}"]
    return "\n".join(lines)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("micrographs", nargs="+", metavar="MICROGRAPH", help="micrograph files")
    parser.add_argument(
        "--model",
        metavar="STUDENT",
        help="folder or Hub id of the student (default: the one of this repository)",
    )
    parser.add_argument(
        "-q",
        "--question",
        dest="questions",
        action="append",
        metavar="QUESTION",
        help="a question to ask; may be repeated (default: all that the student was trained on)",
    )
    parser.add_argument(
        "--decoding",
        choices=list(DECODINGS),
        help="how answers are decoded (default: as the checkpoint says)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per micrograph")
    return parser
