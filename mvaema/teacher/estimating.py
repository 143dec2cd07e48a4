"""What the missing answers will cost: requests, tokens and dollars, before any is sent.

What is special about it:
- the questions come from the very functions that a run uses, on a copy of the journal, so that
  they are those that a run would ask now;
- new micrographs are read, since only their pixels tell duplicates and unreadable files. Of very
  many, the first are read and stand for the rest.
"""

import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mvaema.micrographs.sources import Entry, Problem
from mvaema.teacher.journal import Journal, JournalError, PreparedImage, Question
from mvaema.teacher.money import dollars
from mvaema.teacher.preparing import Preparer, source_key
from mvaema.teacher.run import TeacherRun

# New micrographs that are read; more are counted and assumed to be like these.
SAMPLE = 1000


class ScratchJournal(Journal):
    """A copy of a journal that is written without consequence, and is gone when it is closed.

    Args:
        path: of the journal, which may be missing. It is not changed.
        configuration: as for `Journal`.

    Raises:
        JournalError: the journal cannot be read, or it holds answers of another configuration.
    """

    def __init__(self, path: Path, configuration: dict):
        self._temporary = tempfile.TemporaryDirectory(prefix="mvaema-")
        scratch = Path(self._temporary.name) / path.name
        try:
            if path.exists():
                with Journal(path, read_only=True):  # it is one
                    _copy_tables(path, scratch)
            super().__init__(scratch, configuration)
        except JournalError as error:
            self._temporary.cleanup()
            raise JournalError(str(error).replace(str(scratch), str(path))) from error
        self.folder = path.parent

    def close(self):
        super().close()
        self._temporary.cleanup()


def _copy_tables(path: Path, scratch: Path):
    """Copy a journal, without the raw replies that were judged: they are nearly all of it."""
    with closing(sqlite3.connect(scratch.as_uri(), uri=True, isolation_level=None)) as db:
        db.execute("ATTACH ? AS source", [f"{path.resolve().as_uri()}?mode=ro"])
        tables = db.execute(
            "SELECT name, sql FROM source.sqlite_master WHERE type = 'table' "
            "AND name NOT LIKE 'sqlite_%'"
        )
        for name, create in tables.fetchall():
            db.execute(create)
            columns = [row[1] for row in db.execute(f"PRAGMA source.table_info({name})")]
            values = ", ".join(
                "iif(outcome IS NULL, raw, NULL)" if column == "raw" else f'"{column}"'
                for column in columns
            )
            db.execute(f"INSERT INTO main.{name} SELECT {values} FROM source.{name}")


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked.

    Attributes:
        requests: how many, extrapolated where not all new micrographs were read.
        lines: everything about them, as text.
    """

    requests: float
    lines: list[str]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class _Count:
    """Goes through the questions of a run and adds them up.

    Attributes:
        micrographs: that are readable, of this shard, and no duplicates.
        requests: that a run would send now.
        expected, worst: (prompt, cached, completion) tokens of those.
        unread: new micrographs beyond the sample.
    """

    def __init__(self, run: TeacherRun, journal: Journal, entries: int):
        self.run, self.journal = run, journal
        plan, accounts = run.open(journal)
        self.meter = accounts.meter
        self.micrographs = self.requests = self.unread = 0
        self.expected, self.worst = np.zeros(3), np.zeros(3)
        self._read = self._read_micrographs = self._read_requests = 0
        self._is_new = False
        args = run.args
        preparer = Preparer(journal, run.preparation, args.part, args.parts, writes=False)
        entries_bar = tqdm(self._known_and_first(entries), unit=" micrographs", leave=False)
        images = self._counted(preparer(entries_bar))
        for questions in plan(journal, images, lambda image: True):  # not all are written
            self._add(questions)
        self._extrapolate()

    def _known_and_first(self, entries: int) -> Iterator[Entry | Problem]:
        """The entries of the source, without the new ones beyond the sample."""
        for entry in itertools.islice(self.run.source, entries):
            self._is_new = not isinstance(entry, Problem) and (
                self.journal.known_source(source_key(entry)) is None
            )
            if self._is_new and self._read == SAMPLE:
                self.unread += 1
                continue
            self._read += self._is_new
            yield entry

    def _counted(self, images: Iterable[PreparedImage | None]) -> Iterator[PreparedImage | None]:
        for image in images:
            self.micrographs += image is not None
            self._read_micrographs += self._is_new and image is not None
            yield image

    def _add(self, questions: list[Question]):
        self.requests += len(questions)
        self._read_requests += len(questions) * self._is_new
        for question in questions:
            request = (question.text, question.size)
            self.expected += self.meter.expected_tokens(*request)
            self.worst += self.meter.worst_tokens(*request)

    def _extrapolate(self):
        """Let the new micrographs that were read stand for those that were not."""
        if not self.unread:
            return
        before = self.requests
        self.micrographs += self.unread * self._read_micrographs / self._read
        self.requests += self.unread * self._read_requests / self._read
        if before:
            self.expected *= self.requests / before
            self.worst *= self.requests / before


def estimate(run: TeacherRun, entries: int | None = None) -> Estimate:
    """Requests, tokens and cost of what is missing. Sends nothing, and writes nothing that stays.

    Args:
        entries: of the source that are considered; by default those that the run would go through.

    Raises:
        ValueError: there are no micrographs.
        JournalError: the journal belongs to another configuration.
    """
    entries = run.count_entries() if entries is None else entries
    with ScratchJournal(run.path, run.configuration) as journal:
        count = _Count(run, journal, entries)
        in_batches = journal.count_in_batches()
    meter, replies = count.meter, count.meter.measured.replies
    about = "about " if count.unread else ""
    settled = count.micrographs * len(run.question_ids) - count.requests - in_batches
    rest = f"{settled:,.0f} questions have a reply already"
    if in_batches:
        rest += f", {in_batches:,} are in open batches"
    lines = [
        "Still to be asked:",
        f"  micrographs   {about}{count.micrographs:,.0f}",
        f"  requests      {about}{count.requests:,.0f} ({rest})",
    ]
    if count.unread:
        lines.append(f"                {SAMPLE:,} of {count.unread + SAMPLE:,} new files were read")
    if count.requests:
        expected, worst = count.expected / count.requests, count.worst / count.requests
        basis = f"measured on {replies:,} replies" if replies else "assumed"
        lines.append(
            f"  per request   {expected[0]:,.0f} tokens in, {expected[2]:,.0f} out ({basis}); at "
            f"most {worst[0]:,.0f} in, {worst[2]:,.0f} out"
        )
        for title, tokens in (("expected", count.expected), ("worst case", count.worst)):
            lines.append(
                f"  {title:<13} {tokens[0]:,.0f} tokens in, {tokens[2]:,.0f} out, cost "
                f"{dollars(meter.cost(*tokens))}"
            )
        lines.append(_price_note(run))
        if not replies:
            lines.append(
                "  --pilot 20 asks about 20 images and replaces assumptions by measurements."
            )
    return Estimate(count.requests, lines)


def _price_note(run: TeacherRun) -> str:
    price = run.price
    if price is None:
        return (
            f"  The price of {run.args.teacher_model} is unknown. Add it to a copy of "
            "mvaema/teacher/prices.yaml and pass that with --prices."
        )
    discount = f", times {price.batch} in batches" if run.args.batch else ""
    return (
        f"  Prices of {price.as_of} ({price.source}): ${price.input} in, ${price.output} out per "
        f"million tokens{discount}."
    )
