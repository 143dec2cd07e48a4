"""What is charged and counted, against figures worked out by hand and against the journal."""

import json

import pytest

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
