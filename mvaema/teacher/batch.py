"""The same questions through a Batch API (`/files` and `/batches`, as OpenAI defines them).

What is special about it:
- a batch and its questions are in the journal before anything is submitted, and a submission
  whose answer was lost is looked up by its input file before it is repeated: no batch is paid
  twice, wherever the process dies;
- in every terminal state (completed, expired, cancelled, failed) the output *and* the error file
  are fetched; replies are matched by `custom_id`; what has no reply is asked again;
- input files hold the micrographs: they are deleted at the provider and here once the replies are
  in the journal.

A batch is `written` (file on this disk), `uploaded`, `submitted`, `done`.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
from tqdm import tqdm

from mvaema.teacher.asking import Progress, may_be_charged, read
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, Question, Reply
from mvaema.teacher.limits import backoff
from mvaema.teacher.money import Budget, Meter
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import read_reply

# OpenAI's limits are 50,000 requests and 200 MB a file.
MAX_REQUESTS, MAX_BYTES = 50_000, 190 * 10**6
MAX_OPEN = 20
TERMINAL = ("completed", "failed", "expired", "cancelled")
# Lines of an error file for requests that were never carried out.
NOT_ASKED = ("batch_expired", "batch_cancelled")
CALL_ATTEMPTS = 8
RECORD_CHUNK = 500


class BatchStopped(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class BatchAsker:
    """Asks the questions of a plan in batches.

    Args:
        endpoint, journal, plan, meter, budget: as for `asking.Asker`.
        poll: seconds between two looks at the open batches.
        max_requests, max_bytes: limits of one input file.
        sleep: waits so many seconds.
        on_progress: called with a number of questions whenever that many are done with.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        plan: Plan,
        meter: Meter,
        budget: Budget,
        *,
        poll: float = 60.0,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        timeout: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
        on_progress=lambda count: None,
    ):
        self.endpoint, self.journal, self.plan = endpoint, journal, plan
        self.meter, self.budget = meter, budget
        self.poll, self.sleep, self.on_progress = poll, sleep, on_progress
        self.max_requests, self.max_bytes, self.max_open = max_requests, max_bytes, MAX_OPEN
        # By shard, since shards may share the output folder.
        self.folder = journal.folder / journal.path.stem.replace("journal", "batches")
        self.progress = Progress()
        self._client = endpoint.client(timeout)
        self._completions = 0
        self._passes = 0  # over the questions; the first one counts what is answered already
        self._stop: str | None = None  # found in a reply, heeded once its batch is recorded

    def run(self, questions: Callable[[], Iterator[list[Question]]]) -> Progress:
        """Ask until nothing is missing or the run is stopped (`Progress.stopped`).

        Args:
            questions: begins a new pass over the pending questions each time it is called.
        """
        self._discard_orphans()
        for batch in self._open():
            self.budget.hold(batch["worst_cost"])
        try:
            self._collect(until_below=1)
            while True:
                before = self._completions
                if not self._round(questions()):
                    break
                if self._completions == before:
                    raise BatchStopped(
                        "the last batches brought no answer; look at them in the provider's "
                        "console, then rerun"
                    )
        except BatchStopped as stopped:
            self.progress.stopped = str(stopped)
        finally:
            self._client.close()
        return self.progress

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
                self._collect(until_below=self.max_open)
            elif self._open():  # their end may free some of the budget
                self._collect(until_below=1)
            else:
                raise BatchStopped(self.budget.exhausted())
            question = following
        self._collect(until_below=1)
        return wrote

    def _flat(self, questions: Iterator[list[Question]]) -> Iterator[Question]:
        for batch in questions:
            if self._passes == 1:
                self.on_progress(len(self.plan.question_ids) - len(batch))
            yield from batch

    # --- writing

    def _write(self, question: Question | None, more: Iterator[Question]) -> Question | None:
        """Fill one input file as far as limits and budget allow; returns the question left,
        which is `question` itself when the budget has no room for it."""
        name = f"mvaema-{uuid.uuid4().hex[:16]}"
        self.folder.mkdir(exist_ok=True)
        size, worst_cost, inside = 0, 0.0, []
        with self._input_file(name).open("wb") as file:
            while question is not None and len(inside) < self.max_requests:
                line = self._line(question)
                if inside and size + len(line) > self.max_bytes:
                    break
                worst = self.meter.worst_cost(question.text, question.size)
                if not self.budget.reserve(worst):
                    break
                file.write(line)
                size, worst_cost = size + len(line), worst_cost + (worst or 0.0)
                inside.append(question)
                question = next(more, None)
            file.flush()
            os.fsync(file.fileno())
        if not inside:
            self._input_file(name).unlink()
            return question
        self.budget.merge(len(inside))
        with self.journal.transaction() as db:
            db.execute(
                "INSERT INTO batches (name, state, worst_cost) VALUES (?, 'written', ?)",
                [name, worst_cost],
            )
            db.executemany(
                "INSERT INTO batch_questions VALUES (?, ?, ?, ?, ?)",
                [(name, q.fingerprint, q.attempt, q.image_id, q.question_id) for q in inside],
            )
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
        known = {batch["name"] for batch in self._open()}
        for file in self.folder.glob("mvaema-*.jsonl"):
            if file.name.partition(".")[0] not in known:
                file.unlink()

    # --- submitting and collecting

    def _open(self) -> list:
        return self.journal.query("SELECT * FROM batches WHERE state != 'done' ORDER BY rowid")

    def _collect(self, until_below: int):
        """Submit what is written, then wait until fewer than so many batches are open."""
        while True:
            submitted = 0
            for batch in self._open():
                if batch["state"] != "submitted" and submitted < self.max_open:
                    batch = self._submit(batch)
                submitted += batch["state"] == "submitted"
            for batch in self._open():
                if batch["state"] == "submitted":
                    self._look_at(batch)
            if len(self._open()) < until_below:
                return
            self.sleep(self.poll)

    def _submit(self, batch):
        if batch["state"] == "written":
            uploaded = self._call(lambda: self._upload(batch["name"]))
            batch = self._update(batch, state="uploaded", file_id=uploaded.id)
        made = self._call(lambda: self._find(batch["file_id"]) or self._create(batch))
        return self._update(batch, state="submitted", batch_id=made.id)

    def _upload(self, name: str):
        with self._input_file(name).open("rb") as file:
            return self._client.files.create(file=(f"{name}.jsonl", file), purpose="batch")

    def _find(self, file_id: str):
        """The batch of an input file, submitted by a process that did not live to know."""
        return next((b for b in self._client.batches.list() if b.input_file_id == file_id), None)

    def _create(self, batch):
        return self._client.batches.create(
            input_file_id=batch["file_id"],
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"name": batch["name"]},
        )

    def _look_at(self, batch):
        remote = self._call(lambda: self._client.batches.retrieve(batch["batch_id"]))
        if remote.status != batch["status"]:
            batch = self._update(batch, status=remote.status)
        if remote.status not in TERMINAL:
            return
        cost = 0.0
        for file_id in (remote.output_file_id, remote.error_file_id):
            if file_id:
                cost += self._fetch(batch, file_id)
        self.budget.settle(batch["worst_cost"], cost)
        with self.journal.transaction() as db:
            db.execute("UPDATE batches SET state = 'done' WHERE name = ?", [batch["name"]])
            db.execute("DELETE FROM batch_questions WHERE batch = ?", [batch["name"]])
        with contextlib.suppress(openai.APIError):  # else the provider keeps it until it expires
            self._client.files.delete(batch["file_id"])
        for file in self.folder.glob(f"{batch['name']}*"):
            file.unlink()
        if self._stop is not None:
            raise BatchStopped(self._stop)
        if remote.status == "failed":
            self._failed(remote)

    def _failed(self, remote):
        errors = (remote.errors and remote.errors.data) or []
        text = "; ".join(f"{e.code}: {e.message}" for e in errors) or "no reason given"
        others = len([batch for batch in self._open() if batch["state"] == "submitted"])
        if any(error.code == "token_limit_exceeded" for error in errors) and others:
            self.max_open = others  # as many as the account may have enqueued
            return
        raise BatchStopped(f"batch {remote.id} failed ({self.endpoint.redact(text)})")

    def _fetch(self, batch, file_id: str) -> float:
        """Bring a result file to this disk, then into the journal; returns its cost."""
        path = self.folder / f"{batch['name']}.{file_id}.result"
        self._call(lambda: self._download(file_id, path))
        rows = self.journal.query("SELECT * FROM batch_questions WHERE batch = ?", [batch["name"]])
        asked = {f"{row['fingerprint']}-{row['attempt']}": row for row in rows}
        cost, chunk = 0.0, []
        with path.open("rb") as lines:
            for line in lines:
                reply = self._reply(line, asked, batch["name"])
                if reply is not None:
                    chunk.append(reply)
                if len(chunk) == RECORD_CHUNK:
                    cost += self._record(chunk)
                    chunk = []
        return cost + self._record(chunk)

    def _download(self, file_id: str, path: Path):
        with (
            self._client.files.with_streaming_response.content(file_id) as response,
            path.open("wb") as file,
        ):
            for part in response.iter_bytes():
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def _reply(self, line: bytes, asked: dict, batch: str) -> Reply | None:
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
            tqdm.write(f"batch {batch}: a result line is unreadable ({problem!r}), see {kept}")
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
        known = {
            (row[0], row[1])
            for reply in replies
            for row in self.journal.query(
                "SELECT fingerprint, attempt FROM replies WHERE fingerprint = ? AND attempt = ?",
                [reply.fingerprint, reply.attempt],
            )
        }
        fresh = [r for r in replies if (r.fingerprint, r.attempt) not in known]
        self.journal.record(fresh)
        readings = [(reply, read(reply)) for reply in replies]
        self.journal.record([], readings)
        cost = 0.0
        for reply, reading in readings:
            self._stop = self._stop or reading.stop
            if reading.is_completion:
                self._completions += 1
            if not reading.is_completion:
                self.progress.last_error = reading.detail
            if reading.settled:
                self.progress.replies += 1
                self.progress.outcomes[reading.outcome] += 1
                self.on_progress(1 if self._passes else 0)
            if reading.returned_model:
                self.progress.models[reading.returned_model] += 1
            if reading.prompt_tokens is not None and reading.completion_tokens is not None:
                usage = reading.prompt_tokens, reading.cached_tokens or 0, reading.completion_tokens
                self.meter.add(*usage)
                cost += self.meter.cost(*usage) or 0.0
            elif may_be_charged(reply.status, reply.problem):
                longest = self.meter.measured.longest_prompt
                cost += self.meter.cost(longest, 0, self.meter.max_tokens) or 0.0
        return cost

    def _update(self, batch, **columns):
        with self.journal.transaction() as db:
            for column, value in columns.items():
                db.execute(
                    f"UPDATE batches SET {column} = ? WHERE name = ?", [value, batch["name"]]
                )
        [row] = self.journal.query("SELECT * FROM batches WHERE name = ?", [batch["name"]])
        return row

    def _call(self, call: Callable):
        """Repeat a call that may be repeated until it succeeds.

        Raises:
            BatchStopped: no waiting would help, or it failed too often.
        """
        for attempt in range(1, CALL_ATTEMPTS + 1):
            try:
                return call()
            except openai.APIStatusError as error:
                body = self.endpoint.redact(error.response.content)
                reading = read_reply(error.status_code, body, None)
                if reading.stop or reading.settled:
                    raise BatchStopped(reading.stop or reading.detail) from None
                failure = reading.detail
            except openai.APIConnectionError as error:
                failure = str(error)
            if attempt < CALL_ATTEMPTS:
                self.sleep(backoff(attempt))
        raise BatchStopped(
            f"the server failed {CALL_ATTEMPTS} times, the last: {failure}. Batches go on there: "
            "the same command collects them later"
        )
