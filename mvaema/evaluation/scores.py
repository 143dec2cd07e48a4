"""Step 2, score: everything collected to figures, beside the references to judge them by.

What is special about it:
- the references come with every evaluation: the typical, the nearest image's and a random training
  answer, the same model shown a blank image or another micrograph, and chance for the categories. A
  score above 0 says little, a score above its references does;
- BLEU, ROUGE and METEOR do not tell a student that looks from one that does not. Image gain and the
  choice of the true answer do (`mvaema/evaluation/sight.py`);
- no model is needed, and nothing is written: an evaluation can be scored again from its folder.

`score` returns the figures as a dictionary. With the facts that `run.py` puts before them they are
`results.json`:

    model, dataset, split, ...     what was scored, in words and numbers; the report's heading
    metrics                        the metrics in the tables: name to what they are called in print
    answers                        name to summary (`mvaema.evaluation.records.summarize`): the
                                   student, its variants, models compared with, the references
    classification                 method ("ITC", "ITM", "LM", "ITC+ITM", "chance") to scores
                                   (`mvaema.evaluation.categories.score_categories`); may be empty
    twin_classification            variant of the student and method to its top-1 and macro F1
    sight                          the student, its variants and models compared with to summary
                                   (`mvaema.evaluation.sight`); empty if it was not asked for
    support                        what is predicted to how well the student's ITM predicts it
                                   (`mvaema.evaluation.support`)
    judge                          of `--judge` only: its grades
                                   (`mvaema.evaluation.judge.Judge.grade`)
    comparisons                    "first → second" to comparison
                                   (`mvaema.evaluation.records.compare`); its `sight` is another.
                                   That with the typical answer also has false claims `by_question`
                                   and `by_category` (`mvaema.evaluation.records.compare_parts`)
    verdict                        what all of it says (`mvaema/evaluation/verdict.py`); `run.py`
                                   adds it
"""

import math
from collections.abc import Mapping

from mvaema.evaluation.categories import chance_probabilities, score_categories
from mvaema.evaluation.choices import Choices
from mvaema.evaluation.collect import Collected
from mvaema.evaluation.conditions import BLANK, CAPTION, OTHER, PLAIN
from mvaema.evaluation.questions import Questions, Record, key_of
from mvaema.evaluation.records import compare, compare_parts, score_records, summarize
from mvaema.evaluation.references import (
    nearest_image_answers,
    random_answers,
    typical_answers,
)
from mvaema.evaluation.sight import comparable, rows_under, sight_records, summarize_sight
from mvaema.evaluation.support import score_support
from mvaema.evaluation.texts import FALSE_CLAIMS, LABELS

# The metrics of the paper's Table 1, the stand-in for METEOR, and false claims per answer.
_TABLE_1 = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "meteor_no_synonyms")
HEADLINE = (*_TABLE_1, FALSE_CLAIMS)
TYPICAL = "typical answer"
TYPICAL_OF_CATEGORY = "typical answer of the category"
CHANCE = "chance"


def score(
    questions: Questions,
    collected: Collected,
    name: str,
    others: Mapping[str, Collected] | None = None,
    synonyms: bool = True,
) -> tuple[dict, dict[str, list[Record]]]:
    """The figures of one student.

    Args:
        name: what the report calls the student.
        others: what was collected from other models, by name, to compare with.
        synonyms: score METEOR with WordNet; if `False`, `meteor_no_synonyms` instead.

    Returns:
        the figures, as described above, and the scored answers that the report shows side by side:
        the student's, its variants', the other models', and the typical one.

    Raises:
        ValueError: answers are missing; `collect` has not finished.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    others = others or {}
    told = f"{name}, caption given"
    own = {name: PLAIN, told: CAPTION, f"{name}, blank image": BLANK}
    if not questions.with_caption():
        del own[told]
    if any(record["condition"] == OTHER for record in collected.answers):
        own[f"{name}, another micrograph"] = OTHER
    answers = {
        **{who: answers_under(condition, collected, questions) for who, condition in own.items()},
        **{who: answers_under(PLAIN, of_other, questions) for who, of_other in others.items()},
        **reference_answers(questions, collected),
    }
    scored = {who: score_records(a, synonyms, progress=True) for who, a in answers.items()}
    twins = [who for who, condition in own.items() if condition in (BLANK, OTHER)]
    pairs = [(other, name) for other in (*twins, TYPICAL, *others)]
    if told in own:
        pairs.append((name, told))
    sight = _sight(questions, collected, own, others)
    figures = {
        "metrics": {m: LABELS[m] for m in HEADLINE if m in scored[name][0]["scores"]},
        "answers": {who: summarize(records) for who, records in scored.items()},
        "classification": score_classification(questions, collected),
        "twin_classification": {
            who: _headline(score_classification(questions, collected, own[who])) for who in twins
        },
        "sight": {who: summarize_sight(records) for who, records in sight.items()},
        "support": {},
        "comparisons": {f"{a} → {b}": compare(scored[a], scored[b]) for a, b in pairs},
    }
    for a, b in pairs:
        if a in sight and b in sight:
            both = (comparable(sight[who]) for who in (a, b))
            figures["comparisons"][f"{a} → {b}"]["sight"] = compare(*both)["scores"]
    figures["comparisons"][f"{TYPICAL} → {name}"] |= compare_parts(
        scored[TYPICAL], scored[name], FALSE_CLAIMS
    )
    if sight:
        support = _support(questions, collected)
        figures["support"] = _score_support(scored[name], scored[TYPICAL], support)
        scored[name] = _with_sight(scored[name], sight[name], support)
    return figures, {who: scored[who] for who in (*own, *others, TYPICAL)}


def _sight(
    questions: Questions,
    collected: Collected,
    own: Mapping[str, str],
    others: Mapping[str, Collected],
) -> dict[str, list[Record]]:
    """Sight records of the student, its variants and others that were given the same choices."""
    if not collected.about["sight"]:
        return {}
    choices, alike = Choices.draw(questions), ("sight", "draw", "questions")
    found = {who: sight_records(questions, collected, choices, c) for who, c in own.items()}
    for who, of_other in others.items():
        if all(of_other.about.get(n) == collected.about[n] for n in alike):
            found[who] = sight_records(questions, of_other, choices, PLAIN)
    return found


def _support(questions: Questions, collected: Collected) -> list[float | None]:
    """ITM probability that each of the student's answers fits its micrograph; None if it is empty
    or the student has no matching head."""
    rows = rows_under(questions, collected, PLAIN)
    logits = (rows[key_of(record)].get("support") for record in questions.records)
    return [None if x is None else 0.5 * (1 + math.tanh(x / 2)) for x in logits]


def _score_support(
    records: list[Record], typical: list[Record], support: list[float | None]
) -> dict[str, dict]:
    """How well support predicts each quality of an answer; a quality is a yes or no per record."""
    metric = "meteor" if "meteor" in records[0]["scores"] else "meteor_no_synonyms"
    qualities: dict[str, list[bool | None]] = {
        f"{LABELS[metric]} above the typical answer's": [
            r["scores"][metric] > t["scores"][metric] for r, t in zip(records, typical, strict=True)
        ]
    }
    if "false_claims" in records[0]["scores"]:
        claims = [r["scores"]["false_claims"] for r in records]
        qualities["no false claim"] = [None if n is None else n == 0 for n in claims]
    scored = {n: score_support(records, support, good) for n, good in qualities.items()}
    return {n: found for n, found in scored.items() if found is not None}


def _with_sight(
    records: list[Record], sight: list[Record], support: list[float | None]
) -> list[Record]:
    """The records with what the report says of each answer: gain in nats per token, support."""

    def per_token(scores: dict) -> float | None:
        gain = scores["image_gain"]
        return None if gain is None else gain / scores["tokens"]

    return [
        {**record, "sight": {"image_gain": per_token(seen["scores"]), "support": probability}}
        for record, seen, probability in zip(records, sight, support, strict=True)
    ]


def _headline(classification: Mapping[str, Mapping]) -> dict[str, dict]:
    names = ("n", "top_1", "top_1_interval", "macro_f1")
    return {m: {n: s[n] for n in names} for m, s in classification.items() if m != CHANCE}


def answers_under(condition: str, collected: Collected, questions: Questions) -> list[Record]:
    """The records with the answers under a condition.

    Without a known caption, the answer under `CAPTION` is the plain one.

    Raises:
        ValueError: answers are missing.
    """
    predictions = collected.predictions(condition)
    if condition == CAPTION:
        given = {key_of(record) for record in questions.with_caption()}
        plain = collected.predictions(PLAIN)
        predictions |= {key: plain[key] for key in plain.keys() - given}
    missing = [r for r in questions.records if key_of(r) not in predictions]
    if missing:
        raise ValueError(
            f"the evaluation of {collected.about['model']} has no answer to {len(missing)} of "
            f"{len(questions.records)} questions, such as image {missing[0]['image_id']!r}, "
            f"question {missing[0]['question_id']!r}; rerun it to complete it."
        )
    return [{**r, "prediction": predictions[key_of(r)]} for r in questions.records]


def reference_answers(questions: Questions, collected: Collected) -> dict[str, list[Record]]:
    """Answers from the training split, by name."""
    train_records, records = questions.train_records, questions.records
    answers = {
        TYPICAL: typical_answers(train_records, records),
        "nearest image's answer": nearest_image_answers(
            train_records, records, collected.embeddings
        ),
        "random answer": random_answers(train_records, records),
    }
    if any(record["category"] for record in records):
        of_category = typical_answers(train_records, records, of_category=True)
        answers[TYPICAL_OF_CATEGORY] = of_category
    return answers


def score_classification(
    questions: Questions, collected: Collected, condition: str = PLAIN
) -> dict[str, dict]:
    """Scores by method, and those of chance; empty if the model ranked no categories."""
    labels = collected.about["labels"]
    if not labels:
        return {}
    rows = list(questions.micrographs.dataset.select_columns(["image_id", "category", "group"]))
    found: dict[str, dict] = {}
    for record in collected.categories:
        if record["condition"] == condition:
            found.setdefault(record["method"], {})[record["image_id"]] = record["probabilities"]
    chance = chance_probabilities(questions.train.dataset["category"], labels)
    found[CHANCE] = dict.fromkeys(questions.micrographs, chance)
    return {
        method: score_categories(
            [{**row, "probabilities": probabilities[row["image_id"]]} for row in rows], labels
        )
        for method, probabilities in found.items()
    }
