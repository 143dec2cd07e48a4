"""One request per question, many at a time: the live way to ask.

What is special about it:
- the openai client is transport only, and tries once: what a failure means is decided here, from
  the reply as the journal holds it;
- memory holds the requests in flight and as many questions waiting, however large the dataset;
- a run ends early in one way only, `stop`: requests in flight are finished and recorded, nothing
  new is sent, and the reason says what to do.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx2
import openai

from mvaema.teacher.accounts import Accounts, Tally
from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.journal import Journal, Question
from mvaema.teacher.limits import Limits, backoff, retry_after
from mvaema.teacher.prompt import request_body
from mvaema.teacher.questions import Plan
from mvaema.teacher.recording import Recorder
from mvaema.teacher.replies import Reply, Verdict

# After so many failures of one question: the question is at fault if others were answered
# meanwhile, else the server is.
MAX_FAILURES = 8
# After so many replies in a row that are not completions, something in front of the model is
# wrong. Before the first completion, fewer are enough.
MAX_BAD_IN_A_ROW, MAX_BAD_AT_FIRST = 20, 5
# Longest wait, in seconds, for a server that asks to slow down (429) or names a time.
PATIENCE = 3600.0


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
        self._freed = asyncio.Event()  # some of the budget
        self._bad_in_a_row = 0
        self._last_completion = limits.clock()

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
        for _ in range(self.limits.max_concurrency):
            await queue.put(None)

    async def _work(self, queue: asyncio.Queue):
        while self.tally.stopped is None and (question := await queue.get()) is not None:
            if await self._settle(question):
                self.on_progress(1)

    # --- one question

    async def _settle(self, question: Question) -> bool:
        """Ask a question until it is settled. False when the run was stopped instead."""
        attempts = failures = completions_before = 0
        while True:
            worst = self.accounts.meter.worst_cost(question.text, question.size)
            if not await self._reserve(worst):
                return False
            attempts += 1
            reply, verdict, wait = await self._attempt(question, worst)
            if not verdict.settled and not verdict.stop and not verdict.throttled:
                if failures == 0:
                    completions_before = self.tally.completions
                failures += 1
                if failures == MAX_FAILURES:
                    verdict = self._give_up(verdict, self.tally.completions > completions_before)
            self._recorder.note(reply, verdict)
            if verdict.settled:
                self._count(verdict)
                return True
            if verdict.stop:
                self.stop(verdict.stop)
            elif verdict.throttled or wait is not None:
                self._pause(backoff(attempts) if wait is None else wait, verdict)
            if self.tally.stopped is not None:
                return False
            if not verdict.throttled:
                await self.limits.sleep(backoff(failures))
            question = replace(question, attempt=question.attempt + 1)

    async def _attempt(
        self, question: Question, worst: float | None
    ) -> tuple[Reply, Verdict, float | None]:
        """One attempt, journalled and charged: the reply, the verdict, and how many seconds the
        server asks to wait. `worst` was reserved for it."""
        prompt, _, completion = self.accounts.meter.expected_tokens(question.text, question.size)
        try:
            granted = await self.limits.acquire(prompt + completion)
        except BaseException:
            self._pay(worst, 0.0)
            raise
        self._busy.add(asyncio.current_task())
        verdict, cost = None, worst
        try:
            reply, wait = await self._send(question)
            await self._recorder.record(reply)
            verdict = reply.judge()
            cost = self.accounts.charge(reply, verdict, worst)
        finally:
            usage = verdict and verdict.usage
            self.limits.release(
                granted,
                prompt + completion,
                usage and usage[0] + usage[2],
                completed=verdict is not None and verdict.is_completion,
                throttled=verdict is not None and verdict.throttled,
            )
            self._pay(worst, cost)
            self._busy.discard(asyncio.current_task())
        return reply, verdict, wait

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
            unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
            problem = "unreachable" if isinstance(error.__cause__, unsent) else "dropped"
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

    # --- money

    async def _reserve(self, worst: float | None) -> bool:
        """Wait until the budget has room for an attempt. False when it never will."""
        budget = self.accounts.budget
        while not budget.reserve(worst):
            if not budget.open:
                self.stop(budget.exhausted())
                return False
            self._freed.clear()
            await self._freed.wait()
        return True

    def _pay(self, worst: float | None, cost: float | None):
        self.accounts.budget.settle(worst, cost)
        self._freed.set()

    # --- when to end

    def _count(self, verdict: Verdict):
        self.tally.count(verdict)
        if verdict.is_completion:
            self._bad_in_a_row = 0
            self._last_completion = self.limits.clock()
            return
        self._bad_in_a_row += 1
        limit = MAX_BAD_IN_A_ROW if self.tally.completions else MAX_BAD_AT_FIRST
        if self._bad_in_a_row >= limit:
            self.stop(
                f"{self._bad_in_a_row} replies in a row were not completions, the last one: "
                f"{verdict.detail}. Check the endpoint. `--retry error` asks these questions again."
            )

    def _give_up(self, verdict: Verdict, others_answered: bool) -> Verdict:
        """After the last failure of a question: settle it as an error, or stop the run."""
        if others_answered:
            return replace(verdict, settled=True)
        self.stop(
            f"{MAX_FAILURES} attempts at a question failed and no other was answered meanwhile, "
            f"the last one: {verdict.detail}. Check the server."
        )
        return verdict

    def _pause(self, seconds: float, verdict: Verdict):
        waited = self.limits.clock() - self._last_completion
        if max(seconds, waited) > PATIENCE:
            self.stop(
                f"The server asks to wait longer than {PATIENCE / 60:.0f} minutes "
                f"({verdict.detail}), so try again later."
            )
        else:
            self.limits.pause(seconds)
