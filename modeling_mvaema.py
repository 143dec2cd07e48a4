"""MVaEMa: a small encoder-decoder that answers questions about electron micrographs.

What is special about it:
- one text stack in three modes: text encoder, image-grounded text encoder, image-grounded text
  decoder. The modes share the same Python modules, not tied parameters, so LoRA weights merge
  exactly;
- the decoder's memory is [V ; M]: image states and grounded question states side by side. Every
  word is conditioned on the image and on the question, P(w_i | w_<i, I, Q);
- the three losses (`losses_mvaema.py`) come from one encoding of each image, and each is in the
  output by name;
- n questions about each image are n consecutive rows of text. Images are encoded once, and the
  keys and values that texts attend to are computed once per image, for all rows and modes. Gain on
  a CPU, training with LM and 4 questions: 1.3x (`paper`), 2.2x (`small`);
- texts are packed (`PackedTexts`): what is done token by token is done on one (tokens,
  hidden_size) for the whole batch. Only attention sees rows.

To read it: `PackedTexts` and `Memory` are what the layers are given, `MVaEMaTextLayer` is the
layer of all three modes, `MVaEMaModel` puts the parts together. Generation, `answer` and
`classify` are in `generation_mvaema.py`.

This file travels with `configuration_mvaema.py`, `losses_mvaema.py` and `generation_mvaema.py`:
`save_pretrained` and `push_to_hub` copy all four into the model repository.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.versions import require_version

# Older versions give the decoder's cache another name, and every word would be the first.
require_version("transformers>=5.24", "Upgrade it: pip install -U transformers")

try:  # inside a model repository, where transformers loads this file as part of a package
    from .configuration_mvaema import MVaEMaConfig
    from .generation_mvaema import MVaEMaCache, MVaEMaGenerationMixin, MVaEMaMemory
    from .losses_mvaema import (
        Pairs,
        gather,
        itc_loss,
        itm_loss,
        itm_negatives,
        lm_loss,
        row_numbers,
        shift_right,
        similarities,
        world_size,
    )
except ImportError:  # from the project's root
    from configuration_mvaema import MVaEMaConfig
    from generation_mvaema import MVaEMaCache, MVaEMaGenerationMixin, MVaEMaMemory
    from losses_mvaema import (
        Pairs,
        gather,
        itc_loss,
        itm_loss,
        itm_negatives,
        lm_loss,
        row_numbers,
        shift_right,
        similarities,
        world_size,
    )

# Padding (tokens x hidden_size) that a group of texts may have before another group costs less.
GROUP_PADDING = 2**11

# Keys and values of images for one layer, (images, heads, image tokens, head_dim) each.
KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class MVaEMaOutput(ModelOutput):
    """
    What the model returns; a field is `None` when its inputs were not given.

    Args:
        loss (`Tensor` of shape `()`): weighted sum of the losses that were computed.
        itc_loss, itm_loss, lm_loss (`Tensor` of shape `()`): contrastive, matching and
            language-modelling loss, each a mean over the global batch, unweighted.
        logits (`Tensor` of shape `(batch, answer_length, vocab_size)`): decoder logits; `None` in
            training mode with labels, where the loss needs but a part of them.
        cache (`EncoderDecoderCache`): keys and values of the decoder.
        decoder_hidden_states (`tuple` of `Tensor` of shape `(batch, answer_length, hidden_size)`):
            with `output_hidden_states`, the embeddings and what each layer made of them.
        decoder_attentions (`tuple` of `Tensor` of shape `(batch, heads, answer_length, length)`):
            with `output_attentions`, the weights of each layer's self-attention.
        cross_attentions (`tuple` of `Tensor` of shape `(batch, heads, answer_length,
            memory_length)`): and of its attention to the memory [V ; M].
        encoder_last_hidden_state (`Tensor` of shape `(batch, memory_length, hidden_size)`): the
            decoder's memory [V ; M], image states followed by grounded question states.
        encoder_hidden_states, encoder_attentions (`tuple` of `Tensor`): of the image-grounded text
            encoder that reads the question, as those of the decoder.
        logits_per_image (`Tensor` of shape `(images, statements)`): similarity of each image and
            each statement of this process, divided by the temperature.
        image_embeds (`Tensor` of shape `(images, projection_dim)`): normalised image embeddings.
        text_embeds (`Tensor` of shape `(statements, projection_dim)`): normalised embeddings of
            the statements.
    """

    loss: Tensor | None = None
    itc_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    lm_loss: Tensor | None = None
    logits: Tensor | None = None
    cache: Cache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    logits_per_image: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


# ---- what the layers are given -------------------------------------------------------------------


@dataclass
class Recorded:
    """Where layers leave what the caller asked to see; texts are then not packed by length.

    Args:
        hidden_states: the embeddings and each layer's states, (batch, length, hidden_size) each.
        attentions, cross_attentions: each layer's weights, (batch, heads, length, keys) each.
    """

    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None

    @classmethod
    def asked_for(
        cls, config: MVaEMaConfig, attentions: bool | None, hidden_states: bool | None
    ) -> "Recorded | None":
        """None where neither is wanted. What is None is as the configuration says.

        Raises:
            ValueError: attention weights are wanted of an implementation that has none.
        """
        attentions = config.output_attentions if attentions is None else attentions
        hidden_states = config.output_hidden_states if hidden_states is None else hidden_states
        if attentions and config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions=True, but {config._attn_implementation} attention returns no "
                'weights. Use eager attention: model.set_attn_implementation("eager").'
            )
        if not attentions and not hidden_states:
            return None
        weights = () if attentions else None
        return cls(() if hidden_states else None, weights, weights)

    def states(self, hidden_states: Tensor) -> None:
        if self.hidden_states is not None:
            self.hidden_states += (hidden_states,)

    def attention(self, weights: Tensor | None) -> None:
        if self.attentions is not None:
            self.attentions += (weights,)

    def cross_attention(self, weights: Tensor | None) -> None:
        if self.cross_attentions is not None:
            self.cross_attentions += (weights,)


@dataclass
class PackedTexts:
    """The order in which the texts of a batch are packed into one (tokens, width).

    Texts lie one after the other in groups of like length, so little of it is padding. Gain on a
    CPU, training with all three losses: 1.5x (`paper`), 1.2x (`small`); docs/speed.md has the runs.

    Args:
        length: tokens of a row of the batch, padding included.
        groups: (rows, tokens of each) of consecutive texts.
        order: (batch,), the row of the batch that each packed text is; None: as they come.
        masks: what self-attention is given for each group, as transformers makes it.
        recorded: where layers leave their states and attention weights; None: nowhere.
    """

    length: int
    groups: list[tuple[int, int]]
    order: Tensor | None = None
    masks: list[Tensor | None] = field(default_factory=list)
    recorded: Recorded | None = None

    @classmethod
    def by_length(cls, attention_mask: Tensor, hidden_size: int) -> "PackedTexts":
        """Longest first. A group costs each attention a call, which little padding is not worth."""
        ends = attention_mask.bool() * torch.arange(1, attention_mask.shape[1] + 1)
        ends, order = ends.amax(dim=1).clamp(min=1).sort(descending=True, stable=True)
        lengths, counts = (x.tolist() for x in ends.unique_consecutive(return_counts=True))
        groups, padding = [(0, lengths[0])], 0
        for length, count in zip(lengths, counts, strict=True):
            padding += (groups[-1][1] - length) * count * hidden_size
            if padding > GROUP_PADDING:
                groups.append((0, length))
                padding = 0
            groups[-1] = (groups[-1][0] + count, groups[-1][1])
        return cls(attention_mask.shape[1], groups, order)

    def to(self, *args, **kwargs) -> "PackedTexts":
        """On another device; accelerate calls it where a model is split over several."""
        return replace(
            self,
            order=moved(self.order, *args, **kwargs),
            masks=[moved(mask, *args, **kwargs) for mask in self.masks],
        )

    def ordered(self, rows: Tensor | None) -> Tensor | None:
        """Rows of the batch in the packed order."""
        return rows if rows is None or self.order is None else rows.index_select(0, self.order)

    def of_groups(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows in the packed order, by group."""
        return rows.split([count for count, _ in self.groups])

    def pack(self, batch: Tensor) -> Tensor:
        """(batch, length, ...) -> (tokens, ...)."""
        rows = self.of_groups(self.ordered(batch))
        return self.join([x[:, :length] for x, (_, length) in zip(rows, self.groups, strict=True)])

    def split(self, states: Tensor) -> list[Tensor]:
        """(tokens, width) -> (rows, length, width) of each group; views."""
        parts = states.split([rows * length for rows, length in self.groups])
        return [x.unflatten(0, group) for x, group in zip(parts, self.groups, strict=True)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """(rows, length, ...) of each group -> (tokens, ...)."""
        parts = [part.flatten(0, 1) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unpack(self, states: Tensor) -> Tensor:
        """(tokens, width) -> (batch, length, width), 0 where nothing was packed."""
        parts = self.split(states)
        if self.order is None:
            return parts[0]
        parts = [nn.functional.pad(x, (0, 0, 0, self.length - x.shape[1])) for x in parts]
        return torch.cat(parts).index_select(0, self.order.argsort())

    def first(self, states: Tensor) -> Tensor:
        """(tokens, width) -> the first token of each text, (batch, width)."""
        tokens = torch.cat([part[:, 0] for part in self.split(states)])
        return tokens if self.order is None else tokens.index_select(0, self.order.argsort())


@dataclass
class Memory:
    """What texts attend to: states that rows share (images), and states of each row's own.

    Args:
        images: for each layer the keys and values of the images; see `project_images`.
        image_index: (batch,), the image of each row. Given with `images`.
        states: (batch, length, hidden_size), each row's own. In the decoder the grounded question
            states M, or all of [V ; M] where `images` is None.
        mask: (batch, image tokens + length), 1 for what may be attended to.
        masks: what cross-attention is given for each group of `PackedTexts`.
    """

    images: tuple[KeysAndValues, ...] | None = None
    image_index: Tensor | None = None
    states: Tensor | None = None
    mask: Tensor | None = None
    masks: list[Tensor | None] = field(default_factory=list)

    def to(self, *args, **kwargs) -> "Memory":
        """What layers read besides their tensors, on another device; see `PackedTexts.to`."""
        return replace(
            self,
            image_index=moved(self.image_index, *args, **kwargs),
            masks=[moved(mask, *args, **kwargs) for mask in self.masks],
        )

    def ordered(self, texts: PackedTexts) -> "Memory":
        """The same for rows in the packed order."""
        index, states, mask = map(texts.ordered, (self.image_index, self.states, self.mask))
        return Memory(self.images, index, states, mask)

    def tensors(self, layer_idx: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What a layer attends to: keys and values of the images, states of each row's own."""
        keys, values = (None, None) if self.images is None else self.images[layer_idx]
        return keys, values, self.states

    def of_each_row(self, shared: Tensor | None, own: Tensor | None) -> Tensor:
        """Keys, or values, of each row: its image's, then its own.

        Args:
            shared: (images, heads, image tokens, head_dim).
            own: (batch, heads, length, head_dim).
        """
        parts = [] if shared is None else [shared[self.image_index]]
        parts += [] if own is None else [own]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def moved(tensor: Tensor | None, *args, **kwargs) -> Tensor | None:
    return None if tensor is None else tensor.to(*args, **kwargs)


def either(name: str, value: Tensor | None, other: str, other_value: Tensor | None):
    """The one that was given, if any.

    Raises:
        ValueError: both were.
    """
    if value is not None and other_value is not None:
        raise ValueError(f"{name} and {other} were given: give one of the two.")
    return other_value if value is None else value


def until_last(mask: Tensor) -> Tensor:
    """True up to the last true value of each row: what is left out is padding."""
    return mask.flip(1).cumsum(1).flip(1) > 0


# ---- layers --------------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out. Tensors are (batch, heads, length, head_dim); the mask is added."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MVaEMaAttention(nn.Module):
    """Multi-head attention. Keys and values are projected apart, so that they can be shared."""

    def __init__(self, config: MVaEMaConfig, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.is_causal = is_causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Projected, (batch, heads, length, head_dim) each."""
        return self.heads(self.k_proj(states)), self.heads(self.v_proj(states))

    def heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention alone, of projected states; `o_proj` is left to the caller.

        Args:
            query: (batch, length, hidden_size).
            key, value: (batch, heads, key length, head_dim).

        Returns:
            the states, (batch, length, hidden_size), and the weights, (batch, heads, length, key
            length), which only eager attention has.
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # `is_causal` is passed explicitly. With a mask of None, the interface's own default would
        # make every attention causal, or none.
        output, weights = attend(
            self,
            self.heads(query),
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=self.is_causal,
        )
        return output.flatten(2), weights

    def attend_shared(
        self,
        query: Tensor,
        shared: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        own_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` over keys that consecutive rows share, followed by keys of each row's own.

        There is one softmax over both, but shared keys and values are read once for all their
        rows. Gain on a CPU, ten questions about each of 8 micrographs: 0.9x (`paper`), 1.2x
        (`small`).

        Args:
            shared: keys and values, (images, heads, image tokens, head_dim).
            own: keys and values, (batch, heads, key length, head_dim).
            own_mask: (batch, 1, 1, key length), added to the scores.
        """
        (batch, length), images = query.shape[:2], shared[0].shape[0]

        def by_image(x: Tensor) -> Tensor:  # (batch, heads, length, *) -> (images, heads, rows, *)
            return x.unflatten(0, (images, -1)).transpose(1, 2).flatten(2, 3)

        def by_row(x: Tensor) -> Tensor:  # and back, (batch * heads, length, *)
            return x.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 2)

        query = self.heads(query) * self.head_dim**-0.5
        own_keys, own_values = (x.flatten(0, 1) for x in own)
        own_scores = query.flatten(0, 1) @ own_keys.mT
        if own_mask is not None:
            own_scores.unflatten(0, (batch, -1)).add_(own_mask)
        shared_scores = by_row(by_image(query) @ shared[0].mT)
        scores = torch.cat([shared_scores, own_scores], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        dropout = self.config.attention_probs_dropout_prob
        weights = nn.functional.dropout(weights, dropout, training=self.training)
        shared_weights, own_weights = weights.split(
            [s.shape[-1] for s in (shared_scores, own_scores)], -1
        )
        output = by_row(by_image(shared_weights.unflatten(0, (batch, -1))) @ shared[1])
        output = torch.baddbmm(output, own_weights, own_values).unflatten(0, (batch, -1))
        return output.transpose(1, 2).flatten(2), weights.unflatten(0, (batch, -1))


class MVaEMaMLP(nn.Module):
    def __init__(self, config: MVaEMaConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


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
    """A pre-norm ViT: patches, a [CLS] token, learned positions."""

    def __init__(self, config: MVaEMaConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, config.hidden_size)
        )
        self.instruction_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) if config.instruction_aware else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            MVaEMaImageLayer(config) for _ in range(config.num_image_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

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

    def forward(
        self,
        pixel_values: Tensor,
        instruction: Tensor | None = None,
        recorded: Recorded | None = None,
    ) -> Tensor:
        """(images, channels, height, width) -> states (images, 1 + patches, hidden_size).

        Args:
            instruction: (images, hidden_size), the text embedding of a question; joins the image
                tokens as one more token.
            recorded: where layers leave their states and attention weights.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (images, {self.config.num_channels}, height, width); "
                f"got {tuple(pixel_values.shape)}."
            )
        if min(pixel_values.shape[2:]) < self.config.patch_size:
            raise ValueError(
                f"pixel_values of {pixel_values.shape[2]} x {pixel_values.shape[3]} pixels are "
                f"smaller than one patch (patch_size={self.config.patch_size})."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = self._positions(*patches.shape[2:])
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        patches = patches.flatten(2).transpose(1, 2).to(cls.device)
        hidden_states = torch.cat([cls, patches], dim=1) + positions
        if instruction is not None:
            token = self.instruction_proj(instruction).unsqueeze(1)
            hidden_states = torch.cat([hidden_states, token.to(hidden_states.device)], dim=1)
        hidden_states = self.dropout(hidden_states)
        if recorded is not None:
            recorded.states(hidden_states)
        for i, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, recorded)
            if i + 1 == len(self.layers):
                hidden_states = self.norm(hidden_states)
            if recorded is not None:
                recorded.states(hidden_states)
        return hidden_states


class MVaEMaTextLayer(GradientCheckpointingLayer):
    """A post-norm BERT layer whose parts serve three modes.

    Text encoder: `self_attn -> mlp`. Image-grounded encoder: `self_attn -> cross_attn -> mlp`.
    Image-grounded decoder: `causal_attn -> cross_attn -> mlp`.
    """

    def __init__(self, config: MVaEMaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

        def norm():
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        if config.use_self_attention:
            self.self_attn = MVaEMaAttention(config)
            self.self_attn_norm = norm()
        self.causal_attn = MVaEMaAttention(config, is_causal=config.use_causal_mask)
        self.causal_attn_norm = norm()
        if config.use_cross_attention:
            self.cross_attn = MVaEMaAttention(config)
            self.cross_attn_norm = norm()
        self.mlp = MVaEMaMLP(config)
        self.mlp_norm = norm()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        image_keys: Tensor | None,
        image_values: Tensor | None,
        memory_states: Tensor | None,
        texts: PackedTexts,
        memory: Memory | None = None,
        causal: bool = False,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Packed states (tokens, hidden_size) -> as many.

        What gradients go through is an argument of its own: reentrant checkpointing sees no other.

        Args:
            image_keys, image_values, memory_states: from `memory.tensors`.
            memory: what to attend to, its rows in the order of `texts`; None for the text encoder.
            causal: decoder instead of encoder.
            cache: the decoder's cache; with it `texts` is one group.
        """
        if causal:
            attended = self._attend_to_text(self.causal_attn, hidden_states, texts, cache)
            hidden_states = self.causal_attn_norm(hidden_states + self.dropout(attended))
        elif self.config.use_self_attention:
            attended = self._attend_to_text(self.self_attn, hidden_states, texts, cache)
            hidden_states = self.self_attn_norm(hidden_states + self.dropout(attended))
        if memory is not None and self.config.use_cross_attention:
            shared, own = (image_keys, image_values), (None, None)
            if memory_states is not None:
                own = self._own_keys_and_values(memory_states, cache)
            attended = self._attend_to_memory(hidden_states, texts, memory, shared, own, cache)
            hidden_states = self.cross_attn_norm(hidden_states + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))

    def _attend_to_text(
        self,
        attention: MVaEMaAttention,
        hidden_states: Tensor,
        texts: PackedTexts,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        projected = (texts.split(projection(hidden_states)) for projection in projections)
        attended = []
        for query, key, value, mask in zip(*projected, texts.masks, strict=True):
            key, value = attention.heads(key), attention.heads(value)
            if cache is not None:
                key, value = cache.self_attention_cache.update(key, value, self.layer_idx)
            attended.append(attention(query, key, value, mask))
        if texts.recorded is not None:
            texts.recorded.attention(attended[0][1])
        return attention.o_proj(texts.join([states for states, _ in attended]))

    def _attend_to_memory(
        self,
        hidden_states: Tensor,
        texts: PackedTexts,
        memory: Memory,
        shared: tuple[Tensor | None, Tensor | None],
        own: tuple[Tensor | None, Tensor | None],
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        attention = self.cross_attn
        queries = texts.split(attention.q_proj(hidden_states))
        if cache is not None and memory.images is not None:
            # Decoding: read an image's keys and values once for all its rows.
            attended = [attention.attend_shared(queries[0], shared, own, memory.masks[0])]
        else:
            rows = map(memory.of_each_row, shared, own)
            attended = list(map(attention, queries, *map(texts.of_groups, rows), memory.masks))
        if texts.recorded is not None:
            texts.recorded.cross_attention(attended[0][1])
        return attention.o_proj(texts.join([states for states, _ in attended]))

    def _own_keys_and_values(
        self, states: Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Of the memory's states; projected once, and from the cache afterwards."""
        if cache is None:
            return self.cross_attn.keys_and_values(states)
        stored = cache.cross_attention_cache
        if not cache.is_updated.get(self.layer_idx):
            stored.update(*self.cross_attn.keys_and_values(states), self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        layer, length = stored.layers[self.layer_idx], states.shape[1]
        # A static cache is as long as [V ; M].
        return layer.keys[:, :, :length], layer.values[:, :, :length]


class MVaEMaTextStack(nn.Module):
    """Embeddings and layers that the text encoder, grounded encoder and decoder share."""

    def __init__(self, config: MVaEMaConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            MVaEMaTextLayer(config, i) for i in range(config.num_text_layers)
        )

    def project_images(self, states: Tensor) -> tuple[KeysAndValues, ...] | None:
        """Keys and values of images for each layer, (images, heads, image tokens, head_dim) each.

        Computed once, however many texts are about an image and in whatever mode.
        """
        if not self.config.use_cross_attention:
            return None
        return tuple(layer.cross_attn.keys_and_values(states) for layer in self.layers)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Memory | None = None,
        causal: bool = False,
        cache: EncoderDecoderCache | None = None,
        needed: Tensor | None = None,
        recorded: Recorded | None = None,
    ) -> tuple[Tensor, PackedTexts]:
        """Token ids (batch, length) -> packed states (tokens, hidden_size), and how to unpack them.

        Args:
            input_ids: or embeddings of tokens, (batch, length, hidden_size).
            attention_mask: (batch, length), 1 for tokens and 0 for padding, which no token attends
                to; with a cache (batch, cached length + length), or what `generate` makes of it for
                a static cache, (batch, 1, length, cache length).
            memory: what to attend to; None for the text encoder.
            causal: decoder instead of encoder.
            cache: the decoder's cache.
            needed: (batch, length), of the decoder's tokens those that are packed, where it isn't
                `attention_mask`. The others only follow, where the causal mask hides them.
            recorded: where layers leave their states and attention weights.

        Raises:
            ValueError: the text is longer than `max_position_embeddings`, or its mask has another
                shape.
        """
        past = 0 if cache is None else cache.get_seq_length()
        length = input_ids.shape[1]
        if not isinstance(past, Tensor) and past + length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {past + length} tokens is longer than the model's "
                f"max_position_embeddings ({self.config.max_position_embeddings}). Shorten it, or "
                "let the processor truncate it."
            )
        if attention_mask is not None and attention_mask.ndim == 2 and not isinstance(past, Tensor):
            expected = (input_ids.shape[0], past + length)
            if tuple(attention_mask.shape) != expected:
                raise ValueError(
                    f"the attention mask of texts of shape {tuple(input_ids.shape[:2])} must be "
                    f"{expected}, cached tokens included; got {tuple(attention_mask.shape)}."
                )
        # A GPU prefers few large kernels; a compiled graph has fixed shapes; a cache, fixed rows.
        on_cpu = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.config.use_causal_mask and attention_mask is None:
            attention_mask = needed
        needed = attention_mask if needed is None else needed
        if on_cpu and cache is None and needed is not None and recorded is None:
            texts = PackedTexts.by_length(needed, self.config.hidden_size)
        else:
            texts = PackedTexts(length, [tuple(input_ids.shape[:2])], recorded=recorded)
        hidden_states = self._embed(input_ids, texts, past)

        groups = texts.split(hidden_states)
        texts.masks = self._masks(groups, texts, texts.ordered(attention_mask), causal, cache)
        tensors = [(None, None, None)] * len(self.layers)
        if memory is not None:
            memory = memory.ordered(texts)
            memory.masks = self._memory_masks(groups, texts, memory, cache)
            tensors = [memory.tensors(i) for i in range(len(self.layers))]
        for layer, attended_to in zip(self.layers, tensors, strict=True):
            hidden_states = self._record(hidden_states, texts)
            hidden_states = layer(
                hidden_states, *attended_to, texts=texts, memory=memory, causal=causal, cache=cache
            )
        return self._record(hidden_states, texts), texts

    def _embed(self, input_ids: Tensor, texts: PackedTexts, past: int | Tensor) -> Tensor:
        """The first layer's packed states, of ids or of embeddings of words."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + past
        positions = texts.pack(positions.expand(input_ids.shape[:2]))
        # One look-up for the batch: the gradient of each look-up is as large as the vocabulary.
        hidden_states = texts.pack(input_ids)
        if not input_ids.is_floating_point():
            hidden_states = self.word_embeddings(hidden_states)
        positions = self.position_embeddings(positions).to(hidden_states.device)
        return self.dropout(self.embedding_norm(hidden_states + positions))

    def _record(self, hidden_states: Tensor, texts: PackedTexts) -> Tensor:
        """The same packed states, left in `texts.recorded` row by row if there is one."""
        if texts.recorded is None:
            return hidden_states
        states = texts.unpack(hidden_states)
        texts.recorded.states(states)
        return texts.pack(states)

    def _masks(
        self,
        groups: list[Tensor],
        texts: PackedTexts,
        attention_mask: Tensor | None,
        causal: bool,
        cache: EncoderDecoderCache | None,
    ) -> list[Tensor | None]:
        """Masks of each group's texts; None where all is attended to, or all that came before."""
        causal = causal and self.config.use_causal_mask
        if attention_mask is None or attention_mask.ndim == 4:
            masks = [attention_mask] * len(groups)
        else:
            past = attention_mask.shape[1] - texts.length
            masks = zip(groups, texts.of_groups(attention_mask), strict=True)
            masks = [mask[:, : past + x.shape[1]] for x, mask in masks]
        if causal:
            return [
                create_causal_mask(self.config, x, mask, cache)
                for x, mask in zip(groups, masks, strict=True)
            ]
        return [
            None if mask is None else create_bidirectional_mask(self.config, x, mask)
            for x, mask in zip(groups, masks, strict=True)
        ]

    def _memory_masks(
        self,
        groups: list[Tensor],
        texts: PackedTexts,
        memory: Memory,
        cache: EncoderDecoderCache | None,
    ) -> list[Tensor | None]:
        """Masks of what each group's texts attend to."""
        if memory.mask is None:
            return [None] * len(groups)
        if cache is not None and memory.images is not None:  # as `attend_shared` takes it
            own = memory.mask[:, None, None, -memory.states.shape[1] :]
            dtype = memory.states.dtype
            return [(own == 0).to(dtype) * torch.finfo(dtype).min]
        # Of the memory's states, only the shape is read.
        width = (memory.mask.shape[1], 0)
        return [
            create_bidirectional_mask(
                self.config,
                x,
                mask,
                encoder_hidden_states=x.new_empty(0).expand(x.shape[0], *width),
            )
            for x, mask in zip(groups, texts.of_groups(memory.mask), strict=True)
        ]


# ---- the model -----------------------------------------------------------------------------------


class MVaEMaPreTrainedModel(PreTrainedModel):
    config_class = MVaEMaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MVaEMaImageLayer", "MVaEMaTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MVaEMaImageEncoder):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, MVaEMaModel):
            init.constant_(module.log_temperature, math.log(self.config.initial_temperature))


class MVaEMaModel(MVaEMaGenerationMixin, MVaEMaPreTrainedModel, GenerationMixin):
    """Embeds, matches, classifies and answers; trains with ITC, ITM and LM losses."""

    _tied_weights_keys = {"lm_head.weight": "text_stack.word_embeddings.weight"}

    def __init__(self, config: MVaEMaConfig):
        super().__init__(config)
        self.image_encoder = MVaEMaImageEncoder(config)
        self.text_stack = MVaEMaTextStack(config)
        self.image_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_proj = nn.Linear(config.hidden_size, config.projection_dim)
        self.log_temperature = nn.Parameter(torch.zeros(1))  # FSDP shards no scalars
        self.itm_head = nn.Linear(config.hidden_size, 1)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config = GenerationConfig(
            decoder_start_token_id=config.dec_token_id,
            bos_token_id=config.dec_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            # Not `max_new_tokens`, which would override the caller's `max_length`. [DEC] counts.
            max_length=min(129, config.max_position_embeddings),
            # Without the causal mask a cached prefix would miss its successors.
            use_cache=config.use_causal_mask,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """As in transformers, but a checkpoint that lacks a weight is an error.

        Raises:
            ValueError: weights are missing; transformers would draw them at random and warn. With
                `output_loading_info=True` the second value returned names them instead.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"] and not output_loading_info:
            raise ValueError(
                f"the checkpoint {pretrained_model_name_or_path} lacks {len(info['missing_keys'])} "
                f"weights, {', '.join(sorted(info['missing_keys'])[:5])} among them. It is "
                "incomplete, or it belongs to another configuration."
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As in transformers, with the processor beside the model: a complete repository.

        Without a processor (see `processor`) the model is saved alone.
        """
        hub = {name: kwargs[name] for name in ("repo_id", "token", "private") if name in kwargs}
        super().save_pretrained(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
        try:
            processor = self.processor
        except (OSError, ValueError):
            return
        if kwargs.get("is_main_process", True):
            processor.save_pretrained(save_directory, push_to_hub=push_to_hub, **hub)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_stack.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.text_stack.word_embeddings = value

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The decoder's inputs for labels (batch, length); collators and `Trainer` ask for it."""
        return shift_right(labels, self.config.dec_token_id, self.config.pad_token_id)

    @property
    def temperature(self) -> Tensor:
        """ITC temperature tau; not below 0.01, where CLIP clips it too."""
        return self.log_temperature.exp().clamp(min=0.01)

    # ---- parts -----------------------------------------------------------------------------------

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Images as ITC compares them.

        Args:
            pixel_values: (images, channels, height, width).

        Returns:
            `pooler_output`, the normalised embeddings (images, projection_dim), and
            `last_hidden_state` (images, 1 + patches, hidden_size); what else was asked for.
        """
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        states = self.image_encoder(pixel_values, recorded=recorded)
        return self._features(states, self._project_image(states), recorded)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Texts as ITC compares them.

        Args:
            input_ids: (batch, length), and `attention_mask` of the same shape.

        Returns:
            `pooler_output`, the normalised embeddings (batch, projection_dim), and
            `last_hidden_state` (batch, length, hidden_size); what else was asked for.
        """
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        ids = self._with_first(input_ids, self.config.cls_token_id)
        states, texts = self.text_stack(ids, attention_mask, recorded=recorded)
        pooled = self._project_text(self._summary(states, texts, attention_mask))
        return self._features(texts.unpack(states), pooled, recorded)

    def _features(
        self, states: Tensor, pooled: Tensor, recorded: Recorded | None
    ) -> BaseModelOutputWithPooling:
        recorded = recorded or Recorded()
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=pooled,
            hidden_states=recorded.hidden_states,
            attentions=recorded.attentions,
        )

    def match(
        self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """ITM logits (batch,): whether each text describes its image.

        Args:
            image_states: (images, 1 + patches, hidden_size), from `model.image_encoder`. With
                fewer images than texts, consecutive texts share an image.
            input_ids: (batch, length), and `attention_mask` of the same shape.
        """
        images = self.text_stack.project_images(image_states)
        memory = Memory(images, self._image_of_each(input_ids, image_states))
        return self._match(memory, input_ids, attention_mask)

    def encode_prompt(
        self,
        pixel_values: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_states: Tensor | None = None,
        images: tuple[KeysAndValues, ...] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MVaEMaMemory:
        """The decoder's memory [V ; M]: (batch, image tokens + length, hidden_size).

        Args:
            pixel_values: (images, channels, height, width). With fewer images than prompts,
                consecutive prompts share an image.
            input_ids: (batch, length), or embeddings of words, (batch, length, hidden_size).
            image_states: the images' states, where they have been computed already.
            images: and their keys and values (`text_stack.project_images`).

        Raises:
            ValueError: there are no images, or prompts cannot be shared out among them.
        """
        if pixel_values is None and image_states is None:
            raise ValueError("pixel_values are missing: a question is about an image.")
        if input_ids is None:
            raise ValueError("input_ids are missing: an answer is to a question.")
        known = pixel_values if image_states is None else image_states
        index = self._image_of_each(input_ids, known)
        if self.config.instruction_aware:  # each prompt has an image of its own
            ids = self._with_first(input_ids, self.config.cls_token_id)
            question = self._summary(*self.text_stack(ids, attention_mask), attention_mask)
            image_states, images = self.image_encoder(pixel_values[index], question), None
            index = self._image_of_each(input_ids, image_states)
        elif image_states is None:
            image_states = self.image_encoder(pixel_values)
        if images is None:
            images = self.text_stack.project_images(image_states)
        recorded = Recorded.asked_for(self.config, output_attentions, output_hidden_states)
        ids = self._with_first(input_ids, self.config.enc_token_id)
        states, texts = self.text_stack(
            ids, attention_mask, Memory(images, index), recorded=recorded
        )
        questions = texts.unpack(states)
        image_states = image_states.index_select(0, index.to(image_states.device))
        memory = torch.cat([image_states.to(questions.device), questions], dim=1)
        recorded = recorded or Recorded()
        return MVaEMaMemory(memory, images, questions, recorded.hidden_states, recorded.attentions)

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: ModelOutput,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decoder logits (batch, length, vocab_size) for ids that start with [DEC].

        Args:
            memory: from `encode_prompt`, or any output whose first field is [V ; M].
            attention_mask: (batch, prompt length), of the prompt inside the memory.
        """
        memory = self._decoder_memory(memory, attention_mask, cache)
        states, texts = self.text_stack(decoder_input_ids, None, memory, causal=True, cache=cache)
        return self.lm_head(texts.unpack(states))

    def _project_image(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(self.image_proj(states[:, 0]), dim=-1)

    def _project_text(self, summary: Tensor) -> Tensor:
        return nn.functional.normalize(self.text_proj(summary), dim=-1)

    def _image_of_each(self, rows: Tensor, images: Tensor, name: str = "texts") -> Tensor:
        """The image of each row, (batch,): consecutive rows share one."""
        count, images = rows.shape[0], images.shape[0]  # `len` would fix them in an exported graph
        if count % images:
            raise ValueError(f"{count} {name} cannot be shared out evenly among {images} images.")
        return torch.arange(count, device=rows.device) // (count // images)

    def _with_first(self, ids: Tensor, token_id: int) -> Tensor:
        """The same text, of ids or embeddings, for another mode: [CLS] or [ENC] in front."""
        if ids.is_floating_point():
            first = self.get_input_embeddings()(ids.new_full(ids[:, :1, 0].shape, token_id).long())
        else:
            first = torch.full_like(ids[:, :1], token_id)
        return torch.cat([first, ids[:, 1:]], dim=1)

    def _summary(self, states: Tensor, texts: PackedTexts, attention_mask: Tensor | None) -> Tensor:
        """One vector per text, (batch, hidden_size), of the packed states of an encoder.

        The first token's; the mean where no token attends to others (`use_self_attention=False`).
        """
        if self.config.use_self_attention:
            return texts.first(states)
        states = texts.unpack(states)
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _match(self, memory: Memory, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        ids = self._with_first(input_ids, self.config.enc_token_id)
        states, texts = self.text_stack(ids, attention_mask, memory)
        return self.itm_head(self._summary(states, texts, attention_mask)).squeeze(-1)

    def _decoder_cache(
        self, cache: Cache | None, use_cache: bool | None, encoder_outputs: ModelOutput
    ) -> EncoderDecoderCache | None:
        """The cache that was given, made to hold M too, or a new one if it is wanted."""
        if cache is None and (not use_cache or self.training):
            return None
        if isinstance(cache, EncoderDecoderCache):
            return cache
        new = MVaEMaCache.empty(self.config, getattr(encoder_outputs, "images", None))
        if cache is not None:
            new.self_attention_cache = cache
        return new

    def _decoder_memory(
        self,
        encoder_outputs: ModelOutput,
        attention_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Memory:
        """What the decoder attends to.

        The cache keeps keys and values of M for each row, and those of V are read for each image:
        the rows of an image may change places (beams do), never their image.

        Args:
            attention_mask: (batch, prompt length).

        Raises:
            ValueError: the cache was filled from another memory.
        """
        states, images, index = encoder_outputs[0], getattr(encoder_outputs, "images", None), None
        if images is None and isinstance(cache, MVaEMaCache):
            images = cache.images
        image_tokens = 0 if images is None else images[0][0].shape[2]
        if images is not None:
            questions = getattr(encoder_outputs, "questions", None)
            states = states[:, image_tokens:] if questions is None else questions
            index = self._image_of_each(states, images[0][0])
        elif attention_mask is not None:
            image_tokens = states.shape[1] - attention_mask.shape[1]
        if cache is not None and cache.is_updated.get(0):
            cached = cache.cross_attention_cache.layers[0].keys.shape[2]
            if cached < states.shape[1]:
                raise ValueError(
                    f"the cache has keys of {cached} states and encoder_outputs has "
                    f"{states.shape[1]}: pass the encoder_outputs that the cache was filled from."
                )
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (image_tokens, 0), value=1)
        return Memory(images, index, states, attention_mask)

    def _compared(
        self, statement_ids: Tensor, statement_mask: Tensor | None, image_embeds: Tensor | None
    ) -> dict[str, Tensor]:
        """What the output says of statements and, with images, of both."""
        ids = self._with_first(statement_ids, self.config.cls_token_id)
        summary = self._summary(*self.text_stack(ids, statement_mask), statement_mask)
        embeds = self._project_text(summary)
        if image_embeds is None:
            return {"text_embeds": embeds}
        image_embeds = image_embeds.to(embeds.device)
        logits = image_embeds @ embeds.T / self.temperature.to(embeds.device)
        return {"text_embeds": embeds, "logits_per_image": logits}

    # ---- losses ----------------------------------------------------------------------------------

    def _pairs(
        self, statement_ids: Tensor, image_states: Tensor, image_ids: Tensor | None
    ) -> Pairs:
        index = self._image_of_each(statement_ids, image_states, "statements")
        if image_ids is None:
            image_ids = row_numbers(image_states.shape[0], index.device)
        image_ids = image_ids.to(index.device)
        return Pairs.gather(statement_ids, index, image_ids, self.config.pad_token_id)

    def _pair_losses(
        self,
        image_states: Tensor,
        images: tuple[KeysAndValues, ...] | None,
        embeds: dict[str, Tensor],
        pairs: Pairs,
    ) -> dict[str, Tensor]:
        """ITC and ITM, those that are on."""
        losses, texts = {}, embeds["text_embeds"]
        image_rows = embeds["image_embeds"].to(texts.device)[pairs.image_index]
        both_ways = similarities(image_rows, texts, self.temperature.to(texts.device))
        if self.config.itc_weight:
            losses["itc_loss"] = itc_loss(*both_ways, pairs)
        if self.config.itm_weight:
            losses["itm_loss"] = self._itm_loss(image_states, images, both_ways, pairs)
        return losses

    def _itm_loss(
        self,
        image_states: Tensor,
        images: tuple[KeysAndValues, ...] | None,
        both_ways: tuple[Tensor, Tensor],
        pairs: Pairs,
    ) -> Tensor:
        """ITM over the pairs of the global batch and the negatives that ITC finds similar.

        Args:
            image_states: (images, 1 + patches, hidden_size), of this process.
            images: and their keys and values.
            both_ways: from `similarities`.
        """
        texts, others, exists = itm_negatives(*both_ways, pairs, self.config.pad_token_id)
        # One pass: each pair itself, its image with a wrong text, its text with a wrong image.
        ids = torch.cat([pairs.ids, pairs.all_ids[texts], pairs.ids])
        wrong = others // (len(pairs.ids) // len(image_states))
        if world_size() > 1:  # other processes' images have to be projected here
            other_states = gather(image_states)[wrong]
            images = self.text_stack.project_images(torch.cat([image_states, other_states]))
            wrong = len(image_states) + torch.arange(len(wrong), device=ids.device)
        memory = Memory(images, torch.cat([pairs.image_index, pairs.image_index, wrong]))
        logits = self._match(memory, ids, (ids != self.config.pad_token_id).long())
        return itm_loss(logits, exists.to(logits.device))

    def _logits_and_loss(
        self, states: Tensor, texts: PackedTexts, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (batch, length, vocab_size) of packed decoder states, and the LM loss of `labels`.

        In training there are no logits: only words that have a label are computed. Gain on a CPU,
        training with LM alone: 1.5x (`paper`), 1.0x (`small`). A compiled graph needs fixed shapes.
        """
        if not self.config.lm_weight:
            labels = None
        if labels is not None and self.training and not torch.compiler.is_compiling():
            packed_labels = texts.pack(labels)
            labelled = packed_labels != -100
            logits = self.lm_head(states[labelled])
            return None, lm_loss(logits, packed_labels[labelled].to(logits.device))
        logits = self.lm_head(texts.unpack(states))
        return logits, None if labels is None else lm_loss(logits, labels.to(logits.device))

    @can_return_tuple
    @deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        statement_ids: Tensor | None = None,
        statement_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_loss: bool = True,
    ) -> MVaEMaOutput | tuple:
        """
        What is computed follows from what is given: pixels are embedded, statements are embedded
        and, with pixels, compared (ITC, ITM), prompts are answered (logits, and LM with labels).

        Args:
            input_ids: (batch, length) prompts; `batch` is a multiple of `images`, and consecutive
                prompts share an image.
            pixel_values: (images, channels, height, width).
            attention_mask: (batch, length).
            labels: (batch, answer_length), the answers' tokens and [EOS], -100 where ignored. The
                decoder's inputs are made from them ([DEC] in front, one to the right).
            statement_ids: (statements, length), texts that describe the image; `statements` is a
                multiple of `images`, and consecutive statements share an image.
            statement_mask: (statements, length).
            image_ids: (images,), equal for rows that show the same image, on whatever process.
            decoder_input_ids: (batch, answer_length), instead of `labels`; starts with [DEC].
            decoder_attention_mask: (batch, cached length + answer_length), 0 for padding.
            encoder_outputs: the memory, where it has been computed already (as in `generate`).
            cache, use_cache: the decoder's cache.
            inputs_embeds, decoder_inputs_embeds: (batch, length, hidden_size), embeddings of words
                instead of `input_ids` and `decoder_input_ids`.
            output_attentions, output_hidden_states: whether to return them, of the encoder that
                reads the prompt and of the decoder. Attention weights need eager attention.
            return_loss: whether to compare images and statements (ITC, ITM); the LM loss needs
                `labels` only.

        Returns:
            [`MVaEMaOutput`], or a tuple of its fields when `return_dict=False`.

        Raises:
            ValueError: inputs are missing, are given twice or do not fit.
        """
        prompts = either("input_ids", input_ids, "inputs_embeds", inputs_embeds)
        answers = either(
            "decoder_input_ids", decoder_input_ids, "decoder_inputs_embeds", decoder_inputs_embeds
        )
        if answers is None and labels is not None:
            answers = self.prepare_decoder_input_ids_from_labels(labels)
        if answers is None and pixel_values is None and statement_ids is None:
            raise ValueError(
                "nothing to compute: a prompt (input_ids) is read with pixel_values, to answer it "
                "(labels or decoder_input_ids). generate's guidance_scale has no use here: it "
                "contrasts the prompt with one that has no image."
            )
        image_states = images = None
        parts: dict[str, Tensor | tuple | Cache | None] = {}
        if pixel_values is not None and encoder_outputs is None:
            image_states = self.image_encoder(pixel_values)
            parts["image_embeds"] = self._project_image(image_states)
            if answers is not None or (statement_ids is not None and return_loss):
                images = self.text_stack.project_images(image_states)
        if statement_ids is not None:
            embeds = parts.get("image_embeds")
            parts |= self._compared(statement_ids, statement_mask, embeds)
            if embeds is not None and return_loss:
                if statement_mask is not None:
                    pad = self.config.pad_token_id
                    statement_ids = statement_ids.masked_fill(statement_mask == 0, pad)
                # Losses are computed where the texts are, if a model is split over several devices.
                statement_ids = statement_ids.to(parts["text_embeds"].device)
                pairs = self._pairs(statement_ids, image_states, image_ids)
                parts |= self._pair_losses(image_states, images, parts, pairs)
        if answers is not None:
            wanted = (output_attentions, output_hidden_states)
            if encoder_outputs is None:
                encoder_outputs = self.encode_prompt(
                    pixel_values, prompts, attention_mask, image_states, images, *wanted
                )
            cache = self._decoder_cache(cache, use_cache, encoder_outputs)
            memory = self._decoder_memory(encoder_outputs, attention_mask, cache)
            recorded = Recorded.asked_for(self.config, *wanted)
            states, texts = self.text_stack(
                answers,
                decoder_attention_mask,
                memory,
                causal=True,
                cache=cache,
                needed=None if labels is None else until_last(labels != -100),
                recorded=recorded,
            )
            parts["logits"], parts["lm_loss"] = self._logits_and_loss(states, texts, labels)
            parts |= {"cache": cache, **self._described(encoder_outputs, recorded)}
        return MVaEMaOutput(loss=self._weighted(parts), **parts)

    def _weighted(self, losses: dict[str, Tensor | None]) -> Tensor | None:
        """The weighted sum of the losses that were computed; None if there were none."""
        weighted = [
            getattr(self.config, f"{name}_weight") * losses[f"{name}_loss"]
            for name in ("itc", "itm", "lm")
            if losses.get(f"{name}_loss") is not None
        ]
        return sum(loss.to(weighted[-1].device) for loss in weighted) if weighted else None

    def _described(
        self, encoder_outputs: ModelOutput, recorded: Recorded | None
    ) -> dict[str, Tensor | tuple | None]:
        """What the output says of the question's encoder and of the decoder."""
        recorded = recorded or Recorded()
        return {
            "encoder_last_hidden_state": encoder_outputs[0],
            "encoder_hidden_states": getattr(encoder_outputs, "hidden_states", None),
            "encoder_attentions": getattr(encoder_outputs, "attentions", None),
            "decoder_hidden_states": recorded.hidden_states,
            "decoder_attentions": recorded.attentions,
            "cross_attentions": recorded.cross_attentions,
        }


# `save_pretrained` copies this file and what it imports; config.auto_map names the other classes.
MVaEMaModel.register_for_auto_class("AutoModel")

__all__ = ["MVaEMaModel", "MVaEMaOutput", "MVaEMaPreTrainedModel"]
