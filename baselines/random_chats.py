"""Chat models of a few hundred thousand random weights, with a tokenizer of the answers' words.

They run the very code of the full-size rows where there is no model hub (`--pretrained random`).
What such a model answers says nothing about the full-size one.
"""

from collections.abc import Iterable

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from baselines.chat_models import BLIP_TEMPLATE, LLAVA_TEMPLATE, MINIGPT4_TEMPLATE, ChatParts
from processing_mvaema import train_tokenizer

WIDTH, LAYERS, HEADS = 64, 2, 4
PATCH, QUERIES = 16, 8
# Standard deviation of the weights of a ViT and a Q-Former. With BLIP's own defaults, 1e-10 and
# 0.02, random ones see next to nothing, and here they stay frozen.
SPREAD = 0.1
TOKENS, LONGEST = 2000, 512


def random_llava(texts: Iterable[str], image_size: int) -> ChatParts:
    """A LLaVA: CLIP, two linear layers, LLaMA.

    Args:
        texts: whose words the tokenizer knows.
        image_size: height and width in pixels, a multiple of `PATCH`.
    """
    tokenizer = _tokenizer(texts)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size}, do_center_crop=False
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **_shapes(), image_size=image_size, patch_size=PATCH, projection_dim=WIDTH
        ),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return ChatParts(LlavaForConditionalGeneration(config), processor)


def random_instructblip(texts: Iterable[str], image_size: int) -> ChatParts:
    """An InstructBLIP: ViT, a Q-Former that reads the prompt, LLaMA. As `random_llava`."""
    tokenizer, of_qformer = _tokenizer(texts), _tokenizer(texts)
    processor = InstructBlipProcessor(
        _blip_images(image_size),
        tokenizer,
        of_qformer,
        num_query_tokens=QUERIES,
    )
    processor.chat_template = BLIP_TEMPLATE
    config = InstructBlipConfig(**_blip(tokenizer, image_size, qformer_tokens=len(of_qformer)))
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)  # they are zeros, and all alike
    return ChatParts(model, processor)


def random_minigpt4(texts: Iterable[str], image_size: int) -> ChatParts:
    """A MiniGPT-4: ViT, Q-Former, a linear layer, LLaMA. As `random_llava`."""
    tokenizer = _tokenizer(texts)
    processor = Blip2Processor(
        _blip_images(image_size),
        tokenizer,
        num_query_tokens=QUERIES,
    )
    processor.chat_template = MINIGPT4_TEMPLATE
    config = Blip2Config(**_blip(tokenizer, image_size, qformer_tokens=1))
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    return ChatParts(model, processor)


def _tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, TOKENS, LONGEST)


def _blip_images(image_size: int) -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": image_size, "width": image_size})


def _blip(tokenizer: PreTrainedTokenizerBase, image_size: int, qformer_tokens: int) -> dict:
    """Fields of the configuration of a BLIP-2 or InstructBLIP; <image> is known by now."""
    qformer = {**_shapes(), "initializer_range": SPREAD, "encoder_hidden_size": WIDTH}
    return {
        "vision_config": {
            **_shapes(),
            "image_size": image_size,
            "patch_size": PATCH,
            "initializer_range": SPREAD,
        },
        "qformer_config": {**qformer, "vocab_size": qformer_tokens, "cross_attention_frequency": 1},
        "text_config": _llama(tokenizer).to_dict(),
        "num_query_tokens": QUERIES,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }


def _llama(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        **_shapes(),
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _shapes() -> dict[str, int]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
