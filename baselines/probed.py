"""What self-supervised rows share: an encoder, and the linear probe that scores it.

What is special about it:
- the probe is a linear layer on standardised features, as in MAE's own evaluation: encoders whose
  features have different scales can share a learning rate;
- `freeze` leaves everything but the probe as it is, batch norm included.
"""

from typing import Self

from torch import Tensor, nn

from baselines.learners import SelfSupervised

PATCH = 16


class Probed(SelfSupervised):
    """An encoder, and a linear probe on what it gives.

    Args:
        encoder: (batch, 3, height, width) to (batch, width).
        width: of its features.
        classes: number of categories.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int):
        super().__init__()
        self.encoder = encoder
        self.probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))
        self.frozen = False

    def features(self, pixel_values: Tensor) -> Tensor:
        """(batch, width), what the probe reads."""
        return self.encoder(pixel_values)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.probe(self.features(pixel_values))

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.probe.requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Frozen, all but the probe stays in evaluation: its batch norm keeps its statistics."""
        super().train(mode)
        if self.frozen:
            for module in self.children():
                module.train(mode and module is self.probe)
        return self


def vit_tiny(image_size: int, dynamic_img_size: bool = False) -> nn.Module:
    """timm's ViT-tiny without a head: (batch, 192) of the class token.

    Args:
        image_size: height and width in pixels.
        dynamic_img_size: also take images of other sizes.
    """
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=image_size,
        num_classes=0,
        dynamic_img_size=dynamic_img_size,
    )
