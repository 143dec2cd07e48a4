"""What every row of `baselines/` must do, on pictures drawn on the spot."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from baselines.learners import Learner
from baselines.rows import Row, Shapes


def stripes_and_dots(size: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, size, size) in [-1, 1] of stripes (0) and of dots (1), in turns."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pictures, labels = [], torch.arange(count) % 2
    for label in labels:
        angle, phase, period = torch.rand(3, generator=random)
        angle, period = angle * math.pi, 6 + 4 * period
        along = x * angle.cos() + y * angle.sin()
        across = y * angle.cos() - x * angle.sin()
        wave = torch.cos(2 * math.pi * (along / period + phase))
        if label:
            wave = (wave + torch.cos(2 * math.pi * across / period)) / 2
        pictures.append(wave.expand(3, -1, -1))
    return torch.stack(pictures), labels


def build(row: Row, size: int, classes: int = 2, seed: int = 0) -> Learner:
    """The row's learner, in training mode, with the weights that a seed draws."""
    torch.manual_seed(seed)
    return row.build(Shapes(classes, row.image_size or size)).train()


def train(
    learner: nn.Module, loss: Callable[[], Tensor], rate: float, steps: int, after=lambda: None
) -> list[float]:
    """Losses of so many steps of Adam, with gradients clipped as by the loop."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after()
        losses.append(value.item())
    return losses


def reached(learner: nn.Module, loss: Tensor) -> set[str]:
    """Names of the parameters that the loss has a gradient of, also where it is 0."""
    learner.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, p in learner.named_parameters() if p.grad is not None}


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of weights and buffers."""
    return copy.deepcopy(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@torch.no_grad()
def check_evaluation(row: Row, size: int, classes: int = 3, batch: int = 3) -> None:
    """Logits of a size, independent of the batch and of chance, and the same from a state."""
    learner = build(row, size, classes).eval()
    pictures, _ = stripes_and_dots(row.image_size or size, batch)
    logits = learner(pictures)
    assert logits.shape == (batch, classes)
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1]), "logits do not depend on the picture"
    alone = torch.cat([learner(picture[None]) for picture in pictures])
    torch.testing.assert_close(alone, logits, atol=1e-4, rtol=1e-4)
    other = build(row, size, classes, seed=1).eval()
    assert not torch.allclose(other(pictures), logits)
    other.load_state_dict(learner.state_dict())
    torch.testing.assert_close(other(pictures), logits, atol=1e-6, rtol=1e-6)
