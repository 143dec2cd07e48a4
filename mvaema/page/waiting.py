"""Work in a thread of its own, for so long and no longer.

What is special about it: a thread cannot be stopped. Who waits is told that it takes too long; the
thread works on, and what comes after it waits, so that there is never more than one at work.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from mvaema.serving.refusals import timed_out

Made = TypeVar("Made")


async def within(seconds: float, future: "Future[Made]") -> Made:
    """What a thread makes.

    Raises:
        Refusal: it took longer than `seconds`.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError:
        raise timed_out(seconds) from None


class Worker:
    """One thread that does one thing at a time.

    Args:
        name: of the thread.
        seconds: longest time that anybody waits.
    """

    def __init__(self, name: str, seconds: float):
        self._pool, self._seconds = ThreadPoolExecutor(1, thread_name_prefix=name), seconds

    async def __call__(self, work: Callable[..., Made], *given, **options) -> Made:
        """What the work returns.

        Raises:
            Refusal: it took too long.
        """
        return await within(self._seconds, self._pool.submit(work, *given, **options))

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
