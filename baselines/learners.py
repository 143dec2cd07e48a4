"""What the loop trains: a loss of a batch, and category scores of micrographs.

What is special about it:
- a supervised row is any module that gives logits (`Classifier`). A row with auxiliary losses, a
  teacher or a graph overrides `loss` or `forward`, and nothing else of the loop changes;
- a row in two phases first trains something else: `first_loss` until half of the budget is spent,
  `freeze`, and then `loss` like all others. A distilled row trains its teacher so, and a
  self-supervised row its encoder, without labels, before a linear probe.

`pixel_values` are float (batch, 3, image_size, image_size), normalised to [-1, 1].
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Learner(nn.Module):
    """Logits (batch, classes) of `pixel_values`, and a loss to train them by."""

    def loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """A number to minimise; `labels` (batch,) are category numbers."""
        return F.cross_entropy(self(pixel_values), labels)


class Classifier(Learner):
    """Any module that maps `pixel_values` to logits.

    Args:
        model: what it is.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values)


class TwoPhases(Learner):
    """A learner that trains in two halves of the budget."""

    def first_loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Of a batch in the first phase, like `loss`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimizer step of the first phase: momentum encoders move here."""

    def freeze(self) -> None:
        """End the first phase: only what the second one trains keeps `requires_grad`."""
        raise NotImplementedError


class SelfSupervised(TwoPhases):
    """A learner whose encoder first learns from micrographs without their categories."""

    def first_loss(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        return self.pretraining_loss(pixel_values)

    def pretraining_loss(self, pixel_values: Tensor) -> Tensor:
        """Of a batch in the first phase. Draws its own views of the micrographs."""
        raise NotImplementedError
