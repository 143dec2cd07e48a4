"""The journals of many shards to one, to resume from or to export."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from mvaema.teacher.journal import (
    Journal,
    JournalError,
    PreparedImage,
    absent_images,
    add_images,
    journal_name,
    journals,
)
from mvaema.teacher.replies import VERDICT_COLUMNS, Reply

CHUNK = 1000


def merge(target: Path, folders: list[Path]) -> int:
    """Copy the images and all attempts of other output folders into one.

    No reply is lost or copied twice, so a merge can be repeated: after an interruption, or when the
    shards have more replies. Two attempts at the same question are both kept. Labels are those of
    the last folder that has the image; an image is absent where it is absent in all folders.

    Returns:
        the number of replies copied.

    Raises:
        JournalError: a folder has no journal, one of another configuration, or an open batch.
        OSError: the disk is full.
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
    absent, copied = set(), 0
    for path in found:
        with Journal(path, configuration, read_only=True) as part, closing(part.snapshot()) as now:
            absent |= absent_images(now)
    with Journal(target / journal_name(0, 1), configuration) as merged:
        for path in tqdm(found, unit=" journals"):
            with Journal(path, configuration, read_only=True) as part:
                copied += _copy(part, merged, absent)
        with merged.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO absent VALUES (?)", [[name] for name in absent])
    return copied


def _copy(part: Journal, merged: Journal, absent: set[str]) -> int:
    """Copy one journal, and take what is there from the images that are absent in some part."""
    with closing(part.snapshot()) as snapshot:
        if part.open_batches():
            raise JournalError(
                f"{part.path}: a batch is still open. Rerun its command with --batch until the "
                "batch is collected, then merge."
            )
        absent_here = absent_images(snapshot)
        images = snapshot.execute("SELECT * FROM images")
        while rows := images.fetchmany(CHUNK):
            prepared = [PreparedImage(**dict(row)) for row in rows]
            absent -= {image.image_id for image in prepared} - absent_here
            for image in prepared:
                _link(part.folder / image.file, merged.folder / image.file)
            with merged.transaction() as db:
                _add(db, prepared, absent_here)
        sources = snapshot.execute("SELECT * FROM sources WHERE image_id IS NOT NULL")
        while rows := sources.fetchmany(CHUNK):
            with merged.transaction() as db:
                db.executemany("INSERT OR IGNORE INTO sources VALUES (?, ?)", map(tuple, rows))
        return _copy_replies(snapshot, merged)


def _add(db: sqlite3.Connection, images: list[PreparedImage], absent: set[str]):
    """Add images. The labels of those that are absent in their part are no news."""
    for image in images:
        known = db.execute("SELECT 1 FROM images WHERE image_id = ?", [image.image_id]).fetchone()
        if image.image_id not in absent or not known:
            add_images(db, [image])
        if image.image_id not in absent:
            db.execute("DELETE FROM absent WHERE image_id = ?", [image.image_id])


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
    """Hard-link a file, or copy it where the disk has no links. One that is missing is left out:
    the export counts it, and the next run prepares it again."""
    if target.exists() or not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
