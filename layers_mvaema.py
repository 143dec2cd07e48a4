"""The text stack: its layers, and what these are given.

What is special about it:
- the text stack's three modes share the same Python modules, not tied parameters, so LoRA weights
  merge exactly;
- the keys and values that texts attend to are computed once per image, for all rows and modes;
- texts are packed (`PackedTexts`): what is done token by token is done on one (tokens,
  hidden_size) for the whole batch. Only attention sees rows.

To read it: `PackedTexts` and `Memory` are what the layers are given, `MVaEMaTextLayer` is the
layer of all three modes, `MVaEMaTextStack` is what the model calls. Attention and MLP are those of
the image encoder's own layers too (`vision_mvaema.py`).

This file travels with `configuration_mvaema.py`: `save_pretrained` and `push_to_hub` copy both into
the model repository.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:  # inside a model repository, where transformers loads this file as part of a package
    from .configuration_mvaema import MVaEMaConfig
except ImportError:  # from the project's root
    from configuration_mvaema import MVaEMaConfig

# Padding (tokens x hidden_size) that a group of texts may have before another group costs less.
GROUP_PADDING = 2**11

# Keys and values of images for one layer, (images, heads, image tokens, head_dim) each.
KeysAndValues = tuple[Tensor, Tensor]


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
        # Not by indexing: with several threads, its gradients are not the same in every run.
        parts = [] if shared is None else [shared.index_select(0, self.image_index)]
        parts += [] if own is None else [own]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def moved(tensor: Tensor | None, *args, **kwargs) -> Tensor | None:
    return None if tensor is None else tensor.to(*args, **kwargs)


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


__all__ = [
    "KeysAndValues",
    "MVaEMaAttention",
    "MVaEMaMLP",
    "MVaEMaTextStack",
    "Memory",
    "PackedTexts",
    "Recorded",
]
