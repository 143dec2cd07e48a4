"""Files that survive a kill: written whole or not at all, or line by line.

Every stage writes its files through this module.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """The whole file or none of it, also when another process writes the same one."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: dict) -> None:
    """As `write_text`; NaN and infinity are refused, which JSON does not know."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
