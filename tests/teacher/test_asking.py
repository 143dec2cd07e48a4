"""Live requests to a server that fails in every way we know."""

import json
import socket

import pytest
from support.teacher_helpers import (
    QUESTIONS,
    SteppingClock,
    arguments,
    ask,
    make_images,
    no_answer_lost_or_repeated,
    outcomes,
    replies,
)

from mvaema.commands.teach import ask_command
from mvaema.teacher.export import export
from mvaema.teacher.journal import JournalError
from mvaema.teacher.run import TeacherRun

IMAGES = 2
ALL = IMAGES * QUESTIONS


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images", IMAGES)


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
def test_passing_failure_is_asked_again(kind, headers, server, images, output):
    server.fail(kind, times=3, **headers)
    tally = ask(images, output, server.url)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": ALL}
    assert len(server.exchanges) == ALL + 3
    assert len(replies(output)) == ALL + 3, "failed attempts are kept too"
    no_answer_lost_or_repeated(server, output)


@pytest.mark.parametrize("seconds", [2, 130])  # 130: the openai client gives up at 120
def test_retry_after_is_waited_for(seconds, server, images, output):
    """Nothing else waits here, so the clock ends where the pause does."""
    clock = SteppingClock()
    server.fail("429", **{"Retry-After": str(seconds)})
    args = arguments(images, output, server.url)
    run = TeacherRun(args, clock=clock, sleep=clock.sleep)
    assert run.ask().tally.stopped is None
    assert clock.now == pytest.approx(seconds)
    assert outcomes(output) == {"ok": ALL}


def test_too_long_a_retry_after_ends_the_run(server, images, output):
    server.fail("429", **{"Retry-After": "7200"})
    tally = ask(images, output, server.url)
    assert "try again later" in tally.stopped
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


def test_concurrency_adapts_to_the_server(server, tmp_path, output):
    server.capacity, server.delay = 5, 0.01
    images = make_images(tmp_path / "many", 20)
    tally = ask(images, output, server.url, concurrency=32)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": 20 * QUESTIONS}
    limited = [e for e in server.exchanges if e.fault == "429"]
    assert len(limited) < len(server.exchanges) / 4, "it stays near the capacity"
    assert server.most_in_flight > 3
    no_answer_lost_or_repeated(server, output)


def test_one_hopeless_question_does_not_hold_up_the_rest(server, images, output):
    server.delay = 0.02
    server.fail("500", times=1000, match="surface texture")
    # One more than the hopeless ones, of which there is one for each micrograph.
    tally = ask(images, output, server.url, concurrency=IMAGES + 1)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": ALL - IMAGES, "error": IMAGES}
    asked = len(server.exchanges)
    ask(images, output, server.url)
    assert len(server.exchanges) == asked, "settled: a rerun does not ask again"
    server.faults.clear()
    ask(images, output, server.url, retry=["error"])
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


@pytest.mark.slow
def test_server_that_is_down_ends_the_run(server, images, output):
    server.fail("500", times=1000)
    tally = ask(images, output, server.url)
    assert "Check the server" in tally.stopped
    assert not any(row["settled"] for row in replies(output))
    server.faults.clear()
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": ALL}


@pytest.mark.slow
def test_nobody_listening(server, images, output):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    tally = ask(images, output, url)
    assert "unreachable" in tally.stopped
    ask(images, output, server.url)  # the endpoint is not part of the configuration
    assert outcomes(output) == {"ok": ALL}


def test_answer_after_the_timeout_is_not_asked_for_again(server, images, output):
    server.fail("timeout", times=2)
    tally = ask(images, output, server.url, timeout=0.5)
    assert tally.stopped is None
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
    tally = ask(images, output, server.url)
    assert tally.stopped is None
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
    assert ask_command(arguments(images, output, server.url)) == 0
    assert "the server reports something-else" in capsys.readouterr().out
    assert {row["returned_model"] for row in replies(output)} == {"something-else"}


def test_gateway_that_answers_everything_with_a_page_ends_the_run(server, tmp_path, output):
    images = make_images(tmp_path / "many", 10)
    server.fail("html", times=1000)
    assert "not completions" in ask(images, output, server.url).stopped
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
        ("401", "--api_key_env"),
        ("404", "--teacher_model"),
        ("insufficient_quota", "Top it up"),
        ("unsupported", "--profile"),
        ("redirect", "redirects"),
    ],
)
def test_what_no_waiting_repairs_ends_the_run_at_once(kind, advice, server, images, output, capsys):
    server.fail(kind, times=1000)
    args = arguments(images, output, server.url)
    assert ask_command(args) == 1
    message = capsys.readouterr().err
    assert advice in message and "Rerun the same command to resume" in message
    assert len(server.exchanges) <= 4, "what was in flight, and nothing after it"
    assert len(replies(output)) == len(server.exchanges)
    server.faults.clear()
    assert ask_command(args) == 0
    assert outcomes(output) == {"ok": ALL}
    no_answer_lost_or_repeated(server, output)


@pytest.mark.parametrize(
    ("cap", "seconds"),
    [
        # 20 requests at one a second, the first at once.
        ({"requests_per_minute": 60}, ALL - 1),
        # 1,100 tokens a reply, as the server states: one in 12 seconds. Fewer are expected of the
        # first, and the debt is waited for.
        ({"tokens_per_minute": 5500}, 12 * (ALL - 1)),
    ],
)
def test_caps_hold(cap, seconds, server, images, output):
    clock = SteppingClock()
    # One at a time, since this clock does not wait for the server.
    args = arguments(images, output, server.url, concurrency=1, **cap)
    TeacherRun(args, clock=clock, sleep=clock.sleep).ask()
    assert clock.now == pytest.approx(seconds, abs=0.01)
    assert outcomes(output) == {"ok": ALL}


def test_max_cost_is_never_passed(server, images, output, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 100, as_of: today}}")
    # A reply costs 0.02; at most 0.36 (1,000 tokens in, 3,500 out).
    tally = ask(images, output, server.url, prices=str(prices), max_cost=0.5)
    spent = 0.02 * len(server.exchanges)
    assert "--max_cost" in tally.stopped
    assert 0.1 <= spent <= 0.5
    tally = ask(images, output, server.url, prices=str(prices), max_cost=2.0)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": ALL}
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
