"""The journal of one run (or one shard of it): every reply, raw, in SQLite.

What is special about it:
- a reply is committed (WAL, synchronous FULL) before anything reads it, so a process that dies
  at any moment loses at most the requests in flight;
- nothing is ever deleted or overwritten: a question asked again has two attempts;
- a lock keeps a second run off the same journal, and a ballast file keeps room on the disk for
  the replies that are in flight when it fills up.

SQLite's WAL needs a local disk: put the output folder on one, not on a network share.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mvaema.teacher.replies import READ_COLUMNS, Reading

BALLAST_BYTES = 16 * 2**20

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
-- Which image a source turned out to be, null when it is another shard's; `source` is a hash,
-- never a file name.
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, image_id TEXT);
CREATE TABLE IF NOT EXISTS images (
    image_id TEXT PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    category TEXT, caption TEXT, pixel_size_nm REAL, scale_bar TEXT, "group" TEXT,
    source TEXT, licence TEXT);
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL, image_id TEXT NOT NULL, question_id TEXT NOT NULL,
    attempt INTEGER NOT NULL, asked_at REAL NOT NULL, latency_s REAL,
    status INTEGER, request_id TEXT, batch TEXT, problem TEXT,
    -- Filled in when the reply is read; NULL until then.
    outcome TEXT, settled INTEGER, finish_reason TEXT, returned_model TEXT,
    prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
    raw BLOB,  -- last, so that SQLite need not walk over it to the columns before
    UNIQUE (fingerprint, attempt));
CREATE INDEX IF NOT EXISTS replies_of_an_image
    ON replies (image_id, question_id, attempt, outcome, settled, fingerprint);
CREATE INDEX IF NOT EXISTS unread ON replies (id) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS batches (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, worst_cost REAL,
    file_id TEXT, batch_id TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS batch_questions (
    batch TEXT NOT NULL, fingerprint TEXT NOT NULL, attempt INTEGER NOT NULL,
    image_id TEXT NOT NULL, question_id TEXT NOT NULL,
    PRIMARY KEY (batch, fingerprint)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting_of_an_image ON batch_questions (image_id);
"""


class JournalError(RuntimeError):
    """The output folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Question:
    """One question about one image, as it is asked: the same fingerprint, the same request."""

    fingerprint: str
    image_id: str
    question_id: str
    text: str  # the rendered prompt
    file: Path  # the prepared image
    size: tuple[int, int]  # of the prepared image, (width, height) in pixels
    attempt: int = 1


@dataclass(frozen=True)
class Reply:
    """What came back for one attempt, before anybody read it.

    `status` and `raw` are the HTTP status and body; without a response both are None and
    `problem` says what happened (`timeout`, `dropped`, `unreachable`).
    """

    fingerprint: str
    image_id: str
    question_id: str
    attempt: int
    asked_at: float  # Unix time in seconds
    latency_s: float | None
    status: int | None = None
    request_id: str | None = None
    batch: str | None = None
    problem: str | None = None
    raw: bytes | None = None


@dataclass(frozen=True)
class PreparedImage:
    """A row of `images`: the prepared file and what is known about the micrograph."""

    image_id: str
    file: str  # relative to the output folder
    sha256: str  # of the file's bytes
    width: int
    height: int
    category: str | None = None
    caption: str | None = None
    pixel_size_nm: float | None = None
    scale_bar: str | None = None
    group: str | None = None
    source: str | None = None
    licence: str | None = None


def _is_full(error: sqlite3.Error) -> bool:
    # The memory map of the WAL index reports a full disk as an I/O error.
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def journal_name(shard: int, shards: int) -> str:
    """File name of the journal of shard `shard` of `shards` (from 0)."""
    return f"journal-{shard:05d}-of-{shards:05d}.sqlite"


def journals(folder: Path) -> list[Path]:
    """The journals in an output folder, by shard."""
    return sorted(folder.glob("journal-*-of-*.sqlite"))


class Journal:
    """One SQLite file. Safe to use from several threads of one process.

    Args:
        path: the file; created with its folder when missing.
        configuration: what makes answers comparable (model, sampling, prompt, preparation). A
            journal with answers under another one is refused. None opens whatever is there.
        read_only: open without lock and ballast, to read while another process writes.

    Raises:
        JournalError: the folder cannot be written, is in use by another run, or holds the
            journal of another configuration.
    """

    def __init__(self, path: Path, configuration: dict | None = None, *, read_only: bool = False):
        self.path = path
        self.folder = path.parent
        self._ballast = path.with_suffix(".ballast")
        self._lock = None
        self._mutex = threading.Lock()
        try:
            if read_only:
                self._db = self._connect(f"{path.resolve().as_uri()}?mode=ro")
                self._db.execute("SELECT 1 FROM meta")  # a journal, and begun
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                self._db = self._connect(path.resolve().as_uri())
                self._create()
                self._refill_ballast()
        except (OSError, sqlite3.Error) as error:
            self._release_lock()
            raise JournalError(
                f"{path}: the journal cannot be opened ({error}); --output must be a folder on a "
                "local disk with free space that you may write to."
            ) from error
        try:
            self._check(configuration)
        except JournalError:
            self.close()
            raise

    def _connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _create(self):
        mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise OSError(f"the disk does not support SQLite's WAL, the mode is {mode}")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(TABLES)

    def _take_lock(self):
        self._lock = self.path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise JournalError(
                f"{self.path}: another run is writing this journal; wait for it, or give this one "
                "its own --shard or --output."
            ) from None

    def _release_lock(self):
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check(self, configuration: dict | None):
        recorded = self.configuration
        if configuration is None or recorded == configuration:
            return
        if recorded is not None and self.query(HAS_ANSWERS)[0][0]:
            names = [
                f"{name}: {recorded.get(name)!r} there, {configuration.get(name)!r} now"
                for name in sorted({*recorded, *configuration})
                if recorded.get(name) != configuration.get(name)
            ]
            raise JournalError(
                f"{self.path} holds answers of another configuration ({'; '.join(names)}); use "
                "the same settings to go on with it, or another --output."
            )
        # Nothing was answered under the old one (a wrong model name, say): begin again.
        with self.transaction() as db:
            db.execute("DELETE FROM images")
            db.execute("DELETE FROM sources")
            db.execute(
                "INSERT OR REPLACE INTO meta VALUES ('configuration', ?)",
                [json.dumps(configuration)],
            )

    @property
    def configuration(self) -> dict | None:
        """What the journal was begun with; None for a new one."""
        rows = self.query("SELECT value FROM meta WHERE key = 'configuration'")
        return json.loads(rows[0][0]) if rows else None

    def close(self):
        with self._mutex:
            self._db.close()
        self._release_lock()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception):
        self.close()

    # --- transactions

    def transaction(self) -> "_Transaction":
        """A context in which statements are committed together, or not at all."""
        return _Transaction(self._db, self._mutex)

    def query(self, sql: str, parameters: Iterable = ()) -> list[sqlite3.Row]:
        """All rows of a small result."""
        with self._mutex:
            return self._db.execute(sql, tuple(parameters)).fetchall()

    def snapshot(self) -> sqlite3.Connection:
        """A second, read-only connection that sees the journal as it is now, whatever is written
        meanwhile. The caller closes it."""
        connection = self._connect(f"{self.path.resolve().as_uri()}?mode=ro")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM meta").fetchone()  # the snapshot starts here
        return connection

    # --- the disk

    def _refill_ballast(self):
        if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
            return
        # Random bytes, since some disks compress.
        with self._ballast.open("wb") as file:
            file.write(os.urandom(BALLAST_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def record(self, replies: list[Reply], readings: list[tuple[Reply, Reading]] = ()):
        """Commit replies as they came, and what was read from earlier ones, in one transaction.

        Raises:
            JournalError: the disk is full. The replies are committed all the same, in the room
                that the ballast held; the run must stop.
        """
        try:
            self._record(replies, readings)
        except sqlite3.OperationalError as error:
            if not _is_full(error) or not self._ballast.exists():
                raise
            self._ballast.unlink()
            self._record(replies, readings)
            raise self._disk_full(error) from error

    def _disk_full(self, error: Exception) -> JournalError:
        return JournalError(
            f"{self.folder}: the disk is full ({error}). All replies so far are in the journal; "
            "free some space and run the same command again."
        )

    def _record(self, replies, readings):
        with self.transaction() as db:
            db.executemany(
                "INSERT INTO replies (fingerprint, image_id, question_id, attempt, asked_at, "
                "latency_s, status, request_id, batch, problem, raw) VALUES (:fingerprint, "
                ":image_id, :question_id, :attempt, :asked_at, :latency_s, :status, :request_id, "
                ":batch, :problem, :raw)",
                [vars(reply) for reply in replies],
            )
            db.executemany(
                f"UPDATE replies SET {', '.join(f'{name} = :{name}' for name in READ_COLUMNS)} "
                "WHERE fingerprint = :fingerprint AND attempt = :attempt",
                [
                    {
                        **reading.columns(),
                        "fingerprint": reply.fingerprint,
                        "attempt": reply.attempt,
                    }
                    for reply, reading in readings
                ],
            )

    def read_unread(self, read: Callable[[Reply], Reading]) -> int:
        """Read replies that were committed by a process that died before reading them."""
        fields = ", ".join(Reply.__dataclass_fields__)
        rows = self.query(f"SELECT {fields} FROM replies WHERE outcome IS NULL")
        replies = [Reply(**dict(row)) for row in rows]
        self.record([], [(reply, read(reply)) for reply in replies])
        return len(replies)

    # --- images

    def known_source(self, source: str) -> sqlite3.Row | None:
        """The row of `sources` for a source that was prepared before."""
        rows = self.query("SELECT * FROM sources WHERE source = ?", [source])
        return rows[0] if rows else None

    def add_source(self, source: str, image: PreparedImage | None):
        """Record what a source turned out to be; an image that is there already stays as it is.

        Raises:
            JournalError: the disk is full.
        """
        try:
            with self.transaction() as db:
                values = [source, image and image.image_id]
                db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", values)
                if image is not None:
                    add_images(db, [image])
        except sqlite3.OperationalError as error:
            if not _is_full(error):
                raise
            raise self._disk_full(error) from error

    def forget_seen(self):
        """Begin a new pass over the sources."""
        with self._mutex:
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (image_id TEXT PRIMARY KEY)")
            self._db.execute("DELETE FROM seen")

    def first_sight(self, image_id: str) -> bool:
        """Whether this pass meets the image for the first time. Kept in a temporary table, since
        a million ids are too many to hold in memory."""
        with self._mutex:
            done = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [image_id])
            return done.rowcount == 1

    def image(self, image_id: str) -> PreparedImage:
        """A prepared image by its id."""
        [row] = self.query("SELECT * FROM images WHERE image_id = ?", [image_id])
        return PreparedImage(**dict(row))

    # --- questions

    def attempts(self, image_id: str) -> dict[str, list[sqlite3.Row]]:
        """Fingerprint to the attempts (id, attempt, outcome, settled), in order, of one image."""
        found: dict[str, list[sqlite3.Row]] = {}
        for row in self.query(
            "SELECT fingerprint, id, attempt, outcome, settled FROM replies WHERE image_id = ? "
            "ORDER BY attempt",
            [image_id],
        ):
            found.setdefault(row["fingerprint"], []).append(row)
        return found

    def waiting(self, image_id: str) -> set[str]:
        """Fingerprints of an image's questions that are in a batch at the provider."""
        rows = self.query("SELECT fingerprint FROM batch_questions WHERE image_id = ?", [image_id])
        return {row[0] for row in rows}

    def last_id(self) -> int:
        """Id of the newest reply, 0 when there is none."""
        return self.query("SELECT coalesce(max(id), 0) FROM replies")[0][0]

    def counts(self) -> dict[str, int]:
        """Outcome to the number of questions that have it (the attempt that counts)."""
        attempts = COUNTING_ATTEMPTS.format(
            columns="outcome", where="image_id IN (SELECT image_id FROM images)"
        )
        rows = self.query(f"SELECT outcome, count(*) FROM ({attempts}) GROUP BY outcome")
        return {row[0]: row[1] for row in rows}


# A completion, or a batch that may bring some.
HAS_ANSWERS = """
SELECT EXISTS (SELECT 1 FROM replies WHERE outcome IS NULL OR outcome != 'error')
    OR EXISTS (SELECT 1 FROM batches WHERE state != 'done')
"""

# The attempt that counts for each question: the last `ok`, else the last settled one, else the
# last. `max()` in SQLite takes the other columns from the row that holds the maximum.
COUNTING_ATTEMPTS = """
SELECT {columns}, max((outcome = 'ok') * 1000000 + coalesce(settled, 0) * 1000 + attempt) AS rank
FROM replies WHERE outcome IS NOT NULL AND {where} GROUP BY image_id, question_id
"""


def add_images(db: sqlite3.Connection, images: Iterable[PreparedImage]):
    """Insert images that are not there yet."""
    names = list(PreparedImage.__dataclass_fields__)
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join(f":{name}" for name in names)
    db.executemany(
        f"INSERT OR IGNORE INTO images ({columns}) VALUES ({marks})",
        (vars(image) for image in images),
    )


class _Transaction:
    def __init__(self, db: sqlite3.Connection, mutex: threading.Lock):
        self._db, self._mutex = db, mutex

    def __enter__(self) -> sqlite3.Connection:
        self._mutex.acquire()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._mutex.release()
            raise
        return self._db

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._mutex.release()


def rows_in_order(connection: sqlite3.Connection) -> Iterator[tuple[PreparedImage, list]]:
    """Each image with the replies that count, one image in memory at a time."""
    for row in connection.execute("SELECT * FROM images ORDER BY image_id"):
        image = PreparedImage(**dict(row))
        replies = connection.execute(
            COUNTING_ATTEMPTS.format(columns="*", where="image_id = ?"), [image.image_id]
        ).fetchall()
        yield image, replies
