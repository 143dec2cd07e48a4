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
import os
import stat
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq
from datasets import ClassLabel, Image

from mvaema.micrographs.dataset import open_split
from mvaema.micrographs.labelling import Labelling
from mvaema.micrographs.microscope import SUFFIXES
from mvaema.micrographs.refusals import why_not_opened
from mvaema.micrographs.schema import FEATURES, INSTRUMENT_COLUMNS
from mvaema.micrographs.sidecars import sidecar_paths

# The reason of a problem that is none: a link to what the source holds itself.
LINK = "link"


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
    """A file or folder that does not become an entry.

    Attributes:
        name: as in an entry.
        reason: a slug to count by; `LINK` is the one that is no fault.
        message: what is wrong.
        hides_more: it is a folder or archive, and some of its entries could not be listed.
    """

    name: str
    reason: str
    message: str
    hides_more: bool = False


def printable(path: str | os.PathLike) -> str:
    """A path as text; bytes that are not UTF-8 are escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _file_entry(
    path: Path, fields: dict[str, Any], siblings: Container[str] | None = None
) -> Entry | Problem:
    """The entry of a file, or why it cannot be one; `siblings` are the names in its folder."""
    try:
        info = path.stat()
    except OSError as error:
        return _os_problem(path, error)
    if not stat.S_ISREG(info.st_mode):
        return Problem(printable(path), "not-a-file", "is not a regular file.")
    version = f"{info.st_size} {info.st_mtime_ns}"
    for sidecar in sidecar_paths(path):
        if siblings is not None and sidecar.name not in siblings:
            continue  # nothing to ask the disk, or a network share, for
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

    Hidden files are left out. Files with a suffix that is not in
    `mvaema.micrographs.microscope.SUFFIXES` are counted in `ignored`.

    Symbolic links are followed where they lead out of the folder, or to what is hidden in it. A
    link to what the folder holds anyway is a problem with the reason `LINK`: the file is read at
    its own place, and the folder that the link is in labels nothing. Hard links are names of equal
    rank, like copies.

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
                path, siblings = found
                fields = self.labelling.from_path(path.relative_to(self.root))
                yield _file_entry(path, fields, siblings)

    def _walk(self) -> Iterator[tuple[Path, set[str]] | Problem]:
        """Each file with the names in its folder."""
        visited: dict[tuple[int, int], Path] = {}
        folders = [self.root]
        while folders:
            folder = folders.pop()
            try:
                info = folder.stat()
                first = visited.setdefault((info.st_dev, info.st_ino), folder)
                if first is not folder:
                    yield _link(folder, first)
                    continue
                with os.scandir(folder) as scanned:
                    found = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                yield replace(_os_problem(folder, error), hides_more=True)
                continue
            below, siblings = [], {entry.name for entry in found}
            for entry in found:
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                is_folder = _is_folder(entry)
                if not is_folder and not entry.name.lower().endswith(SUFFIXES):
                    self.ignored[path.suffix.lower()] += 1
                elif entry.is_symlink() and (target := self._met(path, is_folder)) is not None:
                    yield _link(path, target)
                elif is_folder:
                    below.append(path)
                else:
                    yield path, siblings
            folders += reversed(below)

    def _met(self, path: Path, is_folder: bool) -> Path | None:
        """Where a link leads, if the walk comes there without it."""
        # Unlike Path.exists, this is False, not an error, where permission is missing.
        if not os.path.exists(path):  # noqa: PTH110
            return None
        target = path.resolve()
        root = self.root.resolve()
        if not target.is_relative_to(root):
            return None
        hidden = any(part.startswith(".") for part in target.relative_to(root).parts)
        known = is_folder or target.name.lower().endswith(SUFFIXES)
        return target if known and not hidden else None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where permission is missing
        return False


def _link(path: Path, target: Path) -> Problem:
    message = f"is a link to {printable(target)}, which is read there; it labels nothing."
    return Problem(printable(path), LINK, message)


class TableSource:
    """The files listed in a CSV, JSONL or Parquet table, with the table's columns.

    Args:
        table: its columns are `path` (or `file_name`), relative to the table's folder, and any of
            `category`, `group`, `pixel_size_nm` (of the stored file), `scale_bar`, `source`,
            `licence`, `technique`, `accelerating_voltage_kv`, `working_distance_mm` and
            `detector`. Their values enter the dataset unchanged; paths do not enter it.
        columns: name in `COLUMNS` -> the table's name for that column.
        ignore: columns of the table to leave out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column of the table is unknown, or there is no column of paths.
    """

    COLUMNS = (
        *("path", "category", "group", "pixel_size_nm", "scale_bar", "source", "licence"),
        *INSTRUMENT_COLUMNS,
    )

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
