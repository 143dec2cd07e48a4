"""One request per question, many at a time: the live way to ask.

What is special about it:
- the openai client is transport only, and tries once: what a failure means is decided here, from
  the reply as the journal holds it;
- a question that failed is put aside and tried again later, so that it holds up no other;
- memory holds the requests in flight, the questions put aside and as many questions waiting,
  however large the dataset;
- a run ends early in one way only, `stop`: requests in flight are finished and recorded, nothing
  new is sent, and the reason says what to do.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx2
import openai
from tqdm import tqdm

from mvaema.teacher.accounts import Accounts, Reservation, Tally
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, Question
from mvaema.teacher.limits import Limits, backoff, retry_after
from mvaema.teacher.money import Request
from mvaema.teacher.patience import CHECK_FORM, Patience, Turn
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.recording import Recorder
from mvaema.teacher.replies import Reply, Verdict

# Failures after which the server has not received the request.
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


class Later:
    """Turns that wait for a time, the earliest first."""

    def __init__(self):
        self._heap: list[tuple[float, int, Turn]] = []
        self._number = itertools.count()  # first come, first served at one time

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, due: float, turn: Turn):
        heapq.heappush(self._heap, (due, next(self._number), turn))

    def is_due(self, now: float) -> bool:
        return bool(self._heap) and self._heap[0][0] <= now

    def pop(self) -> tuple[float, Turn]:
        """The time and the turn of the earliest."""
        due, _, turn = heapq.heappop(self._heap)
        return due, turn


class Asker:
    """Asks the questions of a plan through one endpoint.

    Args:
        endpoint: where requests go.
        journal: where replies go.
        plan: what is asked.
        accounts: what it costs, how much it may cost, and what was done.
        limits: when the next request may go.
        timeout: seconds to wait for one reply.
        on_progress: called with a number of questions whenever that many are done with.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        plan: Plan,
        accounts: Accounts,
        limits: Limits,
        timeout: float = 600.0,
        on_progress: Callable[[int], None] = lambda count: None,
    ):
        self.endpoint, self.plan, self.accounts, self.limits = endpoint, plan, accounts, limits
        self.timeout, self.on_progress = timeout, on_progress
        self.tally = accounts.tally
        self._recorder = Recorder(journal)
        self._busy: set[asyncio.Task] = set()  # workers with a request in flight
        self._tasks: list[asyncio.Task] = []
        self._later = Later()
        self._patience = Patience(limits.clock, tqdm.write)

    def stop(self, reason: str):
        """Finish the requests in flight and send nothing more. `reason` is kept in the tally."""
        if self.tally.stopped is None:
            self.tally.stopped = reason
        for task in self._tasks:
            if task not in self._busy:
                task.cancel()

    def abort(self):
        """Do not wait for the requests in flight either."""
        for task in self._tasks:
            task.cancel()

    async def run(self, questions: Iterator[list[Question]]) -> Tally:
        """Ask until there are no more questions or the run is stopped (`Tally.stopped`).

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
            if self.tally.stopped is None and self.tally.questions and not self.tally.completions:
                self.tally.stopped = (
                    f"None of {self.tally.questions:,} questions was answered, the last error: "
                    f"{self.tally.last_error}. {CHECK_FORM}"
                )
        finally:
            await self._recorder.close()
            await self._client.close()
        return self.tally

    def _failures(self) -> list[BaseException]:
        ended = [task for task in self._tasks if task.done() and not task.cancelled()]
        return [task.exception() for task in ended if task.exception() is not None]

    async def _feed(self, questions: Iterator[list[Question]], queue: asyncio.Queue):
        # In a thread: images are read, scaled and encoded there.
        while (batch := await asyncio.to_thread(next, questions, None)) is not None:
            self.on_progress(len(self.plan.question_ids) - len(batch))
            for question in batch:
                await queue.put(question)
        await queue.put(None)

    async def _work(self, queue: asyncio.Queue):
        while self.tally.stopped is None and (turn := await self._next(queue)) is not None:
            await self._take(turn)

    async def _next(self, queue: asyncio.Queue) -> Turn | None:
        """A question that has waited long enough, else a new one, else the next to have waited.
        In an outage a new one, about another image, is more likely to show that it is over."""
        while True:
            if not self._patience.is_outage and self._later.is_due(self.limits.clock()):
                return self._later.pop()[1]
            question = await queue.get()
            if question is None:
                queue.put_nowait(None)  # for the other workers
                if not self._later:
                    return None
                due, turn = self._later.pop()
                await self.limits.sleep(max(0.0, due - self.limits.clock()))
                return turn
            if not self._patience.suspects(question.image_id):
                return Turn(question)
            self._later.push(self.limits.clock(), Turn(question))

    # --- one question

    async def _take(self, turn: Turn):
        """Ask a question once, and see to it that it is asked again if need be."""
        reply, verdict, granted, wait = await self._attempt(turn.question)
        failed = not (verdict.settled or verdict.stop or verdict.throttled)
        if failed and self._patience.blame(turn, reply):
            verdict = replace(verdict, settled=True)
        self._recorder.note(reply, verdict)
        if verdict.stop:
            self.stop(verdict.stop)
        elif verdict.settled:
            self.tally.count(verdict)
            reason = self._patience.settled(turn.question, reply, verdict)
            if reason is not None:
                self.stop(reason)
            self.on_progress(1)
        else:
            self._put_aside(turn, verdict, granted, wait)
        self.limits.probing = self._patience.is_outage

    def _put_aside(self, turn: Turn, verdict: Verdict, granted: float, wait: float | None):
        try:
            if verdict.throttled:
                self.limits.pause(self._patience.throttled(turn, wait, verdict))
                due = self.limits.clock()
            else:
                self.limits.pause(self._patience.failed(turn, granted, wait, verdict))
                due = self.limits.clock() + backoff(turn.failures)
        except TimeoutError as error:
            self.stop(str(error))
            return
        turn.question = replace(turn.question, attempt=turn.question.attempt + 1)
        self._later.push(due, turn)

    async def _attempt(self, question: Question) -> tuple[Reply, Verdict, float, float | None]:
        """One attempt, journalled and charged: the reply, the verdict, when it was sent, and how
        many seconds the server asks to wait."""
        request = (question.text, question.size)
        prompt, _, completion = self.accounts.meter.expected_tokens(*request)
        reserved: list[Reservation] = []
        granted = await self.limits.acquire(
            prompt + completion, lambda: self._reserve(request, reserved)
        )
        [reservation] = reserved
        self._busy.add(asyncio.current_task())
        verdict = cost = None
        try:
            reply, wait = await self._send(question)
            await self._recorder.record(reply)
            verdict = reply.judge()
            cost = self.accounts.charge(reply, verdict, reservation.worst, request)
        finally:
            self.accounts.settle(reservation, reservation.worst if verdict is None else cost)
            usage = verdict and verdict.usage
            self.limits.release(
                granted,
                prompt + completion,
                usage and usage[0] + usage[2],
                completed=verdict is not None and verdict.is_completion,
                throttled=verdict is not None and verdict.throttled,
            )
            self._busy.discard(asyncio.current_task())
        return reply, verdict, granted, wait

    def _reserve(self, request: Request, reserved: list[Reservation]) -> bool:
        """Reserve the cost of a request that could be sent now. Nothing is reserved for longer
        than it is in flight, so that what was learned meanwhile counts."""
        reservation = self.accounts.reserve(request)
        if reservation is not None:
            reserved.append(reservation)
        elif not self.accounts.budget.open:
            self.stop(self.accounts.budget.exhausted())
        return reservation is not None

    async def _send(self, question: Question) -> tuple[Reply, float | None]:
        """Send a question once: the reply, and how many seconds the server asks to wait."""
        body = request_body(self.plan.model, self.plan.parameters, question.file, question.text)
        asked_at, began = time.time(), time.perf_counter()
        status = raw = request_id = problem = wait = response = None
        try:
            async with asyncio.timeout(self.timeout):
                response = (
                    await self._client.chat.completions.with_raw_response.create(**body)
                ).http_response
        except openai.APIStatusError as error:
            response = error.response
        except TimeoutError:
            problem = "timeout"
        except openai.APIConnectionError as error:
            problem = "unreachable" if isinstance(error.__cause__, UNSENT) else "dropped"
        if response is not None:
            status, raw = response.status_code, self.endpoint.redact(response.content)
            request_id = self.endpoint.redact(response.headers.get("x-request-id"))
            wait = retry_after(response.headers) if status in (429, 503) else None
        reply = Reply(
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
        )
        return reply, wait
