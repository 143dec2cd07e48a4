"""Chat models of a few thousand random weights, one of each kind that is read differently."""

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from support.tiny_llava import byte_tokenizer

SHAPES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LARGE = {"initializer_range": 0.5}  # so that every input leaves its mark
# The processors of BLIP-2 put the image's tokens first.
BLIP_TEMPLATE = (
    "{% for m in messages %}{% for part in m.content if part.type == 'text' %}"
    "{% if m.role == 'user' %}Question: {{ part.text }} Answer:{% else %} {{ part.text }}</s>"
    "{% endif %}{% endfor %}{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{% for m in messages %}<turn>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<boi>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
QWEN_TOKENS += ("<|image_pad|>", "<|video_pad|>")


def blip2(encoder_decoder: bool) -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP-2 with LLaMA, or with T5, which reads the prompt and writes the answer."""
    tokenizer = byte_tokenizer("<pad>")
    tokenizer.pad_token = "<pad>"
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        num_query_tokens=3,
    )
    processor.chat_template = BLIP_TEMPLATE
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={**SHAPES, **LARGE, "image_size": 32, "patch_size": 8},
            qformer_config={**SHAPES, **LARGE, "encoder_hidden_size": 16, "vocab_size": 1},
            text_config=_t5(tokenizer) if encoder_decoder else _llama(tokenizer),
            num_query_tokens=3,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            **LARGE,
        )
    )
    torch.nn.init.normal_(model.query_tokens)
    return model.eval(), processor


def gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3, which knows where the image is, and of which one layer looks back 24 tokens."""
    tokenizer = byte_tokenizer(
        turn_token="<turn>",
        end_token="<end>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        image_token="<image>",
    )
    tokenizer.eos_token = "<end>"
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                **SHAPES,
                **LARGE,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "query_pre_attn_scalar": 8,
                "vocab_size": len(tokenizer),
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention"],
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={**SHAPES, "image_size": 32, "patch_size": 8},
            mm_tokens_per_image=4,
            boi_token_index=tokenizer.convert_tokens_to_ids("<boi>"),
            eoi_token_index=tokenizer.convert_tokens_to_ids("<eoi>"),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            **LARGE,
        )
    )
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model.eval(), processor


def qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen3-VL: its positions have three axes, and a larger image has more tokens.

    Its processor needs torchvision.
    """
    from transformers import Qwen3VLVideoProcessor

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
    tokenizer.eos_token = "<|im_end|>"
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, patch_size=8, merge_size=2
    )
    videos = Qwen3VLVideoProcessor()  # asked for, and never used
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=QWEN_TEMPLATE)
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={
                **SHAPES,
                **LARGE,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "vocab_size": len(tokenizer),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
                "eos_token_id": ids["<|im_end|>"],
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "patch_size": 8,
                "out_hidden_size": 16,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
                **LARGE,
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )
    return model.eval(), processor


def _llama(tokenizer) -> PretrainedConfig:
    return LlamaConfig(
        **SHAPES,
        **LARGE,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5(tokenizer) -> PretrainedConfig:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
