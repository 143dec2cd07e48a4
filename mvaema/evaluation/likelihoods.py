"""What a student makes of given texts: losses of answers, matches, similarities, attention.

What is special about it:
- an image is encoded once, whatever it is then compared with (`Seen`);
- a question is read once, however many answers to it are scored;
- texts are scored in small parts of like length.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generation_mvaema import MVaEMaMemory
from modeling_mvaema import MVaEMaModel

TEXTS_PER_PASS = 32  # more need more memory for the logits, and are no faster on a CPU
MAP_SIDE = 16  # of an attention map, at most


class Seen(NamedTuple):
    """One image as the student's layers are given it."""

    pixel_values: Tensor  # (1, channels, height, width)
    states: Tensor  # (1, image tokens, hidden_size)
    keys_and_values: tuple | None  # of each text layer


class Scorer:
    """A student that judges texts.

    Args:
        model: with its processor.
    """

    def __init__(self, model: MVaEMaModel):
        self.model, self.processor = model, model.processor
        self._embeds: dict[str, Tensor] = {}

    @torch.inference_mode()
    def see(self, image: Image.Image) -> Seen:
        """Encode an image."""
        pixels = self._on_device(self.processor(images=[image]))["pixel_values"]
        states = self.model.image_encoder(pixels)
        return Seen(pixels, states, self.model.text_stack.project_images(states))

    @torch.inference_mode()
    def losses(
        self, seen: Seen, prompts: Sequence[str], answers: Sequence[tuple[int, str]]
    ) -> list[tuple[float, int]]:
        """Negative log-likelihood of each answer in nats, and how many tokens it has with [EOS].

        Args:
            answers: the number of a prompt, and an answer to it.
        """
        memory, mask = self._read(seen, prompts)
        found: list[tuple[float, int]] = [(0.0, 0)] * len(answers)
        for part in _parts([text for _, text in answers]):
            labels = self._on_device(self.processor(answers=[answers[i][1] for i in part]))
            index = torch.tensor([answers[i][0] for i in part], device=mask.device)
            losses = self.model.answer_losses(
                labels["labels"], _rows(memory, index), mask.index_select(0, index)
            )
            counts = (labels["labels"] != -100).sum(dim=1)
            totals = losses.double().sum(dim=1)
            for i, total, count in zip(part, totals.tolist(), counts.tolist(), strict=True):
                found[i] = (total, count)
        return found

    @torch.inference_mode()
    def matches(self, seen: Seen, statements: Sequence[str]) -> list[float]:
        """ITM logit of each statement about an image."""
        found = [0.0] * len(statements)
        for part in _parts(statements):
            texts = self._statements([statements[i] for i in part])
            logits = self.model.match(seen.states, texts["statement_ids"], texts["statement_mask"])
            for i, logit in zip(part, logits.float().tolist(), strict=True):
                found[i] = logit
        return found

    @torch.inference_mode()
    def similarities(self, seen: Seen, statements: Sequence[str]) -> list[float]:
        """Cosine of the ITC embeddings of an image and each statement, over the temperature."""
        new = [text for text in dict.fromkeys(statements) if text not in self._embeds]
        for part in _parts(new):
            texts = [new[i] for i in part]
            inputs = self._statements(texts)
            embeds = self.model.get_text_features(inputs["statement_ids"], inputs["statement_mask"])
            self._embeds |= dict(zip(texts, embeds.pooler_output, strict=True))
        image = self.model._project_image(seen.states)
        texts = torch.stack([self._embeds[text] for text in statements])
        return (texts @ image[0].to(texts.device) / self.model.temperature).float().tolist()

    @torch.inference_mode()
    def attention_maps(
        self, seen: Seen, prompts: Sequence[str], answers: Sequence[str]
    ) -> list[np.ndarray]:
        """Where the words of an answer to each prompt look: (side, side), uint8, 255 at most.

        Cross-attention to the image tokens, averaged over words, heads and layers. The model must
        use eager attention (`eager_attention`).
        """
        weights, labels = self._attention(seen, prompts, answers)
        words = (labels != -100) & (labels != self.model.config.eos_token_id)
        words = words.float() / words.sum(dim=1, keepdim=True).clamp(min=1)
        return _as_maps(torch.einsum("bthw,bt->bhw", weights, words))

    @torch.inference_mode()
    def word_maps(self, seen: Seen, prompt: str, answer: str) -> list[tuple[str, np.ndarray]]:
        """Where each word of an answer looks: the word, and a map as `attention_maps` has it.

        The tokens of a word are averaged. Words beyond the longest text are left out.
        """
        weights, _ = self._attention(seen, [prompt], [answer])
        spans = self.processor.tokenizer(
            answer, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"][: weights.shape[1]]
        found = []
        for word in re.finditer(r"\S+", answer):
            tokens = [i for i, (a, b) in enumerate(spans) if a < word.end() and b > word.start()]
            if tokens:
                found.append((word.group(), weights[0, tokens].mean(dim=0)))
        if not found:
            return []
        maps = _as_maps(torch.stack([of_word for _, of_word in found]))
        return [(word, of_word) for (word, _), of_word in zip(found, maps, strict=True)]

    def _attention(
        self, seen: Seen, prompts: Sequence[str], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Attention (answers, tokens, side, side) to the image, and the answers' labels.

        Averaged over heads and layers. The weights of a token are those with which it was written.
        """
        memory, mask = self._read(seen, prompts)
        labels = self._on_device(self.processor(answers=list(answers)))["labels"]
        attentions = self.model(
            encoder_outputs=memory,
            attention_mask=mask,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
            output_attentions=True,
        ).cross_attentions
        weights = torch.stack([a.float().mean(dim=1) for a in attentions]).mean(dim=0)
        image_tokens = weights.shape[2] - mask.shape[1]
        last = 1 if self.model.config.instruction_aware else 0
        grid = weights[:, :, image_grid(image_tokens - last)]
        side = int(grid.shape[2] ** 0.5)
        return grid.unflatten(2, (side, side)), labels

    def _read(self, seen: Seen, prompts: Sequence[str]) -> tuple[MVaEMaMemory, Tensor]:
        """The decoder's memory of some prompts about an image, and the prompts' mask."""
        texts = self._on_device(self.processor(text=list(prompts)))
        memory = self.model.encode_prompt(
            seen.pixel_values,
            texts["input_ids"],
            texts["attention_mask"],
            image_states=seen.states,
            images=seen.keys_and_values,
        )
        return memory, texts["attention_mask"]

    def _statements(self, texts: list[str]):
        return self._on_device(self.processor(statements=texts))

    def _on_device(self, inputs):
        return inputs.to(self.model.device)


@contextmanager
def eager_attention(model: MVaEMaModel) -> Iterator[None]:
    """A model whose attention weights can be seen; afterwards it is as it was."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def image_grid(tokens: int) -> slice:
    """Which of an image's tokens are the cells of its square grid, row by row.

    An encoder puts its other tokens, such as [CLS] or registers, first. So the grid is the largest
    square that fits at the end.
    """
    return slice(tokens - int(tokens**0.5) ** 2, tokens)


def _as_maps(maps: Tensor) -> list[np.ndarray]:
    """Maps (n, side, side) as uint8, of `MAP_SIDE` at most; 255 is the most of each."""
    if maps.shape[1] > MAP_SIDE:
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, MAP_SIDE)
    maps = 255 * maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return list(maps.round().cpu().numpy().astype(np.uint8))


def _parts(texts: Sequence[str]) -> Iterator[list[int]]:
    """The numbers of the texts, in parts of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return (order[i : i + TEXTS_PER_PASS] for i in range(0, len(order), TEXTS_PER_PASS))


def _rows(memory: MVaEMaMemory, index: Tensor) -> MVaEMaMemory:
    """The memory for rows of which each is about the prompt that `index` says."""
    images, states = memory.images, memory.last_hidden_state
    if images is None:
        states = states.index_select(0, index)
    elif len(images[0][0]) > 1:  # each prompt has an image of its own
        images = tuple(tuple(x.index_select(0, index) for x in layer) for layer in images)
    questions = memory.questions.index_select(0, index)
    return dataclasses.replace(memory, last_hidden_state=states, images=images, questions=questions)
