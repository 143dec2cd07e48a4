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

import inspect

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput

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
        self.add_input(config)  # first: a seed draws the weights in this order
        self.instruction_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) if config.instruction_aware else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            MVaEMaImageLayer(config) for _ in range(config.num_image_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def add_input(self, config: MVaEMaConfig) -> None:
        """The modules that `features` and `embed` need."""
        raise NotImplementedError

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

    def _check(self, pixel_values: Tensor, patch_size: int) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (images, {self.config.num_channels}, height, width); "
                f"got {tuple(pixel_values.shape)}."
            )
        if min(pixel_values.shape[2:]) < patch_size:
            raise ValueError(
                f"pixel_values of {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels are "
                f"smaller than one patch (patch_size={patch_size})."
            )


class MVaEMaViT(MVaEMaImageEncoder):
    """The paper's pre-norm ViT: patches, a [CLS] token, learned positions."""

    def add_input(self, config: MVaEMaConfig) -> None:
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
        self._check(pixel_values, self.config.patch_size)
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

    def add_input(self, config: MVaEMaConfig) -> None:
        check_vision_config(config.vision_config)
        if config.image_size < patch_size(config):
            raise ValueError(
                f"image_size ({config.image_size}) is smaller than one patch of the vision model "
                f"({patch_size(config)})."
            )
        # Of the student's own dtype, not of the one that the checkpoint was stored in.
        self.vision_model = AutoModel.from_config(
            config.vision_config, dtype=torch.get_default_dtype(), trust_remote_code=False
        )
        self.options = {}
        if "interpolate_pos_encoding" in inspect.signature(self.vision_model.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        if config.vision_feature_layer not in (-1, [-1]):
            self.options["output_hidden_states"] = True
        width = self._width()
        self.feature_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The vision model's tokens or map; see `MVaEMaImageEncoder.features`."""
        self._check(pixel_values, patch_size(self.config))
        output = self._seen(pixel_values.to(self.vision_model.dtype))
        return chosen_features(output, self.config.vision_feature_layer)

    def _seen(self, pixel_values: Tensor) -> ModelOutput:
        return self.vision_model(pixel_values=pixel_values, **self.options)

    def _blank(self) -> Tensor:
        """An image without anything on it, for the vision model's shapes."""
        shape = (1, self.config.num_channels, self.config.image_size, self.config.image_size)
        return torch.zeros(shape, dtype=self.vision_model.dtype, device=self.vision_model.device)

    def _width(self) -> int:
        """Width of the features, found by a run, and what this has to be called with for them.

        Raises:
            ValueError: see the class.
        """
        model, pixels = self.vision_model, self._blank()
        kind, attention = model.config.model_type, model.config._attn_implementation
        # While a checkpoint is loaded, weights are on "meta", where only eager attention runs.
        model.config._attn_implementation = "eager"
        model.eval()
        try:
            with torch.no_grad():
                output = self._seen(pixels)
                if hasattr(output, "reshaped_hidden_states"):
                    self.options["output_hidden_states"] = True
                    output = self._seen(pixels)
        except Exception as error:
            raise ValueError(
                f"vision_config: a {kind!r} model does not turn pixel_values of "
                f"{tuple(pixels.shape)} into tokens or a feature map. Give a vision model, and an "
                f"image_size that fits it. ({type(error).__name__}: {error})"
            ) from error
        finally:
            model.config._attn_implementation = attention
            model.train()
        features = chosen_features(output, self.config.vision_feature_layer)
        if features.ndim not in (3, 4):
            raise ValueError(
                f"vision_config: the features of a {kind!r} model have the shape "
                f"{tuple(features.shape)}; expected tokens (images, tokens, width) or a map "
                "(images, width, rows, columns)."
            )
        return features.shape[-1] if features.ndim == 3 else features.shape[1]

    def unused_weights(self) -> set[str]:
        """Names of the vision model's parameters that the features do not depend on.

        Such as those of a pooler: in training they get no gradient.
        """
        names, parameters = zip(*self.vision_model.named_parameters(), strict=True)
        trained, mode = [parameter.requires_grad for parameter in parameters], self.training
        try:
            self.eval()
            self.vision_model.requires_grad_(True)
            with torch.enable_grad():
                features = self.features(self._blank())
                gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        finally:
            for parameter, flag in zip(parameters, trained, strict=True):
                parameter.requires_grad_(flag)
            self.train(mode)
        return {name for name, found in zip(names, gradients, strict=True) if found is None}

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


def chosen_features(output: ModelOutput, layers: int | list[int]) -> Tensor:
    """Of what a vision model returns, tokens (images, tokens, width) or a map (images, width, rows,
    columns).

    Args:
        layers: as `vision_feature_layer` of the configuration.

    Raises:
        ValueError: there is no such layer, or layers have different numbers of tokens.
    """
    layers = [layers] if isinstance(layers, int) else layers
    chosen = [_features_of(output, layer) for layer in layers]
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


def _features_of(output: ModelOutput, layer: int) -> Tensor:
    """Tokens or a map of one layer."""
    # Of models that are hierarchies of windows (Swin): the same tokens on their grid, as they know
    # their place inside a window only.
    maps = getattr(output, "reshaped_hidden_states", None)
    if layer != -1:
        states = output.hidden_states if maps is None else maps
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"vision_feature_layer: there is no hidden state {layer} among the {len(states)}."
            )
        return states[layer]
    states = output.last_hidden_state
    if maps is not None:
        return states.transpose(1, 2).unflatten(2, maps[-1].shape[2:])
    pooled = getattr(output, "pooler_output", None)
    if states.ndim == 4 and pooled is not None:
        width = pooled.flatten(1).shape[1]
        if states.shape[-1] == width != states.shape[1]:  # as timm's Swin: (rows, columns, width)
            return states.movedim(-1, 1)
    return states


def patch_size(config: MVaEMaConfig) -> int:
    """Side of the vision model's patches in pixels; 1 where it has none."""
    size = getattr(config.vision_config, "patch_size", None)
    return size if isinstance(size, int) else 1


def check_vision_config(vision_config: PreTrainedConfig) -> None:
    """That a configuration is of a model whose input are images, and nothing else.

    Raises:
        ValueError: it is not.
    """
    kind = vision_config.model_type
    if type(vision_config) not in MODEL_MAPPING:
        raise ValueError(f"vision_config: AutoModel builds no model of the kind {kind!r}.")
    model = MODEL_MAPPING[type(vision_config)]
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"vision_config: a {kind!r} model is no vision model: it takes "
            f"{model.main_input_name}, not pixel_values."
        )
    others = [
        parameter.name
        for parameter in list(inspect.signature(model.forward).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "pixel_values"
    ]
    if others:
        raise ValueError(
            f"vision_config: a {kind!r} model needs {', '.join(others)} beside pixel_values: its "
            "images have no fixed size (NaFlex). Take a checkpoint of a fixed resolution, such as "
            "google/siglip2-base-patch16-224."
        )


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
