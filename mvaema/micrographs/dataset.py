"""Reading micrograph datasets: any place the schema may live, one `datasets.Dataset` out.

What is special about it: images stay encoded until they are needed and are decoded here, so that
an unreadable one is an error that names its `image_id`, or is skipped and counted.
"""

import io
import os
from pathlib import Path

import datasets
from PIL import Image, UnidentifiedImageError

from mvaema.micrographs.schema import FEATURES


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the dataset, what is wrong and a remedy."""


def load_micrographs(source: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """One split of a micrograph dataset, with the columns of `mvaema.micrographs.schema.FEATURES`.

    Args:
        source: a folder with images and `metadata.jsonl`, a folder of Parquet shards, a
            `save_to_disk` folder, or the id of a dataset on a Hub.
        split: name of the split.

    Returns:
        the dataset; columns that the source lacks are null, its own further columns are kept, and
        `image` holds encoded bytes (see `decode_image`).

    Raises:
        DatasetError: nothing is found there, the split is missing or empty, it has no images, or
            its answers are not those of the schema.
    """
    path = Path(source)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            dataset = datasets.load_from_disk(path)
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[split]
        else:
            dataset = _load_files(path, source, split)
    except (KeyError, ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(f"cannot read split {split!r} of {source}: {error}") from error
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
            dataset = dataset.add_column(name, [None] * len(dataset))
    return dataset.cast_column("image", datasets.Image(decode=False))


def _load_files(path: Path, source: str | os.PathLike, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(str(source), split=split)
    except (ValueError, datasets.exceptions.DatasetsError):
        if not path.is_dir():
            raise
        # A column that is null throughout one split has another type there, and the library casts
        # no split to the other's. One split by itself can be read.
        patterns = datasets.data_files.get_data_patterns(str(path))
        if split not in patterns or len(patterns) == 1:
            raise
        return datasets.load_dataset(str(source), data_files={split: patterns[split]}, split=split)


def _check_answers(features: datasets.Features, source: str | os.PathLike) -> None:
    """Refuse a column `qa` that lacks what is read of it; it may be null throughout, or absent."""
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


def decode_image(row: dict) -> Image.Image:
    """The image of a row, decoded; raises `DatasetError` with its id when it cannot be."""
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
