"""python -m mvaema.demo

The whole pipeline on simulated micrographs, in minutes on two CPU cores: render, train, score on
scenes that were not trained on, write a report to open. `make demo` runs it.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.run import EvaluationArguments, evaluate
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.synthetic.__main__ import main as render
from mvaema.training.recipe import Recipe
from mvaema.training.run import train


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m mvaema.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (demo)")
    parser.add_argument("--count", type=int, default=1500, help="micrographs to render (1500)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them (10)")
    args = parser.parse_args(argv)
    data, student, report = (str(args.output / name) for name in ("data", "student", "report"))
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"\n[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    say(f"Rendering {args.count} simulated micrographs to {data}")
    if status := render(["--count", str(args.count), "--output", data]):
        return status
    for folder in (student, report):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    say(f"Training the paper preset for {args.epochs} epochs")
    train(
        Recipe(
            dataset=data,
            output_dir=student,
            epochs=args.epochs,
            batch_size=24,
            questions_per_image=2,
        )
    )
    say("Scoring it on scenes it has not seen")
    results = evaluate(
        EvaluationArguments(model=student, dataset=data, output_dir=report, synonyms=has_wordnet())
    )
    _show_answers(student, data)
    say("Done.")
    chance = results["classification"]["chance"]["top_1"]
    for method in ("ITC", "ITM", "LM"):
        top_1 = results["classification"][method]["top_1"]
        print(f"category by {method}: {top_1:.2f} right; chance {chance:.2f}")
    print(f"Open {args.output / 'report' / 'index.html'}")
    return 0


def _show_answers(student: str, data: str) -> None:
    """A few answers about a micrograph that was not trained on, beside the truth."""
    row = load_micrographs(data, "validation")[0]
    model = MVaEMaModel.from_pretrained(student)
    print(f"\nMicrograph {row['image_id']} ({row['category']}):")
    answers = model.answer(decode_image(row), scale_bars=row["scale_bar"])
    for qa in row["qa"][:4]:
        print(f"  {qa['question']}\n    student: {answers[qa['question_id']]}")
        print(f"    truth:   {qa['answer']}")


if __name__ == "__main__":
    sys.exit(main())
