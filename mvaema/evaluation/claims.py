"""An answer's facts compared with the reference's: what is right, what is false, what is missing.

A fact that an answer asserts is
- *right* if the reference asserts it too;
- a *false claim* if the reference contradicts it: it denies the fact, asserts what the answer
  denies, or states a value that excludes it (`facts.toml`) and neither the fact itself nor one of
  its like, as a rod is to a wire;
- *unsupported* if the reference is silent. That is neither right nor false.

Quantities of one kind and unit are paired one to one, nearest first. They agree if their ranges, or
the nearest ends of these, differ by a factor below `TOLERANCE`. Sizes are estimated by eye, so it
is wide; the text of a scale bar is read, so it is narrow.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lengths_mvaema import Length
from mvaema.evaluation.facts import (
    COUNT,
    LENGTH,
    QUANTITIES,
    SCALE,
    SHARE,
    Fact,
    extract_facts,
)
from mvaema.evaluation.lengths import pair_lengths
from mvaema.evaluation.lexicon import load_lexicon

TOLERANCE = {LENGTH: 1.5, SHARE: 1.5, COUNT: 1.5, SCALE: 1.01}
RIGHT, FALSE, UNSUPPORTED, MISSED = OUTCOMES = ("right", "false", "unsupported", "missed")

FACT_METRICS = {
    "false_claims": "facts of the answer that the reference contradicts",
    "fact_precision": "right facts among the right and the false; None without either",
    "fact_recall": "share of the reference's facts that the answer asserts; None without any",
    "unsupported_claims": "facts of the answer on which the reference is silent",
}


class Claim(NamedTuple):
    """A fact of the answer, or one that it misses, with what becomes of it.

    Attributes:
        outcome: one of `OUTCOMES`; "missed" is a fact of the reference that the answer lacks.
        against: of a false claim, what the reference asserts instead.
    """

    fact: Fact
    outcome: str
    against: Fact | None = None

    def __str__(self) -> str:
        against = f" (reference: {self.against})" if self.against else ""
        return f"{self.fact}{against}"


def compare_facts(prediction: str, reference: str) -> list[Claim]:
    """Every fact of an answer, then the facts of the reference that it misses."""
    claimed, true = extract_facts(prediction), extract_facts(reference)
    claims = [
        *_judge_values(
            [fact for fact in claimed if fact.range is None],
            [fact for fact in true if fact.range is None],
        )
    ]
    for kind, value in dict.fromkeys((f.kind, f.value) for f in (*claimed, *true) if f.range):
        claims += _judge_quantities(
            kind,
            [fact for fact in claimed if fact[:2] == (kind, value)],
            [fact for fact in true if fact[:2] == (kind, value)],
        )
    return sorted(claims, key=lambda claim: claim.outcome == MISSED)


def score_facts(prediction: str, reference: str) -> tuple[dict, dict]:
    """The scores `FACT_METRICS` of an answer, and its facts in words.

    Returns:
        the scores; and `asserted`, the facts of the answer, `false_claims`, each with what the
        reference asserts, and `by_kind`: kind to counts of `OUTCOMES`.
    """
    claims = compare_facts(prediction, reference)
    by_kind = _count(claims)
    totals = total_outcomes(by_kind.values())
    scores = {
        "false_claims": float(totals[FALSE]),
        **precision_and_recall(totals),
        "unsupported_claims": float(totals[UNSUPPORTED]),
    }
    facts = {
        "asserted": [str(claim.fact) for claim in claims if claim.outcome != MISSED],
        "false_claims": [str(claim) for claim in claims if claim.outcome == FALSE],
        "by_kind": by_kind,
    }
    return scores, facts


def summarize_facts(facts: Iterable[dict]) -> dict[str, dict]:
    """Counts of `OUTCOMES`, precision and recall by kind of fact, over many answers.

    Args:
        facts: as `score_facts` returns them.

    Returns:
        `all`, and each kind that occurs, in the order of the lexicon.
    """
    of_answers = [answer["by_kind"] for answer in facts]
    kinds = [
        kind
        for kind in (*load_lexicon().kinds, *QUANTITIES)
        if any(kind in by_kind for by_kind in of_answers)
    ]
    totals = {
        kind: total_outcomes(by_kind[kind] for by_kind in of_answers if kind in by_kind)
        for kind in kinds
    }
    totals = {"all": total_outcomes(totals.values()), **totals}
    return {kind: {**counts, **precision_and_recall(counts)} for kind, counts in totals.items()}


def total_outcomes(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sums of counts of `OUTCOMES`."""
    counts = list(counts)
    return {outcome: sum(c[outcome] for c in counts) for outcome in OUTCOMES}


def _count(claims: Iterable[Claim]) -> dict[str, dict[str, int]]:
    """Kind to counts of `OUTCOMES`."""
    counts: dict[str, dict[str, int]] = {}
    for claim in claims:
        counts.setdefault(claim.fact.kind, dict.fromkeys(OUTCOMES, 0))[claim.outcome] += 1
    return counts


def precision_and_recall(counts: dict[str, int]) -> dict[str, float | None]:
    """`fact_precision` and `fact_recall` from counts of `OUTCOMES`, None where undefined."""
    right = counts[RIGHT]
    judged, true = right + counts[FALSE], right + counts[MISSED]
    return {
        "fact_precision": right / judged if judged else None,
        "fact_recall": right / true if true else None,
    }


def _judge_values(claimed: list[Fact], true: list[Fact]) -> Iterator[Claim]:
    for fact in claimed:
        if fact in true:
            yield Claim(fact, RIGHT)
        elif against := _contradiction(fact, true):
            yield Claim(fact, FALSE, against)
        else:
            yield Claim(fact, UNSUPPORTED)
    yield from (Claim(fact, MISSED) for fact in true if fact not in claimed)


def _contradiction(fact: Fact, true: list[Fact]) -> Fact | None:
    """The first true fact that contradicts another, which is not among the true ones."""
    opposite = fact._replace(absent=not fact.absent)
    if opposite in true:
        return opposite
    stated = {t.value: t for t in true if t.kind == fact.kind and not t.absent}
    lexicon, key = load_lexicon(), (fact.kind, fact.value)
    if fact.absent or stated.keys() & lexicon.alike.get(key, set()):
        return None
    excluding = lexicon.excluded.get(key, set())
    return next((t for value, t in stated.items() if value in excluding), None)


def _judge_quantities(kind: str, claimed: list[Fact], true: list[Fact]) -> Iterator[Claim]:
    pairs = dict(pair_lengths([f.range for f in claimed], [f.range for f in true]))
    right = set()
    for i, fact in enumerate(claimed):
        if i not in pairs:
            yield Claim(fact, UNSUPPORTED)
        elif _agree(fact.range, true[pairs[i]].range, TOLERANCE[kind]):
            right.add(pairs[i])
            yield Claim(fact, RIGHT)
        else:
            yield Claim(fact, FALSE, true[pairs[i]])
    yield from (Claim(fact, MISSED) for i, fact in enumerate(true) if i not in right)


def _agree(first: Length, second: Length, tolerance: float) -> bool:
    lower, upper = sorted((first, second))
    return lower.high >= upper.low or upper.low < tolerance * lower.high
