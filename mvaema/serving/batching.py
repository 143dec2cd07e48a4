"""Requests of all clients to batches for one model.

What is special about it:
- one thread runs the model. While it is busy requests gather, and the next batch takes as many of
  them as it may, the oldest first; only an idle model waits a moment for company;
- a request that is withdrawn (its client vanished, or its time is over) leaves the queue at once,
  and what has all its requests withdrawn is not decoded to its end;
- an exception ends the requests of its batch, not the thread.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mvaema.serving.limits import Limits
from mvaema.serving.preparing import Prompt
from mvaema.serving.refusals import Refusal, failed, stopping

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The end of an answer.

    Attributes:
        text: all of it.
        tokens: how many the student wrote, its end included.
        cut: whether it ends because it may not be longer.
    """

    text: str
    tokens: int
    cut: bool


class Job:
    """A question on its way. Made in the event loop, worked on in the model's thread.

    Attributes:
        prompt: what is asked.
        in_pieces: whether its client wants text as soon as it is there.
        events: what happens to it: a `str` for each piece of text, then an `Answer` or a `Refusal`.
        withdrawn: whether nobody wants the answer any more.
        waited, worked: seconds in the queue and in the model.
        batch: how many questions were in its batch.
    """

    def __init__(self, prompt: Prompt, in_pieces: bool = False):
        self.prompt, self.in_pieces = prompt, in_pieces
        self.events: asyncio.Queue[str | Answer | Refusal] = asyncio.Queue()
        self.withdrawn = False
        self.waited = self.worked = 0.0
        self.batch = 0
        self._loop = asyncio.get_running_loop()
        self._made = time.monotonic()

    def begin(self, batch: int) -> None:
        """The model begins with it."""
        self.waited, self.batch = time.monotonic() - self._made, batch

    def tell(self, event: str | Answer | Refusal) -> None:
        """Pass an event on to the client's side, from any thread."""
        if not isinstance(event, str):
            self.worked = time.monotonic() - self._made - self.waited
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed; nobody listens
            self.withdrawn = True


class Batcher:
    """The queue, and the thread that empties it.

    Args:
        answer: answers the jobs of one batch, whose prompts have equal options. It tells each of
            them the answer.
        limits: `max_batch` and `batch_wait_ms` of them.
    """

    def __init__(self, answer: Callable[[list[Job]], None], limits: Limits):
        self._answer, self._limits = answer, limits
        self._waiting: deque[Job] = deque()
        self._working: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="student", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs are in the queue."""
        return len(self._waiting)

    @property
    def working(self) -> int:
        """How many jobs are in the model."""
        return len(self._working)

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Refusal: the server is stopping.
        """
        with self._changed:
            if self._stopping:
                raise stopping()
            self._waiting.append(job)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Nobody wants the answer any more; a job that is done is left as it is."""
        with self._changed:
            job.withdrawn = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, seconds: float = 10.0) -> None:
        """End the thread; jobs that are not done are refused."""
        with self._changed:
            self._stopping = True
            for job in (*self._waiting, *self._working):
                job.withdrawn = True
                job.tell(stopping())
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except Exception:
                logger.exception("a batch failed")
                for job in batch:
                    job.tell(failed())
            finally:
                with self._changed:
                    self._working = []
            del batch  # its images need not stay until the next one

    def _next(self) -> list[Job]:
        """The next batch, when there is one; none at the end."""
        with self._changed:
            while not self._stopping:
                if not self._waiting:
                    self._changed.wait()
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= self._limits.max_batch or self._stopping,
                        self._limits.batch_wait_ms / 1000,
                    )
                if self._waiting:  # and not withdrawn meanwhile
                    return self._taken()
        return []

    def _taken(self) -> list[Job]:
        """The oldest job, and those that go with it."""
        options = self._waiting[0].prompt.options
        alike = [job for job in self._waiting if job.prompt.options == options]
        self._working = alike[: self._limits.max_batch]
        for job in self._working:
            self._waiting.remove(job)
            job.begin(len(self._working))
        return self._working
