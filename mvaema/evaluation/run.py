"""Evaluation of a checkpoint on a split, beside the references that keep its figures honest.

What is special about it:
- the references come with every evaluation: the typical, the nearest image's and a random training
  answer, the same model shown a blank image, and chance for the categories;
- answers are written as they come. A run that was interrupted or killed continues where it was,
  and a folder with the answers of another model, dataset or setting is refused;
- what bad data can break is done before the first answer.

The folder of an evaluation holds the report (`mvaema/evaluation/report.py`) and

    evaluation.json    what was asked of which model
    answers.jsonl      answer records (`mvaema/evaluation/scores.py`) with their `condition`, of `CONDITIONS`
    categories.jsonl   per micrograph and method the probability of each category
"""

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from mvaema.evaluation.answerers import ChatModel, Student, fingerprint, load_answerer
from mvaema.evaluation.categories import chance_probabilities, score_categories
from mvaema.evaluation.references import (
    check_questions,
    nearest_image_answers,
    random_answers,
    typical_answers,
)
from mvaema.evaluation.report import write_report
from mvaema.evaluation.scores import (
    Record,
    compare,
    read_records,
    records_from_dataset,
    score_records,
    summarize,
)
from mvaema.files import write_json
from mvaema.micrographs.dataset import DatasetError, decode_image, load_micrographs
from mvaema.micrographs.folds import check_no_leak
from mvaema.micrographs.schema import OTHER
from processing_mvaema import to_8bit

# What a model is given beside the question and the scale, where that is known.
PLAIN, CAPTION, BLANK = CONDITIONS = ("image", "image and caption", "blank image")


@dataclass
class EvaluationArguments:
    """What an evaluation is; every field is a flag of `eval.py`."""

    model: str = field(
        metadata={
            "help": "Student, or any other image-text-to-text model: a model folder or Hub id."
        }
    )
    dataset: str = field(
        metadata={"help": "Micrograph dataset: a folder with metadata.jsonl, Parquet, Hub id."}
    )
    output_dir: str = field(
        metadata={"help": "Folder for answers and report; an interrupted evaluation continues."}
    )
    split: str = field(default="validation", metadata={"help": "Split to answer and score."})
    train_split: str = field(
        default="train",
        metadata={"help": "Split that the baselines answer from; must share no group with it."},
    )
    compare: str | None = field(
        default=None,
        metadata={
            "help": "Another model, or the output_dir of its evaluation, for a paired comparison."
        },
    )
    batch_size: int = field(
        default=16,
        metadata={"help": "Micrographs per forward pass; prompts if the model is not a student."},
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest answer in tokens; by default the student's own setting, or 256."
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Jinja file, for a model whose processor has no chat template."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the code of a repository on the Hub (a local folder's is run)."},
    )
    classify: bool = field(
        default=True, metadata={"help": "Classify by ITC, ITM and LM (students only)."}
    )
    synonyms: bool = field(
        default=True,
        metadata={"help": "METEOR with WordNet; without, the metric is meteor_no_synonyms."},
    )


class JsonLines:
    """A file of JSON lines that only grows; a line that a kill has torn is dropped.

    Attributes:
        rows: what the file holds.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = []
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("r+b") as file:
                    file.truncate(whole)
            self.rows = read_records(path)

    def append(self, rows: Sequence[dict]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.rows += rows


class Micrographs(Mapping):
    """Rows of a split by their image id, and their images decoded when they are needed.

    Args:
        title: what an error calls the split.

    Raises:
        DatasetError: an id is missing or occurs twice.
    """

    def __init__(self, dataset: Dataset, title: str):
        self.dataset = dataset
        self.index = {image_id: i for i, image_id in enumerate(dataset["image_id"])}
        if None in self.index or len(self.index) < len(dataset):
            raise DatasetError(
                f"{title}: the column `image_id` must be filled in and name each micrograph once; "
                "generate_teacher_data.py writes such a dataset."
            )

    def __getitem__(self, image_id: str) -> Image.Image:
        return to_8bit(decode_image(self.row(image_id)))

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.index  # without decoding it

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def row(self, image_id: str) -> dict:
        return self.dataset[self.index[image_id]]


def evaluate(args: EvaluationArguments) -> dict:
    """Answer every question of a split, score the answers and write the report.

    Returns:
        the results (`mvaema/evaluation/report.py`), as in `output_dir/results.json`.

    Raises:
        DatasetError: a split is missing, has no ids or answers, or an image is unreadable.
        LeakError: the two splits share a group or a micrograph.
        FileExistsError: `output_dir` holds something else.
        ValueError: the model cannot be asked, or its categories are not the dataset's.
        LookupError: `synonyms` without WordNet on this machine.
    """
    split, train = (
        Micrographs(load_micrographs(args.dataset, name), f"split {name!r} of {args.dataset}")
        for name in (args.split, args.train_split)
    )
    return evaluate_rows(args, split, train, _name(args.model))


def evaluate_rows(
    args: EvaluationArguments, split: Micrographs, train: Micrographs, name: str
) -> dict:
    """`evaluate` on rows that are there already; `dataset` and the splits of `args` are words.

    Args:
        name: what the report calls the model.
    """
    folder = Path(args.output_dir)
    records, train_records = records_to_score(split, train)
    log = _training_log(args.model)
    answerer = load_answerer(
        args.model,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
    )
    settings = {
        "model": args.model,
        "dataset": args.dataset,
        "split": args.split,
        "weights": fingerprint(answerer.model),
        "questions": _hash([_known(split), records]),
        "max_new_tokens": args.max_new_tokens,
        "chat_template": answerer.processor.chat_template,
    }
    check_folder(folder, settings)
    labels = _labels(answerer, split.dataset) if args.classify else []
    chance = chance_probabilities(train.dataset["category"], labels) if labels else {}
    baselines = {
        name: score_records(answers, args.synonyms)
        for name, answers in _baselines(
            answerer, split, train, records, train_records, args.batch_size
        ).items()
    }

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", settings)
    answers = JsonLines(folder / "answers.jsonl")
    for condition in CONDITIONS:
        _ask(answerer, split, records, condition, answers, args.batch_size)
    classification = _classify(answerer, split, labels, folder, args.batch_size)
    if labels:
        rows = _category_rows(split, dict.fromkeys(split, chance))
        classification["chance"] = score_categories(rows, labels)
    results = {
        "model": args.model,
        "dataset": args.dataset,
        "split": args.split,
        "train_split": args.train_split,
        "date": datetime.date.today().isoformat(),
        "parameters": sum(p.numel() for p in answerer.model.parameters()),
        "weights": settings["weights"],
    }
    del answerer  # there may be no room for two

    told, blank = f"{name}, caption given", f"{name}, blank image"
    names = {PLAIN: name, CAPTION: told, BLANK: blank}
    found = _by_condition(answers.rows, records)
    own = {names[condition]: found[condition] for condition in CONDITIONS if condition in found}
    others = _compared(args, split, train, records) if args.compare else {}
    scored = {
        name: score_records(of_name, args.synonyms, progress=True)
        for name, of_name in {**own, **others}.items()
    }
    scored |= baselines
    pairs = [(other, name) for other in (blank, "typical answer", *others)]
    if told in own:
        pairs.append((name, told))
    results["answers"] = {n: summarize(of_name) for n, of_name in scored.items()}
    results["classification"] = classification
    results["comparisons"] = {f"{a} → {b}": compare(scored[a], scored[b]) for a, b in pairs}
    side_by_side = {n: scored[n] for n in (*own, *others, "typical answer")}
    write_report(results, side_by_side, split, folder, log)
    return results


def check_folder(folder: Path, settings: dict) -> None:
    """Refuse a folder with anything but this very evaluation, complete or not.

    Raises:
        FileExistsError: the message says what differs.
    """
    # Hidden files are what a kill left of a file that was being written.
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    try:
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise FileExistsError(
            f"{folder} holds something, but no evaluation; choose another --output_dir."
        ) from None
    # Model and dataset may have moved; `weights` and `questions` know them by their content.
    differing = [n for n in settings.keys() - {"model", "dataset"} if settings[n] != found.get(n)]
    if differing:
        raise FileExistsError(
            f"{folder} holds the evaluation of {found.get('model')} on {found.get('dataset')}, "
            f"which differs in {', '.join(sorted(differing))}; choose another --output_dir."
        )


def _ask(
    answerer: Student | ChatModel,
    split: Micrographs,
    records: list[Record],
    condition: str,
    answers: JsonLines,
    batch_size: int,
) -> None:
    """Get the answers that are not there yet, and write them down as they come."""
    done = {_key(r) for r in answers.rows if r["condition"] == condition}
    captions = dict(zip(split.dataset["image_id"], split.dataset["caption"], strict=True))
    if condition == CAPTION:  # where none is known, the answer is the plain one
        records = [r for r in records if captions[r["image_id"]]]
    pending = {}
    for record in records:
        if _key(record) not in done:
            pending.setdefault(record["image_id"], []).append(record)
    # Micrographs that are asked the same questions can share a batch.
    alike = {}
    for image_id, asked in pending.items():
        alike.setdefault(tuple(r["question"] for r in asked), []).append(image_id)
    with tqdm(desc=f"answers to {condition}", total=len(records), initial=len(done)) as bar:
        for questions, image_ids in alike.items():
            prompts = 1 if isinstance(answerer, Student) else len(questions)
            for batch in _batches(image_ids, max(1, batch_size // prompts)):
                rows = [split.row(image_id) for image_id in batch]
                images = [decode_image(row) for row in rows]
                if condition == BLANK:
                    images = [Image.new("L", image.size, 128) for image in images]
                texts = answerer.answer(
                    images,
                    questions,
                    [row["caption"] if condition == CAPTION else None for row in rows],
                    [row["pixel_size_nm"] for row in rows],
                    [row["scale_bar"] for row in rows],
                )
                answers.append(
                    [
                        {**record, "condition": condition, "prediction": text}
                        for image_id, of_image in zip(batch, texts, strict=True)
                        for record, text in zip(pending[image_id], of_image, strict=True)
                    ]
                )
                bar.update(len(batch) * len(questions))


def _classify(
    answerer: Student | ChatModel,
    split: Micrographs,
    labels: list[str],
    folder: Path,
    batch_size: int,
) -> dict[str, dict]:
    """Scores by method. Probabilities that are not there yet are written down as they come."""
    scores = {}
    if not labels:
        return scores
    categories = JsonLines(folder / "categories.jsonl")
    for method in answerer.methods:
        found = {
            r["image_id"]: r["probabilities"] for r in categories.rows if r["method"] == method
        }
        pending = [image_id for image_id in split if image_id not in found]
        with tqdm(desc=f"categories by {method}", total=len(split), initial=len(found)) as bar:
            for batch in _batches(pending, batch_size):
                ranked = answerer.classify([split[i] for i in batch], method)
                found |= zip(batch, ranked, strict=True)
                categories.append(
                    [{"image_id": i, "method": method, "probabilities": found[i]} for i in batch]
                )
                bar.update(len(batch))
        scores[method] = score_categories(_category_rows(split, found), labels)
    return scores


def _baselines(
    answerer: Student | ChatModel,
    split: Micrographs,
    train: Micrographs,
    records: list[Record],
    train_records: list[Record],
    batch_size: int,
) -> dict[str, list[Record]]:
    """Answers that need no look at the micrograph, or nothing but a look."""
    embeddings = [
        _embed(answerer, micrographs, batch_size, f"embeddings, {name}")
        for micrographs, name in ((train, "training"), (split, "evaluation"))
    ]
    baselines = {
        "typical answer": typical_answers(train_records, records),
        "nearest image's answer": nearest_image_answers(train_records, records, *embeddings),
        "random answer": random_answers(train_records, records),
    }
    if any(r["category"] for r in records):
        of_category = typical_answers(train_records, records, of_category=True)
        baselines["typical answer of the category"] = of_category
    return baselines


def _embed(
    answerer: Student | ChatModel, micrographs: Micrographs, batch_size: int, title: str
) -> dict[str, np.ndarray]:
    embeddings = {}
    with tqdm(desc=title, total=len(micrographs), leave=False) as bar:
        for batch in _batches(list(micrographs), batch_size):
            vectors = answerer.embed([micrographs[i] for i in batch])
            embeddings |= dict(zip(batch, vectors, strict=True))
            bar.update(len(batch))
    return embeddings


def _by_condition(answers: list[Record], records: list[Record]) -> dict[str, list[Record]]:
    """The records with the answers of each condition; without a caption, the plain answer."""
    found = {}
    for answer in answers:
        found.setdefault(answer["condition"], {})[_key(answer)] = answer["prediction"]
    plain = found[PLAIN]
    return {
        condition: [{**r, "prediction": predictions.get(_key(r), plain[_key(r)])} for r in records]
        for condition, predictions in found.items()
    }


def _compared(
    args: EvaluationArguments, split: Micrographs, train: Micrographs, records: list[Record]
) -> dict[str, list[Record]]:
    """The other side's answers to the same questions, given now if they have not been."""
    folder = Path(args.compare)
    if not (folder / "evaluation.json").is_file():
        folder = Path(args.output_dir) / f"compared-{_name(args.compare).replace('/', '-')}"
        other = replace(args, model=args.compare, output_dir=str(folder), compare=None)
        evaluate_rows(other, split, train, _name(args.compare))
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    answers = {
        _key(r): r for r in read_records(folder / "answers.jsonl") if r["condition"] == PLAIN
    }
    missing = [r for r in records if _key(r) not in answers]
    if missing or any(answers[_key(r)]["reference"] != r["reference"] for r in records):
        raise ValueError(
            f"{folder} answers other questions than these ({len(missing)} of {len(records)} are "
            "missing); it must be a complete evaluation on the same split."
        )
    name = _name(about["model"])
    if name == _name(args.model):
        name = args.compare
    return {name: [{**r, "prediction": answers[_key(r)]["prediction"]} for r in records]}


def records_to_score(split: Micrographs, train: Micrographs) -> tuple[list[Record], list[Record]]:
    """What is to be answered, and what the baselines answer from.

    Raises:
        LeakError: the two share a group or a micrograph.
        DatasetError: one has no answers.
        ValueError: a question is asked that no training micrograph was asked.
    """
    check_no_leak(train.dataset, split.dataset)
    records, train_records = (_answered(part.dataset) for part in (split, train))
    check_questions(train_records, records)
    return records, train_records


def _answered(dataset: Dataset) -> list[Record]:
    """The records of a split; a blank reference answer is none."""
    records = [r for r in records_from_dataset(dataset) if r["reference"].strip()]
    if not records:
        raise DatasetError("every answer with the outcome `ok` is blank: nothing to score against.")
    return records


def _labels(answerer: Student | ChatModel, dataset: Dataset) -> list[str]:
    """The categories to rank; none when the model cannot, or no micrograph has one of them.

    Raises:
        ValueError: the dataset has categories that the model does not know.
    """
    labels = list(answerer.categories)
    found = set(dataset["category"]) - {None, OTHER}
    unknown = sorted(found - set(labels)) if labels else []
    if unknown:
        raise ValueError(
            f"the dataset has categories that are not the model's: {', '.join(unknown)}. The model "
            f"knows {', '.join(labels)}. Map them, or leave classification out (--no_classify)."
        )
    return labels if found else []


def _category_rows(split: Micrographs, probabilities: Mapping[str, dict]) -> list[dict]:
    columns = split.dataset.select_columns(["image_id", "category", "group"])
    return [{**row, "probabilities": probabilities[row["image_id"]]} for row in columns]


def _known(split: Micrographs) -> list[dict]:
    """What the prompts may say of each micrograph."""
    return list(split.dataset.select_columns(["image_id", "caption", "pixel_size_nm", "scale_bar"]))


def _training_log(model: str) -> list[dict]:
    path = Path(model) / "training_log.jsonl"
    return read_records(path) if path.is_file() else []


def _name(model: str) -> str:
    """A folder's name; the id of a model on the Hub as it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _key(record: Record) -> tuple[str, str]:
    return record["image_id"], record["question_id"]


def _batches(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
