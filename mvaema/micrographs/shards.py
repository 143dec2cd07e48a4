"""Parquet shards of a micrograph dataset, which `datasets.load_dataset(folder)` reads back.

What is special about it:
- rows are written one by one, and at most one row group is in memory;
- a shard gets its name (`train-00000.parquet`) only when it is complete and on the disk;
- images are embedded as PNG made from bare pixels, without metadata and file names.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List
from PIL import Image as PILImage
from tqdm.auto import tqdm

from mvaema.files import replacing
from mvaema.micrographs.schema import FEATURES

# The splits that `load_dataset` recognises by the file's name.
SPLITS = ("train", "validation", "test")
# The Hub's recommended size, and row groups that a laptop can hold.
SHARD_BYTES = 500 * 2**20
SHARD_ROWS = 100_000  # small images are spread over shards too: a killed run loses only one
ROW_GROUP_BYTES = 32 * 2**20
ROW_GROUP_ROWS = 1000


def clean_png(image: PILImage.Image | np.ndarray) -> bytes:
    """The pixels of an 8-bit image as a PNG that carries nothing else.

    It is lossless: reading it back gives the same `mvaema.micrographs.schema.pixel_hash`.

    Raises:
        ValueError: the image is not of mode L or RGB.
    """
    if isinstance(image, np.ndarray):
        image = PILImage.fromarray(image)
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"an image of a micrograph dataset has mode L or RGB; got {image.mode}.")
    # A copy of the bare pixels has no `info`, which Pillow would write into the file.
    bare = PILImage.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG")
    return buffer.getvalue()


def _storage(image) -> dict:
    """The `datasets.Image` storage of one image: bytes, and never a path."""
    if isinstance(image, PILImage.Image | np.ndarray):
        return {"bytes": clean_png(image), "path": None}
    if isinstance(image, dict) and image.get("bytes"):
        return {"bytes": image["bytes"], "path": None}
    raise ValueError(
        "row['image'] must be a PIL image, an 8-bit array or {'bytes': ...} of an encoded image; "
        f"got {type(image).__name__}."
    )


def shard_paths(folder: str | Path, split: str) -> list[Path]:
    """The complete shards of a split, in order."""
    return sorted(Path(folder).glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].parquet"))


def write_shards(
    rows: Iterable[dict],
    folder: str | Path,
    split: str = "train",
    features: Features = FEATURES,
    *,
    shard_bytes: int = SHARD_BYTES,
    total: int | None = None,
    progress: bool = True,
    before_rename: Callable[[Path, list[str]], None] | None = None,
) -> list[Path]:
    """Write rows as Parquet shards `{split}-00000.parquet`, ... after those already in `folder`.

    Shards that an earlier version wrote without some of the columns get them first, as null: all
    shards of a split must have the same columns to be loaded.

    Args:
        rows: dicts with the columns of `features`; a missing column is null (an empty list for
            `qa`). `image` is a PIL image or array (8-bit L or RGB, written as a bare PNG), or
            `{"bytes": ...}`, taken to be encoded and free of metadata already.
        folder: created when missing.
        split: `train`, `validation` or `test`.
        features: the columns; they are read back exactly.
        shard_bytes: a shard is closed when it reaches this size (or 100,000 rows).
        total: number of rows, if known, for the progress bar.
        progress: show a progress bar.
        before_rename: called with the final path and the image ids of each complete shard, just
            before the shard gets that name. A ledger written here lists at least the shards that
            exist, whenever a run is killed.

    Returns:
        The paths of the shards written, in order.

    Raises:
        ValueError: the split is none of the three, a row (new, or in a shard that is there) has a
            column that is not in `features`, or an image is not 8-bit. Complete shards stay; the
            unfinished one is removed.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f".{split}-*.parquet-*"):
        abandoned.unlink()  # by a run that was killed

    existing = shard_paths(folder, split)
    for path in existing:
        _complete_columns(path, features)
    number = int(existing[-1].stem.rpartition("-")[2]) + 1 if existing else 0
    written = []
    bar = tqdm(rows, total=total, unit=" rows", desc=f"{folder.name}/{split}", disable=not progress)
    iterator = iter(bar)
    row = next(iterator, None)
    while row is not None:
        path = folder / f"{split}-{number:05d}.parquet"
        with replacing(path) as file:
            with ShardWriter(file, features) as shard:
                while row is not None and shard.size < shard_bytes and shard.rows < SHARD_ROWS:
                    shard.write(row)
                    row = next(iterator, None)
            if before_rename is not None:
                before_rename(path, shard.image_ids)
        written.append(path)
        number += 1
    return written


def _complete_columns(path: Path, features: Features):
    """Write a shard again with all columns, unless it has them."""
    if pq.read_schema(path).remove_metadata() == features.arrow_schema.remove_metadata():
        return
    with (
        pq.ParquetFile(path) as old,
        replacing(path) as file,
        ShardWriter(file, features) as new,
    ):
        for batch in old.iter_batches(batch_size=100):
            for row in batch.to_pylist():
                new.write(row)


class ShardWriter:
    """Writes rows to an open file as Parquet, one row group at a time.

    Attributes:
        image_ids: of the rows so far.
        size: bytes of the images so far.
    """

    def __init__(self, file: BinaryIO, features: Features = FEATURES):
        self.features = features
        self.image_ids = []
        self.size = 0
        self._pending, self._pending_bytes = [], 0
        # The Arrow schema carries the features, so that `load_dataset` restores them exactly.
        self._writer = pq.ParquetWriter(file, features.arrow_schema)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception):
        if exception[0] is None:
            self._flush()
        self._writer.close()

    @property
    def rows(self) -> int:
        """Rows so far."""
        return len(self.image_ids)

    def write(self, row: dict):
        """Add one row; it is written with its row group.

        Raises:
            ValueError: the row has a column that the features do not have, or no usable image.
        """
        unknown = set(row) - set(self.features)
        if unknown:
            raise ValueError(
                f"row {row.get('image_id')!r} has columns that the dataset does not have: "
                f"{', '.join(sorted(unknown))}; expected {', '.join(self.features)}."
            )
        row = {
            name: row.get(name, [] if isinstance(feature, List) else None)
            for name, feature in self.features.items()
        }
        if "image" in row:
            row["image"] = _storage(row["image"])
            self._pending_bytes += len(row["image"]["bytes"])
            self.size += len(row["image"]["bytes"])
        self.image_ids.append(row.get("image_id"))
        self._pending.append(row)
        if self._pending_bytes >= ROW_GROUP_BYTES or len(self._pending) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self):
        if self._pending:
            schema = self.features.arrow_schema
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=schema))
            self._pending, self._pending_bytes = [], 0
