"""Answers that need no look at the micrograph: a student that does not beat them has not seen it.

Each function returns records (`mvaema/evaluation/scores.py`) with `prediction` filled in, so a baseline is
scored, compared and reported like a student.
"""

import random
from collections.abc import Mapping

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from mvaema.evaluation.scores import Record


def typical_answers(
    train_records: list[Record], records: list[Record], of_category: bool = False
) -> list[Record]:
    """Every question is given its most typical training answer.

    Most typical is the medoid: the answer with the largest mean cosine similarity of TF-IDF
    vectors to all answers to its question. (The most frequent one is a poor choice, since free
    text hardly repeats.)

    Args:
        of_category: among the training answers about the true category, as far as there are any.
            The fair bar for a student that is told the category.
    """

    def group(record: Record) -> tuple[str, str | None]:
        return record["question_id"], record.get("category") if of_category else None

    of_question, of_group = _by_question(train_records), {}
    for record in train_records:
        of_group.setdefault(group(record), []).append(record["reference"])
    medoids = {
        key: _medoid(of_group.get(key) or _candidates(of_question, key[0]))
        for key in {group(record) for record in records}
    }
    return [{**record, "prediction": medoids[group(record)]} for record in records]


def random_answers(
    train_records: list[Record], records: list[Record], seed: int = 1
) -> list[Record]:
    """Every question is given the answer of a random training micrograph to the same question."""
    answers = _by_question(train_records)
    rng = random.Random(seed)
    return [
        {**record, "prediction": rng.choice(_candidates(answers, record["question_id"]))}
        for record in records
    ]


def nearest_image_answers(
    train_records: list[Record],
    records: list[Record],
    train_embeddings: Mapping[str, np.ndarray],
    embeddings: Mapping[str, np.ndarray],
) -> list[Record]:
    """Every question is given the answer about the most similar training micrograph.

    Args:
        train_embeddings, embeddings: image id to a vector (d,), compared by their cosine.
    """
    answers = {(r["image_id"], r["question_id"]): r["reference"] for r in train_records}
    train_ids = list(train_embeddings)
    similarities = cosine_similarity(
        np.stack(list(embeddings.values())), np.stack(list(train_embeddings.values()))
    )
    # Nearest first; a neighbour that was not asked the question is passed over.
    neighbours = dict(zip(embeddings, np.argsort(-similarities, kind="stable"), strict=True))
    predictions = []
    for record in records:
        ids = (train_ids[i] for i in neighbours[record["image_id"]])
        keys = ((image_id, record["question_id"]) for image_id in ids)
        key = next((key for key in keys if key in answers), None)
        if key is None:
            raise _unanswered(record["question_id"])
        predictions.append({**record, "prediction": answers[key]})
    return predictions


def check_questions(train_records: list[Record], records: list[Record]) -> None:
    """Refuse questions that no baseline could answer.

    Raises:
        ValueError: a question of `records` has no answer in `train_records`.
    """
    for question_id in _by_question(records).keys() - _by_question(train_records).keys():
        raise _unanswered(question_id)


def _by_question(records: list[Record]) -> dict[str, list[str]]:
    answers = {}
    for record in records:
        answers.setdefault(record["question_id"], []).append(record["reference"])
    return answers


def _candidates(answers: dict[str, list[str]], question_id: str) -> list[str]:
    if question_id not in answers:
        raise _unanswered(question_id)
    return answers[question_id]


def _unanswered(question_id: str) -> ValueError:
    return ValueError(
        f"question {question_id!r} has no answer in the training split, so there is no baseline "
        "for it; score the questions that the training split asks."
    )


def _medoid(answers: list[str]) -> str:
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(answers)  # of length 1
    mean = np.asarray(vectors.mean(axis=0)).ravel()
    return answers[int(np.argmax(vectors @ mean))]
