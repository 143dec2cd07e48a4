"""The loop: what it trains, when it stops, what it keeps, what it refuses."""

import itertools
import time

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from baselines.training import Plan, RowFailed, fit

PLAN = Plan(0.1, 0, 6, 5, 15)
INPUTS = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5, 0.0])


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def batches(epoch):
    return [(INPUTS[i : i + 8], TARGETS[i : i + 8]) for i in range(0, 32, 8)]


def squared(model):
    return lambda batch: (model(batch[0])[:, 0] - batch[1]).square().mean()


def test_it_learns(model, accelerator):
    history = fit(model, squared(model), batches, PLAN, accelerator)
    assert history.log[-1]["train"] < history.log[0]["train"] / 10
    assert (history.steps, history.epochs, history.micrographs) == (24, 6, 192)
    assert history.stopped == "epochs" and history.best_epoch is None
    assert not model.training


def test_the_best_epoch_is_kept(model, accelerator):
    weights = []

    def validation_loss():
        weights.append(model.weight.detach().clone())
        return [3.0, 1.0, 2.0, 2.0, 2.0, 2.0][len(weights) - 1]

    history = fit(model, squared(model), batches, PLAN, accelerator, validation_loss)
    assert history.best_epoch == 2
    assert torch.equal(model.weight, weights[1]) and not torch.equal(model.weight, weights[-1])


def test_buffers_of_the_best_epoch_are_kept_too(accelerator):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    counts = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    fit(model, squared(model), batches, PLAN, accelerator, lambda: next(counts))
    assert model[0].num_batches_tracked == 4  # batches of the first epoch


def test_it_stops_early_and_halves_the_rate(model, accelerator):
    losses = itertools.chain([1.0], itertools.repeat(2.0))
    plan = Plan(0.1, 0, 50, 2, 5)
    history = fit(model, squared(model), batches, plan, accelerator, lambda: next(losses))
    assert history.stopped == "early stopping" and history.epochs == 6
    rates = [record["learning_rate"] for record in history.log]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025])


def test_the_rate_warms_up(model, accelerator):
    history = fit(model, squared(model), batches, Plan(0.1, 8, 30, 5, 15), accelerator)
    rates = [record["learning_rate"] for record in history.log]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])


def test_an_epoch_without_a_batch_is_refused(model, accelerator):
    with pytest.raises(RowFailed, match="no batch"):
        fit(model, squared(model), lambda epoch: [], PLAN, accelerator)


def test_a_budget_ends_within_an_epoch_and_validates(model, accelerator):
    def slow(epoch):
        for batch in batches(epoch):
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            yield batch

    validated = []
    plan = Plan(0.1, 1000, 1000, 5, 1000, minutes=0.5 / 60)
    history = fit(
        model, squared(model), slow, plan, accelerator, lambda: validated.append(1) or 1.0
    )
    assert history.stopped == "budget" and history.steps < 20
    assert history.best_epoch == 1 and len(validated) == len(history.log)
    # A warm-up of 1,000 steps has ended.
    assert history.log[-1]["learning_rate"] == pytest.approx(0.1)


def test_what_is_frozen_stays(accelerator):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, squared(model), batches, PLAN, accelerator)
    assert torch.equal(model[0].weight, before)


def test_something_is_called_after_each_step(model, accelerator):
    steps = []
    fit(model, squared(model), batches, PLAN, accelerator, after_step=lambda: steps.append(1))
    assert len(steps) == 24


def test_a_loss_that_is_not_finite_ends_the_row_before_it_reaches_the_weights(model, accelerator):
    calls = []

    def loss(batch):
        calls.append(model.weight.detach().clone())
        value = squared(model)(batch)
        return value * float("nan") if len(calls) == 3 else value

    with pytest.raises(RowFailed, match=r"nan in step 3 of epoch 1.*0\.1"):
        fit(model, loss, batches, PLAN, accelerator)
    assert torch.equal(model.weight, calls[-1])


def test_a_validation_loss_that_is_not_finite_ends_the_row(model, accelerator):
    with pytest.raises(RowFailed, match="validation loss is inf"):
        fit(model, squared(model), batches, PLAN, accelerator, lambda: float("inf"))


def test_nothing_to_train_is_refused(model, accelerator):
    model.requires_grad_(False)
    with pytest.raises(RowFailed, match="nothing to train"):
        fit(model, squared(model), batches, PLAN, accelerator)
