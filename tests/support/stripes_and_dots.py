"""Toy micrographs of two categories, for rows of `baselines`."""

import torch
from torch import Tensor


def stripes_and_dots(count: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Stripes (0) and dots (1), at a random place and with noise.

    Args:
        count: of micrographs, half of each.
        side: height and width in pixels.
        seed: of places and noise.

    Returns:
        `pixel_values` (count, 3, side, side) in [-1, 1], and `labels` (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    shift = torch.randint(0, 8, (count, 2), generator=generator)[..., None, None]
    wave_x = torch.sin((x + shift[:, 0]) * torch.pi / 4)
    wave_y = torch.sin((y + shift[:, 1]) * torch.pi / 4)
    pictures = torch.where(labels[:, None, None] == 0, wave_x, (wave_x * wave_y).clamp(min=0))
    pictures = pictures + 0.1 * torch.randn(count, side, side, generator=generator)
    return pictures.clamp(-1, 1)[:, None].expand(-1, 3, -1, -1).contiguous(), labels
