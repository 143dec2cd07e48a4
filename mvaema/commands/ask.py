"""mvaema ask wafer.tif -q "How large are the grains?"

Asks a student about micrographs, in any format that `mvaema build` reads. The pixel size that the
instrument recorded goes into the prompt. Without -q, it is asked all questions that it was trained
on; without --model, the student of this repository is asked. One that `mvaema export` wrote is
asked without torch. With --measure, sizes are measured and stand behind the answers about sizes,
whose sentences that contradict them are marked.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from candidates_mvaema import DECODINGS
from lengths_mvaema import format_length, measured_answers
from mvaema.commands.arguments import positive_length
from mvaema.micrographs.microscope import Micrograph, UnreadableMicrograph, read_micrograph
from mvaema.students.exported import is_exported, load_exported

if TYPE_CHECKING:
    from PIL import Image

    from mvaema.measuring.results import Measurement


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status, 1 if a micrograph was unreadable."""
    args = _parser(prog).parse_args(argv)
    try:
        if args.measure:
            _require_measuring()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    exported = args.model and is_exported(args.model)
    try:
        answerer = (_exported if exported else _loaded)(args.model, args.decoding)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    status = 0
    for path in args.micrographs:
        try:
            found = _ask(answerer, path, args)
        except UnreadableMicrograph as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps(found, ensure_ascii=False) if args.json else _readable(found), flush=True)
    return status


class Answerer(NamedTuple):
    """Who is asked.

    Attributes:
        questions: question id to question, those that it was trained on.
        answer: as `mvaema.evaluation.answerers.Student.answer`.
        category: what it takes an image for; None where it cannot classify.
    """

    questions: Mapping[str, str]
    answer: Callable[..., list[list[str]]]
    category: Callable[["Image.Image"], str | None]


def _exported(folder: str, decoding: str | None) -> Answerer:
    """A student that `mvaema export` wrote: it brings no torch into the process."""
    student = load_exported(folder)
    by = student.methods[-1].lower() if student.methods else None
    return Answerer(
        student.questions,
        functools.partial(student.answer, decoding=student.check_decoding(decoding)),
        lambda image: next(iter(student.classify(image, by=by))) if by else None,
    )


def _loaded(model: str | None, decoding: str | None) -> Answerer:
    """A student, or any other model of transformers.

    Raises:
        OSError, ValueError: it cannot be loaded, or not with this decoding.
    """
    from transformers.utils.logging import disable_progress_bar

    from mvaema.evaluation.answerers import load_answerer
    from mvaema.students.shipped import shipped_student

    disable_progress_bar()
    model = model or shipped_student()
    try:
        found = load_answerer(model, decoding=decoding)
    except (OSError, ValueError) as error:
        raise ValueError(f"the model {model!r} cannot be loaded: {error}") from error

    def category(image: "Image.Image") -> str | None:
        if not found.methods:
            return None
        (ranked,) = found.classify([image], found.methods[-1])
        return next(iter(ranked))

    return Answerer(found.questions, found.answer, category)


def _require_measuring() -> None:
    """Import what only --measure needs, before the student is loaded.

    Raises:
        ImportError: a package of the extra `measuring` is not installed.
    """
    try:
        from mvaema.measuring.measure import measure  # noqa: F401
        from mvaema.measuring.text import require_reader
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error}. --measure needs the extra `measuring`: pip install "mvaema[measuring]"'
        ) from error
    require_reader()


def _ask(answerer: Answerer, path: str, args: argparse.Namespace) -> dict:
    micrograph = read_micrograph(path)
    pixel_size_nm = args.pixel_size_nm or micrograph.pixel_size_nm
    measured = None
    if args.measure:
        measured = _measured(answerer, micrograph, args.pixel_size_nm)
        pixel_size_nm = measured.pixel_size_nm
    asked = list(answerer.questions.items())
    if args.questions:
        ids = {question: name for name, question in asked}
        asked = [(ids.get(question), question) for question in args.questions]
    (answers,) = answerer.answer(
        [micrograph.image],
        [question for _, question in asked],
        captions=[None],
        pixel_size_nm=[pixel_size_nm],
        scale_bars=[None],
    )
    found = {"micrograph": path, "pixel_size_nm": pixel_size_nm}
    if measured:
        from mvaema.measuring.methods import facts

        text = facts(measured)
        questions = [question for _, question in asked]
        answers = measured_answers(answers, questions, answerer.questions, text)
        # The table of objects is what `mvaema measure` writes.
        found["measurement"] = {k: v for k, v in measured.as_json().items() if k != "objects"}
    return {
        **found,
        "answers": [
            {"question_id": question_id, "question": question, "answer": answer}
            for (question_id, question), answer in zip(asked, answers, strict=True)
        ],
    }


def _measured(answerer: Answerer, micrograph: Micrograph, typed_nm: float | None) -> "Measurement":
    """The sizes in a micrograph, of the kind that goes with what a student takes it for."""
    from mvaema.measuring.measure import measure

    return measure(
        micrograph.image,
        category=answerer.category(micrograph.image),
        pixel_size_nm=typed_nm,
        recorded_nm=micrograph.pixel_size_nm,
        info_bar=micrograph.info_bar,
    )


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
        help="folder or Hub id of the student, or folder of an exported one (default: the student "
        "of this repository)",
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
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure sizes, the scale read off the bar where no file states it (extra measuring)",
    )
    parser.add_argument(
        "--pixel_size_nm",
        type=positive_length,
        metavar="NM",
        help="length of one pixel, in place of what the file or the scale bar says",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per micrograph")
    return parser
