"""The one loop: it trains whatever has a loss, on whatever comes in batches.

What is special about it:
- it knows neither categories nor answers: the loss of a batch, the batches of an epoch and the
  validation loss are functions that a row brings along;
- Adam, a warm-up, the learning rate halved on a plateau, early stopping, and the weights of the
  best epoch: the paper's recipe, as in `mvaema/training/loop.py`;
- a budget ends an epoch early and then validates once more. It is the processor's time on a CPU,
  where runs share cores, and the clock's on an accelerator. Batches and validation count;
- under a budget the number of steps is not known beforehand, so the warm-up ends at the latest
  when a tenth of it is spent.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, send_to_device
from torch import Tensor, nn

from baselines.settings import Settings

WARM_SHARE = 0.1  # of the budget or the epochs


class RowFailed(RuntimeError):
    """A row cannot be trained; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How something is trained.

    Attributes:
        learning_rate: Adam's, after the warm-up.
        warmup_steps: over which it rises from 0.
        epochs: passes over the batches, at most.
        patience: epochs without a lower validation loss before the rate is halved.
        stop_after: such epochs before training stops.
        minutes: the budget; None for no limit.
        max_grad_norm: gradients are clipped to it.
    """

    learning_rate: float
    warmup_steps: int
    epochs: int
    patience: int
    stop_after: int
    minutes: float | None = None
    max_grad_norm: float = 1.0

    @classmethod
    def of(
        cls, settings: Settings, learning_rate: float, warmup_steps: int, share: float = 1.0
    ) -> "Plan":
        """That of a folder's settings.

        Args:
            share: of the budget.
        """
        return cls(
            learning_rate,
            warmup_steps,
            settings.epochs,
            settings.patience,
            settings.stop_after,
            None if settings.budget is None else settings.budget * share,
        )


@dataclass
class History:
    """How a training went.

    Attributes:
        steps, micrographs: optimizer steps, and micrographs shown in them.
        epochs: whole ones.
        best_epoch: the one whose weights were kept, from 1; None without a validation loss.
        stopped: why it ended: "epochs", "early stopping" or "budget".
        seconds, processor_seconds: on the clock and of this process, validation included.
        log: of each epoch `train` and `validation` loss, `learning_rate`, `seconds`.
    """

    steps: int = 0
    micrographs: int = 0
    epochs: int = 0
    best_epoch: int | None = None
    stopped: str = "epochs"
    seconds: float = 0.0
    processor_seconds: float = 0.0
    log: list[dict] = field(default_factory=list)

    def facts(self) -> dict:
        """For JSON, with micrographs trained on in a second."""
        rate = self.micrographs / self.seconds if self.seconds else 0.0
        return dataclasses.asdict(self) | {"micrographs_per_second": rate}


class Budget:
    """How much of `minutes` is spent since it was made.

    Attributes:
        validation: seconds of the last validation; the next one has to fit in.
    """

    def __init__(self, minutes: float | None, device: torch.device):
        self.seconds = None if minutes is None else 60 * minutes
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter
        self._start, self._wall = self._clock(), time.perf_counter()
        self._processor = time.process_time()
        self.validation = 0.0

    @property
    def spent(self) -> float:
        """Seconds."""
        return self._clock() - self._start

    @property
    def share(self) -> float:
        return 0.0 if self.seconds is None else self.spent / self.seconds

    @property
    def over(self) -> bool:
        return self.seconds is not None and self.spent + self.validation >= self.seconds

    def totals(self) -> tuple[float, float]:
        """Seconds on the clock, and of the processor."""
        return time.perf_counter() - self._wall, time.process_time() - self._processor


def fit(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Callable[[int], Iterable],
    plan: Plan,
    accelerator: Accelerator,
    validation_loss: Callable[[], float] | None = None,
    after_step: Callable[[], None] | None = None,
) -> History:
    """Train `model`, and leave it with the weights of its best epoch, in evaluation mode.

    Args:
        model: it is moved to the device. Parameters without `requires_grad` stay as they are.
        loss: of a batch on the device; called in training mode.
        batches: of an epoch, numbered from 0; tensors, or tuples or dictionaries of them.
        validation_loss: called without gradients in evaluation mode. Without it there is neither a
            plateau nor early stopping, and the last weights are kept.
        after_step: called after each optimizer step.

    Raises:
        RowFailed: nothing is to be trained, there is no batch, or a loss is not finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RowFailed("no parameter has requires_grad, so there is nothing to train.")
    device = accelerator.device
    model.to(device)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(trained, lr=plan.learning_rate, fused=fused)
    # Its patience is the number of epochs that it tolerates, so the next one halves the rate.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=plan.patience - 1, threshold=0
    )
    optimizer = accelerator.prepare(optimizer)
    history, budget, best = History(), Budget(plan.minutes, device), _Best(model)
    warm = False
    for epoch in range(plan.epochs):
        model.train()
        start, sums, count = time.perf_counter(), 0.0, 0
        for batch in batches(epoch):
            of_batch = loss(send_to_device(batch, device))
            value = of_batch.item()
            if not torch.isfinite(of_batch):
                raise RowFailed(
                    f"the loss is {value} in step {history.steps + 1} of epoch {epoch + 1}, with a "
                    f"learning rate of {plan.learning_rate:g}. A lower one may help."
                )
            accelerator.backward(of_batch)
            accelerator.clip_grad_norm_(trained, plan.max_grad_norm)
            history.steps += 1
            if not warm:
                spent = max(budget.share, epoch / plan.epochs)
                share = max(history.steps / max(plan.warmup_steps, 1), spent / WARM_SHARE)
                warm = share >= 1
                _set_rate(optimizer, plan.learning_rate * min(share, 1.0))
            optimizer.step()
            optimizer.zero_grad()
            if after_step is not None:
                after_step()
            size = find_batch_size(batch)
            sums, count = sums + value * size, count + size
            if budget.over:
                break
        else:
            history.epochs += 1
        if not count:
            raise RowFailed("an epoch has no batch.")
        history.micrographs += count
        record = {"train": sums / count, "learning_rate": optimizer.param_groups[0]["lr"]}
        improved = True
        if validation_loss is not None:
            before = budget.spent
            record["validation"] = _validated(model, validation_loss, epoch)
            budget.validation = budget.spent - before
            scheduler.step(record["validation"])
            improved = best.offer(record["validation"], epoch + 1)
        history.log.append(record | {"seconds": round(time.perf_counter() - start, 2)})
        if budget.over or history.epochs <= epoch:
            history.stopped = "budget"
            break
        if not improved and epoch + 1 - best.epoch >= plan.stop_after:
            history.stopped = "early stopping"
            break
    if validation_loss is not None:
        best.restore()
        history.best_epoch = best.epoch
    model.eval()
    history.seconds, history.processor_seconds = budget.totals()
    return history


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _validated(model: nn.Module, validation_loss: Callable[[], float], epoch: int) -> float:
    model.eval()
    value = validation_loss()
    if not torch.isfinite(torch.tensor(value)):
        raise RowFailed(f"the validation loss is {value} after epoch {epoch + 1}.")
    return value


class _Best:
    """The weights of the best epoch: what is trained, and buffers, such as those of batch norms."""

    def __init__(self, model: nn.Module):
        self.tensors = [p for p in model.parameters() if p.requires_grad] + list(model.buffers())
        self.loss, self.epoch = float("inf"), 0
        self.kept: list[Tensor] = []

    def offer(self, loss: float, epoch: int) -> bool:
        """Keep the weights if their loss is the lowest so far; whether it is."""
        if loss >= self.loss:
            return False
        self.loss, self.epoch = loss, epoch
        self.kept = [tensor.detach().clone() for tensor in self.tensors]
        return True

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, kept in zip(self.tensors, self.kept, strict=True):
            tensor.copy_(kept)
