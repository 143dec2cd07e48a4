"""The losses of a batch over all processes, and their mean over the micrographs of many batches."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers.utils import ModelOutput

from mvaema.training.batches import Batch
from mvaema.training.recipe import LOSSES
from mvaema.training.signals import Signals


class BatchLosses(NamedTuple):
    """What is known of a batch over all processes; the same on each of them."""

    values: dict[str, float]  # of LOSSES those that are trained, means over the micrographs
    micrographs: int
    truncated: int  # answers that were cut
    skipped: int  # unreadable images
    stop: bool  # whether a process has received a signal


def forward(
    model: torch.nn.Module, batch: Batch, accelerator: Accelerator, signals: Signals
) -> tuple[ModelOutput, BatchLosses]:
    """The model's output for this process's share of a batch, and the losses of the whole batch."""
    device, processes = accelerator.device, accelerator.num_processes
    output = model(**{n: t.to(device, non_blocking=True) for n, t in batch.inputs.items()})
    names = [name for name in LOSSES if output.get(name) is not None]
    own = torch.stack([output[name].detach().float() for name in names])
    # In one message: a reduction waits for the slowest process.
    counts = own.new_tensor([batch.truncated, len(batch.skipped), signals.received])
    means = accelerator.reduce(torch.cat([own, counts]), "mean").tolist()
    *values, truncated, skipped, received = means
    return output, BatchLosses(
        dict(zip(names, values, strict=True)),
        len(batch.image_ids) * processes,
        round(truncated * processes),
        round(skipped * processes),
        received > 0,
    )


@dataclass
class MeanLosses:
    """Means over the micrographs of the batches that were added."""

    sums: dict[str, float] = field(default_factory=dict)
    micrographs: int = 0

    def add(self, losses: BatchLosses) -> None:
        for name, value in losses.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * losses.micrographs
        self.micrographs += losses.micrographs

    def means(self) -> dict[str, float]:
        return {name: total / self.micrographs for name, total in self.sums.items()}
