"""Questions answered and micrographs classified, from images to text, by both models."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL.Image import Image
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.speed import peers
from benchmarks.speed.workload import Workload, images, median_answer, processor
from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.students.exporting import export_onnx
from onnx_mvaema import OnnxStudent


def our_model(workload: Workload) -> MVaEMaModel:
    config = workload.config()
    torch.manual_seed(0)
    model = MVaEMaModel(config).eval()
    model.to(workload.device, getattr(torch, workload.dtype))
    model.processor = processor(config)
    return model


def _peer(build: Callable[[MVaEMaConfig], nn.Module], workload: Workload) -> nn.Module:
    torch.manual_seed(0)
    return build(workload.config()).eval().to(workload.device, getattr(torch, workload.dtype))


def new_tokens(workload: Workload) -> int:
    return workload.answer_tokens or median_answer()


def answering(who: str, workload: Workload) -> tuple[nn.Module, Callable[[], list[str]]]:
    """A model, and a call that asks `questions` of the ten about each of `batch` micrographs.

    All answers have the same length, greedily. "BLIP" is given each image once per question;
    "BLIP, parts" encodes it once.
    """
    pictures, texts = images(workload.batch), list(QUESTIONS.values())[: workload.questions]
    length = {"min_new_tokens": new_tokens(workload), "max_new_tokens": new_tokens(workload)}
    if who == "ours":
        model = our_model(workload)
        if workload.compile:
            length["cache_implementation"] = "static"  # `generate` compiles the step then

        def call():
            rows = model.answer(
                pictures, texts, batch_size=workload.batch, decoding="greedy", **length
            )
            return [answer for row in rows for answer in row]

        return model, call
    model = _peer(peers.answering, workload)
    if workload.compile:
        # It cannot take a static cache, whose self- and cross-attention it would mix up.
        for part in (model.vision_model, model.text_encoder, model.text_decoder):
            part.compile(dynamic=True)
    ask = blip_answers if who == "BLIP" else blip_answers_by_parts
    config = workload.config()
    image_processor, text_processor = image_processor_of_blip(config), processor(config)
    return model, lambda: ask(model, image_processor, text_processor, pictures, texts, **length)


def answering_onnx(precision: str, workload: Workload, folder: Path) -> Callable[[], list[str]]:
    """A call that asks what `answering` does, of our model with ONNX Runtime."""
    target = folder / f"{workload.preset}-{precision}"
    export_onnx(our_model(workload), target, precision)
    student = OnnxStudent(target, threads=torch.get_num_threads())
    student.config["eos_token_id"] = -1  # all answers have the same length
    pictures, texts = images(workload.batch), list(QUESTIONS.values())[: workload.questions]

    def call():
        rows = student.answer(
            pictures,
            texts,
            batch_size=workload.batch,
            decoding="greedy",
            max_new_tokens=new_tokens(workload),
        )
        return [answer for row in rows for answer in row]

    return call


def image_processor_of_blip(config: MVaEMaConfig) -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": config.image_size, "width": config.image_size})


def blip_answers(
    model, image_processor, text_processor, pictures: list[Image], questions: list[str], **generate
) -> list[str]:
    pixels = image_processor(pictures, return_tensors="pt").to(model.device, model.dtype)
    text = text_processor(text=questions * len(pictures)).to(model.device)
    ids = model.generate(
        pixel_values=pixels["pixel_values"].repeat_interleave(len(questions), dim=0),
        input_ids=text["input_ids"],
        attention_mask=text["attention_mask"],
        **generate,
    )
    return text_processor.batch_decode(ids, skip_special_tokens=True)


@torch.no_grad()
def blip_answers_by_parts(
    model, image_processor, text_processor, pictures: list[Image], questions: list[str], **generate
) -> list[str]:
    pixels = image_processor(pictures, return_tensors="pt").to(model.device, model.dtype)
    text = text_processor(text=questions * len(pictures)).to(model.device)
    states = model.vision_model(pixels["pixel_values"]).last_hidden_state
    config = model.config.text_config
    ids = model.text_decoder.generate(
        input_ids=torch.full_like(text["input_ids"][:, :1], config.bos_token_id),
        encoder_hidden_states=peers.question_states(
            model, states, text["input_ids"], text["attention_mask"]
        ),
        encoder_attention_mask=text["attention_mask"],
        eos_token_id=config.sep_token_id,
        pad_token_id=config.pad_token_id,
        **generate,
    )
    return text_processor.batch_decode(ids, skip_special_tokens=True)


def classifying(who: str, workload: Workload, by: str) -> tuple[nn.Module, Callable[[], list[str]]]:
    """A model, and a call that gives each of `batch` micrographs its best of ten categories.

    Args:
        by: "itc" or "itm". For ITM, "BLIP" is given each image once per category; "BLIP, parts"
            encodes it once.
    """
    pictures, categories = images(workload.batch), list(CATEGORY_CAPTIONS)
    if who == "ours":
        model = our_model(workload)

        def call():
            ranked = model.classify(pictures, by=by, batch_size=workload.batch)
            return [next(iter(scores)) for scores in ranked]

        return model, call
    config, count = workload.config(), len(categories)
    model = _peer(peers.retrieval, workload)
    image_processor, text_processor = image_processor_of_blip(config), processor(config)

    @torch.no_grad()
    def call():
        pixels = image_processor(pictures, return_tensors="pt").to(model.device, model.dtype)
        text = text_processor(text=list(CATEGORY_CAPTIONS.values())).to(model.device)
        pixel_values, rows = pixels["pixel_values"], dict(text)
        if by == "itc":
            scores = model(pixel_values=pixel_values, use_itm_head=False, **rows).itm_score
        else:
            rows = {name: ids.repeat(len(pictures), 1) for name, ids in rows.items()}
            if who == "BLIP":
                logits = model(
                    pixel_values=pixel_values.repeat_interleave(count, dim=0), **rows
                ).itm_score
            else:
                states = model.vision_model(pixel_values).last_hidden_state
                logits = model.itm_head(
                    model.text_encoder(
                        encoder_hidden_states=states.repeat_interleave(count, dim=0), **rows
                    ).last_hidden_state[:, 0]
                )
            scores = logits.softmax(dim=1)[:, 1].view(-1, count)
        return [categories[best] for best in scores.argmax(dim=1).tolist()]

    return model, call
