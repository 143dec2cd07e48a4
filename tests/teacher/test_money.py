"""Prices, tokens and the budget."""

import random

import pytest

from mvaema.teacher.money import Budget, Measured, Meter, Price, count_image_tokens, load_price


def test_prices(tmp_path):
    price = load_price("gpt-4o-2024-08-06")
    assert price == load_price("gpt-4o")
    assert price.cost(1e6, 0, 0, batch=False) == 2.5
    assert price.cost(1e6, 1e6, 1e6, batch=True) == (1.25 + 10) / 2
    assert load_price("my-own-model") is None
    broken = tmp_path / "prices.yaml"
    broken.write_text("models: {m: {input: cheap, output: 1}}")
    with pytest.raises(ValueError, match=r"prices\.yaml"):
        load_price("m", broken)


@pytest.mark.parametrize(
    ("size", "rule", "tokens"),
    [
        # OpenAI's own examples for high detail: 1024 x 1024 is 765 tokens, 2048 x 4096 is 1105.
        ((1024, 1024), {"rule": "tiles", "base": 85, "tile": 170}, 765),
        ((2048, 4096), {"rule": "tiles", "base": 85, "tile": 170}, 1105),
        ((1024, 1024), {"rule": "patches", "size": 32}, 1024),
        ((1800, 2400), {"rule": "patches", "size": 32, "cap": 1536, "factor": 2}, 3072),
    ],
)
def test_image_tokens(size, rule, tokens):
    assert count_image_tokens(size, rule) == tokens


def test_worst_case_covers_what_was_measured():
    price = Price(1, 10, 1, 1, None, "today", "here")
    meter = Meter(price, 3500, False, Measured())
    before = meter.worst_cost("text", (224, 224))
    meter.add(100_000, 0, 10)
    after = meter.worst_cost("text", (224, 224))
    assert after == pytest.approx((100_000 + 35_000) / 1e6)
    assert after > before
    assert Meter(None, 3500, False, Measured()).worst_cost("text", (224, 224)) is None


def test_budget_is_never_passed_in_any_order():
    rng = random.Random(0)
    for _ in range(200):
        budget, open_reservations = Budget(1.0), []
        for _ in range(100):
            worst = rng.random() * 0.3
            if rng.random() < 0.5 and budget.reserve(worst):
                open_reservations.append(worst)
            elif open_reservations:
                worst = open_reservations.pop(rng.randrange(len(open_reservations)))
                budget.settle(worst, worst * rng.choice([0, 0.5, 1]))
            assert budget.spent <= 1.0 + 1e-9
