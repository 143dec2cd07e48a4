"""Views of micrographs, from which self-supervised rows learn.

What is special about it:
- a view is what another picture of the same sample could be: another field, magnification,
  brightness, contrast or focus, turned or mirrored. Pixels stay square, so that spheres stay
  spheres, and there is no colour to change;
- each micrograph of a batch has a view of its own, drawn by torch's generator: the same seed draws
  the same views.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


def draw(transform: Transform, pixel_values: Tensor) -> Tensor:
    """A view of each micrograph: (batch, 3, height, width) to (batch, 3, size, size)."""
    return torch.stack([transform(image) for image in pixel_values])


def quarter_turns(image: Tensor) -> Tensor:
    """Turn by 0, 90, 180 or 270 degrees."""
    return image.rot90(int(torch.randint(4, ())), (-2, -1))


def framing(size: int, least: float, most: float = 1.0) -> Transform:
    """Another field of view.

    Args:
        size: height and width of a view in pixels.
        least, most: share of the micrograph's area that it shows.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(least, most), ratio=(1, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.Lambda(quarter_turns),
        ]
    )


def looks(size: int, least: float, most: float = 1.0) -> Transform:
    """Another field of view, brightness, contrast and focus. Arguments as of `framing`."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            framing(size, least, most),
            v2.Normalize([-1.0] * 3, [2.0] * 3),  # To [0, 1], which the next ones expect.
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4)], p=0.8),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, sigma=(0.1, 2.0))], p=0.5),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
