"""Reference answers that need no look at the micrograph; the nearest image's needs only a look.

A student that does not beat them has learnt nothing from the images. Each function returns answer
records (`mvaema/evaluation/questions.py`), which are scored and reported like a student's. Each
raises ValueError for a question that no training micrograph was asked.
"""

import random
from collections.abc import Mapping

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from mvaema.evaluation.questions import Record, check_questions, key_of


def typical_answers(
    train_records: list[Record], records: list[Record], of_category: bool = False
) -> list[Record]:
    """Every question gets its most typical training answer.

    The most typical answer is the medoid: the one with the largest mean cosine similarity of TF-IDF
    vectors to all answers to its question. (Free text hardly repeats, so the most frequent answer
    is a poor choice.)

    Args:
        of_category: choose among the training answers about the true category, where there are any.
            The fair reference for a student that is told the category.
    """
    check_questions(train_records, records)

    def group(record: Record) -> tuple[str, str | None]:
        return record["question_id"], record.get("category") if of_category else None

    of_question, of_group = _by_question(train_records), {}
    for record in train_records:
        of_group.setdefault(group(record), []).append(record["reference"])
    medoids = {
        key: _medoid(of_group.get(key) or of_question[key[0]])
        for key in {group(record) for record in records}
    }
    return [{**record, "prediction": medoids[group(record)]} for record in records]


def random_answers(
    train_records: list[Record], records: list[Record], seed: int = 1
) -> list[Record]:
    """Every question gets the answer to the same question about a random training micrograph."""
    check_questions(train_records, records)
    answers = _by_question(train_records)
    rng = random.Random(seed)
    return [
        {**record, "prediction": rng.choice(answers[record["question_id"]])} for record in records
    ]


def nearest_image_answers(
    train_records: list[Record], records: list[Record], embeddings: Mapping[str, np.ndarray]
) -> list[Record]:
    """Every question gets the answer about the most similar training micrograph that was asked it.

    Args:
        embeddings: image id to vector (d,), for both splits; vectors are compared by their cosine.
    """
    check_questions(train_records, records)
    answers = {key_of(record): record["reference"] for record in train_records}
    train_ids, ids = (
        list(dict.fromkeys(r["image_id"] for r in part)) for part in (train_records, records)
    )
    similarities = cosine_similarity(
        np.stack([embeddings[i] for i in ids]), np.stack([embeddings[i] for i in train_ids])
    )
    # Nearest first. Neighbours that were not asked the question are skipped.
    neighbours = dict(zip(ids, np.argsort(-similarities, kind="stable"), strict=True))
    predictions = []
    for record in records:
        keys = ((train_ids[i], record["question_id"]) for i in neighbours[record["image_id"]])
        prediction = next(answers[key] for key in keys if key in answers)
        predictions.append({**record, "prediction": prediction})
    return predictions


def _by_question(records: list[Record]) -> dict[str, list[str]]:
    answers = {}
    for record in records:
        answers.setdefault(record["question_id"], []).append(record["reference"])
    return answers


def _medoid(answers: list[str]) -> str:
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(answers)  # of length 1
    mean = np.asarray(vectors.mean(axis=0)).ravel()
    return answers[int(np.argmax(vectors @ mean))]
