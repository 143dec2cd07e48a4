"""Files that are there whole or not at all, whatever kills the process that writes them."""

import json
import os
import uuid
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
