"""The same questions through a Batch API: cheaper, answered within 24 hours.

What is special about it:
- a batch and its questions are in the journal before anything is submitted, and a submission
  whose response was lost is looked up by its input file before it is repeated: no batch is paid
  for twice, wherever the process dies;
- the output file and the error file are fetched in every terminal state (completed, expired,
  cancelled, failed). Results are matched by `custom_id`, and what has no result is asked again;
- input files hold micrographs: they are deleted here and at the provider once the replies are in
  the journal.

A batch is `written` (file on this disk), `uploaded`, `submitted`, `done`.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from openai.types import Batch as ProviderBatch
from tqdm import tqdm

from mvaema.teacher.accounts import Accounts, Tally
from mvaema.teacher.batch_api import BatchApi, BatchStopped
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Batch, Journal, Question
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import Reply

MAX_OPEN = 20  # batches at the provider at a time
TERMINAL = ("completed", "failed", "expired", "cancelled")
# Codes in an error file for requests that were never carried out.
NOT_ASKED = ("batch_expired", "batch_cancelled")
RECORD_CHUNK = 500


@dataclass(frozen=True)
class BatchLimits:
    """How batches are written and watched. OpenAI takes 50,000 requests and 200 MB per file.

    Attributes:
        max_requests, max_bytes: of one input file.
        poll: seconds between two looks at the open batches.
        timeout: seconds that one call of the API may take.
    """

    max_requests: int = 50_000
    max_bytes: int = 190 * 10**6
    poll: float = 60.0
    timeout: float = 600.0


class BatchAsker:
    """Asks the questions of a plan in batches.

    Args:
        endpoint, journal, plan, accounts: as for `asking.Asker`.
        limits: size of the input files, and how often to look at batches.
        on_progress: called with a number of questions whenever that many are done with.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        plan: Plan,
        accounts: Accounts,
        limits: BatchLimits,
        on_progress: Callable[[int], None] = lambda count: None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.endpoint, self.journal, self.plan, self.accounts = endpoint, journal, plan, accounts
        self.limits, self.on_progress, self.sleep = limits, on_progress, sleep
        self.tally = accounts.tally
        # By shard, since shards may share the output folder.
        self.folder = journal.folder / journal.path.stem.replace("journal", "batches")
        self._api = BatchApi(endpoint, limits.timeout, sleep)
        self._max_open = MAX_OPEN
        self._passes = 0  # over the questions; the first one counts what is answered already
        self._stop: str | None = None  # found in a reply, heeded once its batch is recorded

    def run(self, questions: Callable[[], Iterator[list[Question]]]) -> Tally:
        """Ask until nothing is missing or the run is stopped (`Tally.stopped`).

        Args:
            questions: begins a new pass over the pending questions each time it is called.

        Raises:
            JournalError, sqlite3.Error: the journal cannot be written.
        """
        self._discard_orphans()
        for batch in self.journal.open_batches():
            self.accounts.budget.hold(batch.worst_cost)
        try:
            self._collect(until_below=1)
            before = self.tally.completions
            while self._round(questions()):
                if self.tally.completions == before:
                    raise BatchStopped(
                        "The last batches brought no answer. Look at them in the provider's "
                        "console."
                    )
                before = self.tally.completions
        except BatchStopped as stopped:
            self.tally.stopped = str(stopped)
        finally:
            self._api.close()
        return self.tally

    def _round(self, questions: Iterator[list[Question]]) -> bool:
        """One pass: write, submit, collect. False when there was nothing to ask."""
        wrote = False
        self._passes += 1
        pending = self._flat(questions)
        question = next(pending, None)
        while question is not None:
            following = self._write(question, pending)
            if following is not question:
                wrote = True
                self._collect(until_below=1 if self.accounts.at_most_one else self._max_open)
            elif self.journal.open_batches():  # their end may free some of the budget
                self._collect(until_below=1)
            else:
                raise BatchStopped(self.accounts.budget.exhausted())
            question = following
        self._collect(until_below=1)
        return wrote

    def _flat(self, questions: Iterator[list[Question]]) -> Iterator[Question]:
        for of_one_image in questions:
            if self._passes == 1:
                self.on_progress(len(self.plan.question_ids) - len(of_one_image))
            yield from of_one_image

    # --- writing

    def _write(self, question: Question | None, more: Iterator[Question]) -> Question | None:
        """Fill one input file as far as limits and budget allow. Returns the first question that
        is not in it: `question` itself when the budget has no room for any."""
        name = f"mvaema-{uuid.uuid4().hex[:16]}"
        path = self._input_file(name)
        self.folder.mkdir(exist_ok=True)
        most = 1 if self.accounts.at_most_one else self.limits.max_requests
        size, worst_cost, inside = 0, 0.0, []
        with path.open("wb") as file:
            while question is not None and len(inside) < most:
                line = self._line(question)
                if inside and size + len(line) > self.limits.max_bytes:
                    break
                worst = self.accounts.meter.worst_cost(question.text, question.size)
                if not self.accounts.budget.reserve(worst):
                    break
                file.write(line)
                size, worst_cost = size + len(line), worst_cost + (worst or 0.0)
                inside.append(question)
                question = next(more, None)
            file.flush()
            os.fsync(file.fileno())
        if not inside:
            path.unlink()
            return question
        self.accounts.budget.merge(len(inside))
        self.journal.begin_batch(Batch(name, "written", worst_cost), inside)
        return question

    def _line(self, question: Question) -> bytes:
        request = {
            "custom_id": f"{question.fingerprint}-{question.attempt}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": request_body(
                self.plan.model, self.plan.parameters, question.file, question.text
            ),
        }
        return json.dumps(request).encode() + b"\n"

    def _input_file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _discard_orphans(self):
        """Remove input files that were not complete when their process died."""
        known = {batch.name for batch in self.journal.open_batches()}
        for file in self.folder.glob("mvaema-*.jsonl"):
            if file.name.partition(".")[0] not in known:
                file.unlink()

    # --- submitting and collecting

    def _collect(self, until_below: int):
        """Submit what is written, then wait until fewer than so many batches are open."""
        while True:
            submitted = 0
            for batch in self.journal.open_batches():
                if batch.state != "submitted" and submitted < self._max_open:
                    batch = self._submit(batch)
                submitted += batch.state == "submitted"
            for batch in self.journal.open_batches():
                if batch.state == "submitted":
                    self._look_at(batch)
            if len(self.journal.open_batches()) < until_below:
                return
            self.sleep(self.limits.poll)

    def _submit(self, batch: Batch) -> Batch:
        if batch.state == "written":
            file_id = self._api.upload(self._input_file(batch.name))
            batch = replace(batch, state="uploaded", file_id=file_id)
            self.journal.update_batch(batch)
        batch_id = self._api.submit(batch.file_id, batch.name)
        batch = replace(batch, state="submitted", batch_id=batch_id)
        self.journal.update_batch(batch)
        return batch

    def _look_at(self, batch: Batch):
        """Where a batch has ended: fetch its replies, pay for them, and clean up."""
        remote = self._api.retrieve(batch.batch_id)
        if remote.status != batch.status:
            self.journal.update_batch(replace(batch, status=remote.status))
        if remote.status not in TERMINAL:
            return
        cost = 0.0
        for file_id in (remote.output_file_id, remote.error_file_id):
            if file_id:
                cost += self._fetch(batch, file_id)
        self.accounts.budget.settle(batch.worst_cost, cost)
        self.journal.end_batch(batch)
        self._api.delete(batch.file_id)
        for file in self.folder.glob(f"{batch.name}*"):
            file.unlink()
        if self._stop is not None:
            raise BatchStopped(self._stop)
        if remote.status == "failed":
            self._failed(remote)

    def _failed(self, remote: ProviderBatch):
        errors = (remote.errors and remote.errors.data) or []
        others = sum(batch.state == "submitted" for batch in self.journal.open_batches())
        if any(error.code == "token_limit_exceeded" for error in errors) and others:
            self._max_open = others  # as many as the account may have enqueued
            return
        text = "; ".join(f"{e.code}: {e.message}" for e in errors) or "no reason given"
        raise BatchStopped(f"Batch {remote.id} failed ({self.endpoint.redact(text)}).")

    # --- replies

    def _fetch(self, batch: Batch, file_id: str) -> float:
        """Bring a result file to this disk, then into the journal. Returns its cost."""
        path = self.folder / f"{batch.name}.{file_id}.result"
        self._api.download(file_id, path)
        rows = self.journal.batch_questions(batch)
        asked = {f"{row['fingerprint']}-{row['attempt']}": row for row in rows}
        cost, chunk = 0.0, []
        with path.open("rb") as lines:
            for line in lines:
                reply = self._reply(line, asked, batch.name)
                if reply is not None:
                    chunk.append(reply)
                if len(chunk) == RECORD_CHUNK:
                    cost += self._record(chunk)
                    chunk = []
        return cost + self._record(chunk)

    def _reply(self, line: bytes, asked: dict, batch: str) -> Reply | None:
        """The reply in a line of a result file; None where there is none."""
        if not line.strip():
            return None
        try:
            result = json.loads(self.endpoint.redact(line))
            question = asked[result["custom_id"]]
            response, error = result.get("response") or {}, result.get("error") or {}
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            kept = self.folder / "unreadable-results.jsonl"
            with kept.open("ab") as file:
                file.write(line)
            tqdm.write(f"batch {batch}: unreadable result ({problem!r}), kept in {kept}")
            return None
        if not response and error.get("code") in NOT_ASKED:
            return None
        return Reply(
            fingerprint=question["fingerprint"],
            image_id=question["image_id"],
            question_id=question["question_id"],
            attempt=question["attempt"],
            asked_at=time.time(),
            latency_s=None,
            status=response.get("status_code"),
            request_id=response.get("request_id"),
            batch=batch,
            problem=None if response else str(error.get("code") or "no response"),
            raw=json.dumps(response["body"]).encode() if "body" in response else None,
        )

    def _record(self, replies: list[Reply]) -> float:
        """Record replies, judge them, and return their cost. Those that a process recorded before
        it died are not recorded again."""
        self.journal.record([reply for reply in replies if not self.journal.has(reply)])
        verdicts = [(reply, reply.judge()) for reply in replies]
        self.journal.record([], verdicts)
        cost = 0.0
        for reply, verdict in verdicts:
            longest = self.accounts.meter.longest_cost()
            request = self.plan.request(self.journal, reply.image_id, reply.question_id)
            cost += self.accounts.charge(reply, verdict, longest, request) or 0.0
            self.tally.count(verdict)
            self._stop = self._stop or verdict.stop
            if verdict.settled:
                self.on_progress(1 if self._passes else 0)
        return cost
