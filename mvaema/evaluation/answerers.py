"""Who is asked: students and chat models, behind one small interface.

What is special about it:
- a student (`MVaEMaModel`) is asked all questions about a batch of micrographs at once, and each
  image is encoded once;
- any other `image-text-to-text` model of transformers (LLaVA, Qwen-VL, ...) is asked the same
  prompts through its own chat template, and judges the same answers by their likelihood, so its
  scores are comparable with a student's;
- a question gets the same answer again, drawn or not, so an evaluation can be resumed and repeated.

How answers are decoded is decided here and nowhere else; `settings` says how. An evaluation is
resumed only with the same settings.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from candidates_mvaema import trained_methods
from configuration_mvaema import QUESTIONS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.chat_likelihoods import ChatScorer
from mvaema.evaluation.chats import Chats
from mvaema.evaluation.likelihoods import Scorer
from mvaema.memory import keep_freed_memory
from mvaema.students.loading import complete_model, load_student, model_type
from mvaema.students.lora import merge_adapters_into
from pixels_mvaema import to_8bit
from processing_mvaema import MVaEMaProcessor

THUMBNAIL = (16, 16)


class Student:
    """A checkpoint of this project.

    Args:
        model: with its processor.
        name: the folder or Hub id it was loaded from.
        max_new_tokens: longest answer; None for the checkpoint's own setting.
        batch_size: micrographs per forward pass.
        decoding: how answers are decoded, one of `DECODINGS`; None for the checkpoint's own way.

    Attributes:
        questions: question id to question, those that the checkpoint was trained on.
        categories: category to the caption that names it.
        methods: the ways to classify that the checkpoint was trained for, of ITC, ITM, LM and
            ITC+ITM.
        judges_by: the ways to judge given answers, of the same.
        shows_attention: whether `scorer` can say where an answer looks.
        settings: what its answers depend on beside the weights.

    Raises:
        ValueError: there is no such decoding, or the student was not trained for it.
    """

    def __init__(
        self,
        model: MVaEMaModel,
        name: str,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        decoding: str | None = None,
    ):
        self.model, self.name, self.batch_size = model, name, batch_size
        self.questions = dict(model.config.questions)
        self.categories = dict(model.config.categories)
        self.methods = trained_methods(vars(model.config))
        self.judges_by = self.methods
        self.shows_attention = model.config.use_cross_attention
        self.options = {"decoding": decoding or model.default_decoding}
        model.check_decoding(**self.options)
        self.settings = {
            "max_new_tokens": max_new_tokens,
            "chat_template": model.processor.chat_template,
            **self.options,
        }
        if max_new_tokens is not None:
            self.options["max_new_tokens"] = max_new_tokens

    def scorer(self) -> Scorer:
        """What judges given answers."""
        return Scorer(self.model)

    def micrographs_per_batch(self, questions: int) -> int:
        """How many micrographs `answer` takes at once, each with this many questions."""
        return self.batch_size

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        captions: Sequence[str | None],
        pixel_size_nm: Sequence[float | None],
        scale_bars: Sequence[str | None],
    ) -> list[list[str]]:
        """Answers to all questions about each image: [image][question].

        `captions`, `pixel_size_nm` (nanometres) and `scale_bars` say what is known of each image.
        """
        return self.model.answer(
            list(images),
            list(questions),
            captions=list(captions),
            pixel_size_nm=list(pixel_size_nm),
            scale_bars=list(scale_bars),
            batch_size=len(images),
            **self.options,
        )

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The student's own image embeddings, (images, projection_dim)."""
        inputs = self.model.processor(images=list(images)).to(self.model.device)
        features = self.model.get_image_features(inputs["pixel_values"])
        return features.pooler_output.float().cpu().numpy()

    @torch.inference_mode()
    def classify(self, images: Sequence[Image.Image], method: str) -> list[dict[str, float]]:
        """Category to probability for each image; the image's caption is not given.

        ITM judges each caption independently; its probabilities are scaled to sum to 1.
        """
        ranked = self.model.classify(list(images), by=method.lower(), batch_size=len(images))
        return [{name: p / sum(row.values()) for name, p in row.items()} for row in ranked]


class ChatModel:
    """Any other `image-text-to-text` model. It answers and judges answers but does not classify.

    Args:
        name: the folder or Hub id it was loaded from.
        max_new_tokens: longest answer; 256 by default.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: the processor has no chat template, or no token ends an answer.
    """

    questions = QUESTIONS
    categories: dict[str, str] = {}
    methods: tuple[str, ...] = ()
    judges_by = ("LM",)
    shows_attention = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
    ):
        self.chats = Chats(model, processor, name)
        self.model, self.processor, self.name = model, processor, name
        self.batch_size = batch_size
        self.settings = {"max_new_tokens": max_new_tokens, "chat_template": self.chats.template}
        self.max_new_tokens = max_new_tokens or 256
        # Many chat models have sampling values here, which transformers would warn about.
        model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)

    def scorer(self) -> ChatScorer:
        """What judges given answers."""
        return ChatScorer(self.chats, self.batch_size)

    def micrographs_per_batch(self, questions: int) -> int:
        """How many micrographs `answer` takes at once, each with this many questions."""
        return max(1, self.batch_size // questions)

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        captions: Sequence[str | None],
        pixel_size_nm: Sequence[float | None],
        scale_bars: Sequence[str | None],
    ) -> list[list[str]]:
        """Answers to all questions about each image: [image][question].

        `captions`, `pixel_size_nm` (nanometres) and `scale_bars` say what is known of each image.
        """
        asked = []
        for image, caption, size, bar in zip(
            images, captions, pixel_size_nm, scale_bars, strict=True
        ):
            width = None if size is None else size * image.width
            asked += [(image, MVaEMaProcessor.prompt(q, caption, width, bar)) for q in questions]
        answers = []
        for start in range(0, len(asked), self.batch_size):
            answers += self._answer(*zip(*asked[start : start + self.batch_size], strict=True))
        return [answers[i : i + len(questions)] for i in range(0, len(answers), len(questions))]

    def _answer(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
        inputs = self.chats.prompts(images, texts)
        ids = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        length = inputs["input_ids"].shape[1]
        if torch.equal(ids[:, :length], inputs["input_ids"]):  # an encoder-decoder repeats none
            ids = ids[:, length:]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Thumbnails minus their mean, (images, 256): chat models have no common embedding."""
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
    decoding: str | None = None,
) -> Student | ChatModel:
    """A model, or LoRA adapter, ready to answer, on the accelerator if there is one.

    Args:
        name: a folder or Hub id. An adapter is merged into its base model.
        trust_remote_code: run code from a Hub repository. Students do not need it, and code in a
            local folder is always run.
        chat_template: Jinja file for a processor that has no chat template.
        max_new_tokens: longest answer in tokens; by default the student's own setting, or 256.
        batch_size: per forward pass, micrographs for a student, prompts for a chat model.
        decoding: how a student decodes answers, one of `DECODINGS`; by default its own way. Chat
            models decode greedily.

    Raises:
        ValueError: the model cannot answer questions about images, or not with this decoding.
        OSError: there is no such model.
    """
    keep_freed_memory()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    complete = complete_model(name)
    if model_type(complete) == MVaEMaConfig.model_type:
        model = load_student(name).to(device).eval()
        return Student(model, name, max_new_tokens, batch_size, decoding)
    if decoding not in (None, "greedy"):
        raise ValueError(
            f"{name} is not an MVaEMa model: it is asked greedily, not with decoding={decoding!r}."
        )
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
    return ChatModel(model, processor, name, max_new_tokens, batch_size)
