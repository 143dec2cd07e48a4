"""Vision models of a few thousand random weights, one of each kind, as configurations."""

from pathlib import Path

import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    EfficientNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

TOKENS = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
MLP = {"intermediate_size": 40}
MAPS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
MODELS = {
    "vit": lambda: ViTConfig(**TOKENS, **MLP),
    "dinov2": lambda: Dinov2Config(**TOKENS, mlp_ratio=2),
    "registers": lambda: Dinov2WithRegistersConfig(**TOKENS, mlp_ratio=2, num_register_tokens=3),
    "clip": lambda: CLIPVisionConfig(**TOKENS, **MLP),
    "siglip": lambda: SiglipVisionConfig(**TOKENS, **MLP),
    "swin": lambda: SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "convnext": lambda: ConvNextConfig(**MAPS),
    "resnet": lambda: ResNetConfig(**MAPS, embedding_size=8, layer_type="basic"),
    "efficientnet": lambda: EfficientNetConfig(
        image_size=32,
        in_channels=[32, 16],
        out_channels=[16, 24],
        kernel_sizes=[3, 3],
        strides=[1, 2],
        num_block_repeats=[1, 2],
        expand_ratios=[1, 2],
        depthwise_padding=[],
        width_coefficient=0.25,
        hidden_dim=320,
        hidden_act="relu6",
    ),
}
# Shape of the features of a 32 x 32 image.
FEATURES = {
    "vit": (17, 24),
    "dinov2": (17, 24),
    "registers": (20, 24),
    "clip": (17, 24),
    "siglip": (16, 24),
    "swin": (24, 4, 4),
    "convnext": (24, 1, 1),
    "resnet": (24, 1, 1),
    "efficientnet": (320, 8, 8),
}


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight and statistic is random, so that none hides a mistake about it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def save_vision(folder: Path, config: PreTrainedConfig, **images) -> PreTrainedModel:
    """A checkpoint of a vision model with an image processor; the model.

    Args:
        images: fields of the image processor.
    """
    model = randomized(AutoModel.from_config(config))
    model.save_pretrained(folder)
    images = {"size": {"height": 32, "width": 32}, **images}
    ViTImageProcessorPil(**images).save_pretrained(folder)
    return model
