"""Which file became which row: the private memory of `mvaema.micrographs.build`.

An SQLite file beside (never inside) the dataset. It records every file that a build has met, under
the owner's own names, and every row that the shards hold. What is special about it:
- it is written before a shard gets its name, and its entries count only for shards that exist. So
  ledger and shards agree at the next build, whenever this one is killed;
- a file that cannot be read is remembered too, and is not read again until it or the reader
  changes;
- memory does not grow with the number of files.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mvaema.files import write_csv
from mvaema.micrographs.rows import FileColumns, merge
from mvaema.micrographs.sources import LINK

SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY,   -- the owner's name: a path, or dataset and row
    content TEXT,            -- version of the content that was read last
    reading TEXT,            -- how it was read: options and the reader's version
    run INTEGER,             -- the build that last saw it
    position INTEGER,        -- in its source
    image_id TEXT,           -- null if it never gave a row
    facts TEXT,              -- JSON: what reading it found besides pixels
    columns TEXT,            -- JSON: the columns that it states
    reason TEXT,             -- why it cannot be read now
    message TEXT
)""",
    "CREATE INDEX IF NOT EXISTS files_by_image ON files (image_id)",
    """
CREATE TABLE IF NOT EXISTS rows (
    image_id TEXT PRIMARY KEY,
    shard TEXT,
    columns TEXT             -- as written in the shard
)""",
)

# From the first layout, whose `version` was content, options and stated scale in one. All files
# are read again, because `reading` differs; rows of files that are gone stay as they are.
MIGRATION = (
    "DROP VIEW IF EXISTS owners",
    "DROP INDEX IF EXISTS files_by_image",
    "ALTER TABLE files RENAME TO files_before",
    *SCHEMA,
    """
INSERT INTO files
    SELECT name, substr(version, 1, instr(version, ' ReadOptions(') - 1), version, run, position,
        image_id, NULL, columns, reason, message FROM files_before""",
    "DROP TABLE files_before",
)

# What a row should be now, from all files with its pixels; made by `Ledger.settle`.
OWNERS = """
CREATE TEMP TABLE owners (
    image_id TEXT PRIMARY KEY,
    name TEXT,               -- the first of its files
    columns TEXT,            -- JSON, as `rows.columns`
    contradictions TEXT      -- columns about which its files contradict each other, or null
)"""


@dataclass(frozen=True)
class FileVersion:
    """What was read, and how; a file is read again when either changes.

    Attributes:
        content: of the file and its sidecars.
        reading: options and version of the reader.
        failing: as `reading`, for a file that cannot be read.
    """

    content: str
    reading: str
    failing: str


class Ledger:
    """The files and rows of one split.

    Args:
        path: of the SQLite file, created when missing.
        shards: names of the shards that exist.

    Raises:
        RuntimeError: another build of this split is running.
        OSError: the file cannot be written, or is not a ledger.
        ValueError: there is a shard that no build recorded.
    """

    def __init__(self, path: Path, shards: set[str]):
        with usable(path):
            self._db = sqlite3.connect(path, timeout=0)
        try:
            with usable(path):
                self._open()
            self._check_shards(path, shards)
        except BaseException:
            self._db.close()
            raise
        (last,) = self._db.execute("SELECT COALESCE(MAX(run), 0) FROM files").fetchone()
        self.run = last + 1
        self._db.commit()

    def _open(self):
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("BEGIN EXCLUSIVE")
        before = {column[1] for column in self._db.execute("PRAGMA table_info(files)")}
        for statement in MIGRATION if "version" in before else SCHEMA:
            self._db.execute(statement)
        self._db.execute("PRAGMA user_version = 2")  # written: a read-only file is found out now
        self._db.commit()

    def _check_shards(self, path: Path, shards: set[str]):
        recorded = {shard for (shard,) in self._db.execute("SELECT DISTINCT shard FROM rows")}
        if unknown := sorted(shards - recorded):
            raise ValueError(
                f"{', '.join(unknown)}: no build recorded in {path} wrote this. Building here "
                "would lose its rows; build into an empty folder."
            )
        for shard in recorded - shards:  # removed since, or never published
            self._db.execute("DELETE FROM rows WHERE shard = ?", (shard,))

    def close(self):
        """Keep what was committed, and release the file for another build."""
        self._db.close()

    def unchanged(self, name: str, version: FileVersion) -> tuple[str, dict] | None:
        """Image id and facts of a file that gave a row and need not be read again, else None."""
        found = self._db.execute(
            "SELECT image_id, facts FROM files JOIN rows USING (image_id) "
            "WHERE name = ? AND content = ? AND reading = ? AND reason IS NULL",
            (name, version.content, version.reading),
        ).fetchone()
        return found and (found[0], json.loads(found[1]))

    def failed_before(self, name: str, version: FileVersion) -> tuple[str, str] | None:
        """(reason, message) of a file that could not be read and has not changed, else None."""
        return self._db.execute(
            "SELECT reason, message FROM files "
            "WHERE name = ? AND content = ? AND reading = ? AND reason IS NOT NULL",
            (name, version.content, version.failing),
        ).fetchone()

    def record_read(
        self,
        name: str,
        version: FileVersion,
        position: int,
        image_id: str,
        facts: dict,
        columns: dict,
    ):
        """Record a file that is, or will be, in the dataset."""
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (
                *(name, version.content, version.reading, self.run, position, image_id),
                *(to_json(facts), to_json(columns)),
            ),
        )

    def record_failed(
        self,
        name: str,
        position: int,
        reason: str,
        message: str,
        version: FileVersion | None = None,
        refused: bool = False,
    ):
        """Record a file that cannot be read now.

        A row that it gave before stays, since the file may be whole again tomorrow. It does not
        stay if the same content was read then, and the reader refuses it now.

        Args:
            version: remembers the failure (`failed_before`); without it the file is read again.
            refused: what the file holds is no micrograph; it is not damaged or missing.
        """
        content, failing = (version.content, version.failing) if version else (None, None)
        self._db.execute(
            "INSERT INTO files (name, content, reading, run, position, reason, message) "
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (name) DO UPDATE SET "
            "image_id = CASE WHEN ?8 AND content IS excluded.content THEN NULL ELSE image_id END, "
            "columns = CASE WHEN ?8 AND content IS excluded.content THEN NULL ELSE columns END, "
            "content = COALESCE(excluded.content, content), reading = excluded.reading, "
            "run = excluded.run, position = excluded.position, reason = excluded.reason, "
            "message = excluded.message",
            (name, content, failing, self.run, position, reason, message, refused),
        )

    def record_link(self, name: str, position: int, message: str):
        """Record a link to what the source holds itself; it gives no row and no labels."""
        self._db.execute("DELETE FROM files WHERE name = ?", (name,))
        self.record_failed(name, position, LINK, message)

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

    def settle(self, prune: bool):
        """After all files: what each row should be now, from the files with its pixels.

        Files that this run has not seen are forgotten (`prune`) or put last. Failures that were
        not seen are forgotten in any case; they have no row.
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
        self._db.execute("DROP TABLE IF EXISTS temp.owners")
        self._db.execute(OWNERS)
        self._db.executemany("INSERT INTO owners VALUES (?, ?, ?, ?)", self._owners())
        self._db.commit()

    def _owners(self) -> Iterator[tuple[str, str, str, str | None]]:
        query = (
            "SELECT image_id, name, run = ?, columns FROM files WHERE image_id IS NOT NULL "
            "ORDER BY image_id, position"
        )
        for image_id, group in groupby(self._db.execute(query, (self.run,)), lambda row: row[0]):
            files = list(group)
            stated = [FileColumns(json.loads(row[3]), bool(row[2])) for row in files]
            columns, contradictions = merge(image_id, stated)
            yield image_id, files[0][1], to_json(columns), " and ".join(contradictions) or None

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

        The status is `row` (the first file with its pixels), `duplicate` (another file is the
        first; the message names it), `link`, `failed`, or `missing` (not in the source any more).
        """
        query = (
            "SELECT files.name, CASE WHEN run < :run THEN 'missing' "
            "WHEN reason = :link THEN 'link' WHEN reason IS NOT NULL THEN 'failed' "
            "WHEN owners.name = files.name THEN 'row' ELSE 'duplicate' END, "
            "files.image_id, files.columns, reason, COALESCE(message, concat_notes("
            "CASE WHEN owners.name <> files.name THEN 'same pixels as ' || owners.name END, "
            "'files with these pixels contradict each other about ' || contradictions "
            "|| ', which the row leaves out')) "
            "FROM files LEFT JOIN owners USING (image_id) ORDER BY files.position"
        )
        self._db.create_function("concat_notes", -1, _notes, deterministic=True)
        return self._db.execute(query, {"run": self.run, "link": LINK})

    def count_rows(self, column: str | None = None) -> int:
        """Rows that the shards hold; with `column`, those in which it is not null."""
        query = "SELECT COUNT(*) FROM rows"
        if column is not None:
            query += " WHERE json_extract(columns, '$.' || ?) IS NOT NULL"
        (count,) = self._db.execute(query, () if column is None else (column,)).fetchone()
        return count

    def count_facts(self, fact: str) -> Counter:
        """Value of a fact -> number of rows for which a file states it."""
        query = (
            "SELECT json_extract(facts, '$.' || ?) AS value, COUNT(DISTINCT image_id) "
            "FROM files JOIN rows USING (image_id) WHERE value IS NOT NULL GROUP BY value"
        )
        return Counter(dict(self._db.execute(query, (fact,))))

    def count_sidecars(self) -> Counter:
        """Suffix -> number of sidecars that were read with the micrographs of this run."""
        query = (
            "SELECT lower(substr(sidecar, -4)), COUNT(DISTINCT sidecar) FROM "
            "(SELECT json_extract(facts, '$.sidecar') AS sidecar FROM files "
            "WHERE run = ? AND reason IS NULL) WHERE sidecar IS NOT NULL GROUP BY 1"
        )
        return Counter(dict(self._db.execute(query, (self.run,))))

    def count_contradictions(self) -> Counter:
        """Column -> number of rows that leave it out because their files contradict each other."""
        query = "SELECT contradictions FROM owners WHERE contradictions IS NOT NULL"
        counts = Counter()
        for (columns,) in self._db.execute(query):
            counts.update(columns.split(" and "))
        return counts

    def write_csv(self, path: Path):
        """Write a table of all files and their statuses, for the owner."""
        stated = ("category", "group", "pixel_size_nm")

        def lines() -> Iterator[list]:
            for name, status, image_id, columns, reason, message in self.statuses():
                columns = json.loads(columns) if columns else {}
                yield [name, status, image_id, *map(columns.get, stated), reason, message]

        write_csv(path, ("file", "status", "image_id", *stated, "reason", "detail"), lines())


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Errors of SQLite, while a ledger is in use, as those that `Ledger` raises."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise RuntimeError(
                f"{path} is in use ({error}); wait until the other build has ended."
            ) from None
        raise OSError(
            f"{path} cannot be used ({error}). A build must be able to write this file and its "
            "folder: check permissions and free space."
        ) from error


def _notes(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None


def to_json(value: dict) -> str:
    """The one spelling of a JSON object in the ledger: equal objects are equal texts."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
