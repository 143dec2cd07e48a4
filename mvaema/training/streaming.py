"""Rows of Parquet shards, read directly: for datasets that are too large to copy.

What is special about it:
- little is read beforehand: the columns that folds are made of, without images, and where each row
  lies. A row's number is its place in the files, one after the other;
- the order of an epoch follows from those numbers alone. Row groups are visited in random order,
  each once and from start to end, a few rows at a time, so that large row groups need no more
  memory than small ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm

from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.schema import FEATURES

BATCH_ROWS, BATCH_TEXTS = 64, 8192  # rows read at once, with and without their images
KEY_COLUMNS = ("image_id", "group", "category")


@dataclass(frozen=True)
class ParquetRows:
    """Rows of Parquet shards, by number; none of them is in memory.

    Attributes:
        files: paths or URLs, in the order in which rows are numbered.
        groups: int (row groups, 3): file, number in the file, first row.
        row_bytes: mean size of a row.
        rows: int (rows,): numbers of the rows, ascending.
    """

    files: tuple[str, ...]
    groups: np.ndarray
    row_bytes: float
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The rows at these places; `indices` must ascend."""
        return replace(self, rows=self.rows[indices])

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """int (rows,): the numbers of all rows, row groups in random order."""
        starts = np.searchsorted(self.rows, self.groups[:, 2])
        parts = np.split(self.rows, starts[1:])
        return np.concatenate([parts[i] for i in rng.permutation(len(parts))])

    def read(self, numbers: np.ndarray, columns: Sequence[str] | None = None) -> Dataset:
        """Rows in memory, in the order of their numbers.

        Args:
            columns: of the schema; all if not given.
        """
        table = RowReader(self, columns).read(np.sort(numbers))
        return Dataset(datasets.table.InMemoryTable(table))

    def sample(self, count: int) -> Dataset:
        """`count` of the rows, or all if there are fewer, evenly spread, in memory."""
        places = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        return self.read(self.rows[places])


class RowReader:
    """Reads rows. Rows that follow those it has read last are read from there on."""

    def __init__(self, rows: ParquetRows, columns: Sequence[str] | None = None):
        self.rows = rows
        self.columns = columns
        self._group = None  # the open one
        self._schema = FEATURES.arrow_schema.remove_metadata()
        if columns is not None:
            self._schema = pa.schema([self._schema.field(name) for name in columns])

    def read(self, numbers: np.ndarray) -> pa.Table:
        """The rows, in this order. Within a row group, numbers must ascend."""
        groups = np.searchsorted(self.rows.groups[:, 2], numbers, side="right") - 1
        ends = np.flatnonzero(np.diff(groups, append=-1)) + 1
        parts = []
        for part, group in zip(np.split(numbers, ends[:-1]), groups[ends - 1], strict=True):
            parts += self._read(int(group), part - self.rows.groups[group, 2])
        return pa.concat_tables(parts or [self._schema.empty_table()], promote_options="permissive")

    def _read(self, group: int, places: np.ndarray) -> list[pa.Table]:
        if group != self._group or places[0] < self._first:
            self._open(group)
        parts = []
        while True:
            inside = places < self._first + len(self._batch)
            if inside.any():
                chosen = self._batch.take(pa.array(places[inside] - self._first))
                parts.append(self._completed(pa.Table.from_batches([chosen])))
            places = places[~inside]
            if not len(places):
                return parts
            self._first += len(self._batch)
            self._batch = next(self._batches)

    def _open(self, group: int) -> None:
        file, number, _ = self.rows.groups[group].tolist()
        parquet = _open(self.rows.files[file])
        names = set(parquet.schema_arrow.names)
        self._batches = parquet.iter_batches(
            BATCH_ROWS if "image" in self._schema.names else BATCH_TEXTS,
            row_groups=[number],
            columns=[name for name in self._schema.names if name in names],
            use_threads=False,  # beside training and other workers
        )
        self._group, self._first, self._batch = group, 0, next(self._batches)

    def _completed(self, table: pa.Table) -> pa.Table:
        """The schema's columns; those the file lacks are null."""
        columns = [
            table[field.name]
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
            for field in self._schema
        ]
        return pa.table(columns, names=self._schema.names)


def _open(file: str) -> pq.ParquetFile:
    # Column chunks are read piece by piece, however large they are.
    source = fsspec.open(file).open() if "://" in file else file
    return pq.ParquetFile(source, buffer_size=2**20)


def open_shards(source: str, split: str) -> tuple[ParquetRows, Dataset]:
    """The rows of one split that have answers to train on, and what their folds are made of.

    Args:
        source: a folder of Parquet shards, or the id of a dataset on a Hub that has them.

    Returns:
        the rows, and a dataset in memory with a row for each: `image_id`, `group`, `category`.

    Raises:
        DatasetError: there are no such shards, they have no images, or no answers.
    """
    files = _shards(source, split)
    groups, keys, usable, total, size = [], [], [], 0, 0
    schema = pa.schema([(name, pa.string()) for name in KEY_COLUMNS])
    for number, file in enumerate(tqdm(files, desc="Reading groups", unit=" shards")):
        with _open(file) as parquet:
            outcomes = _outcome_column(parquet, file)
            columns = [name for name in KEY_COLUMNS if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*columns, outcomes])
                if not len(table):
                    continue
                groups.append((number, group, total))
                size += parquet.metadata.row_group(group).total_byte_size
                good = _with_answers(table["qa"].combine_chunks())
                usable.append(total + good)
                total += len(table)
                chosen = table.select(columns).take(pa.array(good))
                keys.append(
                    pa.table(
                        [
                            chosen[name].cast(pa.string())
                            if name in columns
                            else pa.nulls(len(good), pa.string())
                            for name in KEY_COLUMNS
                        ],
                        schema=schema,
                    )
                )
    if not total:
        raise DatasetError(f"split {split!r} of {source} is empty.")
    rows = np.concatenate(usable)
    if not len(rows):
        raise DatasetError(
            f"{source} has no answers with outcome 'ok' in its column 'qa'. Run "
            "generate_teacher_data.py on it first."
        )
    keys = Dataset(datasets.table.InMemoryTable(pa.concat_tables(keys)))
    return ParquetRows(tuple(files), np.array(groups), size / total, rows), keys


def _shards(source: str, split: str) -> list[str]:
    try:
        builder = datasets.load_dataset_builder(str(source))
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(f"cannot read {source}: {error}") from error
    files = (builder.config.data_files or {}).get(split)
    if not files:
        raise DatasetError(f"cannot read split {split!r} of {source}: it has no files for it.")
    if not all(str(file).endswith(".parquet") for file in files):
        raise DatasetError(
            f"{source} cannot be streamed: {files[0]} is not a Parquet shard. Leave --streaming "
            "out, or write the dataset as shards with `mvaema build`."
        )
    return [str(file) for file in files]


def _outcome_column(parquet: pq.ParquetFile, file: str) -> str:
    """The path of `qa`'s outcomes in the file, which must have the columns to train on."""
    schema = parquet.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    if image is None or not pa.types.is_struct(image) or "bytes" not in image.names:
        raise DatasetError(f"{file} has no column 'image' with encoded images in it.")
    paths = [column.path for column in map(parquet.schema.column, range(len(parquet.schema)))]
    fields = {path.rpartition(".")[2]: path for path in paths if path.startswith("qa.")}
    needed = ("question_id", "question", "answer", "outcome")
    if not fields.keys() >= set(needed):
        raise DatasetError(
            f"{file} has no column 'qa' of lists of {', '.join(needed)} (see "
            "mvaema/micrographs/schema.py). Run generate_teacher_data.py on the micrographs first."
        )
    return fields["outcome"]


def _with_answers(qa: pa.ListArray) -> np.ndarray:
    """int: the rows with an answer whose outcome is ok."""
    ok = pc.fill_null(pc.equal(pc.struct_field(pc.list_flatten(qa), "outcome"), "ok"), False)
    return np.unique(pc.list_parent_indices(qa).filter(ok).to_numpy(zero_copy_only=False))
