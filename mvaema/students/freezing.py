"""Which part of a student's vision model is trained: none of it, its last blocks, or all."""

import re

from torch import nn

from modeling_mvaema import MVaEMaModel

CHOICE = re.compile(r"none|all|last:[1-9]\d*")


def train_vision(model: MVaEMaModel, which: str) -> None:
    """Freeze the vision model of a student, or parts of it.

    Args:
        which: "none", "all", or "last:K" for the last K blocks and what comes after them. Blocks
            are the layers of a transformer, the stages of a ResNet or ConvNeXt, the blocks of an
            EfficientNet: the entries of the list that holds most of the model's weights.

    Raises:
        ValueError: the student has no vision model, or it has fewer blocks.
    """
    if not CHOICE.fullmatch(which):
        raise ValueError(f"train_vision must be none, last:K or all; got {which!r}.")
    if model.config.vision_config is None:
        raise ValueError(
            "train_vision is for a pre-trained vision model (--vision). This student's image "
            "encoder is its own, and is trained whole."
        )
    vision = model.image_encoder.vision_model
    trained = which == "all"
    for parameter in vision.parameters():
        parameter.requires_grad_(trained)
    if which.startswith("last:"):
        count, blocks = int(which.removeprefix("last:")), _blocks(vision)
        if count > len(blocks):
            raise ValueError(
                f"train_vision={which}, but the {vision.config.model_type} model has "
                f"{len(blocks)} blocks."
            )
        first = next(blocks[len(blocks) - count].parameters())
        for parameter in vision.parameters():  # in the order in which the model is built
            trained = trained or parameter is first
            parameter.requires_grad_(trained)
    # A mode set before does not know of what is frozen now.
    model.image_encoder.train(model.image_encoder.training)


def _blocks(model: nn.Module) -> nn.ModuleList | nn.Sequential:
    lists = [
        m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1
    ]
    return max(lists, key=lambda entries: sum(p.numel() for p in entries.parameters()))
