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
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
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
        encoder_last_hidden_state (`Tensor` of shape `(batch, memory_length, hidden_size)`): the
            decoder's memory [V ; M], image states followed by grounded question states.
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
    encoder_last_hidden_state: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


# ---- what the layers are given -------------------------------------------------------------------


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
    """

    length: int
    groups: list[tuple[int, int]]
    order: Tensor | None = None
    masks: list[Tensor | None] = field(default_factory=list)

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

    def ordered(self, texts: PackedTexts) -> "Memory":
        """The same for rows in the packed order."""
        index, states, mask = map(texts.ordered, (self.image_index, self.states, self.mask))
        return Memory(self.images, index, states, mask)

    def keys_and_values(self, layer_idx: int, own: KeysAndValues | None) -> KeysAndValues:
        """Of each row, (batch, heads, image tokens + length, head_dim): its image, then its own."""
        if self.images is None:
            return own
        shared = [x[self.image_index] for x in self.images[layer_idx]]
        if own is None:
            return tuple(shared)
        return tuple(torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True))


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
    ) -> Tensor:
        """Attention alone, of projected states; `o_proj` is left to the caller.

        Args:
            query: (batch, length, hidden_size).
            key, value: (batch, heads, key length, head_dim).
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # `is_causal` is passed explicitly. With a mask of None, the interface's own default would
        # make every attention causal, or none.
        output, _ = attend(
            self,
            self.heads(query),
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=self.is_causal,
        )
        return output.flatten(2)

    def attend_shared(
        self,
        query: Tensor,
        shared: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        own_mask: Tensor | None = None,
    ) -> Tensor:
        """`forward` over keys that consecutive rows share, followed by keys of each row's own.

        There is one softmax over both, but shared keys and values are read once for all their
        rows. Gain on a CPU, ten questions about each of 8 micrographs: 0.9x (`paper`), 1.2x
        (`small`).

        Args:
            shared: keys and values, (images, heads, image tokens, head_dim).
            own: keys and values, (batch, heads, key length, head_dim).
            own_mask: (batch, 1, 1, key length), added to the scores.
        """
        (batch, length), images = query.shape[:2], len(shared[0])

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
        output = torch.baddbmm(output, own_weights, own_values)
        return output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)


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

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed, attention = self.self_attn_norm(hidden_states), self.self_attn
        attended = attention(attention.q_proj(normed), *attention.keys_and_values(normed))
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

    def forward(self, pixel_values: Tensor, instruction: Tensor | None = None) -> Tensor:
        """(images, channels, height, width) -> states (images, 1 + patches, hidden_size).

        Args:
            instruction: (images, hidden_size), the text embedding of a question; joins the image
                tokens as one more token.
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
        cls = self.cls_token.expand(len(patches), -1, -1)
        hidden_states = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        if instruction is not None:
            token = self.instruction_proj(instruction).unsqueeze(1)
            hidden_states = torch.cat([hidden_states, token], dim=1)
        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.norm(hidden_states)


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
        texts: PackedTexts,
        memory: Memory | None = None,
        causal: bool = False,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Packed states (tokens, hidden_size) -> as many.

        Args:
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
            attended = self._attend_to_memory(hidden_states, texts, memory, cache)
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
        return attention.o_proj(texts.join(attended))

    def _attend_to_memory(
        self,
        hidden_states: Tensor,
        texts: PackedTexts,
        memory: Memory,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        attention = self.cross_attn
        queries = texts.split(attention.q_proj(hidden_states))
        own = self._own_keys_and_values(memory, cache)
        if cache is not None and memory.images is not None:
            # Decoding: read an image's keys and values once for all its rows.
            shared = memory.images[self.layer_idx]
            attended = [attention.attend_shared(queries[0], shared, own, memory.masks[0])]
        else:
            rows = map(texts.of_groups, memory.keys_and_values(self.layer_idx, own))
            attended = map(attention, queries, *rows, memory.masks)
        return attention.o_proj(texts.join(list(attended)))

    def _own_keys_and_values(
        self, memory: Memory, cache: EncoderDecoderCache | None
    ) -> KeysAndValues | None:
        """Of `memory.states`; projected once, and from the cache afterwards."""
        if memory.states is None:
            return None
        if cache is None:
            return self.cross_attn.keys_and_values(memory.states)
        stored = cache.cross_attention_cache
        if not cache.is_updated.get(self.layer_idx):
            stored.update(*self.cross_attn.keys_and_values(memory.states), self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        layer, length = stored.layers[self.layer_idx], memory.states.shape[1]
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
    ) -> tuple[Tensor, PackedTexts]:
        """Token ids (batch, length) -> packed states (tokens, hidden_size), and how to unpack them.

        Args:
            attention_mask: (batch, length), 1 for tokens and 0 for padding. In the decoder padding
                only follows, where the causal mask hides it.
            memory: what to attend to; None for the text encoder.
            causal: decoder instead of encoder.
            cache: the decoder's cache.

        Raises:
            ValueError: the text is longer than `max_position_embeddings`.
        """
        past = 0 if cache is None else cache.get_seq_length()
        length = input_ids.shape[1]
        if not isinstance(past, Tensor) and past + length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {past + length} tokens is longer than the model's "
                f"max_position_embeddings ({self.config.max_position_embeddings}). Shorten it, or "
                "let the processor truncate it."
            )
        # A GPU prefers few large kernels; a compiled graph has fixed shapes; a cache, fixed rows.
        on_cpu = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and cache is None and attention_mask is not None:
            texts = PackedTexts.by_length(attention_mask, self.config.hidden_size)
        else:
            texts = PackedTexts(length, [tuple(input_ids.shape)])
        positions = torch.arange(length, device=input_ids.device) + past
        # One look-up for the batch: the gradient of each look-up is as large as the vocabulary.
        hidden_states = self.word_embeddings(texts.pack(input_ids))
        positions = texts.pack(positions.expand_as(input_ids))
        hidden_states = hidden_states + self.position_embeddings(positions)
        hidden_states = self.dropout(self.embedding_norm(hidden_states))

        groups = texts.split(hidden_states)
        if causal and self.config.use_causal_mask:
            texts.masks = [create_causal_mask(self.config, x, None, cache) for x in groups]
        else:
            texts.masks = self._masks(groups, texts, texts.ordered(attention_mask))
        if memory is not None:
            memory = memory.ordered(texts)
            memory.masks = self._memory_masks(groups, texts, memory, cache)
        for layer in self.layers:
            hidden_states = layer(hidden_states, texts, memory, causal, cache)
        return hidden_states, texts

    def _masks(
        self, groups: list[Tensor], texts: PackedTexts, attention_mask: Tensor | None
    ) -> list[Tensor | None]:
        """Bidirectional masks of each group's texts."""
        if attention_mask is None:
            return [None] * len(groups)
        masks = texts.of_groups(attention_mask)
        return [
            create_bidirectional_mask(self.config, x, mask[:, : x.shape[1]])
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
                self.config, x, mask, encoder_hidden_states=x.new_empty(0).expand(len(x), *width)
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
            max_new_tokens=min(128, config.max_position_embeddings - 1),
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
            ValueError: weights are missing; transformers would draw them at random and warn.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"]:
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

    @property
    def temperature(self) -> Tensor:
        """ITC temperature tau; not below 0.01, where CLIP clips it too."""
        return self.log_temperature.exp().clamp(min=0.01)

    # ---- parts -----------------------------------------------------------------------------------

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised image embeddings: pixels -> (images, projection_dim)."""
        return self._project_image(self.image_encoder(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Normalised text embeddings: (batch, length) -> (batch, projection_dim)."""
        embedding = self._summary(input_ids, attention_mask, self.config.cls_token_id)
        return nn.functional.normalize(self.text_proj(embedding), dim=-1)

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
    ) -> MVaEMaMemory:
        """The decoder's memory [V ; M]: (batch, image tokens + length, hidden_size).

        Args:
            pixel_values: (images, channels, height, width). With fewer images than prompts,
                consecutive prompts share an image.
            image_states: the images' states, where they have been computed already.
            images: and their keys and values (`text_stack.project_images`).

        Raises:
            ValueError: there are no images, or prompts cannot be shared out among them.
        """
        if pixel_values is None and image_states is None:
            raise ValueError("pixel_values are missing: a question is about an image.")
        known = pixel_values if image_states is None else image_states
        index = self._image_of_each(input_ids, known)
        if self.config.instruction_aware:  # each prompt has an image of its own
            question = self._summary(input_ids, attention_mask, self.config.cls_token_id)
            image_states, images = self.image_encoder(pixel_values[index], question), None
            index = self._image_of_each(input_ids, image_states)
        elif image_states is None:
            image_states = self.image_encoder(pixel_values)
        if images is None:
            images = self.text_stack.project_images(image_states)
        ids = self._with_first(input_ids, self.config.enc_token_id)
        states, texts = self.text_stack(ids, attention_mask, Memory(images, index))
        questions = texts.unpack(states)
        memory = torch.cat([image_states.index_select(0, index), questions], dim=1)
        return MVaEMaMemory(memory, images, questions)

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

    def _image_of_each(self, rows: Tensor, images: Tensor, name: str = "texts") -> Tensor:
        """The image of each row, (batch,): consecutive rows share one."""
        if len(rows) % len(images):
            raise ValueError(
                f"{len(rows)} {name} cannot be shared out evenly among {len(images)} images."
            )
        return torch.arange(len(rows), device=rows.device) // (len(rows) // len(images))

    def _with_first(self, ids: Tensor, token_id: int) -> Tensor:
        """The same text for another mode: [CLS] or [ENC] in front."""
        return torch.cat([torch.full_like(ids[:, :1], token_id), ids[:, 1:]], dim=1)

    def _summary(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        first_token_id: int,
        memory: Memory | None = None,
    ) -> Tensor:
        """One vector per text, (batch, hidden_size).

        The first token's; the mean where no token attends to others (`use_self_attention=False`).
        """
        ids = self._with_first(input_ids, first_token_id)
        states, texts = self.text_stack(ids, attention_mask, memory)
        if self.config.use_self_attention:
            return texts.first(states)
        states = texts.unpack(states)
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _match(self, memory: Memory, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        summary = self._summary(input_ids, attention_mask, self.config.enc_token_id, memory)
        return self.itm_head(summary).squeeze(-1)

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

    # ---- losses ----------------------------------------------------------------------------------

    def _pairs(
        self, statement_ids: Tensor, image_states: Tensor, image_ids: Tensor | None
    ) -> Pairs:
        index = self._image_of_each(statement_ids, image_states, "statements")
        if image_ids is None:
            image_ids = row_numbers(len(image_states), statement_ids.device)
        return Pairs.gather(statement_ids, index, image_ids, self.config.pad_token_id)

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
        return itm_loss(logits, exists)

    def _logits_and_loss(
        self, states: Tensor, texts: PackedTexts, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (batch, length, vocab_size) of packed decoder states, and the LM loss of `labels`.

        In training there are no logits: only words that have a label are computed. Gain on a CPU,
        training with LM alone: 1.5x (`paper`), 1.0x (`small`). A compiled graph needs fixed shapes.
        """
        if labels is not None and self.training and not torch.compiler.is_compiling():
            packed_labels = texts.pack(labels)
            labelled = packed_labels != -100
            return None, lm_loss(self.lm_head(states[labelled]), packed_labels[labelled])
        logits = self.lm_head(texts.unpack(states))
        return logits, None if labels is None else lm_loss(logits, labels)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        statement_ids: Tensor | None = None,
        statement_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MVaEMaOutput | tuple:
        """
        What is computed follows from what is given: pixels are embedded, statements are embedded
        and, with pixels, compared (ITC, ITM), prompts are answered (logits, and LM with labels).

        Args:
            pixel_values: (images, channels, height, width).
            input_ids: (batch, length) prompts; `batch` is a multiple of `images`, and consecutive
                prompts share an image.
            attention_mask: (batch, length).
            labels: (batch, answer_length), the answers' tokens and [EOS], -100 where ignored. The
                decoder's inputs are made from them ([DEC] in front, one to the right).
            statement_ids: (statements, length), texts that describe the image; `statements` is a
                multiple of `images`, and consecutive statements share an image.
            statement_mask: (statements, length).
            image_ids: (images,), equal for rows that show the same image, on whatever process.
            decoder_input_ids: (batch, answer_length), instead of `labels`; starts with [DEC].
            encoder_outputs: the memory, where it has been computed already (as in `generate`).
            cache, use_cache: the decoder's cache.

        Returns:
            [`MVaEMaOutput`], or a tuple of its fields when `return_dict=False`.
        """
        config, losses = self.config, {}
        image_states = images = image_embeds = text_embeds = logits = None
        if pixel_values is not None and encoder_outputs is None:
            image_states = self.image_encoder(pixel_values)
            image_embeds = self._project_image(image_states)
            if input_ids is not None or statement_ids is not None:
                images = self.text_stack.project_images(image_states)
        if statement_ids is not None:
            if statement_mask is not None:
                statement_ids = statement_ids.masked_fill(statement_mask == 0, config.pad_token_id)
            text_embeds = self.get_text_features(statement_ids, statement_mask)
            if image_states is not None and (config.itc_weight or config.itm_weight):
                pairs = self._pairs(statement_ids, image_states, image_ids)
                image_rows = image_embeds[pairs.image_index]
                both_ways = similarities(image_rows, text_embeds, self.temperature)
                if config.itc_weight:
                    losses["itc"] = itc_loss(*both_ways, pairs)
                if config.itm_weight:
                    losses["itm"] = self._itm_loss(image_states, images, both_ways, pairs)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = shift_right(labels, config.dec_token_id, config.pad_token_id)
        if decoder_input_ids is not None:
            if encoder_outputs is None:
                encoder_outputs = self.encode_prompt(
                    pixel_values, input_ids, attention_mask, image_states, images
                )
            if use_cache and cache is None and not self.training:
                cache = MVaEMaCache.empty(config, getattr(encoder_outputs, "images", None))
            memory = self._decoder_memory(encoder_outputs, attention_mask, cache)
            answer_mask = None if labels is None else until_last(labels != -100)
            states, texts = self.text_stack(
                decoder_input_ids, answer_mask, memory, causal=True, cache=cache
            )
            logits, loss = self._logits_and_loss(states, texts, labels)
            if loss is not None and config.lm_weight:
                losses["lm"] = loss
        weighted = [getattr(config, f"{name}_weight") * loss for name, loss in losses.items()]
        output = MVaEMaOutput(
            loss=sum(weighted) if losses else None,
            itc_loss=losses.get("itc"),
            itm_loss=losses.get("itm"),
            lm_loss=losses.get("lm"),
            logits=logits,
            cache=cache,
            encoder_last_hidden_state=None if encoder_outputs is None else encoder_outputs[0],
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )
        return output.to_tuple() if return_dict is False else output


# `save_pretrained` copies this file and what it imports; config.auto_map names the other classes.
MVaEMaModel.register_for_auto_class("AutoModel")

__all__ = ["MVaEMaModel", "MVaEMaOutput", "MVaEMaPreTrainedModel"]
