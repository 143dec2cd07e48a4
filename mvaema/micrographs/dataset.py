"""Reads a micrograph dataset from wherever it lives, as one `datasets.Dataset`.

What is special about it: images stay encoded until they are needed and are decoded here. So an
unreadable one raises an error that names its `image_id`, and a caller can skip and count it.
"""

import io
import os
from pathlib import Path

import datasets
from PIL import Image, UnidentifiedImageError

from mvaema.micrographs.schema import FEATURES


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names it, what is wrong and what to do."""


def load_micrographs(source: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """One split of a micrograph dataset, with the columns of `mvaema.micrographs.schema.FEATURES`.

    Args:
        source: a folder with images and `metadata.jsonl`, a folder of Parquet shards, a
            `save_to_disk` folder, or the id of a dataset on a Hub.
        split: name of the split.

    Returns:
        The dataset. Columns of the schema that the source lacks are null, further columns of its
        own are kept, and `image` holds encoded bytes (see `decode_image`).

    Raises:
        DatasetError: there is no dataset, the split is missing or empty, it has no images, or its
            answers do not have the fields of the schema.
    """
    dataset = open_split(source, split)
    if not len(dataset):
        raise DatasetError(f"split {split!r} of {source} is empty.")
    if "image" not in dataset.column_names:
        raise DatasetError(
            f"{source} has no column 'image' (it has {', '.join(dataset.column_names)}); a folder "
            "of images needs a metadata.jsonl with a column 'file_name'."
        )
    _check_answers(dataset.features, source)
    for name in FEATURES:
        if name not in dataset.column_names:
            nulls = [None] * len(dataset)
            dataset = dataset.add_column(name, nulls, feature=FEATURES[name])
    return dataset.cast_column("image", datasets.Image(decode=False))


def open_split(
    source: str | os.PathLike, split: str, config: str | None = None
) -> datasets.Dataset:
    """One split of any Hugging Face dataset.

    Args:
        source: a `save_to_disk` folder, another folder that `load_dataset` reads, or a Hub id.
        split: name of the split.
        config: configuration of the dataset, where it has several.

    Raises:
        DatasetError: there is no such dataset or split.
    """
    path = Path(source)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            dataset = datasets.load_from_disk(path)
            if not isinstance(dataset, datasets.DatasetDict):
                return dataset
            if split not in dataset:
                raise ValueError(f"its splits are {', '.join(dataset)}")
            return dataset[split]
        try:
            return datasets.load_dataset(str(source), config, split=split)
        except (ValueError, datasets.exceptions.DatasetsError):
            if not path.is_dir():
                raise
            # A column that is null throughout one split has another type there, and `datasets`
            # does not cast splits to a common type. One split by itself can be read.
            patterns = datasets.data_files.get_data_patterns(str(path))
            if split not in patterns or len(patterns) == 1:
                raise
            files = {split: patterns[split]}
            return datasets.load_dataset(str(source), config, data_files=files, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(f"cannot read split {split!r} of {source}: {error}") from error


def _check_answers(features: datasets.Features, source: str | os.PathLike) -> None:
    """Refuse a column `qa` without the fields that are read; it may be all null, or absent."""
    qa = features.get("qa")
    items = getattr(qa, "feature", None)
    if qa is None or getattr(qa, "dtype", None) == "null" or getattr(items, "dtype", "") == "null":
        return
    needed = ("question_id", "question", "answer", "outcome")
    missing = [n for n in needed if n not in items] if isinstance(items, dict) else list(needed)
    if missing:
        raise DatasetError(
            f"the column 'qa' of {source} must hold lists of {', '.join(needed)} (see "
            f"mvaema/micrographs/schema.py); it lacks {', '.join(missing)}."
        )


def image_size(row: dict) -> tuple[int, int]:
    """Width and height of the image of a row, in pixels; only its header is read.

    Raises:
        DatasetError: it cannot be read; the message names its `image_id`.
    """
    image = row["image"]
    if isinstance(image, Image.Image):
        return image.size
    try:
        source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        with Image.open(source) as opened:
            return opened.size
    except (OSError, UnidentifiedImageError) as error:
        raise DatasetError(f"image {row['image_id']} cannot be read: {error}") from error


def decode_image(row: dict) -> Image.Image:
    """The decoded image of a row.

    Raises:
        DatasetError: the image cannot be read; the message names its `image_id`.
    """
    image = row["image"]
    if isinstance(image, Image.Image):
        return image
    try:
        source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        with Image.open(source) as opened:
            opened.load()
            return opened
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"image {row['image_id']} cannot be read: {error}") from error
