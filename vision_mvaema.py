"""The image encoder: the paper's ViT, or any vision model that transformers builds.

What is special about it:
- with `config.vision_config`, a pre-trained model (DINOv2, SigLIP, CLIP, ViT, Swin, ConvNeXt,
  ResNet, EfficientNet, timm's models, ...) does the seeing. Its tokens or its feature map become
  image states through one projection, so its width and the text stack's are independent;
- either encoder works in two steps, `features` of the pixels and states of the features. Features
  of a frozen model can be computed once and be given instead of pixels;
- what is frozen stays as in evaluation, dropout and batch statistics included, whatever mode the
  student is in.

This file travels with `layers_mvaema.py`: `save_pretrained` and `push_to_hub` copy both into the
model repository.
"""

import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

try:  # inside a model repository, where transformers loads this file as part of a package
    from .configuration_mvaema import MVaEMaConfig
    from .layers_mvaema import MVaEMaAttention, MVaEMaMLP, Recorded
except ImportError:  # from the project's root
    from configuration_mvaema import MVaEMaConfig
    from layers_mvaema import MVaEMaAttention, MVaEMaMLP, Recorded

# An image is as wide, and as high, as this many steps of the slowest wave of its positions.
GRID = 16


class MVaEMaImageLayer(GradientCheckpointingLayer):
    """A pre-norm ViT layer."""

    def __init__(self, config: MVaEMaConfig):
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = MVaEMaAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MVaEMaMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, recorded: Recorded | None = None) -> Tensor:
        normed, attention = self.self_attn_norm(hidden_states), self.self_attn
        attended, weights = attention(attention.q_proj(normed), *attention.keys_and_values(normed))
        if recorded is not None:
            recorded.attention(weights)
        hidden_states = hidden_states + self.dropout(attention.o_proj(attended))
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class MVaEMaImageEncoder(nn.Module):
    """What both encoders share: a [CLS] token, layers of the student's own, a last norm.

    An encoder of a kind says what the `features` of pixels are and how to `embed` them.
    """

    def __init__(self, config: MVaEMaConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.instruction_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) if config.instruction_aware else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            MVaEMaImageLayer(config) for _ in range(config.num_image_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def features(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> tokens (images, tokens, width) or a map (images,
        width, rows, columns).

        Raises:
            ValueError: the pixels have another shape.
        """
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """Features -> (images, 1 + tokens, hidden_size), [CLS] first."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor | None = None,
        instruction: Tensor | None = None,
        recorded: Recorded | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """(images, channels, height, width) -> states (images, 1 + tokens, hidden_size).

        Args:
            instruction: (images, hidden_size), the text embedding of a question; joins the image
                tokens as one more token.
            recorded: where layers leave their states and attention weights.
            features: what `features` made of the pixels, instead of them.
        """
        if features is None:
            features = self.features(pixel_values)
        hidden_states = self.embed(features)
        if instruction is not None:
            token = self.instruction_proj(instruction).unsqueeze(1)
            hidden_states = torch.cat([hidden_states, token.to(hidden_states.device)], dim=1)
        hidden_states = self.dropout(hidden_states)
        if not self.layers:
            hidden_states = self.norm(hidden_states)
        if recorded is not None:
            recorded.states(hidden_states)
        for i, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, recorded)
            if i + 1 == len(self.layers):
                hidden_states = self.norm(hidden_states)
            if recorded is not None:
                recorded.states(hidden_states)
        return hidden_states

    def _check(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (images, {self.config.num_channels}, height, width); "
                f"got {tuple(pixel_values.shape)}."
            )


class MVaEMaViT(MVaEMaImageEncoder):
    """The paper's pre-norm ViT: patches, a [CLS] token, learned positions."""

    def __init__(self, config: MVaEMaConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.position_embeddings = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, config.hidden_size)
        )

    def features(self, pixel_values: Tensor) -> Tensor:
        """The map of embedded patches; see `MVaEMaImageEncoder.features`."""
        self._check(pixel_values)
        if min(pixel_values.shape[2:]) < self.config.patch_size:
            raise ValueError(
                f"pixel_values of {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels are "
                f"smaller than one patch (patch_size={self.config.patch_size})."
            )
        return self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))

    def embed(self, features: Tensor) -> Tensor:
        positions = self._positions(*features.shape[2:])
        cls = self.cls_token.expand(features.shape[0], -1, -1)
        patches = features.flatten(2).transpose(1, 2).to(cls.device)
        return torch.cat([cls, patches], dim=1) + positions

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.position_embeddings
        grid = self.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        # In float32: bicubic interpolation is not implemented for half precision everywhere.
        grid = nn.functional.interpolate(
            grid.float(), size=(rows, columns), mode="bicubic", align_corners=False
        ).to(grid.dtype)
        return torch.cat([self.position_embeddings[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class MVaEMaVisionEncoder(MVaEMaImageEncoder):
    """A vision model of `config.vision_config`, and one projection to the text stack's width.

    [CLS] is a learned vector and the mean over the projected tokens. All tokens of the vision
    model follow, its own [CLS] and registers included.

    Raises:
        ValueError: `vision_config` is of no model that turns `image_size` pixels into tokens or a
            feature map.
    """

    def __init__(self, config: MVaEMaConfig):
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config)
        width = feature_width(config)
        self.feature_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The vision model's tokens or map; see `MVaEMaImageEncoder.features`."""
        self._check(pixel_values)
        dtype = self.vision_model.dtype
        return vision_features(self.vision_model, pixel_values.to(dtype), self.config)

    def embed(self, features: Tensor) -> Tensor:
        grid = features.shape[2:] if features.ndim == 4 else None
        if grid is not None:
            features = features.flatten(2).transpose(1, 2)
        states = self.projection(self.feature_norm(features.to(self.cls_token.dtype)))
        if grid is not None:  # tokens know their place; the cells of a map do not
            states = states + grid_positions(*grid, states.shape[-1]).to(states)
        cls = self.cls_token.to(states.device) + states.mean(dim=1, keepdim=True)
        return torch.cat([cls, states], dim=1)

    def train(self, mode: bool = True) -> "MVaEMaVisionEncoder":
        """As in torch, but parts of the vision model that are frozen stay in evaluation mode."""
        super().train(mode)
        if mode:
            _keep_frozen(self.vision_model)
        return self


def image_encoder(config: MVaEMaConfig) -> MVaEMaImageEncoder:
    """The encoder that a configuration asks for."""
    return MVaEMaViT(config) if config.vision_config is None else MVaEMaVisionEncoder(config)


def _keep_frozen(module: nn.Module) -> None:
    """Evaluation mode for what has no parameter to train, and for all batch norms.

    Batch norms keep the statistics that they were trained with: those of a few micrographs are
    worse. Detectors that are fine-tuned do the same.
    """
    trained = [p.requires_grad for p in module.parameters()]
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or (trained and not any(trained)):
        module.eval()
    else:
        for child in module.children():
            _keep_frozen(child)


def vision_features(model: PreTrainedModel, pixel_values: Tensor, config: MVaEMaConfig) -> Tensor:
    """What a vision model makes of pixels: tokens (images, tokens, width) or a map (images, width,
    rows, columns).

    Several layers (`config.vision_feature_layer`) lie side by side in the width; maps are averaged
    to the coarsest grid among them.

    Raises:
        ValueError: the layers have different numbers of tokens.
    """
    layers, options = config.vision_feature_layer, {}
    layers = [layers] if isinstance(layers, int) else layers
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if layers != [-1]:
        options["output_hidden_states"] = True
    output = model(pixel_values=pixel_values, **options)
    chosen = [output.last_hidden_state if i == -1 else output.hidden_states[i] for i in layers]
    if len(chosen) == 1:
        return chosen[0]
    if all(x.ndim == 4 for x in chosen):
        size = min(x.shape[2:] for x in chosen)
        return torch.cat([nn.functional.adaptive_avg_pool2d(x, size) for x in chosen], dim=1)
    if len({x.shape[1:-1] for x in chosen}) > 1:
        raise ValueError(
            f"the layers of vision_feature_layer={layers} have different shapes, "
            f"{', '.join(str(tuple(x.shape[1:])) for x in chosen)}. Choose layers with as many "
            "tokens each."
        )
    return torch.cat(chosen, dim=-1)


def feature_width(config: MVaEMaConfig) -> int:
    """Width of the features of `config.vision_config`, found by a run without numbers.

    Raises:
        ValueError: see `MVaEMaVisionEncoder`.
    """
    vision_config, size = copy.deepcopy(config.vision_config), config.image_size
    kind = vision_config.model_type
    try:
        vision_config._attn_implementation = "eager"  # others have no kernels for meta tensors
        with torch.device("meta"), torch.no_grad():
            model = AutoModel.from_config(vision_config).eval()
            pixels = torch.empty(1, config.num_channels, size, size, dtype=model.dtype)
            features = vision_features(model, pixels, config)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"vision_config: a {kind!r} model does not turn pixel_values of (1, "
            f"{config.num_channels}, {size}, {size}) into tokens or a feature map. Give a vision "
            f"model, and an image_size that fits it. ({type(error).__name__}: {error})"
        ) from error
    if features.ndim not in (3, 4):
        raise ValueError(
            f"vision_config: the features of a {kind!r} model have the shape "
            f"{tuple(features.shape)}; expected tokens (images, tokens, width) or a map (images, "
            "width, rows, columns)."
        )
    return features.shape[-1] if features.ndim == 3 else features.shape[1]


def grid_positions(rows: int, columns: int, width: int) -> Tensor:
    """Sine and cosine of the place of each cell of a grid, (rows * columns, width).

    Half of the width is for rows, half for columns, as in MAE (He et al. 2022). Places are relative
    to the image: the lower right corner is the same at any resolution.
    """
    frequencies = 1e4 ** -torch.arange(0, 1, 4 / width)[: width // 4]
    waves = []
    for count in (rows, columns):
        places = (torch.arange(count) + 0.5) * (GRID / count)
        angles = places[:, None] * frequencies
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    down, across = waves[0][:, None], waves[1][None]
    grid = torch.cat([down.expand(-1, columns, -1), across.expand(rows, -1, -1)], dim=2)
    return nn.functional.pad(grid.flatten(0, 1), (0, width - grid.shape[2]))


__all__ = ["MVaEMaImageEncoder", "MVaEMaViT", "MVaEMaVisionEncoder", "image_encoder"]
