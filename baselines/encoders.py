"""A pre-trained vision model as a learner: fine-tuned, or frozen behind a linear probe.

What is special about it:
- any vision model that transformers loads, timm's included, is opened as a student opens it
  (`mvaema/students/vision.py`): weights that are missing are refused, and images are normalised as
  its own processor does;
- its tokens, or the cells of its map, are put together by their mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from baselines.learners import Learner
from configuration_mvaema import MVaEMaConfig
from mvaema.students.vision import copy_vision, preprocessing, vision_config
from vision_mvaema import MVaEMaVisionEncoder


class Looks(NamedTuple):
    """How a checkpoint wants pixels between 0 and 1: `mean` and `std`, of all channels or each."""

    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5


class Encoder(nn.Module):
    """pixel_values (batch, 3, height, width) -> features (batch, width).

    Args:
        encoder: what sees.
        looks: how it wants its pixels.

    Attributes:
        width: of the features.
    """

    def __init__(self, encoder: MVaEMaVisionEncoder, looks: Looks):
        super().__init__()
        self.encoder = encoder
        self.width = encoder.feature_norm.normalized_shape[0]
        # What stands behind the vision model in a student is not used.
        encoder.feature_norm = encoder.projection = encoder.norm = nn.Identity()
        encoder.cls_token.requires_grad_(False)
        mean, std = (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 1) for x in looks)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = self.encoder.features(((pixel_values + 1) / 2 - self.mean) / self.std).float()
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features.mean(dim=1)


def open_encoder(name: str, image_size: int) -> Encoder:
    """The vision model in a folder or on the Hub.

    Raises:
        ValueError: it is no vision model, or lacks weights.
        OSError: it is not there.
        ImportError: it is of timm, which is missing.
    """
    config = vision_config(name)
    wanted = preprocessing(name, config)
    encoder = _vision_encoder(config, image_size)
    copy_vision(name, encoder)
    return Encoder(encoder, Looks(wanted["image_mean"], wanted["image_std"]))


def random_encoder(config: PreTrainedConfig, image_size: int) -> Encoder:
    """A vision model of transformers with random weights."""
    return Encoder(_vision_encoder(config, image_size), Looks())


def _vision_encoder(config: PreTrainedConfig, image_size: int) -> MVaEMaVisionEncoder:
    shapes = MVaEMaConfig(vision_config=config, image_size=image_size, num_image_layers=0)
    return MVaEMaVisionEncoder(shapes)


class Tuned(Learner):
    """An encoder and a linear layer, trained together."""

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, classes)
        unused = encoder.encoder.unused_weights()
        for name, parameter in encoder.encoder.vision_model.named_parameters():
            parameter.requires_grad_(name not in unused)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(pixel_values)))


class Probe(Learner):
    """A frozen encoder, and a linear layer on its standardised features.

    The layer is set by `set_layer`, not by gradients.
    """

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.head = nn.Linear(encoder.width, classes)

    def train(self, mode: bool = True) -> "Probe":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.encoder(pixel_values))

    @torch.no_grad()
    def set_layer(self, weight: Tensor, bias: Tensor) -> None:
        """Of (classes, width) and (classes,)."""
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
