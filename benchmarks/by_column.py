"""python benchmarks/by_column.py --report runs/seeing-report --dataset data/micrographs

On which micrographs does a student see? Figures of `mvaema eval`, by a column of the dataset such
as `source`, `modality` or `category`. Name the reports of several seeds for their means.

- category: top-1 by ITC + ITM, and of the most frequent category of the split;
- own micrograph: LM loss with another micrograph minus with its own, nats per token;
- METEOR and false claims per answer: the student's (the typical training answer's).

Rows of few groups say little: they have no interval for that reason.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.evaluation.conditions import OTHER, PLAIN
from mvaema.evaluation.questions import Questions, cluster_of, load_questions
from mvaema.evaluation.records import score_records
from mvaema.evaluation.references import typical_answers
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import METEOR, METEOR_NO_SYNONYMS
from mvaema.files import JsonLines
from mvaema.micrographs.dataset import load_micrographs

METHOD = "ITC+ITM"


def read_report(folder: Path, questions: Questions, synonyms: bool) -> dict[str, dict]:
    """What a report says of each micrograph: image id to lists of values by figure."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    true = {r["image_id"]: r["category"] for r in questions.records}
    for row in JsonLines(folder / "categories.jsonl").rows:
        named = true.get(row["image_id"]) in CATEGORY_CAPTIONS
        if named and (row["condition"], row["method"]) == (PLAIN, METHOD):
            best = max(row["probabilities"], key=row["probabilities"].get)
            found[row["image_id"]]["category"].append(best == true[row["image_id"]])
    losses: dict[tuple, dict] = {}
    for row in JsonLines(folder / "likelihoods.jsonl").rows:
        losses[row["image_id"], row["question_id"], row["condition"]] = row
    for (image_id, question_id, condition), row in losses.items():
        if condition == PLAIN and (other := losses.get((image_id, question_id, OTHER))):
            found[image_id]["own"].append((other["loss"] - row["loss"], row["tokens"]))
    answers = [r for r in JsonLines(folder / "answers.jsonl").rows if r["condition"] == PLAIN]
    add_answers(found, answers, synonyms)
    return found


def add_answers(found: dict, answers: list[dict], synonyms: bool) -> None:
    """The METEOR and false claims of answers."""
    meteor = METEOR if synonyms else METEOR_NO_SYNONYMS
    for record in score_records(answers, synonyms):
        found[record["image_id"]]["meteor"].append(record["scores"][meteor])
        found[record["image_id"]]["claims"].append(record["scores"]["false_claims"])


def table(
    questions: Questions,
    column: str,
    values: dict[str, str],
    reports: Sequence[dict],
    typical: dict,
    least: int,
) -> Table:
    """One line per value of the column, the most frequent first.

    Args:
        values: image id to value.
        least: micrographs of a value that has a line.
    """
    group_of = {r["image_id"]: cluster_of(r) for r in questions.records}
    counted = Counter(values[image_id] for image_id in group_of)
    usual, _ = Counter(
        r["category"] for r in questions.records if r["category"] in CATEGORY_CAPTIONS
    ).most_common(1)[0]
    lines = []
    for value in [value for value, n in counted.most_common() if n >= least]:
        ids = [image_id for image_id in group_of if values[image_id] == value]
        named = [r["category"] for r in questions.records if r["image_id"] in set(ids)]
        share = np.mean([c == usual for c in named if c in CATEGORY_CAPTIONS] or [np.nan])
        own = _all(reports, ids, "own")
        gain = sum(gain for gain, _ in own) / max(1, sum(tokens for _, tokens in own))
        lines.append(
            [
                value,
                str(len(ids)),
                str(len({group_of[i] for i in ids})),
                f"{_mean(reports, ids, 'category')} ({_number(share)})",
                _number(gain if own else np.nan),
                f"{_mean(reports, ids, 'meteor')} ({_mean([typical], ids, 'meteor')})",
                f"{_mean(reports, ids, 'claims')} ({_mean([typical], ids, 'claims')})",
            ]
        )
    header = [column, "micrographs", "groups", f"category (always {usual})"]
    header += ["own micrograph", "METEOR (typical)", "false claims (typical)"]
    return Table(f"{sum(counted.values())} micrographs by {column}", header, lines)


def _all(reports: Sequence[dict], ids: Sequence[str], figure: str) -> list:
    return [value for report in reports for i in ids for value in report[i].get(figure, ())]


def _mean(reports: Sequence[dict], ids: Sequence[str], figure: str) -> str:
    return _number(np.mean(_all(reports, ids, figure) or [np.nan]))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--report", type=Path, nargs="+", required=True, help="folders that `mvaema eval` wrote")
    add("--dataset", required=True, help="the dataset that was asked about")
    add("--split", default="validation", help="its split (validation)")
    add("--column", nargs="+", default=["source"], help="columns of the dataset (source)")
    add("--least", type=int, default=4, help="leave out values of fewer micrographs (4)")
    add("--no_synonyms", action="store_true", help="METEOR without WordNet")
    args = parser.parse_args(argv)
    questions = load_questions(args.dataset, args.split, "train")
    dataset = load_micrographs(args.dataset, args.split).remove_columns("image")
    missing = [name for name in args.column if name not in dataset.column_names]
    if missing:
        sys.exit(f"error: {args.dataset} has no column {', '.join(missing)}.")
    synonyms = not args.no_synonyms
    reports = [read_report(folder, questions, synonyms) for folder in args.report]
    typical: dict = defaultdict(lambda: defaultdict(list))
    add_answers(typical, typical_answers(questions.train_records, questions.records), synonyms)
    for column in args.column:
        values = dict(zip(dataset["image_id"], map(str, dataset[column]), strict=True))
        print(markdown(table(questions, column, values, reports, typical, args.least)))


if __name__ == "__main__":
    main()
