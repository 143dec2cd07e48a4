"""The named ways to decode an answer, for `model.answer(..., decoding=...)`.

What is special about it:
- all of them run in transformers' own `generate`, cache and stopping included; what it lacks comes
  in as logits processors;
- draws depend on the seed, the image and the prompt only. No random state is read or changed, and
  an answer is the same in any batch and any process;
- options have the names that they have in `generate`.

The decodings:
- `greedy`: the most likely word at each step;
- `beam`: beam search, in which no three tokens in a row come twice (Paulus et al. 2018);
- `sample`: one answer, drawn from the nucleus (Holtzman et al. 2020);
- `consensus`: of greedy and drawn answers the one with which the others agree most, by the words
  and bigrams that they share: minimum Bayes risk (Eikema and Aziz 2020; Suzgun et al. 2023);
- `contrast`: greedy, by the likelihood with the image against that with a blank one: visual
  contrastive decoding (Leng et al. 2024), with the cut-off of Li et al. 2023;
- `rerank`: of greedy and drawn answers the one that fits the image best by the matching head, which
  re-ranks retrieved texts in ALBEF (Li et al. 2021);
- `consensus+itm`: of the same answers the one with the largest product of agreement and fit.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

import dataclasses
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import ModelOutput

# Where neither the caller nor the checkpoint's `generation_config.decoding` names another: the only
# one that gained on real micrographs (docs/study.md, "Decoding").
DEFAULT_DECODING = "consensus"

# Grey level of the image on which nothing is to be seen.
BLANK_GREY = 128

# Draws of this sharpness: Suzgun et al. 2023 find temperatures around 0.7 best for a consensus.
_DRAWN = {"temperature": 0.7, "top_p": 0.95, "seed": 0}
# `num_return_sequences` answers are drawn, beside the greedy one.
_CANDIDATES = {"num_return_sequences": 8, **_DRAWN}

# The options of each decoding that choose how it decodes, and their defaults.
DECODINGS: dict[str, dict] = {
    "greedy": {},
    "beam": {
        "num_beams": 4,
        "length_penalty": 1.0,
        "early_stopping": False,
        "no_repeat_ngram_size": 3,
    },
    "sample": _DRAWN,
    "consensus": _CANDIDATES,
    # scores = blank + guidance_scale * (image - blank); alpha of Leng et al. is guidance_scale - 1,
    # and their beta, the cut-off, is min_p.
    "contrast": {"guidance_scale": 2.0, "min_p": 0.1},
    "rerank": _CANDIDATES,
    "consensus+itm": _CANDIDATES,
}
USING_ITM = ("rerank", "consensus+itm")
# Those that `generate` lacks or would do otherwise.
_OURS = {*_CANDIDATES, *DECODINGS["contrast"]}
# What `generate` is told otherwise, whatever the checkpoint's configuration says.
_PLAIN = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}

# The options of `generate` that choose how it decodes; all others go with any decoding.
_CHOOSING = {
    *(name for options in DECODINGS.values() for name in options if name != "no_repeat_ngram_size"),
    *("do_sample", "top_k", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha"),
    *("num_beam_groups", "diversity_penalty", "constraints", "force_words_ids", "dola_layers"),
    *("assistant_model", "prompt_lookup_num_tokens", "custom_generate", "generation_config"),
}


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        name: a key of `DECODINGS`, or None for what the options of `generate` say.
        options: those of the decoding that this project adds to `generate`.
        generate: the options of `generate`.
    """

    name: str | None
    options: Mapping
    generate: Mapping

    @classmethod
    def choose(cls, name: str | None, default: str, given: Mapping) -> "Decoding":
        """The decoding that a caller asks for.

        Args:
            name: as the caller gives it. If None, `default`, unless `given` says how to decode.
            given: options.

        Raises:
            ValueError: there is no such decoding, an option contradicts it, or a value is
                impossible.
        """
        chosen = {n for n in _CHOOSING & given.keys() if given[n] is not None}
        if name is None and chosen:
            if "seed" in chosen or given.get("num_return_sequences", 1) != 1:
                raise ValueError(
                    "seed, and more than one of num_return_sequences, need a decoding that takes "
                    "them, such as decoding='consensus'. `generate` returns several answers."
                )
            return cls(None, {}, {"num_return_sequences": 1, **given})
        name = default if name is None else name
        if name not in DECODINGS:
            raise ValueError(f"decoding must be one of {', '.join(DECODINGS)}; got {name!r}.")
        wrong = {n for n in chosen - DECODINGS[name].keys() if given[n] != _PLAIN.get(n)}
        if wrong:
            takes = ", ".join(DECODINGS[name]) or "none that says how to decode"
            raise ValueError(
                f"decoding={name!r} contradicts {', '.join(sorted(wrong))}. Options of its own: "
                f"{takes}. Leave out `decoding` to decode as the options of `generate` say."
            )
        count = given.get("num_return_sequences", 1)
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"num_return_sequences must be a positive number; got {count!r}.")
        options = {**DECODINGS[name], **given}
        ours = {n: options.pop(n) for n in DECODINGS[name].keys() & _OURS}
        return cls(name, ours, {**_PLAIN, **options})

    @property
    def candidates(self) -> int:
        """How many answers to a question are decoded."""
        return 1 + self.options.get("num_return_sequences", 0)


class Draw(LogitsProcessor):
    """Leaves one word per row, drawn with the probabilities that the scores say.

    Args:
        numbers: (rows, steps), uniform in [0, 1), that decide; NaN for the most likely word.
    """

    def __init__(self, numbers: Tensor):
        self.numbers = numbers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        numbers = self.numbers[:, input_ids.shape[1] - 1].to(scores.device)
        cumulative = scores.float().softmax(dim=-1).cumsum(dim=-1)
        sought = (numbers * cumulative[:, -1]).nan_to_num().unsqueeze(1)
        words = torch.searchsorted(cumulative, sought, right=True).squeeze(1)
        # Rounding may leave a number just below 1 without a word.
        certain = numbers.isnan() | (words == scores.shape[1])
        words = torch.where(certain, scores.argmax(dim=-1), words)
        return torch.full_like(scores, -torch.inf).scatter(1, words.unsqueeze(1), 0.0)


def draw_numbers(
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    seed: int,
    draws: range,
    steps: int,
) -> Tensor:
    """Uniform numbers (prompts * draws, steps) for `Draw`; draw 0 is NaN, the greedy answer.

    They follow from the seed, the image, the prompt and the number of the draw.

    Args:
        pixel_values: (images, channels, height, width); consecutive prompts share an image.
        input_ids: (prompts, length), and `attention_mask` of the same shape.
    """
    per_image = len(input_ids) // len(pixel_values)
    images = [pixels.float().cpu().numpy().tobytes() for pixels in pixel_values]
    images = [hashlib.blake2b(pixels, digest_size=32).digest() for pixels in images]
    rows = []
    for i, (ids, mask) in enumerate(zip(input_ids.cpu(), attention_mask.cpu(), strict=True)):
        prompt = ids[mask.bool()].numpy().tobytes()
        for number in draws:
            key = hashlib.blake2b(prompt, key=images[i // per_image], digest_size=8)
            key.update(f"/{seed}/{number}".encode())
            generator = torch.Generator().manual_seed(int.from_bytes(key.digest(), "little"))
            drawn = torch.rand(steps, generator=generator)
            rows.append(drawn if number else torch.full_like(drawn, torch.nan))
    return torch.stack(rows)


class BlankContrast(LogitsProcessor):
    """Scores with the image against those with a blank one, among the plausible words.

    blank + guidance_scale * (image - blank), in log-probabilities. Words whose probability with the
    image is below `min_p` times that of the most likely word are left out.

    Args:
        model: decodes along with `generate`, with a cache of its own if `use_cache`.
        memory: of the same prompts with a blank image.
        attention_mask: (prompts, prompt length).
    """

    def __init__(
        self,
        model: nn.Module,
        memory: ModelOutput,
        attention_mask: Tensor,
        guidance_scale: float,
        min_p: float,
        use_cache: bool = True,
    ):
        self.model, self.memory, self.attention_mask = model, memory, attention_mask
        self.guidance_scale, self.use_cache = guidance_scale, use_cache
        self.plausible = MinPLogitsWarper(min_p)
        self.cache = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        outputs = self.model(
            decoder_input_ids=input_ids if self.cache is None else input_ids[:, -1:],
            encoder_outputs=self.memory,
            attention_mask=self.attention_mask,
            cache=self.cache,
            use_cache=self.use_cache,
        )
        self.cache = outputs.cache
        blank = outputs.logits[:, -1].to(scores).log_softmax(dim=-1)
        contrast = blank + self.guidance_scale * (scores.log_softmax(dim=-1) - blank)
        left_out = self.plausible(input_ids, scores).isneginf()
        return contrast.masked_fill(left_out, -torch.inf)


def agreements(texts: Sequence[str]) -> list[float]:
    """How much the other texts agree with each: the mean of `overlap`, in [0, 1]."""
    counted = [_words_and_bigrams(text) for text in texts]
    return [
        sum(overlap(a, b) for j, b in enumerate(counted) if j != i) / (len(texts) - 1)
        for i, a in enumerate(counted)
    ]


def overlap(first: Counter, second: Counter) -> float:
    """F1 of two bags, in [0, 1]; empty ones share nothing."""
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 0.0


def _words_and_bigrams(text: str) -> Counter:
    words = re.findall(r"\w+", text.lower())
    return Counter([*words, *itertools.pairwise(words)])


class MVaEMaDecodingMixin:
    """The decodings of `MVaEMaGenerationMixin.answer`."""

    @property
    def default_decoding(self) -> str:
        """How `answer` decodes by itself: as the checkpoint's `generation_config.decoding` says."""
        return getattr(self.generation_config, "decoding", None) or DEFAULT_DECODING

    def check_decoding(self, decoding: str | None = None, **options) -> Decoding:
        """What `answer` would do with these arguments.

        Raises:
            ValueError: there is no such decoding, it contradicts an option, or it needs a matching
                head that was not trained.
        """
        found = Decoding.choose(decoding, self.default_decoding, options)
        if found.name in USING_ITM:
            self._check_matching(f"decoding={found.name!r}")
        return found

    def _check_matching(self, what: str) -> None:
        if not self.config.itm_weight:
            raise ValueError(f"{what} needs the matching head; this student learnt without (ITM).")

    def _decoded(self, inputs: BatchFeature, decoding: Decoding) -> list[str]:
        """An answer to each prompt of `inputs`."""
        if decoding.name == "contrast":
            ids = self._generate_in_contrast(inputs, decoding)
        elif "seed" not in decoding.options:
            ids = self.generate(**inputs, **decoding.generate)
        else:
            return self._picked(inputs, decoding)
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def _generate_in_contrast(self, inputs: BatchFeature, decoding: Decoding) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        blank = self._processed(images=Image.new("L", (32, 32), BLANK_GREY))["pixel_values"]
        contrast = BlankContrast(
            self,
            self.encode_prompt(blank, ids, mask),
            mask,
            use_cache=self.generation_config.use_cache,
            **decoding.options,
        )
        return self.generate(**inputs, **_with_processors(decoding, [contrast]))

    def _picked(self, inputs: BatchFeature, decoding: Decoding) -> list[str]:
        """One of several candidates for each prompt: the greedy answer, and some that are drawn."""
        pixels, ids, mask = (inputs[n] for n in ("pixel_values", "input_ids", "attention_mask"))
        count, options = decoding.candidates, decoding.options
        draws = range(count) if count > 1 else range(1, 2)
        states = self.image_encoder(pixels)
        memory = self.encode_prompt(pixels, ids, mask, states)
        rows = memory.questions.repeat_interleave(count, dim=0)  # V is kept once per image
        steps = self.config.max_position_embeddings
        processors = [
            TemperatureLogitsWarper(options["temperature"]),
            TopPLogitsWarper(options["top_p"]),
            Draw(draw_numbers(pixels, ids, mask, options["seed"], draws, steps)),
        ]
        found = self.generate(
            input_ids=ids.repeat_interleave(count, dim=0),
            attention_mask=mask.repeat_interleave(count, dim=0),
            encoder_outputs=dataclasses.replace(memory, questions=rows),
            **_with_processors(decoding, processors),
        )
        texts = self.processor.batch_decode(found, skip_special_tokens=True)
        scores = torch.zeros(len(ids), count)
        if decoding.name in ("consensus", "consensus+itm"):
            of_each = [texts[i : i + count] for i in range(0, len(texts), count)]
            scores = scores + torch.tensor([agreements(row) for row in of_each]).log()
        if decoding.name in USING_ITM:
            fits = nn.functional.logsigmoid(self._match_logits(states, texts).float().cpu())
            scores = scores + fits.view_as(scores)
        best = scores.argmax(dim=1).tolist()
        return [texts[i * count + pick] for i, pick in enumerate(best)]

    def _match_logits(self, image_states: Tensor, texts: list[str]) -> Tensor:
        """ITM logits (texts,), -inf for a blank text; consecutive texts share an image."""
        if not texts:
            return image_states.new_zeros(0)
        said = self._processed(statements=[text if text.strip() else "?" for text in texts])
        logits = self.match(image_states, said["statement_ids"], said["statement_mask"])
        blank = torch.tensor([not text.strip() for text in texts], device=logits.device)
        return logits.masked_fill(blank, -torch.inf)


def _with_processors(decoding: Decoding, processors: list[LogitsProcessor]) -> dict:
    """The options of `generate`, the caller's own `logits_processor` first."""
    given = decoding.generate.get("logits_processor") or []
    return {**decoding.generate, "logits_processor": LogitsProcessorList([*given, *processors])}


__all__ = [
    "DECODINGS",
    "DEFAULT_DECODING",
    "BlankContrast",
    "Decoding",
    "Draw",
    "MVaEMaDecodingMixin",
]
