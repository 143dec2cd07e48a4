"""What is charged and counted, against figures worked out by hand and against the journal."""

import io
import json
import math
import random

import pytest
from PIL import Image
from support.teacher_helpers import (
    QUESTIONS,
    arguments,
    ask,
    hurried,
    make_images,
    no_answer_lost_or_repeated,
    outcomes,
)
from support.teacher_server import image_of

from mvaema.teacher.accounts import Accounts
from mvaema.teacher.journal import Journal
from mvaema.teacher.money import Budget, Measured, Meter, Price, spent
from mvaema.teacher.replies import Reply

PRICE = Price(input=10, output=100, cached_input=1, batch=0.5, image=None, as_of="", source="")
MAX_TOKENS = 3500
# US dollars of an attempt that may have been charged: the longest prompt and a full answer.
UNSTATED = 1000 * 10e-6 + MAX_TOKENS * 100e-6


def body(**usage) -> bytes:
    choice = {"message": {"content": "<answer>a</answer>"}, "finish_reason": "stop"}
    return json.dumps({"model": "m-1", "choices": [choice], "usage": usage or None}).encode()


@pytest.mark.parametrize("batch", [None, "batch-1"])
def test_charges_agree_with_the_journal(batch, tmp_path):
    """So a run that is resumed starts from the sum that the first one had reached."""
    cached = {"cached_tokens": 400}
    attempts = [
        (
            {
                "status": 200,
                "raw": body(prompt_tokens=1000, completion_tokens=10, prompt_tokens_details=cached),
            },
            600 * 10e-6 + 400 * 1e-6 + 10 * 100e-6,
        ),
        ({"status": 200, "raw": body()}, UNSTATED),
        ({"status": 200, "raw": b"<html>"}, UNSTATED),
        ({"problem": "timeout"}, UNSTATED),
        ({"problem": "dropped"}, UNSTATED),
        ({"problem": "unreachable"}, 0.0),
        ({"status": 429, "raw": b"{}"}, 0.0),
        ({"status": 400, "raw": b"{}"}, 0.0),
    ]
    meter = Meter(PRICE, MAX_TOKENS, batch is not None, Measured())
    accounts = Accounts(meter, Budget(None))
    charged = 0.0
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        for i, (result, dollars) in enumerate(attempts):
            reply = Reply(f"{i}", "image", "basics", 1, 1.0, 0.1, batch=batch, **result)
            journal.record([reply])
            verdict = reply.judge()
            journal.record([], [(reply, verdict)])
            cost = accounts.charge(reply, verdict, meter.longest_cost())
            assert cost == pytest.approx(dollars * (0.5 if batch else 1)), result
            accounts.tally.count(verdict)
            charged += cost
        assert spent(journal, PRICE, MAX_TOKENS) == pytest.approx(charged)
    # Those that are asked again (dropped, unreachable, 429) are not settled.
    assert accounts.tally.outcomes == {"ok": 2, "error": 3}
    assert (accounts.tally.questions, accounts.tally.completions) == (5, 2)
    assert accounts.tally.models == {"m-1": 2}
    assert accounts.tally.last_error.startswith("status 400")


def test_what_was_assumed_is_corrected_by_what_is_learned(tmp_path):
    """Attempts that may have been charged count as the longest prompt, also one seen later: a run
    that is resumed starts from the same sum."""
    accounts = Accounts(Meter(PRICE, MAX_TOKENS, False, Measured()), Budget(None))
    request = ("text", (224, 224))
    attempts = [{"problem": "timeout"}, {"problem": "dropped"}, {"status": 200, "raw": b"<html>"}]
    attempts.append({"status": 200, "raw": body(prompt_tokens=100_000, completion_tokens=10)})
    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        for i, result in enumerate(attempts):
            reply = Reply(f"{i}", "image", "basics", 1, 1.0, 0.1, **result)
            journal.record([reply])
            verdict = reply.judge()
            journal.record([], [(reply, verdict)])
            held = accounts.reserve(request)
            accounts.settle(held, accounts.charge(reply, verdict, held.worst, request))
        assert accounts.budget.spent == pytest.approx(spent(journal, PRICE, MAX_TOKENS))
    assert accounts.budget.spent > 3 * 100_000 * 10e-6


# --- whole runs, against a server whose prompts cost more than anybody expects

RATES = {"input": 10, "output": 1}  # US dollars per million tokens


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(json.dumps({"models": {"teacher": {**RATES, "as_of": "today"}}}))
    return str(path)


def expected_tokens(request: dict) -> float:
    """What a vision model that we know would count: 28 x 28 pixels or 4 characters a token."""
    width, height = Image.open(io.BytesIO(image_of(request))).size
    text = request["messages"][0]["content"][1]["text"]
    return math.ceil(width / 28) * math.ceil(height / 28) + len(text) / 4


def costs(server) -> list[float]:
    """US dollars of every good answer, by the server's own count."""
    return [
        (server.count_tokens(json.loads(exchange.body)) * RATES["input"] + 100 * RATES["output"])
        / 1e6
        for exchange in server.exchanges
        if exchange.fault is None
    ]


@pytest.mark.parametrize(
    "concurrency", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 32))]
)
@pytest.mark.parametrize("factor", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_max_cost_holds_although_prompts_cost_more_than_estimated(
    factor, concurrency, server, tmp_path, output, prices
):
    """Images grow, so that every prompt is dearer than all before."""
    images = make_images(tmp_path / "images", 10, grow=40)
    server.count_tokens = lambda request: int(factor * expected_tokens(request))
    server.delay = 0.005
    total = sum(
        factor * (math.ceil((32 + 40 * i) / 28) * math.ceil((24 + 40 * i) / 28) + 128) * 1e-5
        for i in range(10)
    ) * QUESTIONS  # fmt: skip
    options = {"prices": prices, "concurrency": concurrency, "questions": []}
    for share in (1e-3, 0.1, 0.5):
        limit = share * total
        tally = ask(images, output, server.url, max_cost=limit, **options)
        assert "--max_cost" in tally.stopped
        paid = costs(server)
        assert sum(paid) <= max([limit, *paid[:1]]), "only the very first may be dearer"
    assert sum(paid) > 0.3 * limit, "and yet the limit is used"
    assert server.most_in_flight <= concurrency
    assert ask(images, output, server.url, max_cost=2 * total, **options).stopped is None
    assert outcomes(output) == {"ok": 10 * QUESTIONS}
    no_answer_lost_or_repeated(server, output)


def test_one_request_is_in_flight_until_its_cost_is_known(server, tmp_path, output, prices):
    """Also while the first ones are refused, fail and are told to wait; then it goes wide."""
    images = make_images(tmp_path / "images", 3)
    server.delay = 0.02
    for kind in ("400", "500", "429", "drop"):
        server.fail(kind)
    in_flight = []

    def count(request: dict) -> int:
        if not server.delivered():
            in_flight.append(server.in_flight)
        return 1000

    server.count_tokens = count
    options = {"prices": prices, "concurrency": 8, "max_cost": 100.0}
    assert ask(images, output, server.url, **options).stopped is None
    assert len(in_flight) == 5 and set(in_flight) == {1}, "four failures, and the first answer"
    assert server.most_in_flight >= 4
    # What the journal knows need not be learned again.
    server.most_in_flight = 0
    make_images(tmp_path / "images" / "more", 3, size=(40, 40))
    assert ask(images, output, server.url, **options).stopped is None
    assert server.most_in_flight >= 4


def test_no_limit_needs_no_caution(server, tmp_path, output):
    images = make_images(tmp_path / "images", 1)
    server.delay = 0.05
    assert ask(images, output, server.url, concurrency=8).stopped is None
    assert server.most_in_flight >= 4


def test_server_that_states_no_usage_does_not_hold_up_the_run(server, tmp_path, output, prices):
    images = make_images(tmp_path / "images", 2)
    server.delay = 0.02
    server.count_tokens = lambda request: None
    tally = ask(images, output, server.url, prices=prices, max_cost=100.0, concurrency=8)
    assert tally.stopped is None and server.most_in_flight >= 4


@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_max_cost_is_passed_by_one_request_per_lane_at_most(
    concurrency, server, tmp_path, output, prices
):
    """The worst a server can do: costs that follow from nothing, up to 200 times the estimate."""
    images = make_images(tmp_path / "images", 10)
    server.delay = 0.005
    server.count_tokens = lambda request: int(
        expected_tokens(request) * random.Random(str(request["messages"])).choice([1, 3, 200])
    )
    run = hurried(
        arguments(images, output, server.url, prices=prices, max_cost=1.0, concurrency=concurrency)
    )
    result = run.ask()
    assert "--max_cost" in result.tally.stopped
    paid = costs(server)
    assert sum(paid) <= 1.0 + concurrency * max(paid)
    assert result.spent == pytest.approx(sum(paid)), "and what was paid is told"


def test_batches_begin_with_one_request_until_its_cost_is_known(server, tmp_path, output, prices):
    images = make_images(tmp_path / "images", 10, grow=40)
    server.count_tokens = lambda request: int(200 * expected_tokens(request))
    sizes, paid = [], []

    def watch(batch, results):
        sizes.append(len(results))
        paid.extend(result["response"]["body"]["usage"]["prompt_tokens"] for result in results)
        return results, []

    server.batch_fault = watch
    options = {"prices": prices, "batch": True, "batch_poll": 0.01}
    tally = ask(images, output, server.url, max_cost=5.0, **options)
    assert "--max_cost" in tally.stopped
    assert sizes[0] == 1 and max(sizes) > 1
    assert 1.0 < sum(paid) * RATES["input"] / 1e6 <= 5.0
    assert ask(images, output, server.url, max_cost=1000.0, **options).stopped is None
    assert outcomes(output) == {"ok": 10 * QUESTIONS}
