"""Concurrency, rates and pauses, on a clock that only moves while somebody sleeps."""

import asyncio

import pytest
from support.teacher_helpers import SteppingClock

from mvaema.teacher.limits import Limits, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        # The server's clock, whatever ours says: "-0000" is a UTC date without a time zone.
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:00 GMT",
                "date": "Wed, 21 Oct 2015 07:26:30 GMT",
            },
            90,
        ),
        (
            {
                "retry-after": "Fri, 21 Oct 2044 07:28:00 -0000",
                "date": "Fri, 21 Oct 2044 07:26:30 -0000",
            },
            90,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "yesterday"}, 0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_one_burst_of_429_halves_concurrency_once():
    limits = Limits(64, clock=iter(range(1000)).__next__)
    limits.concurrency, limits.in_flight = 32.0, 5
    for _ in range(5):  # all granted before the cut
        limits.release(1, 0, None, throttled=True)
    assert limits.concurrency == 16
    limits.in_flight = 1
    limits.release(900, 0, None, throttled=True)
    assert limits.concurrency == 8
    limits.release(901, 0, None)
    assert limits.concurrency == 8, "a failure is no reason to send more"


def grants(limits: Limits, requests: int, tokens: float = 0, used: float | None = None):
    """When so many requests in a row were granted; each is over at once."""

    async def go():
        times = []
        for _ in range(requests):
            times.append(await limits.acquire(tokens))
            limits.release(times[-1], tokens, used)
        return times

    return asyncio.run(go())


def test_requests_per_minute():
    clock = SteppingClock()
    limits = Limits(100, requests_per_minute=60, clock=clock, sleep=clock.sleep)
    assert grants(limits, 4) == [0, 1, 2, 3]
    clock.now = 1000.0
    # Five seconds' worth may go at once after idle time, and one on credit.
    assert grants(limits, 8) == [1000] * 6 + [1001, 1002]


def test_tokens_per_minute():
    clock = SteppingClock()
    limits = Limits(100, tokens_per_minute=600, clock=clock, sleep=clock.sleep)
    assert grants(limits, 3, tokens=100) == pytest.approx([0, 10, 20])
    clock.now = 30.0
    # Expected 100, used 300: the next waits for the difference too.
    assert grants(limits, 2, tokens=100, used=300) == pytest.approx([30, 60])
    clock.now = 90.0
    assert grants(limits, 2, tokens=100, used=0) == pytest.approx([90, 90]), "given back"


@pytest.mark.parametrize("seconds", [2.0, 7200.0])
def test_a_pause_holds_up_everybody(seconds):
    clock = SteppingClock()
    limits = Limits(8, clock=clock, sleep=clock.sleep)

    async def go():
        first = await limits.acquire(0)
        limits.pause(seconds)
        limits.pause(1.0)  # a shorter one changes nothing
        return first, await asyncio.gather(*(limits.acquire(0) for _ in range(3)))

    assert asyncio.run(go()) == (0.0, [seconds] * 3)


def test_a_condition_is_asked_at_the_moment_of_sending():
    """Not before a pause, but after it, and again whenever another request is over."""
    clock = SteppingClock()
    limits, asked = Limits(8, clock=clock, sleep=clock.sleep), []

    def admit() -> bool:
        asked.append(clock.now)
        return len(asked) > 1

    async def go():
        first = await limits.acquire(0)
        limits.pause(50)
        second = asyncio.create_task(limits.acquire(0, admit))
        while not asked:
            await asyncio.sleep(0)
        clock.now = 60.0
        assert not second.done() and limits.in_flight == 1
        limits.release(first, 0, None)
        return await second

    assert asyncio.run(go()) == 60
    assert asked == [50, 60]


def test_probing_means_one_at_a_time():
    limits = Limits(8)

    async def go():
        limits.probing = True
        first = await limits.acquire(0)
        second = asyncio.create_task(limits.acquire(0))
        await asyncio.sleep(0.01)
        assert limits.in_flight == 1
        limits.release(first, 0, None)
        await second

    asyncio.run(go())
