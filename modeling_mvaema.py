"""MVaEMa: a small encoder-decoder that answers questions about electron micrographs.

What is special about it:
- one text stack in three modes (text encoder, image-grounded text encoder, image-grounded text
  decoder). The modes share the same Python modules, not tied parameters, so that LoRA weights
  merge exactly;
- the decoder's memory is [V ; M]: image states and grounded question states side by side, so that
  every word is conditioned on the image and on the question, P(w_i | w_<i, I, Q);
- three losses from one image encoding, each in the output by name. Contrastive and matching
  negatives come from all processes, with gradients; losses are means over the global batch, so two
  processes compute what one would;
- losses depend on nothing but the batch and the weights (the noise that draws negatives is a hash
  of the pair), so a resumed run repeats itself and validation losses can be compared;
- n questions about each image are n consecutive rows of text: images are encoded once, and the
  keys and values that texts attend to are computed once per image, for all rows and modes;
- texts are packed: what is done token by token is done on one (tokens, hidden_size) for the whole
  batch, and only attention sees rows, in groups of like length, so that little of it is padding.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.versions import require_version

# Older versions give the decoder's cache another name, and every word would be the first.
require_version("transformers>=5.24", "Upgrade it: pip install -U transformers")

try:  # inside a model repository, where transformers loads this file as part of a package
    from .configuration_mvaema import MVaEMaConfig
except ImportError:  # from the project's root
    from configuration_mvaema import MVaEMaConfig

logger = logging.get_logger(__name__)

# Padding (tokens x hidden_size) that a group of texts may have before another group costs less.
GROUP_PADDING = 2**11

# Words whose logits are computed at a time in training.
LOGIT_ROWS = 256


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
            decoder's memory, image states followed by grounded question states.
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


@dataclass
class MVaEMaMemory(ModelOutput):
    """
    What the decoder attends to.

    Args:
        last_hidden_state (`Tensor` of shape `(batch, memory_length, hidden_size)`): [V ; M].
        images (`tuple` of pairs of `Tensor` of shape `(images, heads, image tokens, head_dim)`):
            for each layer keys and values of V, once for the rows that share an image.
        questions (`Tensor` of shape `(batch, length, hidden_size)`): M by itself; with `images`
            it is all that the decoder reads.
    """

    last_hidden_state: Tensor | None = None
    images: tuple[tuple[Tensor, Tensor], ...] | None = None
    questions: Tensor | None = None


# --------------------------------------------------------------------------------------------
# Across processes


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """all_gather with gradients; torch's own (`distributed.nn.functional`) is deprecated."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # A sum over processes and this process' part of it: reduce_scatter, which gloo lacks.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(_world_size())[dist.get_rank()]


def gather(tensor: Tensor) -> Tensor:
    """Rows of all processes, rank by rank: (batch, ...) -> (world * batch, ...), with gradients.

    The backward pass sums what all processes send to a row, so that averaging gradients over
    processes (as DDP does) gives the gradient of the mean loss over the global batch.
    """
    return tensor if _world_size() == 1 else _Gather.apply(tensor)


def global_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true, over the rows of all processes.

    Each process returns its share times the number of processes: the average over processes is
    the global mean, and so is its gradient.
    """
    total, count = (values * mask).sum(), mask.sum()
    if _world_size() > 1:
        dist.all_reduce(count)
        total = total * _world_size()
    return total / count.clamp(min=1)


def _gather_texts(ids: Tensor, pad_token_id: int) -> Tensor:
    """Token ids of all processes, padded to the longest: (batch, length) -> (world * batch, *)."""
    if _world_size() > 1:
        longest = torch.tensor(ids.shape[1], device=ids.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        ids = nn.functional.pad(ids, (0, int(longest) - ids.shape[1]), value=pad_token_id)
    return gather(ids)


# --------------------------------------------------------------------------------------------
# Losses


def contrastive_loss(similarity: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each row of `similarity` against its positives, (rows,).

    The target is uniform over the positives of a row; with one positive per row this is the
    InfoNCE term of the paper, -log softmax(sim_i / tau)_i.

    Args:
        similarity: (rows, columns), already divided by the temperature.
        positives: (rows, columns), bool, at least one true per row.
    """
    target = positives / positives.sum(dim=1, keepdim=True)
    return -(target * similarity.log_softmax(dim=1)).sum(dim=1)


def pair_noise(rows: Tensor, columns: Tensor) -> Tensor:
    """Gumbel noise (rows, columns) that is a hash of the two keys, int64 (rows,) and (columns,).

    A pair draws the same noise on any process and in any run that repeats this one, and no random
    state has to be kept. (splitmix64's finalizer does the mixing.)
    """
    mixed = rows.unsqueeze(1) * 0x1E3779B97F4A7C15 + columns.unsqueeze(0) * 0x2545F4914F6CDD1D
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    uniform = ((mixed & 0xFFFFFF).float() + 0.5) / 0x1000000
    return -(-uniform.log()).log()


def mine_negatives(similarity: Tensor, positives: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One column for each row, drawn with probability softmax(similarity) among no positives.

    As in ALBEF and BLIP; drawn, since the most similar text is too often true of the image too.

    Args:
        similarity: (rows, columns), divided by the temperature.
        positives: (rows, columns), bool.
        noise: (rows, columns), Gumbel (the largest sum with it is a draw from the softmax).

    Returns:
        index of the negative, (rows,), and whether the row has one at all, (rows,) bool.
    """
    candidates = (similarity.detach() + noise).masked_fill(positives, -torch.inf)
    return candidates.argmax(dim=1), ~positives.all(dim=1)


# --------------------------------------------------------------------------------------------
# Layers


def _until_last(mask: Tensor) -> Tensor:
    """True up to the last true value of each row: what is left out is padding."""
    return mask.flip(1).cumsum(1).flip(1) > 0


@dataclass
class TextGroup:
    """Consecutive texts of a packed batch, of one length, padding included.

    Args:
        rows: number of texts.
        length: their tokens.
        mask: what self-attention is given, as transformers makes it: (rows, 1, length, length).
        memory_mask: what cross-attention is given, (rows, 1, length, memory_length).
    """

    rows: int
    length: int
    mask: Tensor | None = None
    memory_mask: Tensor | None = None

    def first(self) -> "TextGroup":
        """The first token of each text, which sees all of it and of the memory."""

        def row(mask: Tensor | None) -> Tensor | None:
            # Flash attention's have no queries, (rows, length).
            return mask if mask is None or mask.ndim == 2 else mask[:, :, :1]

        return TextGroup(self.rows, 1, row(self.mask), row(self.memory_mask))


def _length_groups(attention_mask: Tensor, hidden_size: int) -> tuple[Tensor, list[TextGroup]]:
    """Order of the texts by length, longest first, (rows,), and groups that have little padding.

    A group costs every attention a call more, which a narrow model's padding is not worth so soon.
    """
    ends = attention_mask.bool() * torch.arange(1, attention_mask.shape[1] + 1)
    ends, order = ends.amax(dim=1).clamp(min=1).sort(descending=True, stable=True)
    lengths, counts = (x.tolist() for x in ends.unique_consecutive(return_counts=True))
    groups, padding = [TextGroup(0, lengths[0])], 0
    for length, count in zip(lengths, counts, strict=True):
        padding += (groups[-1].length - length) * count * hidden_size
        if padding > GROUP_PADDING:
            groups.append(TextGroup(0, length))
            padding = 0
        groups[-1].rows += count
    return order, groups


def _by_group(states: Tensor, groups: list[TextGroup]) -> list[Tensor]:
    """Packed (tokens, width) -> (rows, length, width) for each group; views."""
    if len(groups) == 1:
        return [states.unflatten(0, (groups[0].rows, groups[0].length))]
    parts = states.split([group.rows * group.length for group in groups])
    return [x.unflatten(0, (g.rows, g.length)) for x, g in zip(parts, groups, strict=True)]


def _packed(states: list[Tensor]) -> Tensor:
    """(rows, length, ...) of each group -> (tokens, ...)."""
    states = [part.flatten(0, 1) for part in states]
    return states[0] if len(states) == 1 else torch.cat(states)


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
    """Attention written out; tensors are (batch, heads, length, head_dim), the mask is added."""
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
        # `is_causal` is passed explicitly: with a mask of None, the interface's own default
        # would make every attention causal, or none.
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

        One softmax over both, but the shared keys and values are read once for all their rows.

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

    def _attend_to_self(
        self,
        attention: MVaEMaAttention,
        queries: Tensor,
        query_groups: list[TextGroup],
        hidden_states: Tensor,
        groups: list[TextGroup],
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        projected = [_by_group(attention.q_proj(queries), query_groups)]
        for proj in (attention.k_proj, attention.v_proj):
            projected.append(_by_group(proj(hidden_states), groups))
        attended = []
        for group, query, key, value in zip(query_groups, *projected, strict=True):
            key, value = attention.heads(key), attention.heads(value)
            if cache is not None:
                key, value = cache.self_attention_cache.update(key, value, self.layer_idx)
            attended.append(attention(query, key, value, group.mask))
        return attention.o_proj(_packed(attended))

    def _attend_to_memory(
        self,
        hidden_states: Tensor,
        groups: list[TextGroup],
        image: tuple[Tensor, Tensor] | None,
        image_index: Tensor | None,
        memory: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        attention, own = self.cross_attn, None
        query = attention.q_proj(hidden_states)
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            # A static cache is as long as [V ; M].
            own = tuple(x[:, :, : memory.shape[1]] for x in (layer.keys, layer.values))
        elif memory is not None:
            own = attention.keys_and_values(memory)
            if cache is not None:
                cache.cross_attention_cache.update(*own, self.layer_idx)
                cache.is_updated[self.layer_idx] = True
        if cache is not None and image is not None:
            (group,), (query,) = groups, _by_group(query, groups)
            attended = [attention.attend_shared(query, image, own, group.memory_mask)]
        else:
            keys, values = own if image is None else (x.index_select(0, image_index) for x in image)
            if image is not None and own is not None:
                keys, values = (torch.cat(x, dim=2) for x in zip((keys, values), own, strict=True))
            rows = [group.rows for group in groups]
            parts = zip(
                groups, _by_group(query, groups), keys.split(rows), values.split(rows), strict=True
            )
            attended = [attention(q, k, v, group.memory_mask) for group, q, k, v in parts]
        return attention.o_proj(_packed(attended))

    def forward(
        self,
        hidden_states: Tensor,
        groups: list[TextGroup],
        image: tuple[Tensor, Tensor] | None,
        image_index: Tensor | None,
        memory: Tensor | None,
        causal: bool,
        cache: EncoderDecoderCache | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Packed states (tokens, hidden_size) of `groups` -> as many, or of first tokens only."""
        states, all_groups = hidden_states, groups
        if first_only:
            hidden_states = torch.cat([x[:, 0] for x in _by_group(states, groups)])
            groups = [group.first() for group in groups]
        if causal or self.config.use_self_attention:
            attention = self.causal_attn if causal else self.self_attn
            norm = self.causal_attn_norm if causal else self.self_attn_norm
            attended = self._attend_to_self(
                attention, hidden_states, groups, states, all_groups, cache
            )
            hidden_states = norm(hidden_states + self.dropout(attended))
        if self.config.use_cross_attention and (image is not None or memory is not None):
            attended = self._attend_to_memory(
                hidden_states, groups, image, image_index, memory, cache
            )
            hidden_states = self.cross_attn_norm(hidden_states + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


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

    def project_images(self, states: Tensor) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Keys and values of images for each layer, (images, heads, image tokens, head_dim) each.

        Computed once, however many texts are about an image and in whatever mode.
        """
        if not self.config.use_cross_attention:
            return None
        projected = (layer.cross_attn.keys_and_values(states) for layer in self.layers)
        # Contiguous: when answers are generated, every word reads them.
        return tuple((key.contiguous(), value.contiguous()) for key, value in projected)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        cache: EncoderDecoderCache | None = None,
        images: tuple[tuple[Tensor, Tensor], ...] | None = None,
        image_index: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Token ids (batch, length) -> states (batch, length, hidden_size).

        Args:
            attention_mask: (batch, length), 1 for tokens and 0 for padding, which may come back
                as zeros. In the decoder padding only follows, where the causal mask hides it.
            memory: (batch, memory_length, hidden_size), states of each row's own to attend to.
            memory_mask: (batch, image tokens + memory_length).
            causal: decoder instead of encoder.
            cache: the decoder's cache.
            images: from `project_images`, to attend to.
            image_index: (batch,), the image of each row.
            first_only: return the first token's states alone, (batch, hidden_size), without
                computing those of others that nothing depends on.

        Raises:
            ValueError: the text is longer than `max_position_embeddings`.
        """
        past = 0 if cache is None else cache.get_seq_length()
        batch, length = input_ids.shape
        if not isinstance(past, Tensor) and past + length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {past + length} tokens is longer than the model's "
                f"max_position_embeddings ({self.config.max_position_embeddings}); shorten it, or "
                "let the processor cut it."
            )
        order, groups = None, [TextGroup(batch, length)]
        # A GPU would rather have few large kernels, and a compiled graph fixed shapes.
        on_cpu = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and cache is None and attention_mask is not None:
            order, groups = _length_groups(attention_mask, self.config.hidden_size)
        if order is not None:
            rows = (input_ids, attention_mask, memory, memory_mask, image_index)
            input_ids, attention_mask, memory, memory_mask, image_index = (
                x if x is None else x.index_select(0, order) for x in rows
            )
        self._add_masks(groups, attention_mask, memory, memory_mask, causal, cache, images)
        hidden_states = self._embed(input_ids, groups, past)
        for i, layer in enumerate(self.layers):
            image = None if images is None else images[i]
            last = first_only and i == len(self.layers) - 1
            hidden_states = layer(
                hidden_states, groups, image, image_index, memory, causal, cache, last
            )
        if first_only:
            return hidden_states if order is None else hidden_states[order.argsort()]
        states = _by_group(hidden_states, groups)
        if order is None:
            return states[0]
        states = [nn.functional.pad(x, (0, 0, 0, length - x.shape[1])) for x in states]
        return torch.cat(states).index_select(0, order.argsort())

    def _embed(self, input_ids: Tensor, groups: list[TextGroup], past: int | Tensor) -> Tensor:
        """(batch, length) -> packed states (tokens, hidden_size)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + past

        def packed(tokens: Tensor) -> Tensor:
            rows = tokens.split([group.rows for group in groups])
            return _packed([x[:, : g.length] for x, g in zip(rows, groups, strict=True)])

        # One look-up for all: the gradient of each is as large as the vocabulary.
        embedded = self.word_embeddings(packed(input_ids))
        embedded = embedded + self.position_embeddings(packed(positions.expand_as(input_ids)))
        return self.dropout(self.embedding_norm(embedded))

    def _add_masks(
        self, groups, attention_mask, memory, memory_mask, causal, cache, images
    ) -> None:
        """Give each group the masks of its rows."""
        weight, start = self.word_embeddings.weight, 0
        for group in groups:
            rows = slice(start, start + group.rows)
            start += group.rows
            # Only its shape and type are read.
            states = weight.new_empty(0).expand(group.rows, group.length, 0)
            if causal and self.config.use_causal_mask:
                group.mask = create_causal_mask(
                    config=self.config, inputs_embeds=states, attention_mask=None, cache=cache
                )
            else:
                group.mask = create_bidirectional_mask(
                    config=self.config,
                    inputs_embeds=states,
                    attention_mask=(
                        None if attention_mask is None else attention_mask[rows, : group.length]
                    ),
                )
            if memory_mask is None:
                continue
            if cache is not None and images is not None:
                padding = memory_mask[rows, None, None, -memory.shape[1] :] == 0
                group.memory_mask = padding.to(memory.dtype) * torch.finfo(memory.dtype).min
            else:
                group.memory_mask = create_bidirectional_mask(
                    config=self.config,
                    inputs_embeds=states,
                    attention_mask=memory_mask[rows],
                    encoder_hidden_states=weight.new_empty(0).expand(*memory_mask[rows].shape, 0),
                )


class _GreedyLayer(DynamicLayer):
    """Keys and values of words in room for all of them; `DynamicLayer` copies all for each word."""

    def __init__(self, max_length: int):
        super().__init__()
        self.max_length = max_length

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        past = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (2, *key_states.shape[:2], self.max_length, key_states.shape[3])
            self.room = key_states.new_empty(shape)
        length = past + key_states.shape[2]
        self.room[0, :, :, past:length] = key_states
        self.room[1, :, :, past:length] = value_states
        self.keys, self.values = self.room[:, :, :, :length]
        return self.keys, self.values


class MVaEMaPromptEncoder(nn.Module):
    """What `generate` calls once per prompt: pixels and prompt ids in, the decoder's memory out."""

    main_input_name = "input_ids"

    def __init__(self, model: "MVaEMaModel"):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs,
    ) -> MVaEMaMemory:
        return self.model._encode_prompt(pixel_values, input_ids, attention_mask)


# --------------------------------------------------------------------------------------------
# The model


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


class MVaEMaModel(MVaEMaPreTrainedModel, GenerationMixin):
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
        self._processor = None
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
    def from_pretrained(cls, name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but a checkpoint that lacks a weight is an error.

        Raises:
            ValueError: weights are missing; transformers would draw them at random and warn.
        """
        model, info = super().from_pretrained(
            name_or_path, *args, output_loading_info=True, **kwargs
        )
        if info["missing_keys"]:
            raise ValueError(
                f"the checkpoint {name_or_path} lacks {len(info['missing_keys'])} weights, "
                f"{', '.join(sorted(info['missing_keys'])[:5])} among them; it is incomplete, or "
                "it belongs to another configuration."
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As in transformers, and the processor beside the model: a complete repository.

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

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.image_encoder if modality == "image" else MVaEMaPromptEncoder(self)

    @property
    def temperature(self) -> Tensor:
        """ITC temperature tau; not below 0.01, where CLIP clips it too."""
        return self.log_temperature.exp().clamp(min=0.01)

    # ---- parts -------------------------------------------------------------------------------

    def _first(self, ids: Tensor, token_id: int) -> Tensor:
        """The same text for another mode: [CLS] or [ENC] in front."""
        return torch.cat([torch.full_like(ids[:, :1], token_id), ids[:, 1:]], dim=1)

    def _summary(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs) -> Tensor:
        """One vector per text: the first token, or the mean where no token attends to others."""
        if self.config.use_self_attention:
            return self.text_stack(input_ids, attention_mask, first_only=True, **inputs)
        states = self.text_stack(input_ids, attention_mask, **inputs)
        if attention_mask is None:
            return states.mean(dim=1)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _encode_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self._summary(self._first(input_ids, self.config.cls_token_id), attention_mask)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised image embeddings: pixels -> (images, projection_dim)."""
        return self._project_image(self.image_encoder(pixel_values))

    def _project_image(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(self.image_proj(states[:, 0]), dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Normalised text embeddings: (batch, length) -> (batch, projection_dim)."""
        embedding = self._encode_text(input_ids, attention_mask)
        return nn.functional.normalize(self.text_proj(embedding), dim=-1)

    def match(
        self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """ITM logits (batch,): whether each text describes its image.

        Args:
            image_states: (images, 1 + patches, hidden_size), from `model.image_encoder`. With
                fewer images than texts, consecutive texts share an image.
            input_ids: (batch, length) and `attention_mask` of the same shape.
        """
        images = self.text_stack.project_images(image_states)
        return self._match(images, self._share(input_ids, image_states), input_ids, attention_mask)

    def _share(self, rows: Tensor, images: Tensor, name: str = "texts") -> Tensor:
        """The image of each row, (batch,): consecutive rows share one."""
        if len(rows) % len(images):
            raise ValueError(
                f"{len(rows)} {name} cannot be shared out evenly to {len(images)} images."
            )
        return torch.arange(len(rows), device=rows.device) // (len(rows) // len(images))

    def _match(self, images, image_index: Tensor, input_ids: Tensor, attention_mask) -> Tensor:
        ids = self._first(input_ids, self.config.enc_token_id)
        summary = self._summary(ids, attention_mask, images=images, image_index=image_index)
        return self.itm_head(summary).squeeze(-1)

    def encode_prompt(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_states: Tensor | None = None,
    ) -> Tensor:
        """The decoder's memory [V ; M]: (batch, image tokens + length, hidden_size).

        Args:
            pixel_values: (images, channels, height, width). With fewer images than prompts,
                consecutive prompts share an image.
            image_states: states of these images, when they are at hand already.
        """
        return self._encode_prompt(pixel_values, input_ids, attention_mask, image_states)[0]

    def _encode_prompt(
        self, pixel_values, input_ids, attention_mask, image_states=None, images=None
    ) -> MVaEMaMemory:
        if pixel_values is None and image_states is None:
            raise ValueError("pixel_values are missing: a question is about an image.")
        index = self._share(input_ids, pixel_values if image_states is None else image_states)
        if self.config.instruction_aware:
            question = self._encode_text(input_ids, attention_mask)
            image_states, images = self.image_encoder(pixel_values[index], question), None
            index = self._share(input_ids, image_states)
        elif image_states is None:
            image_states = self.image_encoder(pixel_values)
        if images is None:
            images = self.text_stack.project_images(image_states)
        ids = self._first(input_ids, self.config.enc_token_id)
        grounded = self.text_stack(ids, attention_mask, images=images, image_index=index)
        memory = torch.cat([image_states.index_select(0, index), grounded], dim=1)
        return MVaEMaMemory(memory, images, grounded)

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decoder logits (batch, length, vocab_size) for ids that start with [DEC].

        Args:
            memory: from `encode_prompt`.
            attention_mask: (batch, prompt length), of the prompt inside the memory.
        """
        memory = MVaEMaMemory(memory)
        return self.lm_head(self._decode(decoder_input_ids, memory, attention_mask, cache))

    def _decode(self, ids, memory: ModelOutput, attention_mask, cache, answer_mask=None) -> Tensor:
        states, images, index = memory[0], getattr(memory, "images", None), None
        if cache is not None:
            # The cache keeps keys and values of M for each row, and of V for each image: the
            # rows of an image may change places (beams do), never their image.
            if not cache.is_updated.get(0):
                cache.images = images
            images = getattr(cache, "images", None)
        if images is not None:
            index, image_tokens = self._share(ids, images[0][0]), images[0][0].shape[2]
            questions = getattr(memory, "questions", None)
            states = states[:, image_tokens:] if questions is None else questions
        if attention_mask is not None:
            if images is None:
                image_tokens = states.shape[1] - attention_mask.shape[1]
            attention_mask = nn.functional.pad(attention_mask, (image_tokens, 0), value=1)
        return self.text_stack(
            ids,
            answer_mask,
            memory=states,
            memory_mask=attention_mask,
            causal=True,
            cache=cache,
            images=images,
            image_index=index,
        )

    def _sample(
        self, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
    ):
        """Greedy search with less ado about each word; sampling and all else are transformers' own.

        Overrides what `generate` calls for `num_beams=1`, with its arguments.
        """
        memory, cache = model_kwargs.get("encoder_outputs"), model_kwargs.get("cache")
        plain = (
            isinstance(cache, EncoderDecoderCache)
            and type(cache.self_attention_cache) is DynamicCache
            and not getattr(cache, "_is_user_defined", False)
            and input_ids.shape[1] == 1
            and not generation_config.do_sample
            and not generation_config.return_dict_in_generate
            and not any(model_kwargs.get(name) for name in ("synced_gpus", "streamer"))
        )
        if not plain:
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
            )
        layers = [_GreedyLayer(stopping_criteria.max_length) for _ in self.text_stack.layers]
        cache = EncoderDecoderCache(Cache(layers=layers), cache.cross_attention_cache)
        mask, unfinished = model_kwargs.get("attention_mask"), torch.ones_like(input_ids[:, 0])
        while unfinished.any():
            states = self._decode(input_ids[:, -1:], memory, mask, cache)[:, 0]
            scores = logits_processor(input_ids, self._next_logits(states).float())
            words = scores.argmax(dim=-1)
            words = words * unfinished + generation_config.pad_token_id * (1 - unfinished)
            input_ids = torch.cat([input_ids, words.unsqueeze(1)], dim=1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
        return input_ids

    def _next_logits(self, states: Tensor) -> Tensor:
        """Logits of one word per row, (batch, hidden_size) -> (batch, vocab_size)."""
        if states.device.type != "cpu" or type(self.lm_head) is not nn.Linear:
            return self.lm_head(states)
        # The same product the other way round: twice as fast for few rows and 30,000 words.
        return (self.lm_head.weight @ states.T).T

    # ---- for people --------------------------------------------------------------------------

    @property
    def processor(self):
        """The processor that belongs to this checkpoint, loaded from its folder when first used.

        Raises:
            ValueError: the model was not loaded from a folder or hub; set `model.processor`.
        """
        if self._processor is None:
            try:
                from .processing_mvaema import MVaEMaProcessor
            except ImportError:
                from processing_mvaema import MVaEMaProcessor
            if not self.name_or_path:
                raise ValueError(
                    "this model was not loaded from a checkpoint, so it does not know its "
                    "processor; set it: model.processor = processor."
                )
            self._processor = MVaEMaProcessor.from_pretrained(self.name_or_path)
        return self._processor

    @processor.setter
    def processor(self, processor):
        self._processor = processor

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: str | Sequence[str] | None = None,
        captions: str | Sequence[str | None] | None = None,
        pixel_size_nm: float | Sequence[float | None] | None = None,
        scale_bars: str | Sequence[str | None] | None = None,
        batch_size: int = 8,
        **generate_kwargs,
    ) -> str | list | dict:
        """Answer questions about micrographs; each image is encoded once for all its questions.

        Args:
            images: one image (PIL, numpy, path) or a list of them.
            questions: one question, a list of them, or `None` for the checkpoint's own
                (`config.questions`). All are asked about every image.
            captions, pixel_size_nm, scale_bars: what is known of the image (each image when a
                list is given): the caption that names its category, the length of one pixel in
                nanometres, the length its scale bar states.
            batch_size: images per forward pass.
            generate_kwargs: passed to `generate` (`num_beams=3`, ...).

        Returns:
            for one image the answer, the list of answers, or with `questions=None` a dictionary
            from question id to answer; for a list of images the list of these.
        """
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        if questions is None:
            texts = list(self.config.questions.values())
        else:
            texts = [questions] if isinstance(questions, str) else list(questions)
        if not texts:
            raise ValueError("questions is empty: ask at least one.")
        known = {"captions": captions, "pixel_size_nm": pixel_size_nm, "scale_bars": scale_bars}
        known = {
            k: v if isinstance(v, list | tuple) else [v] * len(images) for k, v in known.items()
        }
        answers = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            inputs = self.processor(
                images=images[part],
                text=[texts] * len(images[part]),
                **{name: values[part] for name, values in known.items()},
            ).to(self.device)
            ids = self.generate(**inputs, **{"num_return_sequences": 1, **generate_kwargs})
            answers += self.processor.batch_decode(ids, skip_special_tokens=True)
        rows = [answers[i : i + len(texts)] for i in range(0, len(answers), len(texts))]
        if questions is None:
            rows = [dict(zip(self.config.questions, row, strict=True)) for row in rows]
        elif isinstance(questions, str):
            rows = [row[0] for row in rows]
        return rows[0] if single else rows

    @torch.no_grad()
    def classify(
        self,
        images,
        categories: Mapping[str, str] | None = None,
        by: str = "itc",
        batch_size: int = 8,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Rank categories by their captions, best first; the image's own caption is not given.

        Args:
            images: one image (PIL, numpy, path) or a list of them.
            categories: category to the caption that names it; the checkpoint's own
                (`config.categories`) when `None`.
            by: "itc", softmax over the similarities of image and caption; "itm", the matching
                head's probability of each caption (they need not sum to 1); "lm", softmax over
                the decoder's log-likelihoods of the captions as answers to
                `config.category_question`.
            batch_size: images per forward pass.

        Returns:
            category to score in falling order, one dictionary per image.
        """
        rankers = {"itc": self._scores_itc, "itm": self._scores_itm, "lm": self._scores_lm}
        if by not in rankers:
            raise ValueError(f"by must be one of {', '.join(rankers)}; got {by!r}.")
        categories = dict(self.config.categories if categories is None else categories)
        if not categories:
            raise ValueError("categories is empty: name at least one, with its caption.")
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        captions = self.processor(statements=list(categories.values())).to(self.device)
        ranked = []
        for start in range(0, len(images), batch_size):
            pixels = self.processor(images=images[start : start + batch_size]).to(self.device)
            states = self.image_encoder(pixels["pixel_values"])
            for row in rankers[by](states, pixels["pixel_values"], captions, categories).tolist():
                scores = zip(categories, row, strict=True)
                ranked.append(dict(sorted(scores, key=lambda pair: -pair[1])))
        return ranked[0] if single else ranked

    def _scores_itc(self, states, pixel_values, captions, categories) -> Tensor:
        texts = self.get_text_features(captions["statement_ids"], captions["statement_mask"])
        return (self._project_image(states) @ texts.T / self.temperature).softmax(dim=-1)

    def _scores_itm(self, states, pixel_values, captions, categories) -> Tensor:
        ids, mask = captions["statement_ids"], captions["statement_mask"]
        logits = self.match(states, ids.repeat(len(states), 1), mask.repeat(len(states), 1))
        return logits.view(len(states), len(ids)).sigmoid()

    def _scores_lm(self, states, pixel_values, captions, categories) -> Tensor:
        inputs = self.processor(
            text=[self.config.category_question] * len(states),
            answers=[*categories.values()] * len(states),
        ).to(self.device)
        mask, labels = inputs["attention_mask"], inputs["labels"]
        memory = self._encode_prompt(pixel_values, inputs["input_ids"], mask, states)
        rows = memory.questions.repeat_interleave(len(categories), dim=0)
        logits = self(
            encoder_outputs=MVaEMaMemory(memory[0], memory.images, rows),
            attention_mask=mask.repeat_interleave(len(categories), dim=0),
            decoder_input_ids=self._shift_right(labels),
        ).logits
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none"
        )
        return (-losses.sum(dim=1)).view(len(states), len(categories)).softmax(dim=-1)

    # ---- losses ------------------------------------------------------------------------------

    def _shift_right(self, labels: Tensor) -> Tensor:
        """The decoder's inputs for `labels`: [DEC] in front, everything one to the right."""
        start = torch.full_like(labels[:, :1], self.config.dec_token_id)
        shifted = labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)
        return torch.cat([start, shifted], dim=1)

    def _lm_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        # The ids came right-shifted: logits and labels are aligned, nothing shifts here.
        return nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100, reduction="none"
        )

    def _pair_losses(
        self,
        image_states: Tensor,
        images: tuple[tuple[Tensor, Tensor], ...] | None,
        image_embeds: Tensor,
        text_embeds: Tensor,
        statement_ids: Tensor,
        statement_mask: Tensor,
        image_ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """ITC and ITM over all (image, statement) pairs of the global batch."""
        own_images = self._share(statement_ids, image_embeds, "statements")
        rank = dist.get_rank() if _world_size() > 1 else 0
        if image_ids is None:
            image_ids = torch.arange(len(image_embeds), device=statement_ids.device)
            image_ids = image_ids + rank * len(image_embeds)
        image_ids, image_embeds = image_ids[own_images], image_embeds[own_images]

        all_ids = _gather_texts(
            statement_ids.masked_fill(statement_mask == 0, self.config.pad_token_id),
            self.config.pad_token_id,
        )
        own = slice(rank * len(statement_ids), (rank + 1) * len(statement_ids))
        own_ids = all_ids[own]
        same_image = image_ids.unsqueeze(1) == gather(image_ids).unsqueeze(0)
        same_text = (own_ids.unsqueeze(1) == all_ids.unsqueeze(0)).all(dim=2)
        # A text is no negative of an image that any of whose texts it equals: it describes both.
        text_of_image = (same_image.float() @ gather(same_text.float())) > 0
        image_of_text = (same_text.float() @ gather(same_image.float())) > 0

        image_to_text = image_embeds @ gather(text_embeds).T / self.temperature
        text_to_image = text_embeds @ gather(image_embeds).T / self.temperature
        losses = {}
        if self.config.itc_weight:
            rows = torch.stack(
                [
                    contrastive_loss(image_to_text.float(), text_of_image),
                    contrastive_loss(text_to_image.float(), image_of_text),
                ]
            )
            losses["itc_loss"] = global_mean(rows, torch.ones_like(rows))
        if self.config.itm_weight:
            # Keys of texts: any number that differs between texts.
            weights = torch.arange(1, all_ids.shape[1] + 1, device=all_ids.device)
            words = all_ids.masked_fill(all_ids == self.config.pad_token_id, 0)
            all_keys = (words * weights * 0x2545F4914F6CDD1D).sum(dim=1)
            text_noise = pair_noise(image_ids, all_keys)
            image_noise = pair_noise(all_keys[own], gather(image_ids))
            text_index, has_text = mine_negatives(image_to_text, text_of_image, text_noise)
            image_index, has_image = mine_negatives(text_to_image, image_of_text, image_noise)
            # One packed pass: the pair itself, its image with a wrong text, its text with a
            # wrong image.
            ids = torch.cat([own_ids, all_ids[text_index], own_ids])
            wrong_images = image_index // (len(own_images) // len(image_states))
            if _world_size() > 1:
                # Other processes' images have to be projected here.
                wrong_states = gather(image_states)[wrong_images]
                images = self.text_stack.project_images(torch.cat([image_states, wrong_states]))
                wrong_images = torch.arange(len(wrong_states), device=ids.device)
                wrong_images = wrong_images + len(image_states)
            index = torch.cat([own_images, own_images, wrong_images])
            logits = self._match(images, index, ids, (ids != self.config.pad_token_id).long())
            matching = torch.ones_like(has_text)
            target = torch.cat([matching, ~matching, ~matching]).float()
            losses["itm_loss"] = global_mean(
                nn.functional.binary_cross_entropy_with_logits(
                    logits.float(), target, reduction="none"
                ),
                torch.cat([matching, has_text, has_image]),
            )
        return losses

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
            statement_ids: (statements, length), texts that are true of the image; `statements` is
                a multiple of `images`.
            statement_mask: (statements, length).
            image_ids: (images,), equal for rows that show the same image, on whatever process.
            decoder_input_ids: (batch, answer_length), instead of `labels`; starts with [DEC].
            encoder_outputs: the memory, when it is at hand already (as in `generate`).
            cache, use_cache: the decoder's cache.

        Returns:
            [`MVaEMaOutput`], or a tuple of its fields when `return_dict=False`.
        """
        output = MVaEMaOutput()
        image_states = images = None
        if pixel_values is not None and encoder_outputs is None:
            image_states = self.image_encoder(pixel_values)
            output.image_embeds = self._project_image(image_states)
            if input_ids is not None or statement_ids is not None:
                images = self.text_stack.project_images(image_states)
        losses = {}
        if statement_ids is not None:
            if statement_mask is None:
                statement_mask = torch.ones_like(statement_ids)
            output.text_embeds = self.get_text_features(statement_ids, statement_mask)
            if image_states is not None and (self.config.itc_weight or self.config.itm_weight):
                losses = self._pair_losses(
                    image_states,
                    images,
                    output.image_embeds,
                    output.text_embeds,
                    statement_ids,
                    statement_mask,
                    image_ids,
                )
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self._shift_right(labels)
        if decoder_input_ids is not None:
            if encoder_outputs is None:
                encoder_outputs = self._encode_prompt(
                    pixel_values, input_ids, attention_mask, image_states, images
                )
            if use_cache and cache is None and not self.training:
                cache = EncoderDecoderCache(
                    DynamicCache(config=self.config), DynamicCache(config=self.config)
                )
            output.encoder_last_hidden_state = encoder_outputs[0]
            output.cache = cache
            answer_mask = None if labels is None else _until_last(labels != -100)
            states = self._decode(
                decoder_input_ids, encoder_outputs, attention_mask, cache, answer_mask
            )
            if labels is not None and self.training and not torch.compiler.is_compiling():
                # Only what the loss needs, and in parts that fit a cache: all logits would take
                # as long as the decoder does. (A compiled graph wants fixed shapes.)
                labelled = labels != -100
                states, labels = states[labelled], labels[labelled]
                parts = zip(states.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True)
                lm_losses = torch.cat([self._lm_losses(self.lm_head(x), y) for x, y in parts])
            else:
                output.logits = self.lm_head(states)
                lm_losses = None if labels is None else self._lm_losses(output.logits, labels)
            if lm_losses is not None and self.config.lm_weight:
                losses["lm_loss"] = global_mean(lm_losses, labels.flatten() != -100)
        for name, loss in losses.items():
            output[name] = loss
            weighted = getattr(self.config, name.replace("_loss", "_weight")) * loss
            output.loss = weighted if output.loss is None else output.loss + weighted
        return output.to_tuple() if return_dict is False else output


# `save_pretrained` copies this file and what it imports; config.auto_map names the other classes.
MVaEMaModel.register_for_auto_class("AutoModel")

__all__ = ["MVaEMaModel", "MVaEMaOutput", "MVaEMaPreTrainedModel"]
