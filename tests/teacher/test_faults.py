"""The teacher against a server that goes wrong in every way we know."""

import asyncio
import json
import socket

import pytest
from support.teacher_helpers import (
    QUESTIONS,
    SPEED,
    arguments,
    hurry,
    make_images,
    no_answer_lost_or_repeated,
    outcomes,
    replies,
)
from support.teacher_server import FakeTeacher

from mvaema.teacher.export import export
from mvaema.teacher.journal import JournalError
from mvaema.teacher.run import Run, run

IMAGES = 2
ALL = IMAGES * QUESTIONS


@pytest.fixture
def server():
    with FakeTeacher() as server:
        yield server


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", IMAGES)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def ask(images, output, url, **changes):
    return Run(arguments(images, output, url, **changes)).ask()


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("429", {}),
        ("429", {"Retry-After": "2"}),
        ("500", {}),
        ("503", {"Retry-After": "1"}),
        ("drop", {}),
        ("drop midway", {}),
    ],
)
def test_passing_failure_is_asked_again(kind, headers, server, images, output, monkeypatch):
    hurry(monkeypatch)
    server.fail(kind, times=3, **headers)
    progress = ask(images, output, server.url)
    assert progress.stopped is None
    assert outcomes(output) == {"ok": ALL}
    assert len(server.exchanges) == ALL + 3
    assert len(replies(output)) == ALL + 3, "failed attempts are kept too"
    no_answer_lost_or_repeated(server, output)


@pytest.mark.parametrize("seconds", [2, 130])  # 130: the openai client gives up at 120
def test_retry_after_pauses_everybody(seconds, server, images, output, monkeypatch):
    hurry(monkeypatch)
    server.fail("429", **{"Retry-After": str(seconds)})
    assert ask(images, output, server.url).stopped is None
    limited = next(i for i, e in enumerate(server.exchanges) if e.fault == "429")
    pause_ends = server.exchanges[limited].time + seconds / SPEED
    during = [e for e in server.exchanges[limited + 1 :] if e.time < pause_ends]
    assert len(during) < 4, "only what was in flight already"
    assert outcomes(output) == {"ok": ALL}


def test_too_long_a_retry_after_ends_the_run(server, images, output, monkeypatch):
    hurry(monkeypatch)
    server.fail("429", **{"Retry-After": "7200"})
    progress = ask(images, output, server.url)
    assert "rerun later" in progress.stopped
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


def test_concurrency_adapts_to_what_the_server_bears(server, tmp_path, output, monkeypatch):
    hurry(monkeypatch)
    server.capacity, server.delay = 5, 0.01
    images = make_images(tmp_path / "many", 20)
    progress = ask(images, output, server.url, concurrency=32)
    assert progress.stopped is None
    assert outcomes(output) == {"ok": 20 * QUESTIONS}
    limited = [e for e in server.exchanges if e.fault == "429"]
    assert len(limited) < len(server.exchanges) / 4, "it goes on near the capacity, not above"
    assert server.most_in_flight > 3
    no_answer_lost_or_repeated(server, output)


def test_one_hopeless_question_does_not_hold_up_the_rest(server, images, output, monkeypatch):
    hurry(monkeypatch)
    server.delay = 0.02
    server.fail("500", times=1000, match="surface texture")
    # One more than the hopeless ones, of which there is one for each micrograph.
    progress = ask(images, output, server.url, concurrency=IMAGES + 1)
    assert progress.stopped is None
    assert outcomes(output) == {"ok": ALL - IMAGES, "error": IMAGES}
    asked = len(server.exchanges)
    ask(images, output, server.url)
    assert len(server.exchanges) == asked, "settled: a rerun does not ask again"
    server.faults.clear()
    ask(images, output, server.url, retry=["error"])
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


def test_server_that_is_down_ends_the_run(server, images, output, monkeypatch):
    hurry(monkeypatch)
    server.fail("500", times=1000)
    progress = ask(images, output, server.url)
    assert "Check the server" in progress.stopped
    assert not any(row["settled"] for row in replies(output))
    server.faults.clear()
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}


def test_nobody_listening(server, images, output, monkeypatch):
    hurry(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    progress = ask(images, output, url)
    assert "unreachable" in progress.stopped
    ask(images, output, server.url)  # the endpoint is not part of the configuration
    assert outcomes(output) == {"ok": ALL}


def test_answer_after_the_timeout_is_not_asked_for_again(server, images, output):
    server.fail("timeout", times=2)
    progress = ask(images, output, server.url, timeout=0.5)
    assert progress.stopped is None
    assert outcomes(output) == {"ok": ALL - 2, "error": 2}
    assert len(server.exchanges) == ALL
    ask(images, output, server.url)
    assert len(server.exchanges) == ALL
    ask(images, output, server.url, retry=["error"])
    assert outcomes(output) == {"ok": ALL}
    assert len(server.exchanges) == ALL + 2
    no_answer_lost_or_repeated(server, output)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("html", "error"),
        ("malformed", "error"),
        ("no choices", "error"),
        ("error inside", "error"),
        ("400", "error"),
        ("truncated", "truncated"),
        ("content filter", "filtered"),
        ("refusal", "refused"),
        ("refusal field", "refused"),
        ("empty", "empty"),
        ("no usage", "ok"),
        ("other model", "ok"),
    ],
)
def test_outcomes_are_kept_and_not_asked_again(kind, outcome, server, images, output):
    server.fail(kind, times=2)
    progress = ask(images, output, server.url)
    assert progress.stopped is None
    expected = {"ok": ALL} if outcome == "ok" else {"ok": ALL - 2, outcome: 2}
    assert outcomes(output) == expected
    assert all(row["raw"] for row in replies(output))
    ask(images, output, server.url)
    assert len(server.exchanges) == ALL
    no_answer_lost_or_repeated(server, output)
    if outcome != "ok":
        ask(images, output, server.url, retry=[outcome])
        assert len(server.exchanges) == ALL + 2
        assert outcomes(output) == {"ok": ALL}
        assert len(replies(output)) == ALL + 2, "both attempts are kept"


def test_answer_of_another_model_is_recorded_and_told(server, images, output, capsys):
    server.fail("other model", times=1000)
    assert ask(images, output, server.url).models == {"something-else": ALL}
    assert "something-else" in capsys.readouterr().out
    assert {row["returned_model"] for row in replies(output)} == {"something-else"}


def test_gateway_that_answers_everything_with_a_page_ends_the_run(server, tmp_path, output):
    images = make_images(tmp_path / "many", 10)
    server.fail("html", times=1000)
    assert "no completions" in ask(images, output, server.url).stopped
    assert len(server.exchanges) < 5 + 4
    server.faults.clear()
    ask(images, output, server.url, retry=["error"], questions=["basics"])
    answered = len(server.exchanges)
    server.fail("html", times=1000, match="surface texture")
    assert ask(images, output, server.url, retry=["error"], concurrency=1).stopped is None
    assert outcomes(output) == {"ok": 90, "error": 10}, "not in a row: the others are answered"
    assert len(server.exchanges) <= answered + 100


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("401", "--api-key-env"),
        ("404", "--teacher-model"),
        ("insufficient_quota", "top it up"),
        ("unsupported", "--profile"),
        ("redirect", "redirects"),
    ],
)
def test_what_no_waiting_repairs_ends_the_run_at_once(kind, advice, server, images, output, capsys):
    server.fail(kind, times=1000)
    args = arguments(images, output, server.url)
    assert run(args) == 1
    message = capsys.readouterr().err
    assert advice in message and "same command goes on" in message
    assert len(server.exchanges) <= 4, "what was in flight, and nothing after it"
    assert len(replies(output)) == len(server.exchanges)
    server.faults.clear()
    assert run(args) == 0
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


def test_rate_caps_hold(server, images, output, monkeypatch):
    hurry(monkeypatch)
    ask(images, output, server.url, requests_per_minute=60, concurrency=20)
    times = [e.time * SPEED for e in server.exchanges]
    # One a second, after a burst of five seconds' worth at most; milliseconds on the way to the
    # server are seconds here.
    assert times[-1] - times[0] >= (ALL - 1 - 6) * 1.0 - 4
    assert outcomes(output) == {"ok": ALL}


def test_token_cap_holds(server, images, output, monkeypatch):
    hurry(monkeypatch)
    # 1,100 tokens a reply, as the server counts: five replies a minute, 20 take four minutes.
    ask(images, output, server.url, tokens_per_minute=5500, concurrency=20)
    times = [e.time * SPEED for e in server.exchanges]
    assert times[-1] - times[0] >= 60 * (ALL / 5 - 1.5)
    assert outcomes(output) == {"ok": ALL}


def test_max_cost_is_never_passed(server, images, output, tmp_path, monkeypatch):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 100, as_of: today}}")
    # A reply costs 0.02; at most 0.36 (1,000 tokens in, 3,500 out).
    progress = ask(images, output, server.url, prices=str(prices), max_cost=0.5)
    spent = 0.02 * len(server.exchanges)
    assert "--max-cost" in progress.stopped
    assert 0.1 <= spent <= 0.5
    progress = ask(images, output, server.url, prices=str(prices), max_cost=2.0)
    assert progress.stopped is None
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


def test_stop_records_what_is_in_flight(server, images, output, monkeypatch):
    """`stop` is what Ctrl-C calls: replies under way are waited for, nothing new is sent."""
    server.delay = 0.5

    async def stop_soon(asker, questions):
        task = asyncio.create_task(asker.run(questions))
        while server.in_flight < 4:
            await asyncio.sleep(0.01)
        asker.stop("interrupted")
        return await task

    monkeypatch.setattr("mvaema.teacher.run._interruptible", stop_soon)
    assert ask(images, output, server.url).stopped == "interrupted"
    assert outcomes(output) == {"ok": len(server.exchanges)} == {"ok": 4}
    no_answer_lost_or_repeated(server, output)


def test_settings_may_be_corrected_until_something_is_answered(server, images, output):
    """A model that refuses temperature: the same folder, another profile."""
    server.fail("unsupported", times=1000)
    assert "--profile" in ask(images, output, server.url).stopped
    server.faults.clear()
    assert ask(images, output, server.url, profile="reasoning", max_side=256).stopped is None
    assert outcomes(output) == {"ok": ALL}
    body = json.loads(server.exchanges[-1].body)
    assert body["max_completion_tokens"] == 3500
    assert not {"temperature", "top_p", "max_tokens"} & set(body)
    with pytest.raises(JournalError, match="profile: 'reasoning' there, 'standard' now"):
        ask(images, output, server.url, max_side=256)
    _, summary = export(output)
    assert summary.outcomes == {"ok": ALL}, "the refused attempts are not answers"
