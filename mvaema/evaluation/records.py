"""Answer records scored one by one, averaged, and compared in pairs.

What is special about it:
- everything works on answer records (`mvaema/evaluation/questions.py`). `score_records` adds
  `scores` to each; a new measure of an answer belongs there, and `summarize`, `compare` and the
  report take it from there;
- beside BLEU, ROUGE and METEOR (`mvaema/evaluation/texts.py`) each answer is scored for the facts
  it asserts (`mvaema/evaluation/claims.py`) and the lengths it states
  (`mvaema/evaluation/lengths.py`), since n-gram scores see neither a false word nor a wrong number;
- answers about one specimen are not independent, and intervals and p-values respect that
  (`mvaema/evaluation/intervals.py`). The cluster is the record's `group`, or else its micrograph.
"""

from collections.abc import Callable, Iterable

import numpy as np

from lengths_mvaema import parse_lengths
from mvaema.evaluation.claims import score_facts, summarize_facts
from mvaema.evaluation.intervals import cluster_permutation_p_value, mean_intervals
from mvaema.evaluation.lengths import length_errors
from mvaema.evaluation.questions import Record, by_key, cluster_of
from mvaema.evaluation.texts import score_texts

LENGTH_METRICS = {
    "length_stated": "share of the reference's lengths for which the answer states one",
    "length_error": "mean relative error of those",
    "length_within_20_percent": "share of the reference's lengths met to 20 %; unstated is unmet",
    "length_invented": "whether a length is stated although the reference states none",
}


def score_records(
    records: Iterable[Record], synonyms: bool = True, progress: bool = False
) -> list[Record]:
    """Copies of the records with `scores`, metric name to float, or None where undefined.

    Each also gets `facts`: those it asserts and its false claims, in words
    (`mvaema.evaluation.claims.score_facts`).

    An empty prediction scores 0. `length_stated`, `length_error` and `length_within_20_percent`
    are None where the reference states no length, `length_error` also where the prediction states
    none. `length_invented` is None where the reference states a length.

    Args:
        synonyms: score `meteor`, which needs WordNet; if `False`, `meteor_no_synonyms` instead.
        progress: show a progress bar.

    Raises:
        ValueError: there are no records, a record lacks a field or its prediction, its reference
            is blank, or a question about a micrograph occurs twice.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    records = list(records)
    _check(records)
    texts = score_texts(
        [r["prediction"] for r in records], [r["reference"] for r in records], synonyms, progress
    )
    scored = []
    for i, record in enumerate(records):
        fact_scores, facts = score_facts(record["prediction"], record["reference"])
        scores = {
            **{name: values[i] for name, values in texts.items()},
            **fact_scores,
            **_score_lengths(record["prediction"], record["reference"]),
        }
        scored.append({**record, "scores": scores, "facts": facts})
    return scored


def summarize(records: list[Record], n_resamples: int = 1000, seed: int = 0) -> dict:
    """Means over scored records with 95 % intervals.

    Returns:
        `overall`; `by_question`; and `by_category`, where records without a category count as
        "unknown", and which is empty if no record has one. Each summary has `n` answers about
        `images` micrographs in `clusters` independent clusters, the number of `empty` predictions,
        `facts` by kind (`mvaema.evaluation.claims.summarize_facts`), and `scores`: per metric `n`,
        `mean`, `std` (over answers, as in the paper's Table 1), `median`, and the clustered
        bootstrap interval `low`, `high` (None with fewer than two clusters).
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
        a clustered sign-flip permutation test. The p-values are not corrected for the number of
        metrics.

    Raises:
        ValueError: the two sides differ in questions, references or metrics.
    """
    records, others = _paired(records, others)
    names, values = _score_table(records)
    other_names, other_values = _score_table(others)
    if names != other_names:
        raise ValueError(
            f"the two sides were scored with different metrics: {set(names) ^ set(other_names)} on "
            "one side only. Score both the same way."
        )
    clusters = np.array([cluster_of(record) for record in records])
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
    return {"n": len(records), "clusters": len(set(clusters)), "scores": scores}


def compare_parts(records: list[Record], others: list[Record], metric: str) -> dict[str, dict]:
    """`compare` in one metric for each part of the questions.

    Returns:
        `by_question` and `by_category`: name of the part to comparison. A category that is not
        known is "unknown", as in `summarize`.

    Raises:
        ValueError: see `compare`, or the records were not scored with `metric`.
    """
    if not all(metric in r["scores"] for r in (*records, *others)):
        raise ValueError(f"the records have no score {metric!r}; score them with `score_records`.")
    records, others = _paired(records, others)
    pairs = [
        tuple({**r, "scores": {metric: r["scores"][metric]}} for r in pair)
        for pair in zip(records, others, strict=True)
    ]
    found: dict[str, dict] = {"by_question": {}, "by_category": {}}
    for field, parts in zip(("question_id", "category"), found.values(), strict=True):
        of_part: dict[str, list[tuple[Record, Record]]] = {}
        for pair in pairs:
            of_part.setdefault(pair[0].get(field) or "unknown", []).append(pair)
        for name, members in of_part.items():
            parts[name] = compare(*map(list, zip(*members, strict=True)))
    return found


def _paired(records: list[Record], others: list[Record]) -> tuple[list[Record], list[Record]]:
    """The records of both sides in the same order."""
    first, second = by_key(records), by_key(others)
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise ValueError(
            f"both sides must answer the same questions; {len(only)} are answered by one side "
            f"only, such as image {only[0][0]!r}, question {only[0][1]!r}."
        )
    for key, record in first.items():
        if record["reference"] != second[key]["reference"]:
            raise ValueError(f"image {key[0]!r}, question {key[1]!r}: the references differ.")
    return records, [second[key] for key in first]


def _check(records: list[Record]) -> None:
    if not records:
        raise ValueError("there are no records to score.")
    for i, record in enumerate(records):
        for field in ("image_id", "question_id", "question", "reference", "prediction"):
            if record.get(field) is None:
                raise ValueError(
                    f"record {i} has no `{field}`. Give an unanswered question the prediction '', "
                    "and leave out questions without a reference answer."
                )
        if not record["reference"].strip():
            raise ValueError(
                f"image {record['image_id']!r}, question {record['question_id']!r}: the reference "
                "answer is blank; leave the question out."
            )
    by_key(records)


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
    clusters = [cluster_of(r) for r in records]
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
    summary = {
        "n": len(records),
        "images": len({r["image_id"] for r in records}),
        "clusters": len(set(clusters)),
        "empty": sum(not r["prediction"].strip() for r in records),
        "scores": scores,
    }
    if all("facts" in record for record in records):
        summary["facts"] = summarize_facts(record["facts"] for record in records)
    return summary


def _score_table(records: list[Record]) -> tuple[list[str], np.ndarray]:
    """The metrics' names and the scores, (records, metrics), NaN where undefined."""
    for record in records:
        if "scores" not in record:
            raise ValueError("the records have no scores; call score_records first.")
    names = list(records[0]["scores"])
    return names, np.array([[r["scores"][n] for n in names] for r in records], dtype=float)
