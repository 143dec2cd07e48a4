"""When the next request may go: concurrency, rates and pauses in one place.

What is special about it:
- concurrency follows the server. It doubles per round until the first 429, a 429 halves it (once
  per round), and after that it grows by one per round: slow start and AIMD, as in TCP's congestion
  control (RFC 5681);
- a Retry-After pauses all requests, however long it is;
- requests and tokens per minute are spread evenly (token buckets that hold five seconds' worth).
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC

FIRST_CONCURRENCY = 4
BUCKET_SECONDS = 5.0
LONGEST_BACKOFF = 60.0


class Bucket:
    """A rate per minute. The level may be negative: what was taken in advance is waited for."""

    def __init__(self, per_minute: float, now: float):
        self.rate = per_minute / 60
        self.capacity = self.rate * BUCKET_SECONDS
        self.level, self._updated = 0.0, now

    def wait(self, now: float) -> float:
        """Seconds until something may be taken."""
        elapsed, self._updated = now - self._updated, now
        self.level = min(self.level + elapsed * self.rate, self.capacity)
        return max(0.0, -self.level / self.rate)

    def take(self, amount: float):
        self.level -= amount


class Limits:
    """The gate that every request passes.

    Args:
        max_concurrency: requests in flight, at most.
        requests_per_minute, tokens_per_minute: caps; None for no cap.
        clock: monotonic time in seconds.
        sleep: coroutine function that waits so many seconds of `clock`.
    """

    def __init__(
        self,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable] = asyncio.sleep,
    ):
        self.max_concurrency = max_concurrency
        self.concurrency = float(min(FIRST_CONCURRENCY, max_concurrency))
        self.in_flight = 0
        self.probing = False  # one at a time, whatever the concurrency
        self.clock, self.sleep = clock, sleep
        self._requests = requests_per_minute and Bucket(requests_per_minute, clock())
        self._tokens = tokens_per_minute and Bucket(tokens_per_minute, clock())
        self._paused_until = clock()
        self._cut_at = None  # when a 429 last halved the concurrency
        self._turn = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()

    async def acquire(self, tokens: float, admit: Callable[[], bool] = lambda: True) -> float:
        """Wait for a turn.

        Args:
            tokens: what the request is expected to use.
            admit: a condition of the caller's, asked at the moment when the request could go, and
                again whenever another one is over.

        Returns:
            the time it was granted, for `release`.
        """
        async with self._turn:
            while True:
                now = self.clock()
                waits = [self._paused_until - now]
                waits += [bucket.wait(now) for bucket in (self._requests, self._tokens) if bucket]
                if max(waits) > 0:
                    await self.sleep(max(waits))
                elif self.in_flight >= self._most or not admit():
                    self._freed.clear()
                    await self._freed.wait()
                else:
                    break
            self.in_flight += 1
            if self._requests:
                self._requests.take(1)
            if self._tokens:
                self._tokens.take(tokens)
            return now

    @property
    def _most(self) -> int:
        return 1 if self.probing else int(self.concurrency)

    def release(
        self,
        granted: float,
        tokens: float,
        used: float | None,
        *,
        completed: bool = False,
        throttled: bool = False,
    ):
        """A request is over.

        Args:
            granted: what `acquire` returned.
            tokens: what `acquire` was given.
            used: tokens really used, None when unknown.
            completed: an answer came, so the server may take more requests at a time.
            throttled: the server answered 429, so it takes fewer.
        """
        self.in_flight -= 1
        if self._tokens and used is not None:
            self._tokens.take(used - tokens)
        if completed:
            self.concurrency += 1 if self._cut_at is None else 1 / self.concurrency
            self.concurrency = min(self.concurrency, self.max_concurrency)
        if throttled and (self._cut_at is None or granted > self._cut_at):
            self.concurrency = max(1.0, self.concurrency / 2)
            self._cut_at = self.clock()
        self._freed.set()

    def pause(self, seconds: float):
        """Grant nothing for so long."""
        self._paused_until = max(self._paused_until, self.clock() + seconds)


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: exponential with full jitter
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""
    return random.uniform(0, min(LONGEST_BACKOFF, 2.0**failures))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait (RFC 9110, 10.2.3: seconds or a date), or None.

    A date is compared with the response's own `Date`, since clocks differ; with the clock of this
    machine only where there is none.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until, now = _timestamp(value), _timestamp(headers.get("date", ""))
        if until is None:
            return None
        seconds = until - (time.time() if now is None else now)
    return max(0.0, seconds) if seconds < float("inf") else None


def _timestamp(date: str) -> float | None:
    """Unix time of an HTTP date; None where it is none."""
    try:
        parsed = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
