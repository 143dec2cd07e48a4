"""The named ways to decode an answer, for `model.answer(..., decoding=...)`.

What is special about it:
- all of them run in transformers' own `generate`, cache and stopping included; what it lacks comes
  in as logits processors, and as a loop that complete answers leave;
- draws depend on the seed, the image and the prompt only. No random state is read or changed, and
  an answer is the same in any batch and any process;
- options have the names that they have in `generate`.

`candidates_mvaema.py` lists the decodings.

This file travels with `candidates_mvaema.py` and `loop_mvaema.py`: `save_pretrained` and
`push_to_hub` copy all three into the model repository.
"""

import dataclasses
from collections.abc import Mapping
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

try:  # inside a model repository, where transformers loads this file as part of a package
    from .candidates_mvaema import (
        CANDIDATES,
        DECODINGS,
        DEFAULT_DECODING,
        USING_ITM,
        agreements,
        draw_numbers,
    )
    from .loop_mvaema import Draw, LeavingRows
except ImportError:  # from the project's root
    from candidates_mvaema import (
        CANDIDATES,
        DECODINGS,
        DEFAULT_DECODING,
        USING_ITM,
        agreements,
        draw_numbers,
    )
    from loop_mvaema import Draw, LeavingRows

# Grey level of the image on which nothing is to be seen.
BLANK_GREY = 128

# Those that `generate` lacks or would do otherwise.
_OURS = {*CANDIDATES, *DECODINGS["contrast"]}
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
        elif decoding.name == "greedy":
            ids = self.generate(**inputs, **self._leaving(decoding.generate))
        elif "seed" not in decoding.options:
            ids = self.generate(**inputs, **decoding.generate)
        else:
            return self._picked(inputs, decoding)
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def _leaving(self, options: Mapping) -> dict:
        """Options of `generate`, with a loop that complete rows leave. Not where there is no cache
        of which rows could be selected, and not where several processes go in step."""
        settings = self.generation_config
        able = options.get("use_cache", settings.use_cache) is not False
        able &= not options.get("cache_implementation", settings.cache_implementation)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            able &= torch.distributed.get_world_size() == 1
        if not able:
            return dict(options)
        return {**options, "custom_generate": LeavingRows(options.get("streamer"))}

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
        rows_of_prompts = zip(ids.cpu(), mask.cpu().bool(), strict=True)
        prompts = [row[kept].numpy() for row, kept in rows_of_prompts]
        numbers = draw_numbers(
            pixels.float().cpu().numpy(),
            prompts,
            options["seed"],
            draws,
            self.config.max_position_embeddings,
        )
        processors = [
            TemperatureLogitsWarper(options["temperature"]),
            TopPLogitsWarper(options["top_p"]),
            Draw(torch.from_numpy(numbers)),
        ]
        found = self.generate(
            input_ids=ids.repeat_interleave(count, dim=0),
            attention_mask=mask.repeat_interleave(count, dim=0),
            encoder_outputs=dataclasses.replace(memory, questions=rows),
            **self._leaving(_with_processors(decoding, processors)),
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
    "BlankContrast",
    "Decoding",
    "MVaEMaDecodingMixin",
]
