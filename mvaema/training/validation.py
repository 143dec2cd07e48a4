"""Validation: the losses on micrographs that are not trained on."""

import torch
from accelerate import Accelerator

from mvaema.training.batch_losses import MeanLosses, forward
from mvaema.training.batches import BatchLoader
from mvaema.training.signals import Signals, StopRequested


@torch.no_grad()
def validate(
    model: torch.nn.Module, batches: BatchLoader, accelerator: Accelerator, signals: Signals
) -> dict[str, float]:
    """Mean losses over the micrographs of `batches`; every process calls this.

    Args:
        model: it is left in evaluation mode.

    Raises:
        StopRequested: a process has received a signal.
    """
    model.eval()
    losses = MeanLosses()
    for batch in batches.epoch(0):
        _, of_batch = forward(model, batch, accelerator, signals)
        if of_batch.stop:
            raise StopRequested
        losses.add(of_batch)
    return losses.means()
