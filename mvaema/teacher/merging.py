"""The journals of many shards to one, to resume from or to export."""

import os
import shutil
from pathlib import Path

from tqdm import tqdm

from mvaema.teacher.journal import (
    Journal,
    JournalError,
    PreparedImage,
    add_images,
    journal_name,
    journals,
)
from mvaema.teacher.replies import VERDICT_COLUMNS, Reply

CHUNK = 1000


def merge(target: Path, folders: list[Path]) -> int:
    """Copy the images and all attempts of other output folders into one.

    What is there already stays, so a merge can be repeated: after an interruption, or when the
    shards have more replies. Two attempts at the same question are both kept.

    Returns:
        the number of replies copied.

    Raises:
        JournalError: a folder has no journal, one of another configuration, or an open batch.
        OSError: an image is missing or the disk is full.
    """
    found = []
    for folder in folders:
        if folder.resolve() == target.resolve():
            raise JournalError(f"{folder}: --output_dir must not be one of --parts.")
        paths = journals(folder)
        if not paths:
            raise JournalError(f"{folder} holds no journal of the teacher. Check --parts.")
        found += paths
    with Journal(found[0], read_only=True) as first:
        configuration = first.configuration
    copied = 0
    with Journal(target / journal_name(0, 1), configuration) as merged:
        for path in tqdm(found, unit=" journals"):
            with Journal(path, configuration, read_only=True) as part:
                copied += _copy(part, merged)
    return copied


def _copy(part: Journal, merged: Journal) -> int:
    snapshot = part.snapshot()
    try:
        if part.open_batches():
            raise JournalError(
                f"{part.path}: a batch is still open. Rerun its command with --batch until the "
                "batch is collected, then merge."
            )
        images = snapshot.execute("SELECT * FROM images")
        while rows := images.fetchmany(CHUNK):
            prepared = [PreparedImage(**dict(row)) for row in rows]
            for image in prepared:
                _link(part.folder / image.file, merged.folder / image.file)
            with merged.transaction() as db:
                add_images(db, prepared)
        sources = snapshot.execute("SELECT * FROM sources WHERE image_id IS NOT NULL")
        while rows := sources.fetchmany(CHUNK):
            with merged.transaction() as db:
                db.executemany("INSERT OR IGNORE INTO sources VALUES (?, ?)", map(tuple, rows))
        return _copy_replies(snapshot, merged)
    finally:
        snapshot.close()


def _copy_replies(snapshot, merged: Journal) -> int:
    names = [*Reply.__dataclass_fields__, *VERDICT_COLUMNS]
    columns, marks = ", ".join(names), ", ".join(f":{name}" for name in names)
    replies = snapshot.execute(f"SELECT {columns} FROM replies ORDER BY id")
    copied = 0
    while rows := replies.fetchmany(CHUNK):
        with merged.transaction() as db:
            for row in map(dict, rows):
                there = db.execute(
                    "SELECT attempt, asked_at FROM replies WHERE fingerprint = ?",
                    [row["fingerprint"]],
                ).fetchall()
                if any(other["asked_at"] == row["asked_at"] for other in there):
                    continue
                if any(other["attempt"] == row["attempt"] for other in there):
                    row["attempt"] = max(other["attempt"] for other in there) + 1
                db.execute(f"INSERT INTO replies ({columns}) VALUES ({marks})", row)
                copied += 1
    return copied


def _link(source: Path, target: Path):
    """Hard-link a file, or copy it where the disk has no links."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source}: the prepared image is gone. Restore it, then merge again."
        ) from None
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
