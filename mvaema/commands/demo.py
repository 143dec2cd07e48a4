"""mvaema demo

All stages on simulated micrographs, in minutes on two CPU cores: render, train a student that sees
with EfficientNet-Lite0, score on scenes that were not trained on, ask. Says what it does and how
long each stage took, then what the scores say, and writes a report to open. `make demo` runs it.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modeling_mvaema import MVaEMaModel
from mvaema.commands.synthetic import main as render
from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.evaluation.verdict import verdict_lines
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.students.lite0 import make_lite0
from mvaema.training.recipe import Recipe
from mvaema.training.run import train


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command; returns its exit status."""
    args = _parser(prog).parse_args(argv)
    data, student, report = (str(args.output_dir / name) for name in ("data", "student", "report"))
    started = time.perf_counter()
    with _stage(f"1/4 Rendering {args.count:,} simulated micrographs to {data}"):
        if status := render(["--count", str(args.count), "--output_dir", data]):
            return status
    for folder in (student, report):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with _stage(f"2/4 Training a student on them for {args.epochs} epochs, to {student}"):
            recipe = Recipe(
                dataset=data,
                output_dir=student,
                preset="lite",
                vision=str(make_lite0(args.output_dir / "eyes")),
                vision_layers=[5, 8, 11, 15, 16],
                vision_views=1,
                augmentation=False,  # one view of each scene is seen, once
                epochs=args.epochs,
                schedule="cosine",
                warmup_steps=60,
                batch_size=8,
                learning_rate=2e-3,
                keep_by="lm_loss",
                sample_micrographs=0,  # it is asked below
            )
            train(recipe)
        with _stage(f"3/4 Scoring its answers on scenes that it has not seen, to {report}"):
            results = evaluate(
                EvaluationArguments(
                    model=student,
                    dataset=data,
                    output_dir=report,
                    synonyms=has_wordnet(),
                    sight=False,  # it would take as long as all the rest
                    decoding="greedy",  # the default takes six times as long
                )
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with _stage("4/4 Asking it about one of these scenes"):
        _show_answers(student, data)
    print(f"All of it took {time.perf_counter() - started:.0f} s.\n")
    print("\n".join(verdict_lines(results["verdict"])))
    print(f"Open {args.output_dir / 'report' / 'index.html'}")
    return 0


@contextmanager
def _stage(text: str) -> Iterator[None]:
    """A line that says what is being done, and how long it took once it is."""
    print(text, flush=True)
    started = time.perf_counter()
    yield
    print(f"    {text.partition(' ')[0]} took {time.perf_counter() - started:.0f} s", flush=True)


def _show_answers(student: str, data: str) -> None:
    """A few answers about the first validation micrograph, beside the truth."""
    row = load_micrographs(data, "validation")[0]
    model = MVaEMaModel.from_pretrained(student)
    print(f"Micrograph {row['image_id']} ({row['category']}):")
    answers = model.answer(decode_image(row), scale_bars=row["scale_bar"])
    for qa in row["qa"][:4]:
        print(f"  {qa['question']}\n    student: {answers[qa['question_id']]}")
        print(f"    truth:   {qa['answer']}")


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("demo"), help="folder of everything (demo)")
    add("--count", type=int, default=1500, help="micrographs to render (1500)")
    add("--epochs", type=int, default=3, help="passes over them (3)")
    return parser
