"""Where micrographs come from: a folder tree, a table of files, a Hugging Face dataset.

Each source can be iterated again and again and yields, in a stable order, an `Entry` per
micrograph (nothing is read from it yet) or a `Problem` with its reason. What is special about it:
- an entry's name and the names of folders stay on this side: what `mvaema.micrographs.build` writes holds
  pseudonyms of them only;
- an entry has a version, so that a rebuild reads new and changed files only;
- links that lead in circles, devices and unreadable folders are met without hanging or stopping.
"""

import csv
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq
from datasets import ClassLabel, Image, load_dataset, load_from_disk

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.microscope import SUFFIXES
from mvaema.micrographs.schema import FEATURES, OTHER

CATEGORIES = (*CATEGORY_CAPTIONS, OTHER)
GROUPINGS = ("image", "folder", "stem")
# `wafer7_cut 012` -> `wafer7_cut`: the stem without the number that ends it.
STEM_PATTERN = r"(.*?)[\W_]*\d+"
# Some instruments write what belongs to `x.tif` into a text file of the same name.
SIDECAR_SUFFIXES = (".txt", ".hdr")


@dataclass(frozen=True)
class Entry:
    """One micrograph that a source offers.

    Attributes:
        name: what its owner knows it by (a path, or dataset and row); never enters the dataset.
        version: changes when the content does.
        content: the file, or a function that returns its bytes.
        suffix: of the file name, lower case.
        fields: columns of `mvaema.micrographs.schema.FEATURES` that the source states.
    """

    name: str
    version: str
    content: Path | Callable[[], bytes]
    suffix: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something that could not become an entry.

    Attributes:
        name: as of an entry.
        reason: a slug to count by.
        message: what the owner should know.
        hides_more: a folder or archive, whose entries could not all be seen.
    """

    name: str
    reason: str
    message: str
    hides_more: bool = False


@dataclass(frozen=True)
class Labelling:
    """What a source's names mean: categories, and which rows belong together.

    Attributes:
        synonyms: the source's own category names -> one of the ten or Other.
        group_by: `image` (every micrograph its own group), `folder` (the folder a file lies in)
            or `stem` (what `group_pattern` finds in the file's name).
        group_pattern: regular expression on the stem; its first group names the specimen.
        defaults: columns for all entries that state none of their own.

    Raises:
        ValueError: an unknown category, grouping or pattern.
    """

    synonyms: dict[str, str] = field(default_factory=dict)
    group_by: str = "image"
    group_pattern: str = STEM_PATTERN
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        wrong = sorted({*self.synonyms.values(), self.defaults.get("category") or OTHER})
        wrong = [name for name in wrong if name not in CATEGORIES]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: no category; expected one of {', '.join(CATEGORIES)}."
            )
        if self.group_by not in GROUPINGS:
            raise ValueError(
                f"group_by must be one of {', '.join(GROUPINGS)}; got {self.group_by!r}."
            )
        if re.compile(self.group_pattern).groups < 1:
            raise ValueError(
                f"group_pattern needs a group in parentheses that names the specimen; got "
                f"{self.group_pattern!r}."
            )
        known = {_plain(name): name for name in CATEGORIES}
        known |= {_plain(name): category for name, category in self.synonyms.items()}
        object.__setattr__(self, "_categories", known)

    def category(self, name: str) -> str | None:
        """The category of that name or synonym (case and separators do not matter), or None."""
        return self._categories.get(_plain(name))

    def from_path(self, path: PurePath) -> dict[str, Any]:
        """Columns that a path (relative to its source's root) tells, defaults included."""
        fields = dict(self.defaults)
        for folder in reversed(path.parts[:-1]):
            if (category := self.category(folder)) is not None:
                fields["category"] = category
                break
        if self.group_by == "folder":
            # A folder that is a whole class, or the root, says nothing about the specimen.
            if path.parent.name and self.category(path.parent.name) is None:
                fields["group"] = pseudonym(path.parent.as_posix())
        elif self.group_by == "stem":
            found = re.fullmatch(self.group_pattern, path.stem)
            if found and found[1]:
                fields["group"] = pseudonym((path.parent / found[1]).as_posix())
        return fields

    def check(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Stated columns as the schema wants them, empty ones left out.

        Raises:
            ValueError: a value makes no sense; the message names the column.
        """
        checked = {}
        for name, value in fields.items():
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                continue
            if name == "category":
                category = self.category(str(value))
                if category is None:
                    raise ValueError(
                        f"category {value!r} is none of {', '.join(CATEGORIES)}; "
                        "give a synonym for it."
                    )
                value = category
            elif name == "pixel_size_nm":
                try:
                    value = float(value)
                except ValueError:
                    raise ValueError(f"pixel_size_nm {value!r} is not a number.") from None
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(f"pixel_size_nm must be positive and finite; got {value}.")
            elif name != "qa":
                value = str(value)
            checked[name] = value
        return checked


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name).strip("_").casefold()


def pseudonym(name: str) -> str:
    """A group id that does not show the name it stands for, the same in every dataset.

    Not encryption: who guesses the name can confirm the guess.
    """
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def printable(path: str | os.PathLike) -> str:
    """A path as text, whatever bytes its names are made of."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _file_entry(path: Path, fields: dict[str, Any]) -> Entry | Problem:
    """The entry of a file, or why it cannot be one."""
    try:
        info = path.stat()
    except OSError as error:
        return _os_problem(path, error)
    if not stat.S_ISREG(info.st_mode):
        return Problem(printable(path), "not-a-file", "is not a regular file")
    version = f"{info.st_size} {info.st_mtime_ns}"
    for sidecar in map(path.with_suffix, SIDECAR_SUFFIXES):
        try:
            info = sidecar.stat()
        except OSError:
            continue
        version += f" {info.st_size} {info.st_mtime_ns}"
    return Entry(printable(path), version, path, path.suffix.lower(), fields)


def _os_problem(path: str | os.PathLike, error: OSError) -> Problem:
    reasons = {
        errno.EACCES: "permission-denied",
        errno.EPERM: "permission-denied",
        errno.ENOENT: "not-found",
        errno.ELOOP: "symlink-loop",
    }
    return Problem(printable(path), reasons.get(error.errno, "unreadable"), str(error.strerror))


class FolderSource:
    """Every micrograph below a folder; a folder named like a category labels what it holds.

    Symbolic links are followed, each folder is visited once, hidden files are left out, and files
    with other suffixes than `mvaema.micrographs.microscope.SUFFIXES` are counted in `ignored`.

    Raises:
        NotADirectoryError: `root` is no folder.
    """

    def __init__(self, root: str | Path, labelling: Labelling | None = None):
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise NotADirectoryError(f"{root}: no folder of that name; check the path.")
        self.labelling = labelling or Labelling()
        self.ignored = Counter()

    def __len__(self) -> int:
        return sum(1 for _ in self._walk())

    def __iter__(self) -> Iterator[Entry | Problem]:
        self.ignored.clear()
        for found in self._walk():
            if isinstance(found, Problem):
                yield found
            else:
                yield _file_entry(found, self.labelling.from_path(found.relative_to(self.root)))

    def _walk(self) -> Iterator[Path | Problem]:
        visited = set()
        folders = [self.root]
        while folders:
            folder = folders.pop()
            try:
                info = folder.stat()
                if (info.st_dev, info.st_ino) in visited:  # a link back up, or a second way in
                    continue
                visited.add((info.st_dev, info.st_ino))
                names = sorted(path.name for path in folder.iterdir())
            except OSError as error:
                yield replace(_os_problem(folder, error), hides_more=True)
                continue
            below = []
            for name in names:
                path = folder / name
                if name.startswith("."):
                    continue
                # Unlike Path.is_dir, this is False where looking is forbidden.
                if os.path.isdir(path):  # noqa: PTH112
                    below.append(path)
                elif name.lower().endswith(SUFFIXES):
                    yield path
                else:
                    self.ignored[path.suffix.lower()] += 1
            folders += reversed(below)


class TableSource:
    """The files that a CSV, JSONL or Parquet table lists, with what it says about them.

    Args:
        table: its columns are `path` (or `file_name`), relative to the table's folder, and any of
            `category`, `group`, `pixel_size_nm` (of the file as it is), `scale_bar`, `source` and
            `licence`. What they say enters the dataset as it is (paths do not).
        columns: column of this list -> the table's own name for it.
        ignore: columns of the table to leave out.

    Raises:
        ValueError: the table has a column that is neither known, named in `columns` nor ignored;
            or has none with paths.
    """

    COLUMNS = ("path", "category", "group", "pixel_size_nm", "scale_bar", "source", "licence")

    def __init__(
        self,
        table: str | Path,
        labelling: Labelling | None = None,
        columns: dict[str, str] | None = None,
        ignore: tuple[str, ...] = (),
    ):
        self.table = Path(table).absolute()
        if not self.table.is_file():
            raise FileNotFoundError(f"{table}: no file of that name; check the path.")
        self.labelling = labelling or Labelling()
        self.columns = dict(columns or {})
        self.ignore = tuple(ignore)
        self.ignored = Counter()
        wrong = [name for name in self.columns if name not in self.COLUMNS]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: no column a table can give; expected some of "
                f"{', '.join(self.COLUMNS)}."
            )
        first = next(self._rows(), {})
        if "path" not in self.columns and "path" not in first and "file_name" in first:
            self.columns["path"] = "file_name"
        self._check_columns(first)

    def _check_columns(self, row: dict[str, Any]):
        # A table's own column of a standard name is not read where another stands in for it.
        known = {self.columns.get(name, name) for name in self.COLUMNS}
        unknown = [name for name in row if name not in known and name not in self.ignore]
        if unknown:
            raise ValueError(
                f"{self.table.name}: unknown column {', '.join(map(repr, unknown))}; expected "
                f"{', '.join(self.COLUMNS)}. Name what a column means (columns) or leave it out "
                "(ignore)."
            )
        missing = [name for name in self.columns.values() if name not in row]
        if "path" not in self.columns and "path" not in row:
            missing.append("path")
        if missing:
            raise ValueError(
                f"{self.table.name}: no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, row)) or 'no row'}."
            )

    def __len__(self) -> int:
        return sum(1 for _ in self._rows())

    def __iter__(self) -> Iterator[Entry | Problem]:
        for number, row in enumerate(self._rows(), start=1):
            stated = {name: row.get(self.columns.get(name, name)) for name in self.COLUMNS}
            path = stated.pop("path")
            name = f"{printable(self.table)} row {number}"
            if not isinstance(path, str) or not path:
                yield Problem(name, "no-path", "has no path")
                continue
            relative = PurePath(path)
            try:
                fields = self.labelling.from_path(relative) | self.labelling.check(stated)
            except ValueError as error:
                yield Problem(printable(self.table.parent / relative), "bad-value", str(error))
                continue
            yield _file_entry(self.table.parent / relative, fields)

    def _rows(self) -> Iterator[dict[str, Any]]:
        suffix = self.table.suffix.lower()
        if suffix == ".csv":
            with self.table.open(encoding="utf-8-sig", newline="") as file:
                # More cells than columns: csv collects them under None.
                yield from csv.DictReader(file, restkey="(beyond the last column)")
        elif suffix in (".jsonl", ".json"):
            with self.table.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise ValueError("not an object")
                    except ValueError as error:
                        raise ValueError(
                            f"{self.table.name}, line {number}: expected one JSON object per "
                            f"line ({error})."
                        ) from None
                    yield row
        elif suffix == ".parquet":
            with pq.ParquetFile(self.table) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
        else:
            raise ValueError(f"{self.table.name}: expected a .csv, .jsonl or .parquet table.")


class DatasetSource:
    """The rows of a Hugging Face dataset: a Hub id, a folder `load_dataset` reads, or one that
    `save_to_disk` wrote.

    Columns named as in `mvaema.micrographs.schema.FEATURES` are taken over (`image_id` is computed anew);
    class labels give their names. Columns of other names are left out and listed in `left_out`.

    Args:
        name: Hub id or folder.
        split: of the dataset.
        columns: column of the schema -> the dataset's own name for it.

    Raises:
        ValueError: there is no such split, column or image column.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        labelling: Labelling | None = None,
        columns: dict[str, str] | None = None,
        config: str | None = None,
    ):
        self.name, self.split = str(name), split
        self.labelling = labelling or Labelling()
        self.ignored = Counter()
        dataset = self._load(config)
        columns = dict(columns or {})
        wrong = [c for c in columns if c not in FEATURES or c == "image_id"]
        missing = [c for c in columns.values() if c not in dataset.column_names]
        if wrong or missing:
            raise ValueError(
                f"{name}: {', '.join(wrong + missing)}: no such column; the schema has "
                f"{', '.join(FEATURES)}, the dataset {', '.join(dataset.column_names)}."
            )
        images = [c for c, feature in dataset.features.items() if isinstance(feature, Image)]
        if "image" not in columns and "image" not in images and len(images) == 1:
            columns["image"] = images[0]
        image = columns.get("image", "image")
        if image not in images:
            raise ValueError(
                f"{name}: {image!r} is no image column; image columns are "
                f"{', '.join(images) or 'none'}."
            )
        for c in FEATURES:
            if c not in columns and c in dataset.column_names and c != "image_id":
                columns[c] = c
        taken = set(columns.values())
        self.left_out = [c for c in dataset.column_names if c not in taken]
        self.columns = columns
        self._labels = {
            c: dataset.features[theirs]
            for c, theirs in columns.items()
            if isinstance(dataset.features[theirs], ClassLabel)
        }
        dataset = dataset.select_columns(sorted(taken))
        self.dataset = dataset.cast_column(image, Image(decode=False))

    def _load(self, config: str | None):
        path = Path(self.name)
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            dataset = load_from_disk(self.name)
            if isinstance(dataset, dict):
                if self.split not in dataset:
                    raise ValueError(
                        f"{self.name}: no split {self.split!r}; it has {', '.join(dataset)}."
                    )
                dataset = dataset[self.split]
            return dataset
        return load_dataset(self.name, config, split=self.split)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Entry | Problem]:
        for number, row in enumerate(self.dataset):
            name = f"{self.name} {self.split} row {number}"
            image = row[self.columns["image"]]
            stated = {c: row[theirs] for c, theirs in self.columns.items() if c != "image"}
            for c, label in self._labels.items():
                # -1 is how `datasets` marks a missing label.
                stated[c] = None if stated[c] in (None, -1) else label.int2str(stated[c])
            path = PurePath((image and image["path"]) or "")
            try:
                fields = self.labelling.from_path(PurePath(path.name))
                fields |= self.labelling.check(stated)
            except ValueError as error:
                yield Problem(name, "bad-value", str(error))
                continue
            if image and image["bytes"]:
                content = image["bytes"]
                version = hashlib.sha256(content).hexdigest()
                yield Entry(name, version, lambda b=content: b, path.suffix.lower(), fields)
            elif image and image["path"]:
                yield _file_entry(Path(image["path"]), fields)
            else:
                yield Problem(name, "empty", "has no image")
