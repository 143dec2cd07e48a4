"""Step 1, collect: everything an evaluation needs from a model, written down as it comes.

What is special about it:
- after this step the model is no longer needed; scoring reads what is written here;
- an interrupted or killed evaluation resumes: nothing is asked twice;
- a folder with another model, other questions or other settings is refused.

The folder then holds

    evaluation.json    which model was asked what
    answers.jsonl      answer records (`mvaema/evaluation/questions.py`) with `prediction` and
                       `condition`, one of `CONDITIONS`
    categories.jsonl   per micrograph and method: the probability of each category
    embeddings.npz     the model's embedding of each micrograph, training split included
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from mvaema.evaluation.answerers import ChatModel, Student
from mvaema.evaluation.categories import chance_probabilities
from mvaema.evaluation.questions import Questions, Record, key_of
from mvaema.files import JsonLines, read_json_lines, write_bytes, write_json
from mvaema.micrographs.dataset import decode_image
from mvaema.micrographs.schema import OTHER
from mvaema.students.loading import weights_fingerprint

# What a model is given beside the question and the scale, where that is known.
PLAIN, CAPTION, BLANK = CONDITIONS = ("image", "image and caption", "blank image")
BLANK_GREY = 128


@dataclass(frozen=True)
class Collected:
    """What the folder of an evaluation holds.

    Attributes:
        about: `evaluation.json`: `model`, `dataset` and `split` in words; `weights` and
            `questions`, which identify both by their content; settings of the model; `parameters`,
            how many it has; `labels`, the categories it ranked.
        answers: records with `prediction` and `condition`.
        categories: `image_id`, `method` and `probabilities` by label.
        embeddings: image id to vector (d,).
    """

    about: dict
    answers: list[Record]
    categories: list[dict]
    embeddings: dict[str, np.ndarray]

    def predictions(self, condition: str) -> dict[tuple[str, str], str]:
        """The answers under a condition, by (image id, question id)."""
        return {key_of(r): r["prediction"] for r in self.answers if r["condition"] == condition}


def collect(
    answerer: Student | ChatModel, questions: Questions, folder: Path, classify: bool = True
) -> Collected:
    """Ask the model everything that `folder` does not have yet.

    Every image is decoded, for its embedding, before the first answer.

    Args:
        classify: have it rank the categories too, if it can.

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
        **answerer.settings,
    }
    check_folder(folder, settings)
    labels = _labels(answerer, questions) if classify else []
    embeddings = _embed(answerer, questions, folder / "embeddings.npz")

    folder.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in answerer.model.parameters())
    write_json(folder / "evaluation.json", {**settings, "parameters": parameters, "labels": labels})
    _write_embeddings(folder / "embeddings.npz", embeddings)
    answers = JsonLines(folder / "answers.jsonl")
    for condition in CONDITIONS:
        _ask(answerer, questions, condition, answers)
    if labels:
        categories = JsonLines(folder / "categories.jsonl")
        for method in answerer.methods:
            _classify(answerer, questions, method, categories)
    return read_collected(folder)


def read_collected(folder: Path) -> Collected:
    """What an earlier `collect` has written.

    Raises:
        FileNotFoundError: `folder` holds no evaluation.
        ValueError: a file of it is damaged.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    categories = folder / "categories.jsonl"
    return Collected(
        about,
        read_json_lines(folder / "answers.jsonl"),
        read_json_lines(categories) if about.get("labels") else [],
        _read_embeddings(folder / "embeddings.npz"),
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
    answerer: Student | ChatModel, questions: Questions, condition: str, answers: JsonLines
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
                predictions = _answer_batch(answerer, questions, batch, texts, condition)
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
    condition: str,
) -> list[list[str]]:
    """The answers to the same questions about some micrographs."""
    rows = [questions.micrographs.row(image_id) for image_id in image_ids]
    images = [decode_image(row) for row in rows]
    if condition == BLANK:
        images = [Image.new("L", image.size, BLANK_GREY) for image in images]
    return answerer.answer(
        images,
        texts,
        captions=[row["caption"] if condition == CAPTION else None for row in rows],
        pixel_size_nm=[row["pixel_size_nm"] for row in rows],
        scale_bars=[row["scale_bar"] for row in rows],
    )


def _classify(answerer: Student, questions: Questions, method: str, categories: JsonLines) -> None:
    """Get the probabilities by a method that are not in `categories` yet."""
    micrographs = questions.micrographs
    done = {r["image_id"] for r in categories.rows if r["method"] == method}
    pending = [image_id for image_id in micrographs if image_id not in done]
    with tqdm(desc=f"categories, {method}", total=len(micrographs), initial=len(done)) as bar:
        for batch in _batches(pending, answerer.batch_size):
            ranked = answerer.classify([micrographs[image_id] for image_id in batch], method)
            categories.append(
                {"image_id": image_id, "method": method, "probabilities": probabilities}
                for image_id, probabilities in zip(batch, ranked, strict=True)
            )
            bar.update(len(batch))


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
    found = set(questions.micrographs.dataset["category"]) - {None, OTHER}
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
