"""The models that can be evaluated, behind one small interface: students and chat models.

What is special about it:
- a student (`MVaEMaModel`) is asked all questions about a batch of micrographs at once, and each
  image is encoded once;
- any other `image-text-to-text` model of transformers (LLaVA, Qwen-VL, ...) is asked the same
  prompts through its own chat template, so that its figures can stand beside a student's;
- nothing is sampled, so an evaluation can be resumed and repeated.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from configuration_mvaema import MVaEMaConfig
from mvaema.students.loading import complete_model, load_student, model_type
from mvaema.students.lora import merge_adapters_into
from processing_mvaema import MVaEMaProcessor, to_8bit

LOSS_OF_METHOD = {"ITC": "itc_weight", "ITM": "itm_weight", "LM": "lm_weight"}
THUMBNAIL = (16, 16)


class Student:
    """A checkpoint of this project.

    Attributes:
        categories: category to the caption that names it.
        methods: the ways to classify that the checkpoint was trained for, of ITC, ITM and LM.
    """

    def __init__(self, model, processor, max_new_tokens: int | None = None):
        self.model, self.processor = model, processor
        model.processor = processor
        self.categories = dict(model.config.categories)
        self.methods = tuple(m for m, w in LOSS_OF_METHOD.items() if getattr(model.config, w))
        self.generate_kwargs = {"do_sample": False}
        if max_new_tokens is not None:
            self.generate_kwargs["max_new_tokens"] = max_new_tokens

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        captions: Sequence[str | None],
        pixel_size_nm: Sequence[float | None],
        scale_bars: Sequence[str | None],
    ) -> list[list[str]]:
        """Answers to all questions about each image; the other lists say what is known of it."""
        return self.model.answer(
            list(images),
            list(questions),
            captions=list(captions),
            pixel_size_nm=list(pixel_size_nm),
            scale_bars=list(scale_bars),
            batch_size=len(images),
            **self.generate_kwargs,
        )

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The student's own image embeddings, (images, projection_dim)."""
        inputs = self.processor(images=list(images)).to(self.model.device)
        return self.model.get_image_features(inputs["pixel_values"]).float().cpu().numpy()

    @torch.inference_mode()
    def classify(self, images: Sequence[Image.Image], method: str) -> list[dict[str, float]]:
        """Category to probability for each image, which is given without its caption.

        ITM judges every caption by itself; its probabilities are scaled to sum to 1.
        """
        ranked = self.model.classify(list(images), by=method.lower(), batch_size=len(images))
        return [{name: p / sum(row.values()) for name, p in row.items()} for row in ranked]


class ChatModel:
    """An `image-text-to-text` model that is not ours. It answers, but does not classify.

    Args:
        batch_size: prompts per forward pass.

    Raises:
        ValueError: the processor has no chat template.
    """

    categories: dict[str, str] = {}
    methods: tuple[str, ...] = ()

    def __init__(self, model, processor, max_new_tokens: int | None = None, batch_size: int = 8):
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"{model.name_or_path} is no MVaEMa model and its processor has no chat template, "
                "so how to ask it a question is not known; give one with --chat_template FILE."
            )
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.max_new_tokens = max_new_tokens or 256
        # New words follow the prompt, so padding has to precede it.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        # Left at the sampling values of many chat models, these would only warn.
        model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        captions: Sequence[str | None],
        pixel_size_nm: Sequence[float | None],
        scale_bars: Sequence[str | None],
    ) -> list[list[str]]:
        """Answers to all questions about each image; the other lists say what is known of it."""
        conversations = []
        for image, caption, size, bar in zip(
            images, captions, pixel_size_nm, scale_bars, strict=True
        ):
            picture = to_8bit(image).convert("RGB")
            width = None if size is None else size * image.width
            for question in questions:
                text = MVaEMaProcessor.prompt(question, caption, width, bar)
                content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
                conversations.append([{"role": "user", "content": content}])
        answers = []
        for start in range(0, len(conversations), self.batch_size):
            answers += self._answer(conversations[start : start + self.batch_size])
        return [answers[i : i + len(questions)] for i in range(0, len(answers), len(questions))]

    def _answer(self, conversations: list) -> list[str]:
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        length = inputs["input_ids"].shape[1]
        if torch.equal(ids[:, :length], inputs["input_ids"]):  # not so in an encoder-decoder
            ids = ids[:, length:]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Thumbnails without their mean, (images, 256): chat models have no common embedding."""
        small = [to_8bit(image).convert("L").resize(THUMBNAIL) for image in images]
        pixels = np.stack([np.asarray(image, float).ravel() for image in small])
        return pixels - pixels.mean(axis=1, keepdims=True)


def load_answerer(
    name: str,
    *,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
) -> Student | ChatModel:
    """A model, or LoRA adapter, ready to answer, on the accelerator if there is one.

    Args:
        name: a folder or Hub id; an adapter is merged into the model that it names as its base.
        trust_remote_code: run code that comes with a repository of the Hub, which a student does
            not need; the code in a local folder is run in any case.
        chat_template: file with the Jinja template for a processor that has none.
        batch_size: prompts per forward pass of a chat model.

    Raises:
        ValueError: it is not a model that answers questions about images.
        OSError: there is no such model.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    complete = complete_model(name)
    if model_type(complete) == MVaEMaConfig.model_type:
        model = load_student(name).to(device).eval()
        return Student(model, model.processor, max_new_tokens)
    trust = {"trust_remote_code": trust_remote_code or Path(complete).is_dir()}
    try:
        model = AutoModelForImageTextToText.from_pretrained(complete, **trust)
    except ValueError as error:
        raise ValueError(
            f"{complete} ({model_type(complete)}) is neither an MVaEMa model nor an "
            "image-text-to-text model of transformers: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error
    model = merge_adapters_into(model, name).to(device).eval()
    processor = AutoProcessor.from_pretrained(complete, **trust)
    if chat_template is not None:
        processor.chat_template = Path(chat_template).read_text(encoding="utf-8")
    return ChatModel(model, processor, max_new_tokens, batch_size)


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits that tell a model's weights from all others."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
