"""The result files of a batch: from a line to a reply in the journal, once.

What is special about it:
- results are matched by `custom_id`. What cannot be matched is kept in a file;
- a second result for a question becomes a further attempt, so that nothing is overwritten;
- a result that is in the journal already, since the process that recorded it died, is neither
  recorded nor charged again.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Batch, Journal, Question
from mvaema.teacher.replies import Reply, Verdict, clean, parse_json

# Codes in an error file for requests that were never carried out.
NOT_ASKED = ("batch_expired", "batch_cancelled")
CHUNK = 500  # replies in one transaction


def custom_id(question: Question) -> str:
    """What names a question in the files of a batch."""
    return f"{question.fingerprint}-{question.attempt}"


class BatchResults:
    """What a batch brought back, on the way into the journal.

    Args:
        journal: where replies go.
        endpoint: whose key is removed from what it sent.
        batch: whose results they are.
        unreadable: a file that collects lines without a question.
    """

    def __init__(self, journal: Journal, endpoint: Endpoint, batch: Batch, unreadable: Path):
        self.journal, self.endpoint, self.batch = journal, endpoint, batch
        self.unreadable = unreadable
        self._asked = {
            f"{row['fingerprint']}-{row['attempt']}": row for row in journal.batch_questions(batch)
        }

    def record(self, file: Path) -> Iterator[tuple[Reply, Verdict, bool]]:
        """Record the results in a file.

        Returns:
            those that are new, and whether each is the first one for its question.

        Raises:
            JournalError, sqlite3.Error: see `Journal.record`.
        """
        with file.open("rb") as lines:
            yield from self._record(filter(None, map(self._reply, lines)))

    def record_lost(self) -> Iterator[tuple[Reply, Verdict, bool]]:
        """As `record`, for the questions without a result: their answers cannot be had."""
        rows = [
            row
            for row in self._asked.values()
            if all(
                earlier["batch"] != self.batch.name
                for earlier in self.journal.attempts_at(row["fingerprint"])
            )
        ]
        yield from self._record(self._of(row, problem="lost") for row in rows)

    def _record(self, replies: Iterator[Reply]) -> Iterator[tuple[Reply, Verdict, bool]]:
        chunk: dict[str, tuple[Reply, bool]] = {}  # by fingerprint
        for reply in replies:
            if len(chunk) == CHUNK or reply.fingerprint in chunk:
                yield from self._commit(chunk)
                chunk = {}
            earlier = self.journal.attempts_at(reply.fingerprint)
            ours = [row for row in earlier if row["batch"] == self.batch.name]
            content = (reply.status, reply.problem, reply.raw)
            if any((row["status"], row["problem"], row["raw"]) == content for row in ours):
                continue
            if any(row["attempt"] == reply.attempt for row in earlier):
                reply = replace(reply, attempt=earlier[-1]["attempt"] + 1)
            chunk[reply.fingerprint] = reply, not ours
        yield from self._commit(chunk)

    def _commit(self, chunk: dict) -> Iterator[tuple[Reply, Verdict, bool]]:
        self.journal.record([reply for reply, _ in chunk.values()])
        judged = [(reply, reply.judge(), first) for reply, first in chunk.values()]
        self.journal.record([], [(reply, verdict) for reply, verdict, _ in judged])
        yield from judged

    def _reply(self, line: bytes) -> Reply | None:
        """The reply in a line; None where there is none, or the request was not carried out."""
        if not line.strip():
            return None
        line = self.endpoint.redact(line)
        result = parse_json(line)
        name = result.get("custom_id") if isinstance(result, dict) else None
        question = self._asked.get(name) if isinstance(name, str) else None
        if question is None:
            with self.unreadable.open("ab") as file:
                file.write(line.rstrip(b"\n") + b"\n")
            tqdm.write(f"batch {self.batch.name}: unreadable result, kept in {self.unreadable}")
            return None
        response, error = result.get("response"), result.get("error")
        if isinstance(response, dict) and response:
            return self._of(
                question,
                status=_status(response.get("status_code")),
                request_id=clean(response.get("request_id")),
                raw=_raw(response.get("body"), line),
            )
        code = clean(error.get("code") if isinstance(error, dict) else error)
        if code in NOT_ASKED:
            return None
        return self._of(question, problem=(code or "no response")[:200], raw=line.strip())

    def _of(self, question, **reply) -> Reply:
        return Reply(
            fingerprint=question["fingerprint"],
            image_id=question["image_id"],
            question_id=question["question_id"],
            attempt=question["attempt"],
            asked_at=time.time(),
            latency_s=None,
            batch=self.batch.name,
            **reply,
        )


def _status(value) -> int:
    """The status of a response; some servers leave out that it is 200."""
    text = str(value) if isinstance(value, int | str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else 200


def _raw(body, line: bytes) -> bytes | None:
    """The body as bytes; the whole line where it is too deep to be written again."""
    try:
        return None if body is None else json.dumps(body).encode()
    except RecursionError:
        return line
