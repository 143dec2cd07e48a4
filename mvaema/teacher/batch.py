"""The same questions through a Batch API: cheaper, answered within 24 hours.

What is special about it:
- a batch and its questions are in the journal before anything is submitted, and a submission
  whose response was lost is looked up by its input file before it is repeated: no batch is paid
  for twice, wherever the process dies;
- the output file and the error file are fetched in every terminal state (completed, expired,
  cancelled, failed), and what has no result is asked again;
- a batch that the provider refuses is withdrawn, since nothing was paid for it. One that the
  provider no longer has may have been paid for: the user decides whether to ask again (`give_up`);
- input files hold micrographs: they are deleted here and at the provider once the replies are in
  the journal. A deletion that fails is tried again by the next run, and said.

A batch is `written` (file on this disk), `uploaded`, `submitted`, `collected` (it is over), `done`
(its files are deleted).
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mvaema.teacher.accounts import Accounts, Tally
from mvaema.teacher.batch_api import BatchApi, BatchStopped, Refused, RemoteBatch
from mvaema.teacher.batch_files import BatchResults, custom_id
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Batch, Journal, Question
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import Reply, Verdict

MAX_OPEN = 20  # batches at the provider at a time
TERMINAL = ("completed", "failed", "expired", "cancelled")


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
        give_up: batches, by the provider's id or by ours, whose questions are asked again where the
            provider no longer has the batch or its results.
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
        give_up: Iterable[str] = (),
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
        self._give_up = frozenset(give_up)
        self._gone: dict[str, str] = {}  # batches by name -> what to tell about them
        self._left: list[str] = []  # input files that could not be deleted

    def run(self, questions: Callable[[], Iterator[list[Question]]]) -> Tally:
        """Ask until nothing is missing or the run is stopped (`Tally.stopped`).

        Args:
            questions: begins a new pass over the pending questions each time it is called.

        Raises:
            JournalError, sqlite3.Error: the journal cannot be written.
        """
        self._discard_orphans()
        self._clean_up()
        known = {name for b in self.journal.open_batches() for name in (b.name, b.batch_id)}
        for name in sorted(self._give_up - known):
            tqdm.write(f"--give_up_batches {name}: no open batch has this name.")
        for batch in self.journal.open_batches():
            self.accounts.budget.hold(batch.worst_cost)
        stopped = None
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
        except BatchStopped as error:
            stopped = str(error)
        finally:
            if self._left:
                self._clean_up()
            self._api.close()
        for left in self._left:
            tqdm.write(left)
        reasons = [*([stopped] if stopped else []), *self._gone.values()]
        self.tally.stopped = " ".join(reasons) or None
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
            elif self._open():  # their end may free some of the budget
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
            "custom_id": custom_id(question),
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
        """Remove files that a process left when it died: input files that were not complete, and
        result files of batches that are over."""
        known = {batch.name for batch in self.journal.open_batches()}
        for file in self.folder.glob("mvaema-*"):
            if file.name.partition(".")[0] not in known:
                file.unlink()

    # --- submitting and collecting

    def _open(self) -> list[Batch]:
        """The open batches, but for those that the provider no longer has."""
        return [b for b in self.journal.open_batches() if b.name not in self._gone]

    def _collect(self, until_below: int):
        """Submit what is written, then wait until fewer than so many batches are open."""
        while True:
            submitted = 0
            for batch in self._open():
                if batch.state != "submitted" and submitted < self._max_open:
                    batch = self._submit(batch)
                submitted += batch.state == "submitted"
            for batch in self._open():
                if batch.state == "submitted":
                    self._look_at(batch)
            if len(self._open()) < until_below:
                return
            self.sleep(self.limits.poll)

    def _submit(self, batch: Batch) -> Batch:
        try:
            if batch.state == "written":
                file_id = self._api.upload(self._input_file(batch.name))
                batch = replace(batch, state="uploaded", file_id=file_id)
                self.journal.update_batch(batch)
            batch_id = self._api.submit(batch.file_id, batch.name)
        except Refused as refused:
            raise self._withdrawn(batch, str(refused)) from None
        except FileNotFoundError as error:
            raise self._withdrawn(batch, f"{error.filename} is gone.") from None
        batch = replace(batch, state="submitted", batch_id=batch_id)
        self.journal.update_batch(batch)
        return batch

    def _withdrawn(self, refused: Batch, reason: str) -> BatchStopped:
        """End a batch that was not accepted, and those that wait behind it. Returns the error."""
        waiting = [b for b in self._open() if b.state == "written" and b.name != refused.name]
        count = 0
        for batch in (refused, *waiting):
            count += len(self.journal.batch_questions(batch))
            self._end(batch, 0.0)
        return BatchStopped(
            f"A batch was not submitted: {reason} It is withdrawn, and nothing is paid for it: its "
            f"{count:,} questions are asked again by the next run, with or without --batch."
        )

    def _look_at(self, batch: Batch):
        """Where a batch has ended: fetch its replies, pay for them, and clean up."""
        try:
            remote = self._api.retrieve(batch.batch_id)
        except Refused as refused:
            self._set_aside(batch, refused, "batch")
            return
        if remote.status != batch.status:
            self.journal.update_batch(replace(batch, status=remote.status))
        if remote.status not in TERMINAL:
            return
        cost, refused = 0.0, None
        for file_id in remote.result_files:
            try:
                cost += self._fetch(batch, file_id)
            except Refused as error:
                refused = error
        if refused is not None:
            self.accounts.budget.hold(0.0)  # what is reserved stays so, for the rest
            self.accounts.budget.settle(0.0, cost)
            self._set_aside(batch, refused, "result file of a batch")
            return
        self._end(batch, cost)
        if self._stop is not None:
            raise BatchStopped(self._stop)
        if remote.status == "failed":
            self._failed(batch, remote)

    def _failed(self, batch: Batch, remote: RemoteBatch):
        others = sum(batch.state == "submitted" for batch in self._open())
        if any(code == "token_limit_exceeded" for code, _ in remote.errors) and others:
            self._max_open = others  # as many as the account may have enqueued
            return
        text = "; ".join(f"{code}: {message}" for code, message in remote.errors)
        raise BatchStopped(
            f"Batch {batch.batch_id} failed ({self.endpoint.redact(text) or 'no reason given'}). "
            "Its questions are asked again by the next run."
        )

    def _set_aside(self, batch: Batch, refused: Refused, what: str):
        """The results of a batch cannot be had. If they are gone, give it up where the user said
        so, and leave it alone in this run otherwise. Stop for any other reason, such as the key."""
        if not refused.gone:
            raise refused
        if self._give_up & {batch.name, batch.batch_id}:
            asked_again = list(self._results(batch).record_lost())
            self._end(batch, self._charge(asked_again))
            tqdm.write(
                f"Batch {batch.batch_id} is given up: {len(asked_again):,} of its questions are "
                "asked again."
            )
        else:
            count = len(self.journal.batch_questions(batch))
            self._gone[batch.name] = (
                f"The provider does not have the {what} any more ({batch.batch_id}, {count:,} "
                "questions, answers that were paid for if it ran). Check --endpoint and the key: "
                "with those of another account no batch is found. If it is lost, "
                f"--give_up_batches {batch.batch_id} asks what it did not answer again, which is "
                "paid for again."
            )

    def _end(self, batch: Batch, cost: float):
        self.accounts.budget.settle(batch.worst_cost, cost)
        self.journal.end_batch(batch)
        self._clean_up()

    def _clean_up(self):
        """Delete the input files of batches that are over, here and at the provider."""
        self._left = []
        for batch in self.journal.collected_batches():
            failure = self._api.delete(batch.file_id) if batch.file_id else None
            for file in self.folder.glob(f"{batch.name}*"):
                file.unlink()
            if failure is None:
                self.journal.update_batch(replace(batch, state="done"))
            else:
                self._left.append(
                    f"The provider could not delete the input file {batch.file_id}, which holds "
                    f"micrographs ({failure}). The next run with --batch tries again."
                )

    # --- replies

    def _results(self, batch: Batch) -> BatchResults:
        unreadable = self.folder / "unreadable-results.jsonl"
        return BatchResults(self.journal, self.endpoint, batch, unreadable)

    def _fetch(self, batch: Batch, file_id: str) -> float:
        """Bring a result file to this disk, then into the journal. Returns its cost."""
        path = self.folder / f"{batch.name}.result"
        self._api.download(file_id, path)
        return self._charge(self._results(batch).record(path))

    def _charge(self, results: Iterable[tuple[Reply, Verdict, bool]]) -> float:
        """Charge and count replies as they are recorded. Returns their cost."""
        cost = 0.0
        for reply, verdict, first in results:
            longest = self.accounts.meter.longest_cost()
            request = self.plan.request(self.journal, reply.image_id, reply.question_id)
            cost += self.accounts.charge(reply, verdict, longest, request) or 0.0
            self._stop = self._stop or verdict.stop
            if first:
                self.tally.count(verdict)
            if first and verdict.settled:
                self.on_progress(1 if self._passes else 0)
        return cost
