"""Chat models to tune: from the Hub or a folder, put together, and what of them is trained.

What is special about it:
- weights are loaded in float32, in which Adam's small steps are not lost;
- MiniGPT-4 has no repository of its own. It is BLIP-2's eyes before another language model, so its
  name is both of theirs, "EYES+DECODER";
- a processor without a chat template is given the row's.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    PreTrainedModel,
    ProcessorMixin,
)

# Processors of the BLIP family put the image first by themselves.
BLIP_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content if part.type == 'text' %}"
    "{% if message.role == 'user' %}Question: {{ part.text }}{% else %} {{ part.text }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if message.role == 'user' %} Answer:{% endif %}"
    "{% endfor %}"
)
MINIGPT4_TEMPLATE = BLIP_TEMPLATE.replace("Question: ", "###Human: ").replace(
    " Answer:", " ###Assistant:"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: {% else %} {% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% if message.role == 'user' %} ASSISTANT:{% else %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)


class ChatParts(NamedTuple):
    """A chat model and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def load_chat(name: str, template: str) -> ChatParts:
    """Any `image-text-to-text` model of a folder or the Hub.

    Args:
        template: for a processor that has none.

    Raises:
        OSError, ValueError: there is no such model, or it is of another kind.
    """
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(name)
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = template
    return ChatParts(model, processor)


def load_minigpt4(names: str, template: str) -> ChatParts:
    """BLIP-2's image encoder and Q-Former, a language model, and a fresh projection between them.

    Args:
        names: "EYES+DECODER", folders or Hub ids of a BLIP-2 and of a language model; or one name
            of a BLIP-2 that was put together already.

    Raises:
        OSError, ValueError: there is no such model, or it is of another kind.
    """
    eyes, _, decoder = names.partition("+")
    if not decoder:
        return load_chat(names, template)
    seen = Blip2ForConditionalGeneration.from_pretrained(eyes, dtype=torch.float32)
    language = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    processor = Blip2Processor(
        AutoImageProcessor.from_pretrained(eyes),
        tokenizer,
        num_query_tokens=seen.config.num_query_tokens,
    )
    processor.chat_template = template
    language.resize_token_embeddings(len(tokenizer))
    config = Blip2Config(
        vision_config=seen.config.vision_config,
        qformer_config=seen.config.qformer_config,
        text_config=language.config,
        num_query_tokens=seen.config.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    model.vision_model.load_state_dict(seen.vision_model.state_dict())
    model.qformer.load_state_dict(seen.qformer.state_dict())
    with torch.no_grad():
        model.query_tokens.copy_(seen.query_tokens)
    model.language_model.load_state_dict(language.state_dict())
    return ChatParts(model, processor)


def train_only(model: PreTrainedModel, parts: Iterable[str]) -> None:
    """Freeze a model but for what lies in its parts of these names, at any depth.

    Raises:
        ValueError: the model has no such part.
    """
    parts, found = set(parts), set()
    for name, parameter in model.named_parameters():
        here = parts & set(name.split("."))
        parameter.requires_grad_(bool(here))
        found |= here
    if missing := parts - found:
        raise ValueError(
            f"{type(model).__name__} has no part named {', '.join(sorted(missing))}: it is another "
            "kind of model than this row trains. Use the row chat-lora."
        )


def add_lora(model: PreTrainedModel) -> None:
    """Freeze a model and give all its linear layers but the last LoRA adapters to train."""
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
    inject_adapter_in_model(config, model)  # the model keeps its class, and what it can do
