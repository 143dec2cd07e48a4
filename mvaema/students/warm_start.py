"""Warm start: a pre-trained vision model and the weights of a BERT in a new student.

What is special about it:
- any vision model that transformers builds does the seeing (`MVaEMaConfig.vision_config`). It comes
  whole, with its own size, resampling, mean and deviation; its width need not be the text stack's;
- the text stack has the shapes of BERT, so that copy is exact (the tests compare outputs with those
  of transformers' own models);
- the log says what was copied, what is projected and what is new.
"""

import logging

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.vision import copy_vision, preprocessing, read_config, vision_config
from processing_mvaema import MVaEMaProcessor
from vision_mvaema import patch_size

logger = logging.getLogger(__name__)


def from_encoders(
    vision: str | None = None,
    text: str | None = None,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    **overrides,
) -> MVaEMaModel:
    """A student that sees with a pre-trained vision model, or whose text stack starts from a BERT.

    A vision model replaces the paper's ViT. Behind it there are `num_image_layers` layers of the
    student's own, none unless that is given. The text stack has the BERT's shapes. Self- and causal
    attention both start from BERT's self-attention. Cross-attention starts from BERT's if it has
    one; else it is new. [ENC] and [DEC] start as BERT's [CLS], [EOS] as its [SEP].

    Args:
        vision: folder or Hub id of a vision model, or of a model that has one, such as CLIP; `None`
            for a new ViT.
        text: folder or Hub id of a BERT with its tokenizer, or `None` for a new text stack.
        tokenizer: for a new text stack, any tokenizer, or its name or folder.
        overrides: fields of [`MVaEMaConfig`] that the checkpoints do not decide.

    Returns:
        the model, its `processor` set.

    Raises:
        ValueError: no checkpoint is given, one is of the wrong kind or incomplete, or the image
            size or a field does not fit it.
        OSError: a checkpoint is not there.
        ImportError: the vision model is of timm, which is missing.
    """
    if vision is None and text is None:
        raise ValueError("from_encoders needs a vision checkpoint, a text checkpoint, or both.")
    if (text is None) == (tokenizer is None):
        raise ValueError("from_encoders needs a text checkpoint or a tokenizer, not both.")
    vision, text = (None if name is None else str(name) for name in (vision, text))
    fields, images, bert = {}, {}, None
    if vision is not None:
        fields |= {"vision_config": vision_config(vision), "num_image_layers": 0}
        images = preprocessing(vision, fields["vision_config"])
        fields["image_size"] = images.pop("image_size")
    if text is not None:
        bert = _load_bert(text)
        fields |= _text_fields(bert, overrides)
    fields |= overrides
    shapes = MVaEMaConfig(**fields)
    processor = MVaEMaProcessor.from_tokenizer(
        text or tokenizer, shapes.image_size, shapes.max_position_embeddings, images
    )
    model = MVaEMaModel(MVaEMaConfig(**{**fields, **processor.token_fields()}))
    model.processor = processor
    copied = []
    if vision is not None:
        copy_vision(vision, model.image_encoder)
        copied.append("image_encoder.vision_model")
    if bert is not None:
        copied += _copy_bert(bert, model, processor.tokenizer.sep_token_id)
    _say(model, copied)
    return model


def _say(model: MVaEMaModel, copied: list[str]) -> None:
    """Log what was copied, what is projected and what is new."""
    config, told = model.config, []
    new = {
        _module_of(name)
        for name, _ in model.named_parameters()
        if not any(name.startswith(f"{done}.") or _module_of(name) == done for done in copied)
    }
    told.append(f"copied {', '.join(sorted(copied))}")
    if config.vision_config is not None:
        told.append(
            f"the features of {config.vision_config.model_type}, of width "
            f"{model.image_encoder.projection.in_features}, are projected to {config.hidden_size}"
        )
        if rest := config.image_size % patch_size(config):
            told.append(
                f"images of {config.image_size} pixels are not a multiple of its patches of "
                f"{patch_size(config)}: it may not see the last {rest} rows and columns"
            )
    told.append(f"new, to be trained: {', '.join(sorted(new))}")
    logger.warning("from_encoders: %s.", "; ".join(told))


def _module_of(name: str) -> str:
    """A parameter's name without the layer index and the leaf, for the log."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return ".".join(parts[:3] if parts[1:2] == ["layers"] else parts[:2] if parts[1:] else parts)


def _load_bert(name: str) -> PreTrainedModel:
    found = read_config(name, "text").model_type
    if found != "bert":
        raise ValueError(f"text must be a 'bert' checkpoint; {name!r} is a {found!r} checkpoint.")
    return AutoModel.from_pretrained(name, add_pooling_layer=False)


def _text_fields(bert: PreTrainedModel, overrides: dict) -> dict:
    """The student's configuration fields that a BERT decides.

    Raises:
        ValueError: an override contradicts them.
    """
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
    shapes = {name: getattr(bert.config, name) for name in names}
    shapes["num_text_layers"] = bert.config.num_hidden_layers
    for name in shapes.keys() & overrides.keys():
        if shapes[name] != overrides[name]:
            raise ValueError(
                f"{name} is {shapes[name]} in the text checkpoint; {overrides[name]} does not fit "
                "it."
            )
    free = ("max_position_embeddings", "layer_norm_eps")
    return shapes | {name: getattr(bert.config, name) for name in free}


def _copy_bert(bert: PreTrainedModel, model: MVaEMaModel, sep: int) -> list[str]:
    """Copy a BertModel's weights; the modules that have them."""
    weights = _bert_weights(bert, model.config.max_position_embeddings)
    weights |= _word_weights(bert, model, sep)
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the student has no place for the weights {unexpected}.")
    return sorted({_module_of(name) for name in weights} | {"lm_head"})


def _linear(target: str, source: nn.Module) -> dict[str, Tensor]:
    """A module's weights under another name."""
    return {f"{target}.{name}": tensor for name, tensor in source.state_dict().items()}


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
