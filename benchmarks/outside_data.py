"""Data that others made, as `benchmarks/outside.py` asks about it.

- a folder of micrographs with a table, CSV or JSON lines, one row per micrograph:

      file_name        required; relative to the folder, any format that `mvaema build` reads
      caption          what an expert wrote about it
      count            how many objects an expert counted
      size_nm          their mean or median size as it was measured, in nanometres
      group            specimen or publication; rows of one group are not independent
      pixel_size_nm    goes into the prompt, and is used instead of the instrument's
      scale_bar        goes into the prompt, such as "500 nm"

  A column may be missing, and a cell empty: what it would hold is left out.

- three published sets of questions. None of them could be opened where this was written; what is
  known of their formats, as of 2026-11:

  MatCha, `FreedomIntelligence/MatCha`: the files `data/matcha_vqa_inputs.jsonl` (`id`, `images`
      with `image_path` and `geometry`, `vqa` with `question`, `options` by letter, `answer` and
      `topic`, sometimes `article_info`) and `data/images.zip`. From two public programs that read
      this revision. `datasets` cannot open it (its own viewer fails), so the files are read.
  MicroVQA, `jmhb/microvqa`, split `train`: `question`, `choices`, `correct_index`, `images_list`,
      `key_image`, `key_question`, `task`. From the evaluation code of its authors.
  EMVista, `InnovatorLab/EMVista`, split `test`: questions in `problem` with lettered options in the
      text, from the prompt in its paper (arXiv 2601.19325) and its card. The names of the other
      columns are not verified: `images` or `image`, `answer` or `solution`. A row without options
      is scored as free text.
"""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mvaema.files import read_json_lines
from mvaema.micrographs.dataset import DatasetError, decode_image

NUMBERS = ("count", "size_nm", "pixel_size_nm")
COLUMNS = ("file_name", "caption", "count", "size_nm", "group", "pixel_size_nm", "scale_bar")
MATCHA_REVISION = "dc52d6016053c67ebdf41719d6cfaa0603b154fa"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
    """A question of a published set.

    Attributes:
        key: what tells it from the others.
        group: what it is not independent of; None if that is unknown.
        load: decodes its first image.
        images: how many images it has.
        choices: the answers to choose from; empty for free text.
        true: the number of the true choice.
        reference: the true answer in words.
        topic: kind of question, None if it has none.
    """

    key: str
    question: str
    load: Callable[[], Image.Image] = field(repr=False)
    reference: str
    choices: tuple[str, ...] = ()
    true: int = 0
    group: str | None = None
    images: int = 1
    topic: str | None = None


def read_table(table: Path, folder: Path) -> list[dict]:
    """The rows of a table about the micrographs of a folder, with all `COLUMNS`, None where empty.

    Raises:
        DatasetError: the table holds nothing to score, names a file twice or one that is not there,
            or a number is none; the message gives the row.
    """
    rows = list(_table_rows(table))
    if not rows:
        raise DatasetError(f"{table} has no rows.")
    seen, found = set(), []
    for number, raw in enumerate(rows, start=1):
        row = {name: _cell(raw.get(name)) for name in COLUMNS}
        where = f"{table}, row {number}"
        if row["file_name"] is None:
            raise DatasetError(f"{where} has no `file_name`.")
        if row["file_name"] in seen:
            raise DatasetError(f"{where}: {row['file_name']} occurs twice; give it one row.")
        seen.add(row["file_name"])
        if not (folder / row["file_name"]).is_file():
            raise DatasetError(f"{where}: there is no file {row['file_name']} in {folder}.")
        found.append(row | {name: _positive(row[name], name, where) for name in NUMBERS})
    if not any(row[name] for row in found for name in ("caption", "count", "size_nm")):
        raise DatasetError(
            f"{table} has nothing to score: fill in `caption`, `count` or `size_nm`. It has the "
            f"columns {', '.join(map(str, rows[0]))}."
        )
    return found


def _table_rows(table: Path) -> Iterable[dict]:
    if table.suffix.lower() == ".csv":
        with table.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    if table.suffix.lower() == ".jsonl":
        return read_json_lines(table)
    raise DatasetError(f"{table}: expected a table that ends in .csv or .jsonl.")


def _cell(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def _positive(text: str | None, name: str, where: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise DatasetError(f"{where}: `{name}` must be a number above 0, got {text!r}.")
    return value


def read_matcha(source: str, split: str | None = None, limit: int | None = None) -> list[Item]:
    """MatCha: a folder with `data/`, or a Hub id, whose files are downloaded.

    Its images are figures; a question is about the part that `geometry` marks, and sees its
    bounding box. Questions of one article are one group.
    """
    if split is not None:
        raise DatasetError("MatCha has no splits; leave out --split.")
    rows = read_json_lines(_matcha_file(source, "data/matcha_vqa_inputs.jsonl"))
    archive = _matcha_file(source, "data/images.zip")
    items = []
    for row in rows[:limit]:
        article = (row.get("article_info") or {}).get("article_name")
        for number, asked in enumerate(row["vqa"]):
            letters, choices = zip(*asked["options"].items(), strict=True)
            true = _true_choice(asked["answer"], letters, choices, f"{source}, {row['id']}")
            items.append(
                Item(
                    key=f"{row['id']}-{number}",
                    question=asked["question"],
                    load=_from_archive(archive, row["images"][0]),
                    reference=choices[true],
                    choices=choices,
                    true=true,
                    group=article or str(row["id"]),
                    images=len(row["images"]),
                    topic=asked.get("topic"),
                )
            )
    return items[:limit]


def _matcha_file(source: str, name: str) -> Path:
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise DatasetError(f"{source} is no copy of MatCha: it has no {name}.")
        return Path(source) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, name, repo_type="dataset", revision=MATCHA_REVISION))


def _from_archive(archive: Path, entry: dict) -> Callable[[], Image.Image]:
    def load() -> Image.Image:
        with zipfile.ZipFile(archive) as files:
            content = files.read(f"images/{entry['image_path']}")
        image = Image.open(io.BytesIO(content))
        image.load()
        if not entry.get("geometry"):
            return image
        xs, ys = ([point[axis] for point in entry["geometry"]] for axis in "xy")
        box = (
            max(min(xs), 0),
            max(min(ys), 0),
            min(max(xs), image.width),
            min(max(ys), image.height),
        )
        return image.crop(tuple(round(edge) for edge in box))

    return load


def read_microvqa(source: str, split: str | None = None, limit: int | None = None) -> list[Item]:
    """MicroVQA: a Hub id, or a folder that `datasets` opens. Questions of one image are a group."""
    items = []
    for number, row in enumerate(_rows(source, split or "train", limit)):
        _check_columns(row, source, "question", "choices", "correct_index", "images_list")
        choices = tuple(row["choices"])
        items.append(
            Item(
                key=str(number),
                question=row["question"],
                load=_decoded(row["images_list"], number),
                reference=choices[row["correct_index"]],
                choices=choices,
                true=row["correct_index"],
                group=None if row.get("key_image") is None else str(row["key_image"]),
                images=len(row["images_list"]),
                topic=row.get("task_str") or str(row.get("task", "")) or None,
            )
        )
    return items


def read_emvista(source: str, split: str | None = None, limit: int | None = None) -> list[Item]:
    """EMVista: a Hub id, or a folder that `datasets` opens. Each row is a group of its own."""
    items = []
    for number, row in enumerate(_rows(source, split or "test", limit)):
        where = f"{source}, row {number}"
        problem = str(_first(row, ("problem", "question"), where))
        answer = str(_first(row, ("answer", "solution"), where)).strip()
        images = _first(row, ("images", "image"), where)
        images = images if isinstance(images, list) else [images]
        question, letters, choices = split_options(problem.replace("<image>", "").strip())
        true = _true_choice(answer, letters, choices, where) if choices else 0
        items.append(
            Item(
                key=str(number),
                question=question,
                load=_decoded(images, number),
                reference=choices[true] if choices else answer,
                choices=choices,
                true=true,
                images=len(images),
            )
        )
    return items


READERS = {"matcha": read_matcha, "emvista": read_emvista, "microvqa": read_microvqa}
SOURCES = {
    "matcha": "FreedomIntelligence/MatCha",
    "emvista": "InnovatorLab/EMVista",
    "microvqa": "jmhb/microvqa",
}

_HEADING = re.compile(r"\s*(?:options|choices):?\s*$", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[.):]\s*")


def split_options(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The question, the letters and the texts of lettered options: "Which? A. one B. two".

    Options are the last "A", "B", ... in this order, at least two. Without any, the question is the
    whole text.
    """
    marks = list(_OPTION.finditer(text))
    starts = [i for i, mark in enumerate(marks) if mark[1] == "A"]
    for start in reversed(starts):
        run = [m for m, letter in zip(marks[start:], LETTERS, strict=False) if m[1] == letter]
        if len(run) < 2 or len(run) < len(marks) - start:
            continue
        ends = [mark.start() for mark in run[1:]] + [len(text)]
        choices = tuple(text[m.end() : end].strip() for m, end in zip(run, ends, strict=True))
        if all(choices):
            question = re.sub(
                r"\s*(?:options|choices):?\s*$", "", text[: run[0].start()], flags=re.I
            )
            return question.strip(), tuple(m[1] for m in run), choices
    return text, (), ()


def _true_choice(
    answer: str, letters: tuple[str, ...], choices: tuple[str, ...], where: str
) -> int:
    """The number of the choice that an answer names, by its letter or in its words."""
    for names in (letters, choices):
        if answer in names:
            return names.index(answer)
    letter = re.match(r"\(?([A-Z])\b", answer)
    if letter and letter[1] in letters:
        return letters.index(letter[1])
    raise DatasetError(f"{where}: the answer {answer[:60]!r} is none of {', '.join(letters)}.")


def _rows(source: str, split: str, limit: int | None) -> Iterator[dict]:
    from datasets import load_dataset

    data = load_dataset(source, split=split)
    return iter(data.select(range(min(limit or len(data), len(data)))))


def _decoded(images: list, number: int) -> Callable[[], Image.Image]:
    if not images:
        raise DatasetError(f"row {number} has no image.")
    return lambda: decode_image({"image": images[0], "image_id": f"of row {number}"})


def _first(row: dict, names: tuple[str, ...], where: str) -> object:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DatasetError(
        f"{where} has no {' or '.join(f'`{n}`' for n in names)}; it has {', '.join(row)}."
    )


def _check_columns(row: dict, source: str, *names: str) -> None:
    for name in names:
        _first(row, (name,), source)


def describe(items: list[Item]) -> str:
    """What was read, in one line."""
    several = sum(item.images > 1 for item in items)
    free = sum(not item.choices for item in items)
    return json.dumps({"questions": len(items), "with_several_images": several, "free_text": free})
