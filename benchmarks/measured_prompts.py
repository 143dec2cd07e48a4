"""python benchmarks/measured_prompts.py --model . --dataset data/simulated --output_dir runs/facts

Do measured facts in the prompt improve a student's answers about sizes? Two students are tuned from
the same one on the same micrographs, those that the tool could measure:

- without: on the questions as they are;
- with: on `size_distribution` questions that begin with the measurement, half of them
  ("Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %). How large are the structures ...").

Both are asked about micrographs of the validation split that they have not seen; the second with
the micrograph's own measurement, without one, and with that of the next micrograph of its category
(a student that reads the measurement follows it into the error). The prompts state the field of
view and no caption. `beside` is the first student with the measurement behind its words, as
`mvaema ask --measure` shows it.

The pixel size is the dataset's and the kind follows from its category, so that only the measuring
itself is at work. A length counts as in `benchmarks/measured_answers.py`. Each step is resumed by
the same command.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from lengths_mvaema import beside_measurement
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.intervals import mean_intervals
from mvaema.evaluation.lengths import length_errors
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import METEOR, score_texts
from mvaema.files import JsonLines, write_json
from mvaema.measuring.kinds import KIND_OF_CATEGORY
from mvaema.measuring.measure import measure
from mvaema.measuring.scale import Scale
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.students.loading import load_student
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from pixels_mvaema import to_8bit

QUESTION = "size_distribution"
WITHIN = 0.2
ARMS = ("without", "with")
COLUMNS = ["all lengths within 20 %", "first length within 20 %", METEOR]


def measured(rows: Dataset, journal: Path, most: int | None = None) -> dict[str, str]:
    """Image id to the sentence of each row that could be measured.

    Args:
        journal: JSON lines, one per row that was looked at; rows in it are not measured again.
        most: rows that can be measured, after which no more are looked at.
    """
    done = JsonLines(journal)
    seen = {entry["image_id"]: entry["sentence"] for entry in done.rows}
    found = {}
    for i, image_id in enumerate(tqdm(rows["image_id"], desc="measuring")):
        if most is not None and len(found) >= most:
            break
        if image_id not in seen:
            seen[image_id] = _sentence(rows[i])
            done.append([{"image_id": image_id, "sentence": seen[image_id]}])
        if seen[image_id]:
            found[image_id] = seen[image_id]
    return found


def _sentence(row: Mapping) -> str | None:
    result = measure(
        to_8bit(decode_image(row)),
        category=row["category"],
        scale=Scale(row["pixel_size_nm"], "recorded"),
    )
    return result.sentence() if result.trusted else None


def with_facts(row: Mapping, facts: Mapping[str, str]) -> dict:
    """The row with its measurement before the question about sizes, if the draw says so."""
    draw = np.random.default_rng(int(row["image_id"], 16)).random() < 0.5
    qa = [
        {**pair, "question": f"{facts[row['image_id']]} {pair['question']}"}
        if draw and pair["question_id"] == QUESTION
        else pair
        for pair in row["qa"]
    ]
    return {"qa": qa}


def kept(rows: Dataset, facts: Mapping[str, str]) -> Dataset:
    """The rows that were measured and have an answer about sizes."""

    def asked(image_id: str, qa: list[dict]) -> bool:
        return image_id in facts and any(pair["question_id"] == QUESTION for pair in qa)

    return rows.filter(asked, input_columns=["image_id", "qa"])


def tuned(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """The run of a student, finished."""
    return train(
        Recipe(
            str(args.output_dir / arm),
            str(args.output_dir / f"{arm}-{seed}"),
            model=args.model,
            epochs=args.epochs,
            batch_size=8,
            learning_rate=args.rate,
            warmup_steps=30,
            schedule="cosine",
            weight_decay=0.02,
            augmentation=False,  # a view would change lengths and counts
            caption_dropout=1.0,
            vision_views=1,
            vision_cache=str(args.output_dir / "features"),
            sample_micrographs=0,
            workers=0,
            seed=seed,
        )
    )


def asked(model: MVaEMaModel, rows: Dataset, facts: Sequence[str | None]) -> list[str]:
    """The answer about sizes of each row, with the fact that is given in front of the question."""
    answers = []
    for row, fact in zip(tqdm(rows, desc="asking"), facts, strict=True):
        question = _size_answer(row)["question"]
        answers.append(
            model.answer(
                decode_image(row),
                f"{fact} {question}" if fact else question,
                pixel_size_nm=row["pixel_size_nm"],
                decoding="greedy",
            )
        )
    return answers


def _size_answer(row: Mapping) -> dict:
    return next(pair for pair in row["qa"] if pair["question_id"] == QUESTION)


def scores(answers: Sequence[str], rows: Dataset) -> np.ndarray:
    """float (rows, 3): `COLUMNS` of each answer; NaN where the true answer states no length."""
    true = [_size_answer(row)["answer"] for row in rows]
    errors = [length_errors(answer, truth) for answer, truth in zip(answers, true, strict=True)]
    right = [[error <= WITHIN for error in some] or [np.nan] for some in errors]
    meteor = score_texts(list(answers), true)[METEOR]
    return np.array([[np.mean(r), float(r[0]), m] for r, m in zip(right, meteor, strict=True)])


def others(rows: Dataset, facts: Mapping[str, str]) -> list[str]:
    """For each row, the measurement of the next one of its category."""
    categories, ids = rows["category"], rows["image_id"]
    same: dict[str, list[int]] = {}
    for i, category in enumerate(categories):
        same.setdefault(category, []).append(i)
    places = {i: some[(n + 1) % len(some)] for some in same.values() for n, i in enumerate(some)}
    return [facts[ids[places[i]]] for i in range(len(rows))]


def table(found: Mapping[str, list[np.ndarray]], clusters: Sequence[str]) -> Table:
    """Means over micrographs and seeds, with 95 % intervals over specimens.

    Args:
        found: what was asked to one (rows, 3) per seed.
    """
    lines = []
    for name, seeds in found.items():
        values = np.mean(seeds, axis=0)
        intervals = mean_intervals(values, clusters)
        cells = [
            f"{mean:.3f} ({low:.3f}–{high:.3f})"
            for mean, (low, high) in zip(np.nanmean(values, axis=0), intervals, strict=True)
        ]
        lines.append([name, *cells])
    return Table(f"{len(clusters)} micrographs, {QUESTION}", ["asked", *COLUMNS], lines)


def differences(
    found: Mapping[str, list[np.ndarray]], pairs: Iterable[tuple[str, str]]
) -> dict[str, list[np.ndarray]]:
    """The second minus the first of each pair, to be tabled like the rest."""
    return {
        f"{second} − {first}": [b - a for a, b in zip(found[first], found[second], strict=True)]
        for first, second in pairs
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student")
    parser.add_argument("--dataset", required=True, help="simulated micrographs with answers")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--most", type=int, default=1000, help="micrographs to tune on (1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--epochs", type=int, default=3, help="(3)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (5e-4)")
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    facts, splits = {}, {}
    for split, most in (("validation", None), ("train", args.most)):
        rows = load_micrographs(args.dataset, split).filter(
            lambda category: category in KIND_OF_CATEGORY, input_columns="category"
        )
        facts |= measured(rows, args.output_dir / f"{split}.jsonl", most)
        splits[split] = kept(rows, facts)
    for arm in ARMS:
        if not (args.output_dir / arm / "dataset_dict.json").is_file():
            rows = splits["train"]
            if arm == "with":
                rows = rows.map(with_facts, fn_kwargs={"facts": facts})
            DatasetDict(train=rows).save_to_disk(args.output_dir / arm)
    rows, found = splits["validation"], {}
    own = [facts[image_id] for image_id in rows["image_id"]]
    nothing = [None] * len(rows)
    for seed in args.seeds:
        plain, reader = (load_student(tuned(args, arm, seed)).eval() for arm in ARMS)
        answers = {
            "without": asked(plain, rows, nothing),
            "with": asked(reader, rows, own),
            "with, none given": asked(reader, rows, nothing),
            "with, of another": asked(reader, rows, others(rows, facts)),
        }
        answers["beside"] = [
            beside_measurement(answer, fact)
            for answer, fact in zip(answers["without"], own, strict=True)
        ]
        answers["with, and beside"] = [
            beside_measurement(answer, fact)
            for answer, fact in zip(answers["with"], own, strict=True)
        ]
        for name, texts in answers.items():
            found.setdefault(name, []).append(scores(texts, rows))
        write_json(args.output_dir / f"answers-{seed}.json", answers)
    found |= differences(found, [("without", "with"), ("beside", "with, and beside")])
    print(markdown(table(found, rows["group"])))


if __name__ == "__main__":
    main()
