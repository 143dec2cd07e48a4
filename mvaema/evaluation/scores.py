"""Scores of a student's answers: overall, per question group, per category, and of two students.

What is special about it:
- everything works on *answer records*, one dictionary per question and micrograph, which is also
  one line of a predictions file:

      image_id, question_id, question, reference, prediction, and, when known, category and group

  `score_records` adds `scores` to each; `summarize`, `compare` and the report start from there;
- beside BLEU, ROUGE and METEOR (`mvaema/evaluation/texts.py`) each record is scored for the lengths
  it states (`mvaema/evaluation/lengths.py`), since n-gram scores do not see a wrong number;
- intervals and p-values respect that answers about one specimen are not independent
  (`mvaema/evaluation/intervals.py`): the cluster is the record's `group`, or else its micrograph.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset

from mvaema.evaluation.intervals import cluster_permutation_p_value, mean_intervals
from mvaema.evaluation.lengths import length_errors, parse_lengths
from mvaema.evaluation.texts import score_texts

LENGTH_METRICS = {
    "length_stated": "share of the reference's lengths for which the answer states one",
    "length_error": "mean relative error of those",
    "length_within_20_percent": "share of the reference's lengths met to 20 %; unstated is unmet",
    "length_invented": "whether a length is stated although the reference states none",
}

Record = dict  # an answer record, as the module's docstring describes it


def records_from_dataset(dataset: Dataset) -> list[Record]:
    """The records of a micrograph dataset's `ok` answers, `prediction` still to be filled in.

    Raises:
        ValueError: the dataset has no `qa` column or no usable answer.
    """
    if "qa" not in dataset.column_names:
        raise ValueError(
            f"the dataset has no column `qa` with the teacher's answers; it has "
            f"{', '.join(dataset.column_names)}."
        )
    columns = {"image_id", "qa", "category", "group"} & set(dataset.column_names)
    records = [
        {
            "image_id": row["image_id"],
            "group": row.get("group"),
            "category": row.get("category"),
            "question_id": qa["question_id"],
            "question": qa["question"],
            "reference": qa["answer"],
        }
        for row in dataset.select_columns(sorted(columns))  # leaves the images undecoded
        for qa in row["qa"] or ()
        if qa["outcome"] == "ok"
    ]
    if not records:
        raise ValueError("the dataset has no answer with the outcome `ok` to score against.")
    return records


def read_records(path: str | Path) -> list[Record]:
    """The records of a predictions file, one JSON object per line.

    Raises:
        ValueError: a line is not a JSON object; the message gives its number.
    """
    records = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object, got {line[:60]!r}."
                )
            records.append(record)
    return records


def score_records(
    records: Iterable[Record], synonyms: bool = True, progress: bool = False
) -> list[Record]:
    """Copies of the records with `scores`, metric name to float, or None where undefined.

    An empty prediction scores 0. `length_stated`, `length_error` and `length_within_20_percent`
    are None where the reference states no length (`length_error` also where the prediction states
    none), `length_invented` where the reference states one.

    Args:
        synonyms: `meteor`; when `False` its stand-in without WordNet, `meteor_no_synonyms`.

    Raises:
        ValueError: there are no records, a record lacks a field, its reference is blank, its
            prediction is missing, or a question of a micrograph occurs twice.
        LookupError: `synonyms` without WordNet on this machine.
    """
    records = list(records)
    _check(records)
    texts = score_texts(
        [r["prediction"] for r in records], [r["reference"] for r in records], synonyms, progress
    )
    return [
        {
            **record,
            "scores": {
                **{name: values[i] for name, values in texts.items()},
                **_score_lengths(record["prediction"], record["reference"]),
            },
        }
        for i, record in enumerate(records)
    ]


def summarize(records: list[Record], n_resamples: int = 1000, seed: int = 0) -> dict:
    """Means over scored records with 95 % intervals.

    Returns:
        `overall`, and by name `by_question` and `by_category` (empty when no record has a
        category, "unknown" for those without). Each summary has `n` answers about `images`
        micrographs in `clusters` independent clusters, the number of `empty` predictions, and
        `scores`: per metric `n`, `mean`, `std` (over answers, as in the paper's Table 1), `median`
        and the clustered bootstrap interval `low`, `high` (None with fewer than two clusters).
    """

    def summaries(name_of: Callable[[Record], str]) -> dict:
        parts = {}
        for record in records:
            parts.setdefault(name_of(record), []).append(record)
        return {name: _summarize(part, n_resamples, seed) for name, part in parts.items()}

    has_categories = any(r.get("category") for r in records)
    return {
        "overall": _summarize(records, n_resamples, seed),
        "by_question": summaries(lambda r: r["question_id"]),
        "by_category": dict(sorted(summaries(lambda r: r.get("category") or "unknown").items()))
        if has_categories
        else {},
    }


def compare(
    records: list[Record], others: list[Record], n_resamples: int = 9999, seed: int = 0
) -> dict:
    """Paired comparison of two students' scored records on the same questions.

    Returns:
        `n` answers, `clusters`, and `scores`: per metric `first` and `second` mean, `difference`
        (second minus first) with its 95 % interval `low`, `high`, and the two-sided `p_value` of
        a clustered sign-flip permutation test. The p-values are not corrected for looking at
        several metrics.

    Raises:
        ValueError: the two differ in their questions, references or metrics.
    """
    first, second = _by_key(records), _by_key(others)
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise ValueError(
            f"both sides must answer the same questions; {len(only)} are answered by one only, "
            f"such as image {only[0][0]!r}, question {only[0][1]!r}."
        )
    keys = list(first)
    for key in keys:
        if first[key]["reference"] != second[key]["reference"]:
            raise ValueError(f"image {key[0]!r}, question {key[1]!r}: the references differ.")
    names, values = _score_table([first[k] for k in keys])
    other_names, other_values = _score_table([second[k] for k in keys])
    if names != other_names:
        raise ValueError(
            f"the two sides were scored with different metrics, {set(names) ^ set(other_names)} on "
            "one side only; score both the same way."
        )
    clusters = np.array([_cluster(first[k]) for k in keys])
    differences = other_values - values
    intervals = mean_intervals(differences, clusters, seed=seed)
    scores = {}
    for i, name in enumerate(names):
        both = ~np.isnan(differences[:, i])
        if not both.any():
            continue
        low, high = intervals[i]
        scores[name] = {
            "n": int(both.sum()),
            "first": float(values[both, i].mean()),
            "second": float(other_values[both, i].mean()),
            "difference": float(differences[both, i].mean()),
            "low": low,
            "high": high,
            "p_value": None
            if low is None
            else cluster_permutation_p_value(
                differences[both, i], clusters[both], n_resamples, seed
            ),
        }
    return {"n": len(keys), "clusters": len(set(clusters)), "scores": scores}


def _check(records: list[Record]) -> None:
    if not records:
        raise ValueError("there are no records to score.")
    for i, record in enumerate(records):
        for field in ("image_id", "question_id", "question", "reference", "prediction"):
            if record.get(field) is None:
                raise ValueError(
                    f"record {i} has no `{field}`. A question left unanswered counts as the "
                    "prediction '', and a question without a reference answer is left out before "
                    "scoring."
                )
        if not record["reference"].strip():
            raise ValueError(
                f"image {record['image_id']!r}, question {record['question_id']!r}: the reference "
                "answer is blank; leave the question out before scoring."
            )
    _by_key(records)


def _by_key(records: list[Record]) -> dict[tuple[str, str], Record]:
    keyed = {(r["image_id"], r["question_id"]): r for r in records}
    if len(keyed) < len(records):
        seen = set()
        for key in ((r["image_id"], r["question_id"]) for r in records):
            if key in seen:
                raise ValueError(f"image {key[0]!r}, question {key[1]!r} occurs more than once.")
            seen.add(key)
    return keyed


def _score_lengths(prediction: str, reference: str) -> dict[str, float | None]:
    errors = np.array(length_errors(prediction, reference))
    if not len(errors):
        invented = float(bool(parse_lengths(prediction)))
        return {**dict.fromkeys(LENGTH_METRICS), "length_invented": invented}
    stated = errors[np.isfinite(errors)]
    return {
        "length_stated": len(stated) / len(errors),
        "length_error": float(stated.mean()) if len(stated) else None,
        "length_within_20_percent": float((errors <= 0.2).mean()),
        "length_invented": None,
    }


def _summarize(records: list[Record], n_resamples: int, seed: int) -> dict:
    names, values = _score_table(records)
    clusters = [_cluster(r) for r in records]
    scores = {}
    intervals = mean_intervals(values, clusters, n_resamples, seed)
    for name, column, (low, high) in zip(names, values.T, intervals, strict=True):
        column = column[~np.isnan(column)]
        scores[name] = {"n": len(column)}
        if len(column):
            scores[name] |= {
                "mean": float(column.mean()),
                "std": float(column.std()),
                "median": float(np.median(column)),
                "low": low,
                "high": high,
            }
    return {
        "n": len(records),
        "images": len({r["image_id"] for r in records}),
        "clusters": len(set(clusters)),
        "empty": sum(not r["prediction"].strip() for r in records),
        "scores": scores,
    }


def _score_table(records: list[Record]) -> tuple[list[str], np.ndarray]:
    """The metrics' names and the scores, (records, metrics), NaN where undefined."""
    for record in records:
        if "scores" not in record:
            raise ValueError("records must be scored first: call score_records.")
    names = list(records[0]["scores"])
    return names, np.array([[r["scores"][n] for n in names] for r in records], dtype=float)


def _cluster(record: Record) -> str:
    return record.get("group") or record["image_id"]
