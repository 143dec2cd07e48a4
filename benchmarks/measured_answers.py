"""python benchmarks/measured_answers.py --model . --dataset data/simulated --micrographs 100

Are lengths in answers right where a measurement stands beside the student's words? Asked are
`basics` and `size_distribution` about micrographs with a scale bar, as `mvaema ask --measure` asks:
the category is the student's own, the scale is read off the bar, the prompt states what was read.
A length of the true answer is within 20 % if the nearest length in the answer is, as `mvaema eval`
counts (`mvaema/evaluation/lengths.py`); lengths that an answer does not state are wrong.

- alone: the student's words; beside: with the measurement behind them;
- where measured: only answers for which the tool did not abstain (for `basics`: it read the bar);
- mean size: the first length that the true answer to `size_distribution` states;
- measured size: the first length that the tool states (median, thickness or pitch), if the nearest
  length in the true answer is within 20 % of it.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parent.parent))

from lengths_mvaema import (
    MEASURED_QUESTIONS,
    beside_measurement,
    parse_lengths,
    relative_error,
)
from mvaema.evaluation.answerers import Student, load_answerer
from mvaema.evaluation.lengths import length_errors
from mvaema.evaluation.table import Table, markdown
from mvaema.measuring.measure import measure
from mvaema.measuring.methods import facts
from mvaema.micrographs.dataset import decode_image, load_micrographs
from pixels_mvaema import to_8bit

WITHIN = 0.2


def ask(student: Student, row: dict) -> list[dict]:
    """For each question that states lengths: the errors alone and beside, and what was measured."""
    image = to_8bit(decode_image(row))
    (ranked,) = student.classify([image], student.methods[-1])
    measured = measure(image, category=next(iter(ranked)))
    true = {qa["question_id"]: qa for qa in row["qa"]}
    asked = [name for name in MEASURED_QUESTIONS if name in true]
    (answers,) = student.answer(
        [image],
        [true[name]["question"] for name in asked],
        captions=[None],
        pixel_size_nm=[measured.pixel_size_nm],
        scale_bars=[None],
    )
    found = []
    for name, answer in zip(asked, answers, strict=True):
        truth = true[name]["answer"]
        known = measured.scale_bar_nm
        if name == "size_distribution":
            known = measured.trusted and measured.pixel_size_nm
        beside = beside_measurement(answer, facts(measured))
        errors = {"alone": length_errors(answer, truth), "beside": length_errors(beside, truth)}
        if parse_lengths(truth):
            found.append({"question": name, "measured": bool(known), **errors})
        if parse_lengths(truth) and known and name == "size_distribution":
            stated = parse_lengths(measured.sentence())[0]
            errors = {
                "beside": [min(relative_error(stated, true) for true in parse_lengths(truth))]
            }
            found.append({"question": "measured size", "measured": True, "alone": [], **errors})
    return found


def table(found: list[dict], micrographs: int) -> Table:
    """One line per question group, and one for the mean size."""
    lines = []
    for name, of_all in (
        ("basics", True),
        ("size_distribution", True),
        ("mean size", False),
        ("measured size", True),
    ):
        question = name if of_all else "size_distribution"
        rows = [r for r in found if r["question"] == question]
        measured = [r for r in rows if r["measured"]]
        cells = [name, str(len(rows)), str(len(measured))]
        for kept in (rows, measured):
            cells += [_share([r[way] for r in kept], of_all) for way in ("alone", "beside")]
        lines.append(cells)
    header = ["lengths of", "answers", "measured", "alone", "beside"]
    header += ["alone, where measured", "beside, where measured"]
    return Table(f"{micrographs} micrographs with a scale bar: lengths within 20 %", header, lines)


def _share(errors: list[list[float]], of_all: bool) -> str:
    """The share of errors within the limit, of all lengths or of each answer's first."""
    values = np.array([e for row in errors for e in (row if of_all else row[:1])])
    return f"{100 * np.mean(values <= WITHIN):.0f} %" if len(values) else "–"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student")
    parser.add_argument("--dataset", required=True, help="answered micrograph dataset")
    parser.add_argument("--split", default="validation", help="split to ask about (validation)")
    parser.add_argument("--micrographs", type=int, help="ask about the first ones only")
    args = parser.parse_args(argv)
    disable_progress_bar()
    student = load_answerer(args.model, decoding="greedy")
    if not isinstance(student, Student) or not student.methods:
        sys.exit(f"error: {args.model} must be a student that classifies.")
    rows = load_micrographs(args.dataset, args.split).filter(
        lambda bar: bar is not None, input_columns="scale_bar"
    )
    rows = rows.select(range(min(args.micrographs or len(rows), len(rows))))
    found, kinds = [], defaultdict(int)
    for row in tqdm(rows, desc="micrographs"):
        found += ask(student, row)
        kinds[row["category"]] += 1
    print(markdown(table(found, len(rows))))
    print("Categories: " + ", ".join(f"{name} {n}" for name, n in sorted(kinds.items())))


if __name__ == "__main__":
    main()
