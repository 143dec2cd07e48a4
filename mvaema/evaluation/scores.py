"""Step 2, score: everything collected to figures, beside the references to judge them by.

What is special about it:
- the references come with every evaluation: the typical, the nearest image's and a random training
  answer, the same model shown a blank image, and chance for the categories. A score above 0 says
  little, a score above its references does;
- no model is needed, and nothing is written: an evaluation can be scored again from its folder.

`score` returns the figures as a dictionary. With the facts that `run.py` puts before them they are
`results.json`:

    model, dataset, split, ...     what was scored, in words and numbers; the report's heading
    metrics                        the metrics in the tables: name to what they are called in print
    answers                        name to summary (`mvaema.evaluation.records.summarize`): the
                                   student, its variants, models compared with, the references
    classification                 method ("ITC", "ITM", "LM", "chance") to scores
                                   (`mvaema.evaluation.categories.score_categories`); may be empty
    judge                          of `--judge` only: its grades
                                   (`mvaema.evaluation.judge.Judge.grade`)
    comparisons                    "first → second" to comparison
                                   (`mvaema.evaluation.records.compare`)
"""

from collections.abc import Mapping

from mvaema.evaluation.categories import chance_probabilities, score_categories
from mvaema.evaluation.collect import BLANK, CAPTION, PLAIN, Collected
from mvaema.evaluation.questions import Questions, Record, key_of
from mvaema.evaluation.records import compare, score_records, summarize
from mvaema.evaluation.references import (
    nearest_image_answers,
    random_answers,
    typical_answers,
)
from mvaema.evaluation.texts import FALSE_CLAIMS, LABELS

# The metrics of the paper's Table 1, the stand-in for METEOR, and false claims per answer.
_TABLE_1 = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "meteor_no_synonyms")
HEADLINE = (*_TABLE_1, FALSE_CLAIMS)
TYPICAL = "typical answer"
CHANCE = "chance"


def score(
    questions: Questions,
    collected: Collected,
    name: str,
    others: Mapping[str, list[Record]] | None = None,
    synonyms: bool = True,
) -> tuple[dict, dict[str, list[Record]]]:
    """The figures of one student.

    Args:
        name: what the report calls the student.
        others: answers of other models to the same questions, by name, to compare with.
        synonyms: score METEOR with WordNet; if `False`, `meteor_no_synonyms` instead.

    Returns:
        the figures, as described above, and the scored answers that the report shows side by side:
        the student's, its variants', the other models', and the typical one.

    Raises:
        ValueError: answers are missing; `collect` has not finished.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    others = others or {}
    told, blank = f"{name}, caption given", f"{name}, blank image"
    own = {name: PLAIN, told: CAPTION, blank: BLANK}
    if not questions.with_caption():
        del own[told]
    answers = {
        **{who: answers_under(condition, collected, questions) for who, condition in own.items()},
        **others,
        **reference_answers(questions, collected),
    }
    scored = {who: score_records(a, synonyms, progress=True) for who, a in answers.items()}
    pairs = [(other, name) for other in (blank, TYPICAL, *others)]
    if told in own:
        pairs.append((name, told))
    figures = {
        "metrics": {m: LABELS[m] for m in HEADLINE if m in scored[name][0]["scores"]},
        "answers": {who: summarize(records) for who, records in scored.items()},
        "classification": score_classification(questions, collected),
        "comparisons": {f"{a} → {b}": compare(scored[a], scored[b]) for a, b in pairs},
    }
    return figures, {who: scored[who] for who in (*own, *others, TYPICAL)}


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
        answers["typical answer of the category"] = of_category
    return answers


def score_classification(questions: Questions, collected: Collected) -> dict[str, dict]:
    """Scores by method, and those of chance; empty if the model ranked no categories."""
    labels = collected.about["labels"]
    if not labels:
        return {}
    rows = list(questions.micrographs.dataset.select_columns(["image_id", "category", "group"]))
    found: dict[str, dict] = {}
    for record in collected.categories:
        found.setdefault(record["method"], {})[record["image_id"]] = record["probabilities"]
    chance = chance_probabilities(questions.train.dataset["category"], labels)
    found[CHANCE] = dict.fromkeys(questions.micrographs, chance)
    return {
        method: score_categories(
            [{**row, "probabilities": probabilities[row["image_id"]]} for row in rows], labels
        )
        for method, probabilities in found.items()
    }
