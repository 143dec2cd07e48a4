"""Where micrographs come from: a folder tree, a table of files, a Hugging Face dataset.

A source can be iterated any number of times. In a stable order it yields an `Entry` for each
micrograph, which is not read yet, or a `Problem` with its reason. What is special about it:
- names of files and folders do not enter the dataset; `mvaema.micrographs.build` writes only
  pseudonyms of them;
- an entry has a version, so that a rebuild reads new and changed files only;
- circular links, devices and unreadable folders are reported; none of them stops or blocks it.
"""

import csv
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
from datasets import ClassLabel, Image

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.dataset import open_split
from mvaema.micrographs.microscope import SUFFIXES
from mvaema.micrographs.refusals import why_not_opened
from mvaema.micrographs.schema import FEATURES, OTHER

CATEGORIES = (*CATEGORY_CAPTIONS, OTHER)
GROUPINGS = ("image", "folder", "stem")
# The stem without the number at its end: `wafer7_cut 012` -> `wafer7_cut`.
STEM_PATTERN = r"(.*?)[\W_]*\d+"
# Text files in which some instruments write the settings of the image of the same name.
SIDECAR_SUFFIXES = (".txt", ".hdr")


@dataclass(frozen=True)
class Entry:
    """One micrograph that a source offers.

    Attributes:
        name: the owner's name for it (a path, or dataset and row); it never enters the dataset.
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
    """A file or folder that cannot become an entry.

    Attributes:
        name: as in an entry.
        reason: a slug to count by.
        message: what is wrong.
        hides_more: it is a folder or archive, and some of its entries could not be listed.
    """

    name: str
    reason: str
    message: str
    hides_more: bool = False


@dataclass(frozen=True)
class Labelling:
    """What the names in a source mean: categories, and which micrographs belong together.

    Attributes:
        synonyms: the source's name for a category -> one of the ten categories or Other.
        group_by: `image` (each micrograph is its own group), `folder` (files of one folder), or
            `stem` (files for which `group_pattern` finds the same text).
        group_pattern: regular expression for the whole stem; its first group is the specimen.
        defaults: columns for micrographs without a value of their own.

    Raises:
        ValueError: an unknown category or grouping, or a pattern without a group.
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
                f"{', '.join(wrong)} is not a category; expected one of {', '.join(CATEGORIES)}."
            )
        if self.group_by not in GROUPINGS:
            raise ValueError(
                f"group_by must be one of {', '.join(GROUPINGS)}; got {self.group_by!r}."
            )
        if re.compile(self.group_pattern).groups < 1:
            raise ValueError(
                "group_pattern needs parentheses around the part that names the specimen; got "
                f"{self.group_pattern!r}."
            )
        known = {_plain(name): name for name in CATEGORIES}
        known |= {_plain(name): category for name, category in self.synonyms.items()}
        object.__setattr__(self, "_categories", known)

    def category(self, name: str) -> str | None:
        """The category of a name or synonym, or None; case and separators do not matter."""
        return self._categories.get(_plain(name))

    def from_path(self, path: PurePath) -> dict[str, Any]:
        """The columns that follow from a path relative to the source's root, with defaults."""
        fields = dict(self.defaults)
        for folder in reversed(path.parts[:-1]):
            if (category := self.category(folder)) is not None:
                fields["category"] = category
                break
        if self.group_by == "folder":
            # The root, or a folder of a whole category, does not name a specimen.
            if path.parent.name and self.category(path.parent.name) is None:
                fields["group"] = pseudonym(path.parent.as_posix())
        elif self.group_by == "stem":
            found = re.fullmatch(self.group_pattern, path.stem)
            if found and found[1]:
                fields["group"] = pseudonym((path.parent / found[1]).as_posix())
        return fields

    def check(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The stated columns in the schema's types; empty ones are left out.

        Raises:
            ValueError: a value is not valid; the message names the column.
        """
        checked = {}
        for name, value in fields.items():
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                continue
            if name == "category":
                category = self.category(str(value))
                if category is None:
                    raise ValueError(
                        f"category {value!r} is not one of {', '.join(CATEGORIES)}; "
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
    """A group id that does not show its name, and is the same in every dataset.

    This is not encryption: whoever guesses the name can confirm the guess.
    """
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def printable(path: str | os.PathLike) -> str:
    """A path as text; bytes that are not UTF-8 are escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _file_entry(path: Path, fields: dict[str, Any]) -> Entry | Problem:
    """The entry of a file, or why it cannot be one."""
    try:
        info = path.stat()
    except OSError as error:
        return _os_problem(path, error)
    if not stat.S_ISREG(info.st_mode):
        return Problem(printable(path), "not-a-file", "is not a regular file.")
    version = f"{info.st_size} {info.st_mtime_ns}"
    for sidecar in map(path.with_suffix, SIDECAR_SUFFIXES):
        try:
            info = sidecar.stat()
        except OSError:
            continue
        version += f" {info.st_size} {info.st_mtime_ns}"
    return Entry(printable(path), version, path, path.suffix.lower(), fields)


def _os_problem(path: str | os.PathLike, error: OSError) -> Problem:
    return Problem(printable(path), *why_not_opened(error))


class FolderSource:
    """All micrographs below a folder. A folder named like a category labels its files.

    Symbolic links are followed, each folder is visited once, and hidden files are left out. Files
    with a suffix that is not in `mvaema.micrographs.microscope.SUFFIXES` are counted in `ignored`.

    Raises:
        NotADirectoryError: `root` is not a folder.
    """

    def __init__(self, root: str | Path, labelling: Labelling | None = None):
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise NotADirectoryError(f"{root} is not a folder; check the path.")
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
                if (info.st_dev, info.st_ino) in visited:  # reached before, through a link
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
                # Unlike Path.is_dir, this is False, not an error, where permission is missing.
                if os.path.isdir(path):  # noqa: PTH112
                    below.append(path)
                elif name.lower().endswith(SUFFIXES):
                    yield path
                else:
                    self.ignored[path.suffix.lower()] += 1
            folders += reversed(below)


class TableSource:
    """The files listed in a CSV, JSONL or Parquet table, with the table's columns.

    Args:
        table: its columns are `path` (or `file_name`), relative to the table's folder, and any of
            `category`, `group`, `pixel_size_nm` (of the stored file), `scale_bar`, `source` and
            `licence`. Their values enter the dataset unchanged; paths do not enter it.
        columns: name in `COLUMNS` -> the table's name for that column.
        ignore: columns of the table to leave out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column of the table is unknown, or there is no column of paths.
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
            raise FileNotFoundError(f"{table} is not a file; check the path.")
        self.labelling = labelling or Labelling()
        self.columns = dict(columns or {})
        self.ignore = tuple(ignore)
        self.ignored = Counter()
        wrong = [name for name in self.columns if name not in self.COLUMNS]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} cannot be read from a table; expected some of "
                f"{', '.join(self.COLUMNS)}."
            )
        first = next(self._rows(), {})
        if "path" not in self.columns and "path" not in first and "file_name" in first:
            self.columns["path"] = "file_name"
        self._check_columns(first)

    def _check_columns(self, row: dict[str, Any]):
        # A standard column for which `columns` names another is unknown too: it is not read.
        known = {self.columns.get(name, name) for name in self.COLUMNS}
        unknown = [name for name in row if name not in known and name not in self.ignore]
        if unknown:
            raise ValueError(
                f"{self.table.name}: unknown column {', '.join(map(repr, unknown))}; expected "
                f"{', '.join(self.COLUMNS)}. Rename or remove the column (or build with --columns "
                "or --ignore)."
            )
        missing = [name for name in self.columns.values() if name not in row]
        if "path" not in self.columns and "path" not in row:
            missing.append("path")
        if missing:
            raise ValueError(
                f"{self.table.name}: there is no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(map(repr, row)) or 'no rows'}."
            )

    def __len__(self) -> int:
        return sum(1 for _ in self._rows())

    def __iter__(self) -> Iterator[Entry | Problem]:
        for number, row in enumerate(self._rows(), start=1):
            stated = {name: row.get(self.columns.get(name, name)) for name in self.COLUMNS}
            path = stated.pop("path")
            name = f"{printable(self.table)} row {number}"
            if not isinstance(path, str) or not path:
                yield Problem(name, "no-path", "has no path.")
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
    """The rows of a Hugging Face dataset: on the Hub, or any folder that `datasets` reads.

    Columns named as in `mvaema.micrographs.schema.FEATURES` are kept, except that `image_id` is
    computed again; class labels become their names. Other columns are listed in `left_out`.

    Args:
        name: Hub id or folder.
        split: of the dataset.
        columns: column of the schema -> the dataset's name for it.
        config: configuration of the dataset, where it has several.

    Raises:
        ValueError: there is no such dataset, split, column or image column.
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
        dataset = open_split(name, split, config)
        columns = dict(columns or {})
        wrong = [c for c in columns if c not in FEATURES or c == "image_id"]
        missing = [c for c in columns.values() if c not in dataset.column_names]
        if wrong or missing:
            raise ValueError(
                f"{name}: there is no column {', '.join(wrong + missing)}; the schema has "
                f"{', '.join(FEATURES)}, the dataset {', '.join(dataset.column_names)}."
            )
        images = [c for c, feature in dataset.features.items() if isinstance(feature, Image)]
        if "image" not in columns and "image" not in images and len(images) == 1:
            columns["image"] = images[0]
        image = columns.get("image", "image")
        if image not in images:
            raise ValueError(
                f"{name}: {image!r} is not an image column; the image columns are "
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

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Entry | Problem]:
        for number, row in enumerate(self.dataset):
            name = f"{self.name} {self.split} row {number}"
            image = row[self.columns["image"]]
            stated = {c: row[theirs] for c, theirs in self.columns.items() if c != "image"}
            for c, label in self._labels.items():
                # `datasets` marks a missing label by -1.
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
                yield Problem(name, "empty", "has no image.")
