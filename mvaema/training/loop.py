"""The training loop: steps and epochs, resumed where a killed run stopped.

What is special about it:
- `batch_size` is the global one: the losses of a step are the same on one process and on several;
- on a CPU, a resumed run is bit for bit the uninterrupted one: what a batch holds depends on seed,
  epoch and row, and everything else is in the checkpoint;
- a loss that is not a number, or ten times the usual, ends the run before it reaches the weights.
"""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mvaema.training.batch_losses import BatchLosses, forward
from mvaema.training.batches import Batch, BatchLoader
from mvaema.training.best_student import keep_student
from mvaema.training.checkpoints import Checkpoints
from mvaema.training.recipe import Recipe
from mvaema.training.reporting import Reporter
from mvaema.training.signals import Interrupted, Signals, StopRequested
from mvaema.training.state import TrainingState
from mvaema.training.validation import validate


class TrainingFailed(RuntimeError):
    """The loss became useless; the message names the file with the batch's ids."""


class Loaders(NamedTuple):
    """The batches of a run."""

    train: BatchLoader
    validation: BatchLoader


def parameter_groups(model: torch.nn.Module, recipe: Recipe) -> list[dict]:
    """The parameters to train, those of a vision model with a learning rate of their own."""
    rates: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            of_vision = "vision_model." in name
            rate = recipe.vision_learning_rate if of_vision else recipe.learning_rate
            rates.setdefault(rate, []).append(parameter)
    # The student's own first: its rate is the one that is reported.
    own = sorted(rates, key=lambda rate: rate != recipe.learning_rate)
    return [{"params": rates[rate], "lr": rate} for rate in own]


class TrainingLoop:
    """`resume`, then `fit`; every process of a run has one.

    Args:
        model: the student, wrapped in adapters or not. Parameters without `requires_grad` stay.
        signals: end the run after a step.

    Attributes:
        state: where the run stands.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: torch.nn.Module,
        loaders: Loaders,
        accelerator: Accelerator,
        reporter: Reporter,
        signals: Signals,
    ):
        self.recipe, self.loaders, self.accelerator = recipe, loaders, accelerator
        self.reporter, self.signals = reporter, signals
        groups = parameter_groups(model, recipe)
        self.initial_rates = [group["lr"] for group in groups]
        optimizer = torch.optim.Adam(
            groups,
            weight_decay=recipe.weight_decay,
            decoupled_weight_decay=recipe.weight_decay > 0,
            fused=True,
        )
        # Not prepared: a prepared ReduceLROnPlateau steps once per process. Its patience is the
        # number of epochs that it tolerates, so the next one halves the rate.
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=recipe.patience - 1, threshold=0
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.checkpoints = Checkpoints(Path(recipe.output_dir) / "checkpoints", accelerator)
        self.state = TrainingState()
        parts = recipe.gradient_accumulation_steps
        self.steps = recipe.epochs * -(-len(loaders.train) // parts)
        self._clock = time.perf_counter()

    def resume(self) -> None:
        """Go to where the newest checkpoint was written, if there is one.

        Raises:
            ValueError: it was written by another number of processes.
        """
        saved = self.checkpoints.restore()
        if saved is not None:
            self.state = TrainingState.from_dict(saved)
            self.scheduler.load_state_dict(self.state.scheduler)
            self.reporter.resumed(self.state)

    def fit(self) -> None:
        """Epochs until the last one, or until the validation loss has stopped falling.

        Raises:
            TrainingFailed: the loss became useless.
            Interrupted: a signal was received; a checkpoint was written first.
        """
        recipe, state = self.recipe, self.state
        with self.reporter.progress_bar(self.steps, state.step):
            try:
                while state.epoch < recipe.epochs:
                    if state.epoch - state.best_epoch >= recipe.stop_after:
                        self.reporter.say(
                            f"The validation loss has not fallen for {recipe.stop_after} epochs: "
                            "training stops."
                        )
                        break
                    if self._out_of_time():
                        self.reporter.say(
                            f"{recipe.max_minutes:g} minutes of training are over: training stops."
                        )
                        break
                    self.train_epoch()
                    self.end_epoch()
            except StopRequested:
                self._interrupt()

    def train_epoch(self) -> None:
        """The rest of the epoch in which `state` stands."""
        recipe, state, parts = self.recipe, self.state, self.recipe.gradient_accumulation_steps
        self.model.train()
        self._clock = time.perf_counter()
        for batch in self.loaders.train.epoch(state.epoch, state.batch):
            state.batch += 1
            last_part = state.batch % parts == 0 or state.batch == len(self.loaders.train)
            with nullcontext() if last_part else self.accelerator.no_sync(self.model):
                output, losses = forward(self.model, batch, self.accelerator, self.signals)
                self._check(losses, batch)
                self.accelerator.backward(output.loss / parts)
            state.add(losses)
            if losses.skipped:
                self.reporter.skipped(state.step + 1, gather_object(batch.skipped))
            if not last_part:
                continue
            self._update_weights()
            self.reporter.step(state, losses, self.learning_rate)
            if losses.stop:
                raise StopRequested
            if state.step % recipe.checkpoint_steps == 0:
                self.save_checkpoint()
            self._count_seconds()
            if self._out_of_time():
                break
        self._count_seconds()

    def end_epoch(self) -> None:
        """Validate, keep the student if it is the best so far, report, write a checkpoint."""
        state, learning_rate = self.state, self.learning_rate
        self._clock = time.perf_counter()
        validation = validate(self.model, self.loaders.validation, self.accelerator, self.signals)
        if self.recipe.schedule == "plateau":
            self.scheduler.step(validation[self.recipe.keep_by])
        self._count_seconds()
        record = state.end_epoch(learning_rate, validation, self.recipe.keep_by)
        if state.improved:
            keep_student(self.model, self.recipe, self.accelerator)
        self.reporter.epoch(state, record)
        self.reporter.samples(state, self.model)
        self.save_checkpoint()

    def save_checkpoint(self) -> str | None:
        """Returns what went wrong, or None. The run can do without the checkpoint."""
        self._count_seconds()
        self.state.scheduler = self.scheduler.state_dict()
        failure = self.checkpoints.save(self.state.step, self.state.to_dict())
        if failure:
            self.reporter.say(
                f"WARNING: the checkpoint after step {self.state.step:,} could not be written "
                f"({failure}). The last complete one is kept."
            )
        return failure

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _update_weights(self) -> None:
        recipe, state = self.recipe, self.state
        state.step += 1
        share = self._share_of_rate()
        if share is not None:
            groups = self.optimizer.param_groups
            for group, rate in zip(groups, self.initial_rates, strict=True):
                group["lr"] = rate * share
        self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _share_of_rate(self) -> float | None:
        """Of the initial learning rates, that of this step; None where it stays as it is."""
        recipe, step = self.recipe, self.state.step
        if step <= recipe.warmup_steps:
            return step / recipe.warmup_steps
        if recipe.schedule == "plateau":
            return None
        progress = (step - recipe.warmup_steps) / max(1, self.steps - recipe.warmup_steps)
        return (1 + math.cos(math.pi * min(progress, 1))) / 2

    def _check(self, losses: BatchLosses, batch: Batch) -> None:
        """Refuse a useless loss before it has reached the weights."""
        loss, usual, state = losses.values["loss"], self.state.usual_loss(), self.state
        if loss < 10 * usual:  # false for NaN
            return
        file = self.reporter.failed_batch(state, losses, usual, gather_object(batch.image_ids))
        raise TrainingFailed(
            f"the loss is {loss} in step {state.step + 1} of epoch {state.epoch + 1}. The ids of "
            f"the batch's micrographs are in {file}; the weights are as before this step. Look at "
            "these micrographs, or start again with a lower --learning_rate."
        )

    def _interrupt(self) -> NoReturn:
        failure = self.save_checkpoint()
        saved = f"The checkpoint could not be written ({failure}). " if failure else ""
        raise Interrupted(
            self.signals.received or self.signals.NUMBERS[0],  # of another process
            f"Interrupted after step {self.state.step:,}. {saved}Rerun the same command to resume "
            f"the run in {self.recipe.output_dir}.",
        )

    def _out_of_time(self) -> bool:
        """Whether `max_minutes` have been spent on any process."""
        if self.recipe.max_minutes is None:
            return False
        spent = self.state.seconds + sum(record["seconds"] for record in self.state.log)
        over = torch.tensor(float(spent >= 60 * self.recipe.max_minutes))
        return bool(self.accelerator.reduce(over.to(self.accelerator.device)) > 0)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now
