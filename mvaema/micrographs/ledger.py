"""Which file became which row: the private memory of `mvaema.micrographs.build`.

An SQLite file beside (never inside) the dataset. It records every file that a build has met, under
the owner's own names, and every row that the shards hold. What is special about it:
- it is written before a shard gets its name, and its entries count only for shards that exist. So
  ledger and shards agree at the next build, whenever this one is killed;
- memory does not grow with the number of files.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mvaema.files import write_csv

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY,   -- the owner's name: a path, or dataset and row
    version TEXT,            -- of the content that image_id was read from
    run INTEGER,             -- the build that last saw it
    position INTEGER,        -- in its source; the first file with given pixels gives the row
    image_id TEXT,           -- null if it was never read
    pixel_size_nm REAL,
    columns TEXT,            -- JSON: the row without its image
    reason TEXT,             -- why it cannot be read now
    message TEXT
);
CREATE INDEX IF NOT EXISTS files_by_image ON files (image_id);
CREATE TABLE IF NOT EXISTS rows (
    image_id TEXT PRIMARY KEY,
    shard TEXT,
    columns TEXT             -- as written in the shard
);
-- SQLite takes the other columns from the row that holds the minimum.
CREATE VIEW IF NOT EXISTS owners AS
    SELECT image_id, name, columns, MIN(position) FROM files
    WHERE image_id IS NOT NULL GROUP BY image_id;
"""


class Ledger:
    """The files and rows of one split.

    Args:
        path: of the SQLite file, created when missing.
        shards: names of the shards that exist.

    Raises:
        RuntimeError: another build of this split is running.
        ValueError: there is a shard that no build recorded.
    """

    def __init__(self, path: Path, shards: set[str]):
        self._db = sqlite3.connect(path, timeout=0)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise RuntimeError(
                f"{path} is in use ({error}); wait until the other build has ended."
            ) from None
        self._db.executescript(SCHEMA)
        recorded = {shard for (shard,) in self._db.execute("SELECT DISTINCT shard FROM rows")}
        if unknown := sorted(shards - recorded):
            self._db.close()
            raise ValueError(
                f"{', '.join(unknown)}: no build recorded in {path} wrote this. Building here "
                "would lose its rows; build into an empty folder."
            )
        for shard in recorded - shards:  # removed since, or never published
            self._db.execute("DELETE FROM rows WHERE shard = ?", (shard,))
        (last,) = self._db.execute("SELECT COALESCE(MAX(run), 0) FROM files").fetchone()
        self.run = last + 1
        self._db.commit()

    def close(self):
        """Keep what was committed, and release the file for another build."""
        self._db.close()

    def unchanged(self, name: str, version: str) -> tuple[str, float | None] | None:
        """Image id and pixel size of a file that need not be read again, else None."""
        return self._db.execute(
            "SELECT image_id, pixel_size_nm FROM files JOIN rows USING (image_id) "
            "WHERE name = ? AND version = ?",
            (name, version),
        ).fetchone()

    def record_read(
        self,
        name: str,
        version: str,
        position: int,
        image_id: str,
        pixel_size_nm: float | None,
        columns: str,
    ):
        """Record a file that is, or will be, in the dataset."""
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (name, version, self.run, position, image_id, pixel_size_nm, columns),
        )

    def record_failed(self, name: str, position: int, reason: str, message: str):
        """Record a file that cannot be read now; a row it gave before stays."""
        self._db.execute(
            "INSERT INTO files (name, run, position, reason, message) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET version = NULL, run = excluded.run, "
            "position = excluded.position, reason = excluded.reason, message = excluded.message",
            (name, self.run, position, reason, message),
        )

    def has_row(self, image_id: str) -> bool:
        """Whether a shard holds these pixels."""
        query = "SELECT 1 FROM rows WHERE image_id = ?"
        return self._db.execute(query, (image_id,)).fetchone() is not None

    def record_shard(self, shard: str, rows: dict[str, str]):
        """Commit that a shard holds these rows (image id -> columns)."""
        self._db.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
            ((image_id, shard, columns) for image_id, columns in rows.items()),
        )
        self._db.commit()

    def close_run(self, prune: bool):
        """Settle the files that this run has not seen: forget them (`prune`), or put them last.

        Failures that were not seen are forgotten in any case; they have no row.
        """
        self._db.execute("DELETE FROM files WHERE run < ? AND image_id IS NULL", (self.run,))
        if prune:
            self._db.execute("DELETE FROM files WHERE run < ?", (self.run,))
        else:
            self._db.execute(
                "UPDATE files SET position = (SELECT MAX(position) FROM files) + rowid "
                "WHERE run < ?",
                (self.run,),
            )
        self._db.commit()

    def stale_shards(self) -> list[str]:
        """Shards that hold rows of no file any more, or rows whose columns have changed."""
        query = (
            "SELECT DISTINCT shard FROM rows LEFT JOIN owners USING (image_id) "
            "WHERE owners.columns IS NOT rows.columns ORDER BY shard"
        )
        return [shard for (shard,) in self._db.execute(query)]

    def wanted(self, shard: str) -> dict[str, str]:
        """The rows that a shard should hold: image id -> columns."""
        query = (
            "SELECT image_id, owners.columns FROM rows JOIN owners USING (image_id) WHERE shard = ?"
        )
        return dict(self._db.execute(query, (shard,)))

    def replace_shard(self, shard: str, rows: dict[str, str]):
        """Commit that a shard now holds these rows and no others."""
        self._db.execute("DELETE FROM rows WHERE shard = ?", (shard,))
        self.record_shard(shard, rows)

    def statuses(self) -> Iterator[tuple]:
        """(name, status, image id, columns, reason, message) of every file, in order.

        The status is `row` (the file gave the dataset's row), `duplicate` (another file gave it;
        the message names that file), `failed`, or `missing` (not in the source any more).
        """
        query = (
            "SELECT files.name, CASE WHEN run < ? THEN 'missing' "
            "WHEN reason IS NOT NULL THEN 'failed' WHEN owners.name = files.name THEN 'row' "
            "ELSE 'duplicate' END AS status, files.image_id, files.columns, reason, "
            "COALESCE(message, CASE WHEN owners.name <> files.name "
            "THEN 'same pixels as ' || owners.name END) "
            "FROM files LEFT JOIN owners USING (image_id) ORDER BY files.position"
        )
        return self._db.execute(query, (self.run,))

    def count_rows(self) -> int:
        """Rows that the shards hold."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM rows").fetchone()
        return count

    def write_csv(self, path: Path):
        """Write a table of all files and their statuses, for the owner."""

        def lines() -> Iterator[list]:
            for name, status, image_id, columns, reason, message in self.statuses():
                columns = json.loads(columns) if columns else {}
                category, group = columns.get("category"), columns.get("group")
                yield [name, status, image_id, category, group, reason, message]

        header = ("file", "status", "image_id", "category", "group", "reason", "detail")
        write_csv(path, header, lines())
