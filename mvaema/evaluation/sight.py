"""What a model owes to its eyes: image gain, and which answer is true.

What is special about it:
- these are measures on which a model that does not look is at zero and at chance, which BLEU,
  ROUGE and METEOR are not;
- they are scores of answer records like any other. `mvaema/evaluation/records.py` averages them
  with their intervals and compares them in pairs.

Each record under a condition gets these scores, None where undefined:

    image_gain          LM loss of the true answer without a micrograph minus with what is shown, in
                        nats per answer
    own_gain            LM loss with another micrograph minus with its own; of the student only
    WHAT_WAY_top_1, WHAT_WAY_mrr
                        is the true one first, and 1 / its rank. WHAT is "answer" (the true answer
                        among eight) or "micrograph" (the described one among eight), WAY how they
                        are ranked (`WAYS`)
    WHAT_chance_top_1, WHAT_chance_mrr
                        the expectation of both for guessing
    same_...            the same scores where all eight are of one category

Likelihoods are sums over an answer's words, not means: only the difference of sums is a log
likelihood ratio, which says how much more probable an image makes an answer. The price is that the
plain likelihood prefers short answers.
"""

from collections.abc import Mapping

import numpy as np

from mvaema.evaluation.choices import ANY, SAME, Choices
from mvaema.evaluation.collect import Collected
from mvaema.evaluation.conditions import CAPTION, OTHER, PLAIN
from mvaema.evaluation.intervals import cluster_bootstrap
from mvaema.evaluation.looking import LANGUAGE
from mvaema.evaluation.questions import Questions, Record, cluster_of, key_of
from mvaema.evaluation.records import summarize

LIKELIHOOD, GAIN, ITM, ITC, BOTH = "likelihood", "gain", "itm", "itc", "itc_itm"
WAYS = {
    LIKELIHOOD: "likelihood",
    GAIN: "likelihood minus blank image's",
    ITM: "matching head (ITM)",
    ITC: "similarity (ITC)",
    BOTH: "ITC and ITM",  # as `classify(by="itc+itm")` adds them up
}
ANSWER, MICROGRAPH = "answer", "micrograph"
GAINS = ("image_gain", "own_gain")
PREFIX = {ANY: "", SAME: "same_"}
# Scores that agree to this many decimals are equal: float32 differs by 1e-5 between batches.
DECIMALS = 3
CHANCES = "chance"


def _labels() -> dict[str, str]:
    labels = {
        "image_gain": "image gain, nats per answer",
        "own_gain": "own minus another micrograph's gain, nats per answer",
    }
    for of_set, prefix in PREFIX.items():
        for what, title in ((ANSWER, "true answer"), (MICROGRAPH, "described micrograph")):
            for way, by in WAYS.items():
                where = f", {of_set}" if of_set == SAME else ""
                name = f"{prefix}{what}_{way}"
                labels[f"{name}_top_1"] = f"{title} by {by}{where}, top-1"
                labels[f"{name}_mrr"] = f"{title} by {by}{where}, MRR"
    return labels


LABELS = _labels()

LOSSES = ("loss", "tokens", "losses")  # what a caption in the prompt changes

Rows = Mapping[tuple[str, str], dict]  # of `likelihoods.jsonl` under one condition


def sight_records(
    questions: Questions, collected: Collected, choices: Choices, condition: str
) -> list[Record]:
    """The records with the scores above under a condition.

    Raises:
        ValueError: likelihoods are missing; `collect` has not finished.
    """
    rows = rows_under(questions, collected, condition)
    language = rows_under(questions, collected, LANGUAGE)
    others = None
    if condition == PLAIN and choices.partners:
        others = rows_under(questions, collected, OTHER)
    found = []
    for record in questions.records:
        key = key_of(record)
        row = rows[key]
        scores = {
            "image_gain": _difference(language[key], row),
            "own_gain": others and _difference(others[key], row),
            "tokens": row.get("tokens"),
        }
        for of_set, prefix in PREFIX.items():
            block = choices.blocks[of_set].get(key)
            scores |= {f"{prefix}{n}": v for n, v in _ranked(block, key, rows, language).items()}
        found.append({**record, "prediction": "", "scores": scores})
    return found


def rows_under(questions: Questions, collected: Collected, condition: str) -> Rows:
    """The rows of `likelihoods.jsonl` under a condition, by key.

    Without a known caption, the losses under `CAPTION` are the plain ones.

    Raises:
        ValueError: rows are missing.
    """
    rows = {key_of(r): r for r in collected.likelihoods if r["condition"] == condition}
    if condition == CAPTION:
        plain = rows_under(questions, collected, PLAIN)
        told = {key: {n: r[n] for n in LOSSES if n in r} for key, r in plain.items()}
        rows = {**told, **rows}
    missing = [r for r in questions.records if key_of(r) not in rows]
    if missing:
        raise ValueError(
            f"the evaluation of {collected.about['model']} has no likelihood of {len(missing)} of "
            f"{len(questions.records)} answers ({condition}), such as image "
            f"{missing[0]['image_id']!r}, question {missing[0]['question_id']!r}; rerun it to "
            "complete it."
        )
    return rows


def summarize_sight(records: list[Record]) -> dict:
    """As `records.summarize`, overall and by question, with the gains per token, `*_per_token`.

    Those are means over tokens, as the LM loss is: the sum of the gains over that of the tokens.
    """
    summary = summarize(records)
    del summary["by_category"]
    of_question = {
        question: [r for r in records if r["question_id"] == question]
        for question in summary["by_question"]
    }
    parts = [(summary["overall"], records)]
    parts += [(summary["by_question"][q], asked) for q, asked in of_question.items()]
    for part, of_part in parts:
        del part["empty"], part["scores"]["tokens"]  # nothing is said here
        for gain in GAINS:
            part["scores"][f"{gain}_per_token"] = _per_token(of_part, gain)
    return summary


def comparable(records: list[Record]) -> list[Record]:
    """Sight records without what is not a score, for `records.compare`."""

    def scores_of(record: Record) -> dict:
        scores = record["scores"].items()
        return {name: v for name, v in scores if name != "tokens" and CHANCES not in name}

    return [{**record, "scores": scores_of(record)} for record in records]


def rank_scores(scores: list[float], true: int) -> tuple[float, float]:
    """Whether the true one is first, and 1 / its rank; the mean over all orders of equal ones.

    Args:
        scores: of all that are ranked, higher is better. Equal to `DECIMALS` is equal.
        true: the number of the true one.
    """
    rounded = [round(score, DECIMALS) for score in scores]
    better = sum(score > rounded[true] for score in rounded)
    equal = rounded.count(rounded[true])
    ranks = range(better + 1, better + equal + 1)
    return float(better == 0) / equal, sum(1 / rank for rank in ranks) / equal


def _ranked(
    block: tuple[str, ...] | None, key: tuple[str, str], rows: Rows, language: Rows
) -> dict[str, float | None]:
    """The scores of one record in its block, for both directions and every way."""
    image_id, question_id = key
    scores = {}
    for what in (ANSWER, MICROGRAPH):
        # Whether an image makes an answer likelier than language does is the same for all images.
        for way in (w for w in WAYS if what == ANSWER or w != GAIN):
            values = None
            if block is not None:
                pairs = [(image_id, other) for other in block]
                if what == MICROGRAPH:
                    pairs = [(other, image_id) for other in block]
                values = [_value(way, *pair, question_id, rows, language) for pair in pairs]
            known = values is not None and None not in values
            top_1, mrr = rank_scores(values, block.index(image_id)) if known else (None, None)
            scores |= {f"{what}_{way}_top_1": top_1, f"{what}_{way}_mrr": mrr}
        top_1, mrr = rank_scores([0.0] * len(block), 0) if block else (None, None)
        scores |= {f"{what}_{CHANCES}_top_1": top_1, f"{what}_{CHANCES}_mrr": mrr}
    return scores


def _value(
    way: str, shown: str, answer: str, question_id: str, rows: Rows, language: Rows
) -> float | None:
    """How well the answer about the micrograph `answer` fits the micrograph `shown`."""
    row = rows[shown, question_id]
    if way in (LIKELIHOOD, GAIN):
        losses, alone = row.get("losses"), language[answer, question_id].get("losses")
        if losses is None or alone is None:
            return None
        return (alone[answer] if way == GAIN else 0.0) - losses[answer]
    match, similarity = (row.get(name, {}).get(answer) for name in ("matches", "similarities"))
    if way == BOTH:
        return None if None in (match, similarity) else similarity - np.logaddexp(0, -match)
    return match if way == ITM else similarity


def _difference(first: dict, second: dict) -> float | None:
    return first["loss"] - second["loss"] if "loss" in first and "loss" in second else None


def _per_token(records: list[Record], gain: str) -> dict:
    """Sum of a gain over the sum of the tokens, with its interval."""
    known = [r for r in records if r["scores"][gain] is not None]
    if not known:
        return {"n": 0}
    values = np.array([[r["scores"][gain], r["scores"]["tokens"]] for r in known], dtype=float)
    clusters = [cluster_of(r) for r in known]
    low = high = None
    if len(set(clusters)) > 1:
        draws = cluster_bootstrap(values, clusters)
        low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5]).tolist()
    total, tokens = values.sum(axis=0)
    return {"n": len(known), "mean": float(total / tokens), "low": low, "high": high}
