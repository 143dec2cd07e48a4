"""A SQLite file that one process writes, and that survives a kill and a full disk.

What is special about it:
- a write-ahead log with `synchronous = FULL`: what was committed is on the disk;
- a lock keeps a second writer off the file. The lock's file holds how many commits were made, so
  that a file that was deleted or emptied, or lost its write-ahead log, is not taken for a new or
  complete one;
- a ballast file reserves room on the disk. It is given up when the disk is full, so that what is
  still in flight can be committed.

SQLite's write-ahead log needs a local disk, not a network share.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BALLAST_BYTES = 16 * 2**20


class JournalError(RuntimeError):
    """The output folder cannot be used; the message says why and what to do."""


class DurableDatabase:
    """One SQLite file. Safe to use from several threads of one process.

    Args:
        path: the file; created with its folder unless it is there.
        tables: statements that create the tables unless they are there.
        read_only: open without lock and ballast, to read while another process writes.

    Raises:
        JournalError: the folder cannot be written, another process is writing the file, or commits
            that were made are not in it.
    """

    def __init__(self, path: Path, tables: str, *, read_only: bool = False):
        self.path, self.read_only = path, read_only
        self.folder = path.parent
        self._ballast = path.with_suffix(".ballast")
        self._lock = self._db = None
        self._mutex = threading.Lock()
        try:
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._take_lock()
            self._open(commits_made(path))
            if not read_only:
                self._create(tables)
                self._refill_ballast()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise JournalError(
                f"{path}: the journal cannot be opened ({error}). --output_dir must be a folder on "
                "a local disk that has free space and that you may write to."
            ) from error
        except JournalError:
            self.close()
            raise

    def _open(self, made: int):
        """Connect, unless some of the commits that were made are not in the file."""
        self._commits = 0
        # Left alone otherwise, since SQLite would delete the write-ahead log of an empty file.
        if not made or (self.path.exists() and self.path.stat().st_size):
            self._db = self._connect("?mode=ro" if self.read_only else "")
            self._commits = self._db.execute("PRAGMA user_version").fetchone()[0]
        if self._commits < made:
            raise JournalError(
                f"{self.path} is not complete: {made:,} commits were made, and {self._commits:,} "
                "are in it. It was deleted or emptied, or lost the file beside it that ends in "
                "-wal, or is an older copy. Put the complete files back. To go on without the "
                "rest, which is then asked and paid for again, delete "
                f"{self.path.with_suffix('.lock').name}."
            )

    def _connect(self, mode: str = "") -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}{mode}",
            uri=True,
            timeout=60,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _create(self, tables: str):
        mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise OSError(f"the disk does not support SQLite's write-ahead log, only mode {mode}")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(tables)

    def _take_lock(self):
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        self._lock = os.fdopen(lock, "r+b")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"{self.path}: another run is writing this journal. Wait for it, or give this run "
                "another --shard or --output_dir."
            ) from None

    def _refill_ballast(self):
        if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
            return
        # Random bytes, since some disks compress.
        with self._ballast.open("wb") as file:
            file.write(os.urandom(BALLAST_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def close(self):
        with self._mutex:
            if self._db is not None:
                self._db.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # --- reading

    def query(self, sql: str, parameters: Iterable = ()) -> list[sqlite3.Row]:
        """All rows of a small result."""
        with self._mutex:
            return self._db.execute(sql, tuple(parameters)).fetchall()

    def snapshot(self) -> sqlite3.Connection:
        """A second, read-only connection that sees the file as it is now, whatever is written
        later. The caller closes it."""
        connection = self._connect("?mode=ro")
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # the snapshot starts here
        return connection

    # --- writing

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Statements that are committed together or not at all."""
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute(f"PRAGMA user_version = {self._commits + 1}")
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self._commits += 1
            with suppress(OSError):  # it is a safeguard only, and the disk may be full
                os.pwrite(self._lock.fileno(), b"%020d" % self._commits, 0)

    def commit(self, write: Callable[[sqlite3.Connection], None], *, irreplaceable: bool = False):
        """Run `write` in one transaction.

        Args:
            irreplaceable: when the disk is full, write all the same, in the room that the ballast
                held. The error is raised after that.

        Raises:
            JournalError: the disk is full, and the run must stop.
            sqlite3.Error: anything else.
        """
        try:
            with self.transaction() as db:
                write(db)
        except sqlite3.OperationalError as error:
            if not _is_full(error) or (irreplaceable and not self._ballast.exists()):
                raise
            if irreplaceable:
                self._ballast.unlink()
                with self.transaction() as db:
                    write(db)
            raise JournalError(
                f"{self.folder}: the disk is full ({error}). All replies received so far are in "
                "the journal. Free some space, then rerun the same command to resume."
            ) from error


def commits_made(path: Path) -> int:
    """How many commits to a file were on the disk, as its lock's file says; 0 when it is new.

    The number of the last commit is `user_version` in the database itself.
    """
    try:
        return int(path.with_suffix(".lock").read_bytes() or 0)
    except (OSError, ValueError):
        return 0


def _is_full(error: sqlite3.Error) -> bool:
    # The memory map of the WAL index reports a full disk as an I/O error.
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
