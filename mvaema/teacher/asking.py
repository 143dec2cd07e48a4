"""The loop: questions go out, and every reply is in the journal before anything else happens.

What is special about it:
- the openai client is transport only, and tries once: what a failure means is decided here, from
  the reply as the journal holds it;
- one commit takes all replies that came in since the last one (group commit), so that a safe
  journal does not slow the run down;
- memory holds the requests in flight and as many questions waiting, however large the dataset;
- a run ends early in one way only, `stop`: requests in flight are finished and recorded, nothing
  new is sent, and the reason says what to do.
"""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import httpx2
import openai

from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, JournalError, Question, Reply
from mvaema.teacher.limits import Limits, backoff, retry_after
from mvaema.teacher.money import Budget, Meter
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.replies import Reading, read_reply

# A question that fails so often while others are answered is the problem itself; when nothing is
# answered meanwhile, the server is.
MAX_FAILURES = 8
# So many replies in a row that are no completions: something before the model is wrong. Before
# the first completion fewer tell.
MAX_BAD_IN_A_ROW, MAX_BAD_AT_FIRST = 20, 5
# Longest wait, in seconds, for a server that only asks for patience (429) or names a time.
PATIENCE = 3600.0


def read(reply: Reply) -> Reading:
    """What the bytes of a reply mean."""
    return read_reply(reply.status, reply.raw, reply.problem)


@dataclass
class Progress:
    """What a run has done so far."""

    outcomes: Counter[str] = field(default_factory=Counter)  # of questions settled in this run
    replies: int = 0
    models: Counter[str] = field(default_factory=Counter)  # as the server names them
    last_error: str | None = None
    stopped: str | None = None  # why the run ended early


class Recorder:
    """Group commit: one transaction for all replies that wait for one.

    A reply is recorded before its coroutine goes on. What was read from it needs no such haste:
    it rides in a later transaction, and is read again if that never comes.
    """

    def __init__(self, journal: Journal):
        self.journal = journal
        self._replies: list[tuple[Reply, asyncio.Future]] = []
        self._readings: list[tuple[Reply, Reading]] = []
        self._flushing: asyncio.Task | None = None
        self._failure: Exception | None = None  # that nobody waited for

    async def record(self, reply: Reply):
        """Returns when the reply is on the disk.

        Raises:
            JournalError, sqlite3.Error: see `Journal.record`.
        """
        future = asyncio.get_running_loop().create_future()
        self._replies.append((reply, future))
        self._start()
        await future

    def note(self, reply: Reply, reading: Reading):
        """Record what was read from a recorded reply, some time soon."""
        self._readings.append((reply, reading))

    async def close(self):
        """Commit what is left.

        Raises:
            JournalError, sqlite3.Error: as `record`.
        """
        self._start()
        await self._flushing
        if self._failure is not None:
            raise self._failure

    def _start(self):
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self):
        while self._replies or self._readings:
            replies, self._replies = self._replies, []
            readings, self._readings = self._readings, []
            failure = None
            try:
                await asyncio.to_thread(self.journal.record, [r for r, _ in replies], readings)
            except (JournalError, sqlite3.Error) as error:
                failure = error
            for _, future in replies:
                if future.done():  # its coroutine was cancelled
                    continue
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
            if not replies:
                self._failure = failure


class Asker:
    """Asks the questions of a plan through one endpoint.

    Args:
        endpoint: where to.
        journal: where replies go.
        plan: what is asked.
        limits: when.
        meter, budget: what it costs, and how much it may.
        timeout: seconds to wait for one reply.
        on_progress: called with a number of questions whenever that many are done with.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        plan: Plan,
        limits: Limits,
        meter: Meter,
        budget: Budget,
        *,
        timeout: float = 600.0,
        on_progress=lambda count: None,
    ):
        self.endpoint, self.journal, self.plan = endpoint, journal, plan
        self.limits, self.meter, self.budget = limits, meter, budget
        self.timeout, self.on_progress = timeout, on_progress
        self.progress = Progress()
        self._recorder = Recorder(journal)
        self._busy: set[asyncio.Task] = set()  # workers with a request in flight
        self._tasks: list[asyncio.Task] = []
        self._freed = asyncio.Event()  # money
        self._completions = 0
        self._bad_in_a_row = 0
        self._last_completion = limits.clock()

    def stop(self, reason: str):
        """Finish what is in flight, send nothing more."""
        if self.progress.stopped is None:
            self.progress.stopped = reason
        for task in self._tasks:
            if task not in self._busy:
                task.cancel()

    def abort(self):
        """Do not wait for the replies in flight either."""
        for task in self._tasks:
            task.cancel()

    async def run(self, questions: Iterator[list[Question]]) -> Progress:
        """Ask until there are no more questions or the run is stopped (`Progress.stopped`).

        Raises:
            JournalError, sqlite3.Error: the journal cannot be written.
            Exception: whatever the iterator raises.
            In each case the replies in flight were recorded as far as that is possible.
        """
        self._client = self.endpoint.async_client(self.limits.max_concurrency)
        queue: asyncio.Queue[Question | None] = asyncio.Queue(self.limits.max_concurrency)
        self._tasks = [asyncio.create_task(self._feed(questions, queue))]
        self._tasks += [
            asyncio.create_task(self._work(queue)) for _ in range(self.limits.max_concurrency)
        ]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            if self._failures():
                self.stop(str(self._failures()[0]))
            await asyncio.wait(self._tasks)
            for failure in self._failures():
                raise failure
        finally:
            await self._recorder.close()
            await self._client.close()
        return self.progress

    def _failures(self) -> list[BaseException]:
        ended = [task for task in self._tasks if task.done() and not task.cancelled()]
        return [task.exception() for task in ended if task.exception() is not None]

    async def _feed(self, questions: Iterator[list[Question]], queue: asyncio.Queue):
        # In a thread: images are read, scaled and encoded there.
        while (batch := await asyncio.to_thread(next, questions, None)) is not None:
            self.on_progress(len(self.plan.question_ids) - len(batch))
            for question in batch:
                await queue.put(question)
        for _ in range(self.limits.max_concurrency):
            await queue.put(None)

    async def _work(self, queue: asyncio.Queue):
        while self.progress.stopped is None and (question := await queue.get()) is not None:
            if await self._answer(question):
                self.on_progress(1)

    async def _answer(self, question: Question) -> bool:
        """Ask one question until it is settled. False when the run was stopped instead."""
        attempts = failures = completions_before = 0
        while True:
            attempts += 1
            worst = self.meter.worst_cost(question.text, question.size)
            if not await self._reserve(worst):
                return False
            tokens = sum(self.meter.expected_tokens(question.text, question.size)[::2])
            try:
                granted = await self.limits.acquire(tokens)
            except BaseException:
                self._settle_cost(worst, None)
                raise
            self._busy.add(asyncio.current_task())
            reading = used = wait = None
            try:
                reply, wait = await self._send(question)
                await self._recorder.record(reply)
                reading = read(reply)
                used = self._account(reply, reading, worst)
            finally:
                self.limits.release(
                    granted,
                    tokens,
                    used,
                    completed=reading is not None and reading.is_completion,
                    throttled=reading is not None and reading.throttled,
                )
                if reading is None:
                    self._settle_cost(worst, worst)
                self._busy.discard(asyncio.current_task())

            if not reading.settled and not reading.stop and not reading.throttled:
                if failures == 0:
                    completions_before = self._completions
                failures += 1
                if failures == MAX_FAILURES and self._completions > completions_before:
                    reading = replace(reading, settled=True)
                elif failures == MAX_FAILURES:
                    self.stop(
                        f"{failures} attempts failed and nothing was answered meanwhile, the "
                        f"last: {reading.detail}. Check the server"
                    )
            self._recorder.note(reply, reading)
            if reading.settled:
                self._judge(reading)
                self.progress.outcomes[reading.outcome] += 1
                return True
            if reading.stop:
                self.stop(reading.stop)
            elif reading.throttled or wait is not None:
                self._pause(backoff(attempts) if wait is None else wait, reading)
            if self.progress.stopped is not None:
                return False
            if not reading.throttled:
                await self.limits.sleep(backoff(failures))
            question = replace(question, attempt=question.attempt + 1)

    async def _send(self, question: Question) -> tuple[Reply, float | None]:
        """One attempt: the reply, and how long the server asks to wait."""
        body = request_body(self.plan.model, self.plan.parameters, question.file, question.text)
        asked_at, began = time.time(), time.perf_counter()
        status = raw = request_id = problem = wait = None
        try:
            async with asyncio.timeout(self.timeout):
                response = (
                    await self._client.chat.completions.with_raw_response.create(**body)
                ).http_response
        except openai.APIStatusError as error:
            response = error.response
        except TimeoutError:
            response, problem = None, "timeout"
        except openai.APIConnectionError as error:
            unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
            never_left = isinstance(error.__cause__, unsent)
            response, problem = None, "unreachable" if never_left else "dropped"
        if response is not None:
            status, raw = response.status_code, self.endpoint.redact(response.content)
            request_id = self.endpoint.redact(response.headers.get("x-request-id"))
            wait = retry_after(response.headers) if status in (429, 503) else None
        return (
            Reply(
                fingerprint=question.fingerprint,
                image_id=question.image_id,
                question_id=question.question_id,
                attempt=question.attempt,
                asked_at=asked_at,
                latency_s=time.perf_counter() - began,
                status=status,
                request_id=request_id,
                problem=problem,
                raw=raw,
            ),
            wait,
        )

    # --- money

    async def _reserve(self, worst: float | None) -> bool:
        while not self.budget.reserve(worst):
            if not self.budget.open:
                self.stop(self.budget.exhausted())
                return False
            self._freed.clear()
            await self._freed.wait()
        return True

    def _account(self, reply: Reply, reading: Reading, worst: float | None) -> int | None:
        """Book what an attempt cost: its usage; the worst case where it may have been charged
        without saying how much; nothing where the server refused or never got it. Returns the
        tokens used, if the server told."""
        tokens = None
        if reading.prompt_tokens is not None and reading.completion_tokens is not None:
            tokens = reading.prompt_tokens + reading.completion_tokens
            usage = reading.prompt_tokens, reading.cached_tokens or 0, reading.completion_tokens
            self.meter.add(*usage)
            actual = self.meter.cost(*usage)
        else:
            actual = worst if may_be_charged(reply.status, reply.problem) else 0.0
        self._settle_cost(worst, actual)
        return tokens

    def _settle_cost(self, worst: float | None, actual: float | None):
        self.budget.settle(worst, actual)
        self._freed.set()

    # --- when to end

    def _judge(self, reading: Reading):
        self.progress.replies += 1
        if reading.is_completion:
            self._completions += 1
            self._bad_in_a_row = 0
            self._last_completion = self.limits.clock()
            if reading.returned_model:
                self.progress.models[reading.returned_model] += 1
            return
        self._bad_in_a_row += 1
        self.progress.last_error = reading.detail
        if self._bad_in_a_row >= (MAX_BAD_IN_A_ROW if self._completions else MAX_BAD_AT_FIRST):
            self.stop(
                f"{self._bad_in_a_row} replies in a row were no completions, the last: "
                f"{reading.detail}. Check the endpoint; `--retry error` asks these again"
            )

    def _pause(self, seconds: float, reading: Reading):
        waited = self.limits.clock() - self._last_completion
        if max(seconds, waited) > PATIENCE:
            self.stop(
                f"the server asks for more patience than {PATIENCE / 60:.0f} minutes "
                f"({reading.detail}): rerun later"
            )
        else:
            self.limits.pause(seconds)


def may_be_charged(status: int | None, problem: str | None) -> bool:
    """Whether an attempt without stated usage may have cost something."""
    return problem in ("timeout", "dropped") or (status is not None and 200 <= status < 300)
