"""How likely a chat model finds given answers, behind the interface that a student's scorer has.

What is special about it:
- image and prompt are read once, and their keys and values shared by all answers to it, where the
  model hands out such a cache and nothing else belongs to it;
- other models (BLIP-2 and its kin, encoder-decoders, linear attention) read the prompt with each
  answer, a few at a time. Both give the same numbers.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from mvaema.evaluation.chats import IGNORED, Chats, runs_along

SHARED_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)  # all they hold is keys and values
# Inputs along the prompt that say nothing of the answer behind it.
OF_PROMPT = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class Read(NamedTuple):
    """A prompt about an image, as a model has read it."""

    cache: Cache
    logits: Tensor  # (1, 1, vocabulary), of the first token behind it


class ChatScorer:
    """A chat model that judges answers by their likelihood.

    Args:
        chats: the model's inputs.
        batch_size: answers per forward pass.
    """

    def __init__(self, chats: Chats, batch_size: int):
        self.chats, self.model, self.batch_size = chats, chats.model, batch_size
        self._has_cache = "cache" in chats.parameters and not chats.reads_first

    def see(self, image: Image.Image) -> Image.Image:
        """The image itself: it is read with each prompt, as the model's template places it."""
        return image

    @torch.inference_mode()
    def losses(
        self, seen: Image.Image, prompts: Sequence[str], answers: Sequence[tuple[int, str]]
    ) -> list[tuple[float, int]]:
        """Negative log-likelihood of each answer in nats, and how many tokens it has with its end.

        Args:
            answers: the number of a prompt, and an answer to it.
        """
        of_prompt: dict[str, list[int]] = {}
        for i, (number, _) in enumerate(answers):
            of_prompt.setdefault(prompts[number], []).append(i)
        found: list[tuple[float, int]] = [(0.0, 0)] * len(answers)
        for prompt, numbers in of_prompt.items():
            read = self._read(seen, prompt) if self._has_cache else None
            numbers.sort(key=lambda i: len(answers[i][1]))
            for start in range(0, len(numbers), self.batch_size):
                part = numbers[start : start + self.batch_size]
                texts = [answers[i][1] for i in part]
                if read is None:
                    scored = self._together(seen, prompt, texts)
                else:
                    scored = self._behind(read, prompt, texts)
                for i, of_answer in zip(part, scored, strict=True):
                    found[i] = of_answer
        return found

    def _read(self, image: Image.Image, prompt: str) -> Read | None:
        """None if the model keeps more than keys and values, or is told more than tokens."""
        inputs = self.chats.prompts([image], [prompt])
        along = {n for n, value in inputs.items() if runs_along(n, value, inputs["input_ids"])}
        if along <= OF_PROMPT:
            output = self.model(**inputs, use_cache=True, **self.chats.last_logits(1))
            cache = output.cache
            if isinstance(cache, Cache) and all(type(x) in SHARED_LAYERS for x in cache.layers):
                return Read(cache, output.logits[:, -1:])
        self._has_cache = False
        return None

    def _behind(self, read: Read, prompt: str, texts: list[str]) -> list[tuple[float, int]]:
        """Losses of answers to a prompt that is read already."""
        ids, written = self.chats.padded([self.chats.answer_ids(prompt, text) for text in texts])
        cache = copy.deepcopy(read.cache)
        cache.reorder_cache(ids.new_zeros(len(texts)))
        # No mask: a single prompt has no padding, and what pads an answer comes behind it.
        logits = self.model(input_ids=ids, cache=cache, use_cache=True).logits
        logits = torch.cat([read.logits.expand(len(texts), -1, -1), logits[:, :-1]], dim=1)
        return _losses(logits, ids.masked_fill(~written, IGNORED))

    def _together(
        self, image: Image.Image, prompt: str, texts: list[str]
    ) -> list[tuple[float, int]]:
        """Losses of answers, each read with image and prompt."""
        count = len(texts)
        examples = self.chats.examples([image] * count, [prompt] * count, texts)
        return _losses(*self.chats.logits(*examples))


def _losses(logits: Tensor, labels: Tensor) -> list[tuple[float, int]]:
    """Loss and tokens of each row, from logits (rows, tokens, vocabulary) of labels."""
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    counts = (labels != IGNORED).sum(dim=1)
    totals = losses.double().sum(dim=1)
    return list(zip(totals.tolist(), counts.tolist(), strict=True))
