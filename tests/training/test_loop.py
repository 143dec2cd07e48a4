"""The loop itself, around models that do what a test wants: losses, learning rate, best student."""

import json
import math
from dataclasses import replace
from itertools import count

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file
from transformers.utils import ModelOutput

from mvaema.training.batches import Batch
from mvaema.training.loop import Loaders, TrainingFailed, TrainingLoop
from mvaema.training.recipe import Recipe
from mvaema.training.reporting import Reporter
from mvaema.training.run_folder import RunFolder
from mvaema.training.signals import Signals
from mvaema.training.state import TrainingState


class Told(torch.nn.Module):
    """A model of one weight whose losses are told: of each training step, and of validation."""

    def __init__(self, training, validation):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.told = {True: iter(training), False: iter(validation)}

    def forward(self, values):
        loss = self.weight * 0 + next(self.told[self.training])
        return ModelOutput(loss=loss, lm_loss=loss.detach())

    def save_pretrained(self, folder, state_dict=None):
        torch.save(state_dict, folder / "weights.pt")


class Batches(list):
    """Batches, the same ones in each epoch."""

    def epoch(self, epoch: int, start: int = 0):
        return iter(self[start:])


@pytest.fixture
def recipe(tmp_path):
    return Recipe("data", str(tmp_path / "run"), sample_micrographs=0, logging_steps=1)


@pytest.fixture
def make_loop():
    def make(recipe, model, train, validation):
        accelerator, folder = Accelerator(cpu=True), RunFolder(recipe)
        folder.claim("5eed", {})
        reporter = Reporter(recipe, folder, accelerator, Dataset.from_list([]))
        loaders = Loaders(Batches(train), Batches(validation))
        return TrainingLoop(recipe, model, loaders, accelerator, reporter, Signals())

    return make


def batch(*image_ids: str) -> Batch:
    return Batch({"values": torch.ones(len(image_ids))}, list(image_ids), 0, [])


def lines(folder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 21.0])
def test_a_useless_loss_stops_before_the_weights_are_touched(recipe, make_loop, tmp_path, value):
    recipe = replace(recipe, epochs=99, checkpoint_steps=1)
    model = Told([2.0] * 24 + [value], iter(lambda: 2.0, None))
    loop = make_loop(recipe, model, [batch("a", "b"), batch("c", "d")], [batch("e")])
    with pytest.raises(TrainingFailed, match=r"in step 25 of epoch 13\. .*failed_batch\.json"):
        loop.fit()
    failed = json.loads((tmp_path / "run" / "failed_batch.json").read_text())
    assert failed["image_ids"] == ["a", "b"] and failed["step"] == 25
    assert failed["losses"]["loss"] == str(value) and failed["median_loss"] == "2.0"
    assert len(lines(tmp_path / "run", "steps")) == 24
    assert model.weight.item() == 1


def test_a_loss_may_be_ten_times_higher_while_nothing_is_usual_yet(recipe, make_loop):
    recipe = replace(recipe, epochs=1)
    losses = [2.0] * 19 + [100.0]
    loop = make_loop(recipe, Told(losses, [1.0]), [batch("a")] * 20, [batch("b")])
    loop.fit()
    assert loop.state.step == 20 and loop.state.recent[-1] == 100


def test_the_learning_rate_warms_up_and_is_halved_when_nothing_gets_better(
    recipe, make_loop, tmp_path
):
    recipe = replace(recipe, epochs=20, patience=3, stop_after=8, warmup_steps=2)
    model = Told(iter(lambda: 1.0, None), iter(lambda: 1.0, None))
    loop = make_loop(recipe, model, [batch("a"), batch("b")], [batch("c")])
    loop.fit()
    rates = [s["learning_rate"] for s in lines(tmp_path / "run", "steps")]
    assert rates[:2] == [0.0005, 0.001]
    # The first epoch is the best; three without a better one, and the fifth begins with half.
    epochs = [record["learning_rate"] for record in lines(tmp_path / "run", "training_log")]
    assert epochs == [1e-3] * 4 + [5e-4] * 3 + [2.5e-4] * 2
    assert loop.state.best_epoch == 1


def test_the_learning_rate_falls_to_nothing_at_the_last_epoch(recipe, make_loop, tmp_path):
    recipe = replace(recipe, epochs=5, warmup_steps=2, schedule="cosine", stop_after=9)
    model = Told(iter(lambda: 1.0, None), iter(lambda: 1.0, None))
    make_loop(recipe, model, [batch("a"), batch("b")], [batch("c")]).fit()
    rates = [s["learning_rate"] for s in lines(tmp_path / "run", "steps")]
    falling = [(1 + math.cos(math.pi * i / 8)) / 2 * 1e-3 for i in range(1, 9)]
    assert rates == pytest.approx([5e-4, 1e-3, *falling], abs=1e-12)


def test_a_run_ends_within_an_epoch_when_its_minutes_are_over(
    recipe, make_loop, tmp_path, monkeypatch
):
    """A look at the clock takes ten seconds here. The epoch that was cut short is validated."""
    clock = count(step=10)
    monkeypatch.setattr("mvaema.training.loop.time.perf_counter", lambda: next(clock))
    recipe = replace(recipe, epochs=50, max_minutes=2)
    model = Told(iter(lambda: 1.0, None), iter(lambda: 1.0, None))
    loop = make_loop(recipe, model, [batch("a")] * 7, [batch("b")])
    loop.fit()
    log = lines(tmp_path / "run", "training_log")
    assert sum(record["seconds"] for record in log) >= 120
    assert 1 < len(log) < 4 and 0 < loop.state.step < 7 * len(log)
    assert len(lines(tmp_path / "run", "steps")) == loop.state.step


def test_another_loss_may_decide_which_student_is_kept():
    """The sum falls while the matching loss rises."""
    state = TrainingState()
    for epoch, (loss, itm_loss) in enumerate([(3.0, 0.5), (2.0, 0.4), (1.0, 0.6)], 1):
        state.end_epoch(1e-3, {"loss": loss, "itm_loss": itm_loss}, "itm_loss")
        assert state.improved == (epoch < 3)
    assert (state.best, state.best_epoch) == (0.4, 2)


def test_losses_are_means_over_micrographs_not_over_batches(recipe, make_loop, tmp_path):
    model = Told([1.0, 4.0], [2.0, 8.0])
    train, validation = [batch("a", "b"), batch("c")], [batch("d"), batch("e", "f", "g")]
    make_loop(replace(recipe, epochs=1), model, train, validation).fit()
    (record,) = lines(tmp_path / "run", "training_log")
    assert record["train"] == {"loss": 2.0, "lm_loss": 2.0}
    assert record["validation"] == {"loss": 6.5, "lm_loss": 6.5}


def test_the_best_student_is_kept(recipe, make_loop, model, batch, tmp_path):
    """The second of three epochs is the best; the weights on disk stay those it had then."""
    inputs = Batch(batch, list("abcd"), 0, [])
    states, worse = [], iter([100.0, 0.0, 200.0])

    def observe(module, arguments, output):
        if not module.training:
            states.append({n: p.clone() for n, p in module.state_dict().items()})
            output.loss = output.loss + next(worse)

    model.register_forward_hook(observe)
    loop = make_loop(replace(recipe, epochs=3), model, [inputs], [inputs])
    loop.fit()
    assert loop.state.best_epoch == 2
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in saved.items())
    assert not torch.equal(saved["itm_head.weight"], states[2]["itm_head.weight"])


def test_a_resumed_loop_continues_where_the_checkpoint_was_written(recipe, make_loop):
    recipe = replace(recipe, epochs=2)
    first = make_loop(recipe, Told(count(1.0), count(1.0)), [batch("a"), batch("b")], [batch("c")])
    first.fit()
    recipe = replace(recipe, epochs=3)
    losses = Told(count(10.0), count(10.0))
    second = make_loop(recipe, losses, [batch("a"), batch("b")], [batch("c")])
    second.resume()
    assert second.state == first.state
    second.fit()
    assert second.state.epoch == 3 and second.state.step == 6
    assert [record["train"]["loss"] for record in second.state.log] == [1.5, 3.5, 10.5]
