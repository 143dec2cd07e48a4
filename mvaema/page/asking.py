"""Questions about a subject to answers, word by word.

What is special about it:
- the page asks as a client of `mvaema serve` does, in the same queue and batches, and is bounded by
  the same limits;
- whoever closes the page takes the question back;
- all ten questions about a micrograph are one batch: its image is encoded once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing

from mvaema.page.subject import Subject
from mvaema.serving.batching import Answer, Job
from mvaema.serving.options import Options
from mvaema.serving.refusals import Refusal, bad_request, timed_out
from mvaema.serving.service import Service

# How answers are decoded, as visitors choose it.
AT_ONCE, BEST_OF_NINE = "greedy", "consensus"


class Asker:
    """Asks a service."""

    def __init__(self, service: Service):
        self._service = service
        self.questions = dict(service.student.questions)

    async def stream(self, subject: Subject, question: str, decoding: str) -> AsyncIterator[str]:
        """The answer about what is shown, as far as it is there; the last is all of it.

        Raises:
            Refusal: there is no question, or no answer in time.
        """
        async with aclosing(self.stream_all(subject, [question], decoding)) as answers:
            async for texts in answers:
                yield texts[0]

    async def whole(self, subject: Subject, questions: Sequence[str], decoding: str) -> list[str]:
        """The answers to several questions, once all are there.

        Raises:
            Refusal: as `stream`.
        """
        texts: list[str] = []
        async with aclosing(self.stream_all(subject, questions, decoding)) as answers:
            async for given in answers:
                texts = given
        return texts

    async def stream_all(
        self, subject: Subject, questions: Sequence[str], decoding: str
    ) -> AsyncIterator[list[str]]:
        """The answers to several questions, as far as they are there.

        Raises:
            Refusal: as `stream`.
        """
        if not all(question.strip() for question in questions):
            raise bad_request("type a question first, or press one of the ten.")
        service, texts = self._service, [""] * len(questions)
        deadline = time.monotonic() + service.limits.timeout_seconds
        with ExitStack() as stack:
            stack.enter_context(service.admitted())
            options = service.preparer.options(Options(decoding=decoding))
            image, nm = subject.shown, subject.scale.pixel_size_nm
            prompts = [
                asyncio.wrap_future(
                    service.beside(service.preparer.prompt, image, question, options, nm)
                )
                for question in questions
            ]
            jobs = [
                stack.enter_context(service.asked(prompt, in_pieces=True))
                for prompt in await asyncio.gather(*prompts)
            ]
            happening = _events(jobs, deadline, service.limits.timeout_seconds)
            async with aclosing(happening) as events:
                async for number, event in events:
                    whole = isinstance(event, Answer)
                    texts[number] = event.text if whole else texts[number] + event
                    yield list(texts)


async def _events(
    jobs: list[Job], deadline: float, seconds: float
) -> AsyncIterator[tuple[int, str | Answer]]:
    """What happens to each of several jobs, until all are done."""
    waiting = {asyncio.ensure_future(job.events.get()): n for n, job in enumerate(jobs)}
    try:
        while waiting:
            left = deadline - time.monotonic()
            done, _ = await asyncio.wait(
                waiting, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise timed_out(seconds)
            for future in done:
                number, event = waiting.pop(future), future.result()
                if isinstance(event, Refusal):
                    raise event
                if not isinstance(event, Answer):
                    waiting[asyncio.ensure_future(jobs[number].events.get())] = number
                yield number, event
    finally:
        for future in waiting:
            future.cancel()
