"""Files that survive a kill: written whole or not at all, or line by line.

Every stage writes its files through this module.
"""

import csv
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that becomes `path` when the block ends without an error.

    It is on the disk by then, and replaces a file of that name. Until then, and after an error,
    `path` is as it was. A killed process leaves a hidden file `.NAME-*` beside it.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write the whole file or none of it, also when another process writes the same one."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: dict) -> None:
    """As `write_text`; raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """As `write_text`, row by row, so that a table need not fit into memory."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()  # written out, and `file` stays open


def move_folder(folder: Path, target: Path) -> None:
    """Bring a folder and all in it to the disk, then rename it. A `target` that exists is removed.

    Whoever finds `target` finds it whole.
    """
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: str | Path) -> list[dict]:
    """The objects of a file with one JSON object per line.

    Raises:
        ValueError: a line is not a JSON object; the message gives its number.
    """
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number}: expected one JSON object, got {line[:60]!r}."
                )
            rows.append(row)
    return rows


class JsonLines:
    """A file of JSON lines that only grows. A line that a kill left incomplete is dropped.

    Attributes:
        rows: everything in the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        if path.exists():
            content = path.read_bytes()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                with path.open("r+b") as file:
                    file.truncate(complete)
            self.rows = read_json_lines(path)

    def append(self, rows: Iterable[dict]) -> None:
        rows = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.rows += rows
