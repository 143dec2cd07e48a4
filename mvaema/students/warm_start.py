"""Warm start: the weights of a ViT and of a BERT in a new student.

What is special about it: the student's layers have the shapes of ViT and BERT, so the copy is exact
(the tests compare outputs with those of transformers' own models). The log names what was copied
and what is new.
"""

import logging

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from processing_mvaema import MVaEMaProcessor

logger = logging.getLogger(__name__)


def from_encoders(vision: str | None = None, text: str | None = None, **overrides) -> MVaEMaModel:
    """A student whose image encoder is a ViT and whose text stack starts from a BERT.

    The shapes are those of the checkpoints. Self- and causal attention both start from BERT's
    self-attention. Cross-attention starts from BERT's if it has one; else it is new. [ENC] and
    [DEC] start as BERT's [CLS], [EOS] as its [SEP].

    Args:
        vision: folder or Hub id of a ViT, or `None` for a new image encoder.
        text: folder or Hub id of a BERT with its tokenizer, or `None` for a new text stack (then
            `vocab_size` and the special ids are needed).
        overrides: fields of [`MVaEMaConfig`] that the checkpoints do not decide.

    Returns:
        the model; with `text`, `model.processor` is set.

    Raises:
        ValueError: neither checkpoint is given, one is of another architecture, or their shapes do
            not fit together.
    """
    if vision is None and text is None:
        raise ValueError("from_encoders needs a vision checkpoint, a text checkpoint, or both.")
    vit = None if vision is None else _load_encoder(vision, "vit", "vision")
    bert = None if text is None else _load_encoder(text, "bert", "text")
    fields = _common_fields(vit, bert)
    for name in fields.keys() & overrides.keys() - {"max_position_embeddings", "layer_norm_eps"}:
        if fields[name] != overrides[name]:
            raise ValueError(
                f"{name} is {fields[name]} in the checkpoint; {overrides[name]} does not fit it."
            )
    if bert is not None:
        limit = overrides.get("max_position_embeddings", fields["max_position_embeddings"])
        processor = MVaEMaProcessor.from_tokenizer(
            text,
            image_size=overrides.get("image_size", fields.get("image_size", 224)),
            max_length=limit,
        )
        overrides |= processor.token_fields()
    config = MVaEMaConfig(**{**fields, **overrides})
    model = MVaEMaModel(config)
    weights = {}
    if vit is not None:
        weights |= _vit_weights(vit)
    if bert is not None:
        weights |= _bert_weights(bert, config.max_position_embeddings)
        weights |= _word_weights(bert, model, processor.tokenizer.sep_token_id)
        model.processor = processor
    result = model.load_state_dict(weights, strict=False)
    if result.unexpected_keys:
        raise ValueError(f"the student has no place for the weights {result.unexpected_keys}.")
    new = sorted({_module_of(name) for name in result.missing_keys} - {"lm_head"})
    logger.warning(
        "from_encoders: copied %s; new, to be trained: %s.",
        ", ".join(sorted({_module_of(name) for name in weights})),
        ", ".join(new),
    )
    return model


def _module_of(name: str) -> str:
    """A parameter's name without the layer index and the leaf, for the log."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return ".".join(parts[:3] if parts[1:2] == ["layers"] else parts[:2] if parts[1:] else parts)


def _load_encoder(name: str, model_type: str, argument: str) -> PreTrainedModel:
    found = AutoConfig.from_pretrained(name).model_type
    if found != model_type:
        raise ValueError(
            f"{argument} must be a {model_type!r} checkpoint; {name!r} is a {found!r} checkpoint."
        )
    return AutoModel.from_pretrained(name, add_pooling_layer=False)


def _common_fields(vit: PreTrainedModel | None, bert: PreTrainedModel | None) -> dict:
    """The student's configuration fields that the two checkpoints decide."""
    shared = ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
    fields = {}
    if vit is not None:
        fields |= {name: getattr(vit.config, name) for name in shared}
        fields |= {n: getattr(vit.config, n) for n in ("image_size", "patch_size", "num_channels")}
        fields["num_image_layers"] = vit.config.num_hidden_layers
        fields["layer_norm_eps"] = vit.config.layer_norm_eps
    if bert is not None:
        for name in shared:
            if fields.get(name, getattr(bert.config, name)) != getattr(bert.config, name):
                raise ValueError(
                    f"the checkpoints do not fit together: {name} is {fields[name]} in vision and "
                    f"{getattr(bert.config, name)} in text."
                )
        fields |= {name: getattr(bert.config, name) for name in shared}
        fields["num_text_layers"] = bert.config.num_hidden_layers
        fields["max_position_embeddings"] = bert.config.max_position_embeddings
        fields["layer_norm_eps"] = bert.config.layer_norm_eps
    return fields


def _linear(target: str, source: nn.Module) -> dict[str, Tensor]:
    return {f"{target}.{name}": tensor for name, tensor in source.state_dict().items()}


def _vit_weights(vit: PreTrainedModel) -> dict[str, Tensor]:
    """A ViTModel's weights under the student's names."""
    weights = {
        "image_encoder.cls_token": vit.embeddings.cls_token,
        "image_encoder.position_embeddings": vit.embeddings.position_embeddings,
        **_linear("image_encoder.patch_embedding", vit.embeddings.patch_embeddings.projection),
        **_linear("image_encoder.norm", vit.layernorm),
    }
    for i, layer in enumerate(vit.layers):
        prefix = f"image_encoder.layers.{i}"
        weights |= _linear(f"{prefix}.self_attn_norm", layer.layernorm_before)
        weights |= _linear(f"{prefix}.self_attn", layer.attention)
        weights |= _linear(f"{prefix}.mlp_norm", layer.layernorm_after)
        weights |= _linear(f"{prefix}.mlp", layer.mlp)
    return weights


def _word_weights(bert: PreTrainedModel, model: MVaEMaModel, sep: int) -> dict[str, Tensor]:
    """A BertModel's word embeddings, and from them those of the student's own tokens."""
    config, old = model.config, bert.get_input_embeddings().weight.detach()
    words = model.text_stack.word_embeddings.weight.detach().clone()
    words[: len(old)] = old
    words[config.enc_token_id] = words[config.dec_token_id] = old[config.cls_token_id]
    words[config.eos_token_id] = old[sep]
    return {"text_stack.word_embeddings.weight": words}


def _bert_weights(bert: PreTrainedModel, positions: int) -> dict[str, Tensor]:
    """A BertModel's weights, except its word embeddings, under the student's names."""
    embeddings = bert.embeddings
    # The student has no token types: BERT's first one is added to every position.
    position = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    weights = {
        "text_stack.position_embeddings.weight": position[:positions].detach(),
        **_linear("text_stack.embedding_norm", embeddings.LayerNorm),
    }
    for i, layer in enumerate(bert.encoder.layer):
        prefix = f"text_stack.layers.{i}"
        sources = {"self_attn": layer.attention, "causal_attn": layer.attention}
        if hasattr(layer, "crossattention"):
            sources["cross_attn"] = layer.crossattention
        for name, attention in sources.items():
            inner = attention.self
            weights |= _linear(f"{prefix}.{name}.q_proj", inner.query)
            weights |= _linear(f"{prefix}.{name}.k_proj", inner.key)
            weights |= _linear(f"{prefix}.{name}.v_proj", inner.value)
            weights |= _linear(f"{prefix}.{name}.o_proj", attention.output.dense)
            weights |= _linear(f"{prefix}.{name}_norm", attention.output.LayerNorm)
        weights |= _linear(f"{prefix}.mlp.fc1", layer.intermediate.dense)
        weights |= _linear(f"{prefix}.mlp.fc2", layer.output.dense)
        weights |= _linear(f"{prefix}.mlp_norm", layer.output.LayerNorm)
    return weights
