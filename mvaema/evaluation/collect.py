"""Step 1, collect: everything an evaluation needs from a model, written down as it comes.

What is special about it:
- after this step the model is no longer needed; scoring reads what is written here;
- an interrupted or killed evaluation resumes: nothing is asked twice;
- a folder with another model, other questions or other settings is refused.

The folder then holds

    evaluation.json    which model was asked what
    answers.jsonl      answer records (`mvaema/evaluation/questions.py`) with `prediction` and
                       `condition` (`mvaema/evaluation/conditions.py`)
    categories.jsonl   per micrograph, condition and method: the probability of each category
    likelihoods.jsonl  what the model makes of given answers (`mvaema/evaluation/looking.py`)
    attention.jsonl    where its own answers look, if it can show that
    embeddings.npz     the model's embedding of each micrograph, training split included
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mvaema.evaluation.answerers import ChatModel, Student
from mvaema.evaluation.categories import chance_probabilities
from mvaema.evaluation.choices import CHOICES, SEED, Choices
from mvaema.evaluation.conditions import (
    BLANK,
    CAPTION,
    CONDITIONS,
    OTHER,
    PLAIN,
    field_of_view_nm,
    shown_image,
)
from mvaema.evaluation.looking import Looker
from mvaema.evaluation.questions import Questions, Record, key_of
from mvaema.files import JsonLines, read_json_lines, write_bytes, write_json
from mvaema.micrographs.schema import OTHER as OTHER_CATEGORY
from mvaema.students.loading import weights_fingerprint

BOTH = "ITC+ITM"  # follows from the two


@dataclass(frozen=True)
class Collected:
    """What the folder of an evaluation holds.

    Attributes:
        about: `evaluation.json`: `model`, `dataset` and `split` in words; `weights` and
            `questions`, which identify both by their content; settings of the model; `parameters`,
            how many it has; `labels`, the categories it ranked.
        answers: records with `prediction` and `condition`.
        categories: `image_id`, `condition`, `method` and `probabilities` by label.
        embeddings: image id to vector (d,).
        likelihoods, attention: rows as `mvaema/evaluation/looking.py` describes them; empty if the
            model was not asked, or cannot show its attention.
    """

    about: dict
    answers: list[Record]
    categories: list[dict]
    embeddings: dict[str, np.ndarray]
    likelihoods: list[dict] = field(default_factory=list)
    attention: list[dict] = field(default_factory=list)

    def predictions(self, condition: str) -> dict[tuple[str, str], str]:
        """The answers under a condition, by (image id, question id)."""
        return {key_of(r): r["prediction"] for r in self.answers if r["condition"] == condition}


def collect(
    answerer: Student | ChatModel,
    questions: Questions,
    folder: Path,
    classify: bool = True,
    sight: bool = True,
) -> Collected:
    """Ask the model everything that `folder` does not have yet.

    Every image is decoded, for its embedding, before the first answer.

    Args:
        classify: have it rank the categories too, if it can.
        sight: have it judge given answers too, and answer about other micrographs.

    Raises:
        FileExistsError: `folder` holds something else.
        DatasetError: an image is unreadable.
        ValueError: the dataset has categories that the model does not know.
    """
    settings = {
        "model": answerer.name,
        "dataset": questions.dataset,
        "split": questions.split,
        "weights": weights_fingerprint(answerer.model),
        "questions": questions.digest(),
        "draw": {"choices": CHOICES, "seed": SEED},
        **answerer.settings,
    }
    check_folder(folder, settings)
    labels = _labels(answerer, questions) if classify else []
    embeddings = _embed(answerer, questions, folder / "embeddings.npz")
    choices = Choices.draw(questions)
    conditions = [c for c in CONDITIONS if c != OTHER or (sight and choices.partners)]

    folder.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in answerer.model.parameters())
    about = {**settings, "parameters": parameters, "labels": labels, "sight": sight}
    write_json(folder / "evaluation.json", about)
    _write_embeddings(folder / "embeddings.npz", embeddings)
    answers = JsonLines(folder / "answers.jsonl")
    for condition in conditions:
        _ask(answerer, questions, condition, choices, answers)
    if labels:
        categories = JsonLines(folder / "categories.jsonl")
        for condition in conditions:
            for method in () if condition == CAPTION else answerer.methods:
                _classify(answerer, questions, (condition, method), choices, categories)
    if sight:
        _look(answerer, questions, choices, answers.rows, folder)
    return read_collected(folder)


def read_collected(folder: Path) -> Collected:
    """What an earlier `collect` has written.

    Raises:
        FileNotFoundError: `folder` holds no evaluation.
        ValueError: a file of it is damaged.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    parts = {
        name: read_json_lines(folder / f"{name}.jsonl") if about.get(has) else []
        for name, has in (("categories", "labels"), ("likelihoods", "sight"))
    }
    attention = folder / "attention.jsonl"
    return Collected(
        about,
        read_json_lines(folder / "answers.jsonl"),
        embeddings=_read_embeddings(folder / "embeddings.npz"),
        attention=read_json_lines(attention) if attention.is_file() else [],
        **parts,
    )


def check_folder(folder: Path, settings: dict) -> None:
    """Refuse a folder that holds anything but this evaluation, complete or not.

    Raises:
        FileExistsError: the message says what differs.
    """
    # Hidden files are temporary ones that a kill left behind.
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise FileExistsError(
            f"{folder} is not empty and holds no evaluation (no evaluation.json); choose another "
            "--output_dir."
        ) from None
    # Model and dataset may have moved: `weights` and `questions` identify them by content.
    differing = [n for n in settings.keys() - {"model", "dataset"} if settings[n] != found.get(n)]
    if differing:
        raise FileExistsError(
            f"{folder} holds the evaluation of {found.get('model')} on {found.get('dataset')}, "
            f"which differs in {', '.join(sorted(differing))}; choose another --output_dir."
        )


def _ask(
    answerer: Student | ChatModel,
    questions: Questions,
    condition: str,
    choices: Choices,
    answers: JsonLines,
) -> None:
    """Get the answers under a condition that are not in `answers` yet."""
    # Without a known caption the answer is the plain one.
    records = questions.with_caption() if condition == CAPTION else questions.records
    done = {key_of(r) for r in answers.rows if r["condition"] == condition}
    pending: dict[str, list[Record]] = {}
    for record in records:
        if key_of(record) not in done:
            pending.setdefault(record["image_id"], []).append(record)
    # Micrographs that are asked the same questions can share a batch.
    alike: dict[tuple[str, ...], list[str]] = {}
    for image_id, asked in pending.items():
        alike.setdefault(tuple(r["question"] for r in asked), []).append(image_id)
    with tqdm(desc=f"answers, {condition}", total=len(records), initial=len(done)) as bar:
        for texts, image_ids in alike.items():
            for batch in _batches(image_ids, answerer.micrographs_per_batch(len(texts))):
                predictions = _answer_batch(answerer, questions, batch, texts, (condition, choices))
                answers.append(
                    {**record, "condition": condition, "prediction": prediction}
                    for image_id, of_image in zip(batch, predictions, strict=True)
                    for record, prediction in zip(pending[image_id], of_image, strict=True)
                )
                bar.update(len(batch) * len(texts))


def _answer_batch(
    answerer: Student | ChatModel,
    questions: Questions,
    image_ids: list[str],
    texts: tuple[str, ...],
    shown: tuple[str, Choices],
) -> list[list[str]]:
    """The answers to the same questions about some micrographs, under a condition."""
    condition, choices = shown
    rows = [questions.micrographs.row(image_id) for image_id in image_ids]
    images = [shown_image(questions, choices.partners, i, condition) for i in image_ids]
    widths = [field_of_view_nm(questions, image_id) for image_id in image_ids]
    return answerer.answer(
        images,
        texts,
        captions=[row["caption"] if condition == CAPTION else None for row in rows],
        # Another micrograph may have another width; the prompt stays that of its own.
        pixel_size_nm=[
            None if width is None else width / image.width
            for width, image in zip(widths, images, strict=True)
        ],
        scale_bars=[row["scale_bar"] for row in rows],
    )


def _classify(
    answerer: Student,
    questions: Questions,
    asked: tuple[str, str],
    choices: Choices,
    categories: JsonLines,
) -> None:
    """Get the probabilities under a condition by a method that are not in `categories` yet.

    They depend on nothing but the picture, so each is looked at once: another micrograph was
    classified under `PLAIN`, and blank images of one size are one. ITC+ITM needs no look at all.
    """
    condition, method = asked
    known = {(r["condition"], r["method"], r["image_id"]): r for r in categories.rows}
    pending = [i for i in questions.micrographs if (condition, method, i) not in known]
    total, blank = len(questions.micrographs), {}

    def found(by: str, image_id: str) -> dict[str, float]:
        return known[condition, by, image_id]["probabilities"]

    def ranks(batch: list[str]) -> list[dict[str, float]]:
        if condition == OTHER:
            rows = [known[PLAIN, method, choices.partners[i]] for i in batch]
            return [row["probabilities"] for row in rows]
        if method == BOTH:
            return [_product(found("ITC", i), found("ITM", i)) for i in batch]
        images = [shown_image(questions, choices.partners, i, condition) for i in batch]
        if condition != BLANK:
            return answerer.classify(images, method)
        for image in images:
            if image.size not in blank:
                blank[image.size] = answerer.classify([image], method)[0]
        return [blank[image.size] for image in images]

    title = f"categories, {method}, {condition}"
    with tqdm(desc=title, total=total, initial=total - len(pending)) as bar:
        for batch in _batches(pending, answerer.batch_size):
            categories.append(
                {
                    "image_id": image_id,
                    "condition": condition,
                    "method": method,
                    "probabilities": probabilities,
                }
                for image_id, probabilities in zip(batch, ranks(batch), strict=True)
            )
            bar.update(len(batch))


def _product(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """What two ways to classify say together: the product of their probabilities, scaled to 1."""
    products = {name: p * second[name] for name, p in first.items()}
    total = sum(products.values())
    return {name: p / total for name, p in sorted(products.items(), key=lambda pair: -pair[1])}


def _look(
    answerer: Student | ChatModel,
    questions: Questions,
    choices: Choices,
    answers: list[Record],
    folder: Path,
) -> None:
    """Get the likelihoods and attention maps that `folder` does not have yet."""
    predictions: dict[str, dict] = {}
    for record in answers:
        predictions.setdefault(record["condition"], {})[key_of(record)] = record["prediction"]
    looker = Looker(answerer.scorer(), answerer.judges_by, questions, choices, predictions)
    looker.write_likelihoods(JsonLines(folder / "likelihoods.jsonl"))
    if answerer.shows_attention:
        looker.write_attention(JsonLines(folder / "attention.jsonl"))


def _embed(
    answerer: Student | ChatModel, questions: Questions, file: Path
) -> dict[str, np.ndarray]:
    """The embeddings of both splits; those in `file` are not computed again."""
    found = _read_embeddings(file)
    for micrographs, split in ((questions.train, "training"), (questions.micrographs, "asked")):
        pending = [image_id for image_id in micrographs if image_id not in found]
        with tqdm(desc=f"embeddings, {split}", total=len(pending), leave=False) as bar:
            for batch in _batches(pending, answerer.batch_size):
                vectors = answerer.embed([micrographs[image_id] for image_id in batch])
                found |= dict(zip(batch, vectors, strict=True))
                bar.update(len(batch))
    return found


def _write_embeddings(file: Path, embeddings: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, image_ids=list(embeddings), vectors=np.stack(list(embeddings.values())))
    write_bytes(file, buffer.getvalue())


def _read_embeddings(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file) as content:
        return dict(zip(content["image_ids"].tolist(), content["vectors"], strict=True))


def _labels(answerer: Student | ChatModel, questions: Questions) -> list[str]:
    """The categories to rank. There are none if the model cannot, or no micrograph has one.

    Raises:
        ValueError: the dataset has categories that the model does not know, or no training
            micrograph has one that it knows.
    """
    labels = list(answerer.categories)
    found = set(questions.micrographs.dataset["category"]) - {None, OTHER_CATEGORY}
    if not labels or not found:
        return []
    if unknown := sorted(found - set(labels)):
        raise ValueError(
            f"the dataset has categories that the model does not know: {', '.join(unknown)}. It "
            f"knows {', '.join(labels)}. Rename them, or skip classification (--no_classify)."
        )
    chance_probabilities(questions.train.dataset["category"], labels)  # raises
    return labels


def _batches(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
