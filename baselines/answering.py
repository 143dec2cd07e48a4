"""Rows that answer: the baselines of Table 1, and any chat model by LoRA.

What is special about it:
- each trains what its paper trains, on the answers of the fold's training micrographs: InstructBLIP
  its Q-Former, LLaVA its projection and its language model, MiniGPT-4 one linear layer;
- `chat-lora` takes any `image-text-to-text` model that transformers builds, with its own template;
- `--pretrained random` builds a tiny model of random weights on the spot, where there is no hub. It
  runs the same code; its figures say nothing about the full-size model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from baselines.outcome import Outcome
from baselines.rows import TableRow
from baselines.settings import Run

if TYPE_CHECKING:
    from baselines.chat_models import ChatParts

RANDOM = "random"
RANDOM_RATE = 1e-3  # of models that have nothing to forget


@dataclass(frozen=True)
class ChatShapes:
    """What a chat model is built for.

    Attributes:
        pretrained: folder or Hub id; `RANDOM` for a tiny model of random weights.
        texts: questions and answers to train on, for the tokenizer of that one.
        image_size: height and width in pixels, for that one; others have their own.
    """

    pretrained: str
    texts: Sequence[str]
    image_size: int


@dataclass(frozen=True)
class AnsweringRow(TableRow):
    """A chat model that is tuned on answers.

    Attributes:
        build: the model with its processor.
        trained: names of the parts of it that are trained; none for LoRA adapters in all of them.
    """

    build: Callable[[ChatShapes], "ChatParts"]
    trained: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self):
        if self.pretrained == RANDOM:
            object.__setattr__(self, "learning_rate", RANDOM_RATE)

    def make(self, texts: Sequence[str], image_size: int) -> "ChatParts":
        """The model, of which only what is to be trained has `requires_grad`, and its processor.

        Args:
            texts, image_size: see `ChatShapes`.
        """
        from baselines.chat_models import add_lora, train_only

        parts = self.build(ChatShapes(self.pretrained, texts, image_size))
        if self.trained:
            train_only(parts.model, self.trained)
        else:
            add_lora(parts.model)
        return parts

    def train_and_score(self, run: Run) -> Outcome:
        from baselines.tuning import train_chat

        def build(texts: Sequence[str]) -> "ChatParts":
            return self.make(texts, run.settings.image_size)

        return train_chat(build, run, self.learning_rate, self.warmup_steps)


def instructblip(shapes: ChatShapes) -> "ChatParts":
    from baselines import chat_models, random_chats

    if shapes.pretrained == RANDOM:
        return random_chats.random_instructblip(shapes.texts, shapes.image_size)
    return chat_models.load_chat(shapes.pretrained, chat_models.BLIP_TEMPLATE)


def llava(shapes: ChatShapes) -> "ChatParts":
    from baselines import chat_models, random_chats

    if shapes.pretrained == RANDOM:
        return random_chats.random_llava(shapes.texts, shapes.image_size)
    return chat_models.load_chat(shapes.pretrained, chat_models.LLAVA_TEMPLATE)


def minigpt4(shapes: ChatShapes) -> "ChatParts":
    from baselines import chat_models, random_chats

    if shapes.pretrained == RANDOM:
        return random_chats.random_minigpt4(shapes.texts, shapes.image_size)
    return chat_models.load_minigpt4(shapes.pretrained, chat_models.MINIGPT4_TEMPLATE)


def any_chat(shapes: ChatShapes) -> "ChatParts":
    from baselines import chat_models, random_chats

    if shapes.pretrained == RANDOM:
        return random_chats.random_llava(shapes.texts, shapes.image_size)
    return chat_models.load_chat(shapes.pretrained, chat_models.BLIP_TEMPLATE)


def _paper(*scores: float) -> dict[str, float]:
    names = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor")
    return dict(zip(names, scores, strict=True))


GROUP = "Answers"
ROWS = [
    AnsweringRow(
        "instructblip",
        "InstructBLIP",
        1,
        GROUP,
        "transformers",
        instructblip,
        paper=_paper(0.570, 0.457, 0.745, 0.648, 0.705, 0.738),
        learning_rate=1e-5,
        pretrained="Salesforce/instructblip-vicuna-7b",
        trained=("qformer", "query_tokens", "language_projection"),
        note="Q-Former trained, as in its paper; image encoder and language model frozen",
    ),
    AnsweringRow(
        "llava",
        "LLaVA",
        1,
        GROUP,
        "transformers",
        llava,
        paper=_paper(0.620, 0.512, 0.760, 0.668, 0.723, 0.753),
        learning_rate=2e-5,
        pretrained="llava-hf/llava-1.5-7b-hf",
        trained=("multi_modal_projector", "language_model", "lm_head"),
        note="projection and language model trained, as in its paper; chat-lora needs less memory",
    ),
    AnsweringRow(
        "minigpt-4",
        "MiniGPT-4",
        1,
        GROUP,
        "transformers",
        minigpt4,
        paper=_paper(0.680, 0.572, 0.790, 0.698, 0.753, 0.783),
        learning_rate=1e-4,
        pretrained="Salesforce/blip2-flan-t5-xxl+lmsys/vicuna-7b-v1.5",
        trained=("language_projection",),
        note="BLIP-2's eyes before Vicuna; the linear layer between them is fresh, and all that is "
        "trained",
    ),
    AnsweringRow(
        "chat-lora",
        "Chat model, LoRA",
        None,
        GROUP,
        "transformers",
        any_chat,
        learning_rate=2e-4,
        pretrained="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        note="any image-text-to-text model by --pretrained; LoRA of rank 16 in all linear layers",
    ),
]
