"""The journal of one run, or of one shard of it: every reply, raw, in SQLite.

What is special about it:
- a reply is committed before anything reads it, so a process that dies at any moment loses at
  most the requests in flight;
- no reply is deleted or overwritten: a question that is asked again has two attempts;
- images follow their sources: labels are those of the last pass over them, and an image that no
  source is any more is marked, with all its replies kept;
- sources are known by hashes only; no file name of the lab is in it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mvaema.teacher.durable import DurableDatabase, JournalError, commits_made
from mvaema.teacher.replies import VERDICT_COLUMNS, Reply, Verdict

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
-- Which image a source turned out to be; null when it belongs to another shard. `source` is a
-- hash, never a file name.
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, image_id TEXT);
CREATE TABLE IF NOT EXISTS images (
    image_id TEXT PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    category TEXT, caption TEXT, pixel_size_nm REAL, scale_bar TEXT, "group" TEXT,
    source TEXT, licence TEXT, labelled_by TEXT);
-- Images that no source was in the last complete pass.
CREATE TABLE IF NOT EXISTS absent (image_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replies (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL, image_id TEXT NOT NULL, question_id TEXT NOT NULL,
    attempt INTEGER NOT NULL, asked_at REAL NOT NULL, latency_s REAL,
    status INTEGER, request_id TEXT, batch TEXT, problem TEXT,
    -- The verdict; NULL until the reply is judged.
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

# A completion, or a batch that may bring some.
HAS_ANSWERS = """
SELECT EXISTS (SELECT 1 FROM replies WHERE outcome IS NULL OR outcome != 'error')
    OR EXISTS (SELECT 1 FROM batches WHERE state NOT IN ('collected', 'done'))
"""

# The attempt that counts for each question: the last `ok`, else the last settled one, else the
# last. `max()` in SQLite takes the other columns from the row that holds the maximum.
COUNTING_ATTEMPTS = """
SELECT {columns}, max((outcome = 'ok') * 1000000 + coalesce(settled, 0) * 1000 + attempt) AS rank
FROM replies WHERE outcome IS NOT NULL AND {where} GROUP BY image_id, question_id
"""


@dataclass(frozen=True)
class Question:
    """One question about one image. Two with the same fingerprint are the same request."""

    fingerprint: str
    image_id: str
    question_id: str
    text: str  # the rendered prompt
    file: Path  # the prepared image
    size: tuple[int, int]  # of the prepared image, (width, height) in pixels
    attempt: int = 1


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
    labelled_by: str | None = None  # the source (see `sources`) that stated all of the above


# What a source says about its image, and may say differently later.
LABELS = (
    *("category", "caption", "pixel_size_nm", "scale_bar", "group", "source", "licence"),
    "labelled_by",
)


@dataclass(frozen=True)
class Batch:
    """A row of `batches`: one input file of the Batch API and what became of it."""

    name: str
    state: str  # written (on this disk), uploaded, submitted, collected or done
    worst_cost: float  # US dollars
    file_id: str | None = None  # the provider's id of the input file
    batch_id: str | None = None  # the provider's id of the batch
    status: str | None = None  # as the provider named it last


def journal_name(shard: int, shards: int) -> str:
    """File name of the journal of shard `shard` of `shards` (from 0)."""
    return f"journal-{shard:05d}-of-{shards:05d}.sqlite"


def journals(folder: Path) -> list[Path]:
    """The journals in an output folder, by shard: also those that were there and are gone."""
    found = set(folder.glob("journal-*-of-*.sqlite"))
    locks = [path.with_suffix(".sqlite") for path in folder.glob("journal-*-of-*.lock")]
    return sorted(found | {path for path in locks if commits_made(path)})


def check_not_emptied(path: Path):
    """A folder of images and answers whose journals are all gone must not be begun again.

    Raises:
        JournalError: the folder of `path` holds prepared images or a dataset, and no journal.
    """
    folder = path.parent
    if any(path.exists() and path.stat().st_size for path in (path, *journals(folder))):
        return
    found = [next(folder.glob(name), None) for name in ("images/[0-9a-f][0-9a-f]/*", "dataset/*")]
    for path in filter(None, found):
        raise JournalError(
            f"{folder} holds {path.relative_to(folder)} of an earlier run, but no journal. Put the "
            "journal back, or all answers are asked and paid for again. To begin afresh, use "
            "another --output_dir."
        )


def differences(recorded: dict, configuration: dict) -> list[str]:
    """Where two configurations differ, as text. A setting that only one has was added since."""
    return [
        f"{name}: {recorded[name]!r} there, {configuration[name]!r} now"
        for name in sorted(recorded.keys() & configuration.keys())
        if recorded[name] != configuration[name]
    ]


class Journal(DurableDatabase):
    """What was asked and what came back.

    Args:
        path: the file; created with its folder unless it is there.
        configuration: what makes answers comparable (model, sampling, prompt, preparation). A
            journal with answers under another configuration is refused. None opens any journal.
        read_only: open without lock and ballast, to read while another process writes.

    Raises:
        JournalError: the folder cannot be written, another run is using it, it holds the journal of
            another configuration, or its journal was deleted or is not complete.
    """

    def __init__(self, path: Path, configuration: dict | None = None, *, read_only: bool = False):
        if not read_only:
            check_not_emptied(path)
        super().__init__(path, TABLES, read_only=read_only)
        try:
            self._check(configuration)
        except JournalError:
            self.close()
            raise

    def _create(self, tables: str):
        super()._create(tables)
        if "labelled_by" not in [
            row["name"] for row in self._db.execute("PRAGMA table_info(images)")
        ]:
            self._db.execute(
                "ALTER TABLE images ADD COLUMN labelled_by TEXT"
            )  # by an earlier version

    def _check(self, configuration: dict | None):
        try:
            recorded = self.configuration
        except sqlite3.Error as error:  # opened read-only, and not begun
            raise JournalError(f"{self.path} is not a journal of the teacher ({error}).") from error
        if configuration is None or recorded == configuration:
            return
        names = differences(recorded or {}, configuration)
        if names and self.query(HAS_ANSWERS)[0][0]:
            raise JournalError(
                f"{self.path} holds answers of another configuration ({'; '.join(names)}). Use "
                "the same settings to resume, or another --output_dir."
            )
        if self.read_only:
            return
        with self.transaction() as db:
            if names:  # nothing was answered under these (a wrong model name, say): start over
                for table in ("images", "sources", "absent"):
                    db.execute(f"DELETE FROM {table}")
            db.execute(
                "INSERT OR REPLACE INTO meta VALUES ('configuration', ?)",
                [json.dumps(configuration)],
            )

    @property
    def configuration(self) -> dict | None:
        """What the journal was started with; None for a new one."""
        rows = self.query("SELECT value FROM meta WHERE key = 'configuration'")
        return json.loads(rows[0][0]) if rows else None

    # --- replies

    def record(self, replies: list[Reply], verdicts: list[tuple[Reply, Verdict]] = ()):
        """Commit replies as they came, and verdicts on earlier ones, in one transaction.

        Raises:
            JournalError: the disk is full. The replies are committed all the same, in the room
                that the ballast held; the run must stop.
            sqlite3.Error: the journal cannot be written; nothing was committed.
        """

        def write(db: sqlite3.Connection):
            db.executemany(
                "INSERT INTO replies (fingerprint, image_id, question_id, attempt, asked_at, "
                "latency_s, status, request_id, batch, problem, raw) VALUES (:fingerprint, "
                ":image_id, :question_id, :attempt, :asked_at, :latency_s, :status, :request_id, "
                ":batch, :problem, :raw)",
                [vars(reply) for reply in replies],
            )
            db.executemany(
                f"UPDATE replies SET {', '.join(f'{name} = :{name}' for name in VERDICT_COLUMNS)} "
                "WHERE fingerprint = :fingerprint AND attempt = :attempt",
                [
                    {
                        **verdict.columns(),
                        "fingerprint": reply.fingerprint,
                        "attempt": reply.attempt,
                    }
                    for reply, verdict in verdicts
                ],
            )

        self.commit(write, irreplaceable=True)

    def attempts_at(self, fingerprint: str) -> list[sqlite3.Row]:
        """(attempt, batch, status, problem, raw) of the attempts at a question, in order."""
        return self.query(
            "SELECT attempt, batch, status, problem, raw FROM replies WHERE fingerprint = ? "
            "ORDER BY attempt",
            [fingerprint],
        )

    def has_unjudged(self) -> bool:
        """Whether a process died before it came to judge what it recorded."""
        return bool(self.query("SELECT 1 FROM replies WHERE outcome IS NULL LIMIT 1"))

    def judge_rest(self) -> int:
        """Judge the replies of a process that died before it came to them.

        Returns:
            their number.
        """
        fields = ", ".join(Reply.__dataclass_fields__)
        rows = self.query(f"SELECT {fields} FROM replies WHERE outcome IS NULL")
        replies = [Reply(**dict(row)) for row in rows]
        self.record([], [(reply, reply.judge()) for reply in replies])
        return len(replies)

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

    # --- images

    def known_source(self, source: str) -> sqlite3.Row | None:
        """The row of `sources` for a source that was prepared before."""
        rows = self.query("SELECT * FROM sources WHERE source = ?", [source])
        return rows[0] if rows else None

    def add_source(self, source: str, image_id: str | None, image: PreparedImage | None = None):
        """Record what a source turned out to be.

        Args:
            source: see `sources`.
            image_id: of its image; None when it belongs to another shard.
            image: the image, where its labels are to be those of this source.

        Raises:
            JournalError: the disk is full.
        """

        def write(db: sqlite3.Connection):
            db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", [source, image_id])
            if image is not None:
                add_images(db, [image])

        self.commit(write)

    def forget_seen(self):
        """Begin a new pass over the sources."""
        with self._mutex:
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (image_id TEXT PRIMARY KEY)")
            self._db.execute("DELETE FROM seen")

    def first_sight(self, image_id: str) -> bool:
        """Whether this pass meets the image for the first time. Kept in a temporary table: a
        million ids are too many to hold in memory."""
        with self._mutex:
            done = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [image_id])
        if done.rowcount and self.query("SELECT 1 FROM absent WHERE image_id = ?", [image_id]):
            with self.transaction() as db:
                db.execute("DELETE FROM absent WHERE image_id = ?", [image_id])
        return done.rowcount == 1

    def end_pass(self):
        """This pass met all sources: mark the images that it did not meet."""
        with self.transaction() as db:
            db.execute("DELETE FROM absent")
            db.execute(
                "INSERT INTO absent SELECT image_id FROM images "
                "WHERE image_id NOT IN (SELECT image_id FROM seen)"
            )

    def image(self, image_id: str) -> PreparedImage:
        """A prepared image by its id."""
        [row] = self.query("SELECT * FROM images WHERE image_id = ?", [image_id])
        return PreparedImage(**dict(row))

    # --- batches

    def open_batches(self) -> list[Batch]:
        """The batches whose replies are not in the journal yet, in the order they were written."""
        return self._batches("state NOT IN ('collected', 'done')")

    def collected_batches(self) -> list[Batch]:
        """The batches that are over, but whose files were not deleted yet."""
        return self._batches("state = 'collected'")

    def _batches(self, where: str) -> list[Batch]:
        rows = self.query(f"SELECT * FROM batches WHERE {where} ORDER BY rowid")
        return [Batch(**dict(row)) for row in rows]

    def begin_batch(self, batch: Batch, questions: Iterable[Question]):
        """Record a batch and its questions, before anything is submitted."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO batches (name, state, worst_cost) VALUES (?, ?, ?)",
                [batch.name, batch.state, batch.worst_cost],
            )
            db.executemany(
                "INSERT INTO batch_questions VALUES (?, ?, ?, ?, ?)",
                [(batch.name, q.fingerprint, q.attempt, q.image_id, q.question_id)
                 for q in questions],
            )  # fmt: skip

    def update_batch(self, batch: Batch):
        """Record what became of a batch."""
        with self.transaction() as db:
            db.execute(
                "UPDATE batches SET state = :state, file_id = :file_id, batch_id = :batch_id, "
                "status = :status WHERE name = :name",
                vars(batch),
            )

    def end_batch(self, batch: Batch):
        """All replies of a batch are recorded; its other questions are to be asked again. Its
        files are still to be deleted."""
        with self.transaction() as db:
            db.execute("UPDATE batches SET state = 'collected' WHERE name = ?", [batch.name])
            db.execute("DELETE FROM batch_questions WHERE batch = ?", [batch.name])

    def batch_questions(self, batch: Batch) -> list[sqlite3.Row]:
        """(fingerprint, attempt, image_id, question_id) of the questions in an open batch."""
        return self.query("SELECT * FROM batch_questions WHERE batch = ?", [batch.name])

    def in_batches(self, image_id: str) -> set[str]:
        """Fingerprints of an image's questions that are in open batches."""
        rows = self.query("SELECT fingerprint FROM batch_questions WHERE image_id = ?", [image_id])
        return {row[0] for row in rows}

    def count_in_batches(self) -> int:
        """How many questions are in open batches."""
        return self.query("SELECT count(*) FROM batch_questions")[0][0]


def add_images(db: sqlite3.Connection, images: Iterable[PreparedImage]):
    """Insert images; those that are there keep their file, and get these labels."""
    names = list(PreparedImage.__dataclass_fields__)
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join(f":{name}" for name in names)
    labels = ", ".join(f'"{name}" = excluded."{name}"' for name in LABELS)
    db.executemany(
        f"INSERT INTO images ({columns}) VALUES ({marks}) "
        f"ON CONFLICT (image_id) DO UPDATE SET {labels}",
        (vars(image) for image in images),
    )


def absent_images(connection: sqlite3.Connection) -> set[str]:
    """Ids of the images with replies that no source was in the last complete pass."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'absent'").fetchone():
        return set()  # by an earlier version, which did not know
    return {
        row[0]
        for row in connection.execute(
            "SELECT image_id FROM absent WHERE image_id IN (SELECT image_id FROM replies)"
        )
    }


def rows_in_order(connection: sqlite3.Connection) -> Iterator[tuple[PreparedImage, list]]:
    """Each image with all its replies, attempt by attempt, one image in memory at a time."""
    for row in connection.execute("SELECT * FROM images ORDER BY image_id"):
        image = PreparedImage(**dict(row))
        replies = connection.execute(
            "SELECT * FROM replies WHERE image_id = ? ORDER BY question_id, attempt",
            [image.image_id],
        ).fetchall()
        yield image, replies
