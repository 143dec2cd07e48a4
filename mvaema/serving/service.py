"""The student, its threads, and the requests in progress.

What is special about it: the student is loaded in the thread beside the server, which can thus tell
from its first moment that it is alive and not ready yet. Preparing and answering have one thread
each, so that the next batch is made ready while the model works.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mvaema.serving.answering import Answering
from mvaema.serving.batching import Batcher, Job
from mvaema.serving.images import limit_pixels
from mvaema.serving.limits import Limits
from mvaema.serving.messages import Conversation
from mvaema.serving.preparing import Preparer, Prompt
from mvaema.serving.refusals import not_ready, queue_is_full
from mvaema.serving.student import Student

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

# How much the latest request counts in the mean time that requests take.
LATEST = 0.1


class Service:
    """What the addresses of a server have in common.

    Args:
        load: returns the student.
        name: that clients know it by.
        limits: of the server.
        decoding: how answers are decoded, one of `DECODINGS`; None for the student's own way.

    Attributes:
        in_progress: requests that were taken and are not over.
        uploads: bounds how many bodies are in memory.
        created: when it started, in seconds since 1970.
        failure: why the student could not be loaded.
        student: who answers, in a thread of its own; None until it is loaded.
        preparer: makes prompts, in the thread of `beside` only; None as long.
    """

    def __init__(
        self,
        load: Callable[[], Student],
        name: str,
        limits: Limits,
        decoding: str | None = None,
    ):
        self._load, self.name, self.limits, self._decoding = load, name, limits, decoding
        self.in_progress = 0
        self.created = int(time.time())
        self.uploads = asyncio.Semaphore(limits.max_uploads)
        self.failure: Exception | None = None
        self.student: Student | None = None
        self.preparer: Preparer | None = None
        self._batcher: Batcher | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._seconds = 1.0

    # ---- its life --------------------------------------------------------------------------------

    def start(self, when_failed: Callable[[], None] = lambda: None) -> threading.Thread:
        """Load the student in a thread of its own, which is returned.

        Args:
            when_failed: called there if that fails, with the reason in `failure`.
        """
        self._unlimit = limit_pixels(self.limits.max_pixels)
        thread = threading.Thread(target=self._begin, args=(when_failed,), daemon=True)
        thread.start()
        return thread

    def _begin(self, when_failed: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            self.student = self._load()
            self.preparer = Preparer(self.student, self.name, self._decoding, self.limits)
            self._batcher = Batcher(Answering(self.student), self.limits)
        except Exception as error:  # whatever it is, the server must not wait for a student forever
            self.failure = error
            when_failed()
            return
        facts = {
            "model": self.name,
            "decoding": self.preparer.decoding,
            "seconds": round(time.monotonic() - began, 3),
        }
        logger.info("ready", extra={"facts": facts})

    def close(self) -> None:
        """End the threads; what is not answered is refused."""
        if self._batcher is not None:
            self._batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._unlimit()

    # ---- its state -------------------------------------------------------------------------------

    @property
    def loaded(self) -> bool:
        return self._batcher is not None

    @property
    def full(self) -> bool:
        return self.in_progress >= self.limits.max_queue

    @property
    def waiting(self) -> int:
        """How many questions are in the queue."""
        return self._batcher.waiting if self._batcher else 0

    @property
    def working(self) -> int:
        """How many questions are in the model."""
        return self._batcher.working if self._batcher else 0

    # ---- requests --------------------------------------------------------------------------------

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A request in progress.

        Raises:
            Refusal: the student is not loaded yet (503), or there are too many requests (429).
        """
        if not self.loaded:
            raise not_ready()
        if self.full:
            raise queue_is_full(self._seconds)
        self.in_progress += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.in_progress -= 1
            self._seconds += LATEST * (time.monotonic() - began - self._seconds)

    def prepare(self, body: bytes) -> Future[tuple[Conversation, Prompt]]:
        """The question in a request's body; the result may raise a `Refusal`."""
        return self.beside(self.preparer, body)

    def beside(self, work: Callable[..., Made], *given) -> Future[Made]:
        """Work in the thread that images and prompts are prepared in, beside the model's."""
        return self._threads.submit(work, *given)

    @contextmanager
    def asked(self, prompt: Prompt, in_pieces: bool) -> Iterator[Job]:
        """A question in the queue, or in the model, as long as the block lasts."""
        job = Job(prompt, in_pieces)
        self._batcher.submit(job)
        try:
            yield job
        finally:
            self._batcher.withdraw(job)
