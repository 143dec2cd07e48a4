"""What is asked: the micrographs of a split, the questions about them, the teacher's answers.

What is special about it:
- a question about a micrograph is an *answer record*, a plain dictionary:

      image_id, question_id, question, reference, and, when known, category and group

  `collect.py` adds the `prediction`, `records.py` the `scores`;
- data that an evaluation cannot use is refused here, before a model is asked anything.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from datasets import Dataset
from PIL import Image

from mvaema.micrographs.dataset import DatasetError, decode_image, load_micrographs
from mvaema.micrographs.folds import check_no_leak
from pixels_mvaema import to_8bit

Record = dict  # an answer record, as described above


class Micrographs(Mapping):
    """The rows of a split by image id. As a mapping it gives images, decoded on demand.

    Args:
        title: what error messages call the split.

    Raises:
        DatasetError: an id is missing or occurs twice.
    """

    def __init__(self, dataset: Dataset, title: str):
        self.dataset = dataset
        self.index = {image_id: i for i, image_id in enumerate(dataset["image_id"])}
        if None in self.index or len(self.index) < len(dataset):
            raise DatasetError(
                f"{title}: the column `image_id` must be filled in and name each micrograph once; "
                "`mvaema build` and `mvaema teach` write such datasets."
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


@dataclass(frozen=True)
class Questions:
    """Everything that an evaluation asks, and what its references may answer from.

    Attributes:
        dataset, split, train_split: where it is from, in words for the report.
        micrographs: those asked about.
        train: those the references answer from; they share no group with `micrographs`.
        records: a record for each question, without `prediction`.
        train_records: the same of `train`.
    """

    dataset: str
    split: str
    train_split: str
    micrographs: Micrographs
    train: Micrographs
    records: list[Record]
    train_records: list[Record]

    @classmethod
    def of_splits(
        cls,
        micrographs: Micrographs,
        train: Micrographs,
        *,
        dataset: str,
        split: str,
        train_split: str,
    ) -> "Questions":
        """The questions of a split, checked.

        Raises:
            LeakError: the two splits share a group or a micrograph.
            DatasetError: a split has no answers.
            ValueError: a question about a micrograph occurs twice, or no training micrograph was
                asked it.
        """
        check_no_leak(train.dataset, micrographs.dataset)
        records, train_records = (_answered(part.dataset) for part in (micrographs, train))
        by_key(records)
        check_questions(train_records, records)
        return cls(dataset, split, train_split, micrographs, train, records, train_records)

    def only(self, question_ids: Collection[str]) -> "Questions":
        """Some questions, about all micrographs.

        Raises:
            ValueError: no micrograph of the split was asked one of them.
        """
        known = {record["question_id"] for record in self.records}
        if unknown := sorted(set(question_ids) - known):
            raise ValueError(
                f"no micrograph was asked {', '.join(unknown)}. Choose of "
                f"{', '.join(sorted(known))}."
            )
        return replace(
            self,
            records=[r for r in self.records if r["question_id"] in question_ids],
            train_records=[r for r in self.train_records if r["question_id"] in question_ids],
        )

    def with_caption(self) -> list[Record]:
        """The records about micrographs whose caption is known."""
        dataset = self.micrographs.dataset
        captions = dict(zip(dataset["image_id"], dataset["caption"], strict=True))
        return [record for record in self.records if captions[record["image_id"]]]

    def digest(self) -> str:
        """16 hex digits of all that is asked and of all that prompts may say of a micrograph."""
        columns = ["image_id", "caption", "pixel_size_nm", "scale_bar"]
        content = [list(self.micrographs.dataset.select_columns(columns)), self.records]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_questions(dataset: str, split: str, train_split: str) -> Questions:
    """The questions of one split of a micrograph dataset (`Questions.of_splits`).

    Raises:
        DatasetError: a split is missing, or has no ids or answers.
        LeakError, ValueError: see `Questions.of_splits`.
    """
    parts = [
        Micrographs(load_micrographs(dataset, name), f"split {name!r} of {dataset}")
        for name in (split, train_split)
    ]
    return Questions.of_splits(*parts, dataset=dataset, split=split, train_split=train_split)


def records_from_dataset(dataset: Dataset) -> list[Record]:
    """A record for each answer with the outcome `ok` in a micrograph dataset.

    Raises:
        ValueError: the dataset has no `qa` column or no usable answer.
    """
    if "qa" not in dataset.column_names:
        raise ValueError(
            f"the dataset has no column `qa` with the teacher's answers; it has "
            f"{', '.join(dataset.column_names)}."
        )
    columns = {"image_id", "qa", "category", "group"} & set(dataset.column_names)
    records = [
        {
            "image_id": row["image_id"],
            "group": row.get("group"),
            "category": row.get("category"),
            "question_id": qa["question_id"],
            "question": qa["question"],
            "reference": qa["answer"],
        }
        for row in dataset.select_columns(sorted(columns))  # leaves the images undecoded
        for qa in row["qa"] or ()
        if qa["outcome"] == "ok"
    ]
    if not records:
        raise ValueError("the dataset has no answer with the outcome `ok` to score against.")
    return records


def key_of(record: Record) -> tuple[str, str]:
    """What tells one record from another."""
    return record["image_id"], record["question_id"]


def cluster_of(record: Record) -> str:
    """What a record is not independent of: its group, or else its micrograph."""
    return record.get("group") or record["image_id"]


def by_key(records: Iterable[Record]) -> dict[tuple[str, str], Record]:
    """Records by their key.

    Raises:
        ValueError: a question about a micrograph occurs more than once.
    """
    keyed = {}
    for record in records:
        key = key_of(record)
        if key in keyed:
            raise ValueError(f"image {key[0]!r}, question {key[1]!r} occurs more than once.")
        keyed[key] = record
    return keyed


def check_questions(train_records: Iterable[Record], records: Iterable[Record]) -> None:
    """Refuse questions that no reference could answer.

    Raises:
        ValueError: a question of `records` has no answer in `train_records`.
    """
    asked, answered = ({r["question_id"] for r in part} for part in (records, train_records))
    if missing := asked - answered:
        raise ValueError(
            f"question {min(missing)!r} has no answer in the training split, so there is nothing "
            "to compare a student's answers with; ask only what the training split asks."
        )


def _answered(dataset: Dataset) -> list[Record]:
    """The records of a split whose reference answer is not blank."""
    records = [r for r in records_from_dataset(dataset) if r["reference"].strip()]
    if not records:
        raise DatasetError("every answer with the outcome `ok` is blank: nothing to score against.")
    return records
