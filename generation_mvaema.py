"""Generation, and the methods of a student for people: `answer`, `support` and `classify`.

What is special about it:
- decoding is transformers' own `generate` (how, `decoding_mvaema.py` says). The prompt encoder that
  it calls once keeps the keys and values of each image (`MVaEMaMemory`), so all questions about an
  image, and all candidates for their answers, share them;
- `answer`, `support` and `classify` take pictures and words: the checkpoint's own processor,
  questions and categories come with it.

This file travels with those that it imports: `save_pretrained` and `push_to_hub` copy all of them
into the model repository.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import ModelOutput

try:  # inside a model repository, where transformers loads this file as part of a package
    from .decoding_mvaema import MVaEMaDecodingMixin
    from .lengths_mvaema import measured_answers
    from .losses_mvaema import lm_losses, shift_right
except ImportError:  # from the project's root
    from decoding_mvaema import MVaEMaDecodingMixin
    from lengths_mvaema import measured_answers
    from losses_mvaema import lm_losses, shift_right


@dataclass
class MVaEMaMemory(ModelOutput):
    """
    What the decoder attends to.

    Args:
        last_hidden_state (`Tensor` of shape `(batch, memory_length, hidden_size)`): [V ; M].
        images (`tuple` of pairs of `Tensor` of shape `(images, heads, image tokens, head_dim)`):
            for each layer keys and values of V, once for the rows that share an image.
        questions (`Tensor` of shape `(batch, length, hidden_size)`): M by itself; with `images`
            it is all that the decoder reads.
        hidden_states, attentions (`tuple` of `Tensor`): of the encoder that reads the question,
            where they were asked for.
    """

    last_hidden_state: Tensor | None = None
    images: tuple[tuple[Tensor, Tensor], ...] | None = None
    questions: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MVaEMaCache(EncoderDecoderCache):
    """The decoder's cache, for a decoding loop of one's own.

    Attributes:
        images: as in `MVaEMaMemory`. The cross-attention cache holds keys and values of M only.
    """

    def __init__(
        self,
        self_attention_cache: Cache,
        cross_attention_cache: Cache,
        images: tuple[tuple[Tensor, Tensor], ...] | None = None,
    ):
        super().__init__(self_attention_cache, cross_attention_cache)
        self.images = images

    @classmethod
    def empty(
        cls, config: PreTrainedConfig, images: tuple[tuple[Tensor, Tensor], ...] | None
    ) -> "MVaEMaCache":
        return cls(DynamicCache(config=config), DynamicCache(config=config), images)


class MVaEMaPromptEncoder(nn.Module):
    """What `generate` calls once per prompt: pixels and prompt ids in, the decoder's memory out."""

    main_input_name = "input_ids"

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
    ) -> MVaEMaMemory:
        return self.model.encode_prompt(
            pixel_values,
            input_ids if inputs_embeds is None else inputs_embeds,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )


class MVaEMaGenerationMixin(MVaEMaDecodingMixin):
    """What `MVaEMaModel` adds to `generate`: its processor, and methods for people."""

    _processor = None

    def generate(self, *args, **kwargs):
        """As in transformers, but a `max_length` here goes before the checkpoint's own
        `max_new_tokens`."""
        if kwargs.get("max_length") is not None:
            kwargs.setdefault("max_new_tokens", None)
        return super().generate(*args, **kwargs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.image_encoder if modality == "image" else MVaEMaPromptEncoder(self)

    @property
    def processor(self):
        """The processor that belongs to this checkpoint, loaded from its folder when first used.

        Raises:
            ValueError: the model was not loaded from a folder or hub; set `model.processor`.
        """
        if self._processor is None:
            try:
                from .processing_mvaema import MVaEMaProcessor
            except ImportError:
                from processing_mvaema import MVaEMaProcessor
            if not self.name_or_path:
                raise ValueError(
                    "this model was not loaded from a checkpoint, so it does not know its "
                    "processor. Set it: model.processor = processor."
                )
            self._processor = MVaEMaProcessor.from_pretrained(self.name_or_path)
        return self._processor

    @processor.setter
    def processor(self, processor):
        self._processor = processor

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: str | Sequence[str] | None = None,
        captions: str | Sequence[str | None] | None = None,
        pixel_size_nm: float | Sequence[float | None] | None = None,
        scale_bars: str | Sequence[str | None] | None = None,
        measurements: str | Sequence[str | None] | None = None,
        batch_size: int = 8,
        decoding: str | None = None,
        **options,
    ) -> str | list | dict:
        """Answer questions about micrographs; each image is encoded once for all its questions.

        Args:
            images: one image (PIL, numpy, path) or a list of them.
            questions: one question, a list of them, or `None` for the checkpoint's own
                (`config.questions`). All are asked about every image.
            captions, pixel_size_nm, scale_bars: what is known of the image (of each image when a
                list is given): the caption that names its category, the length of one pixel in
                nanometres, the length its scale bar states.
            measurements: what was measured in the image, as one text for an image or a list of
                them ("Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %)."). The answers to
                `basics`, `size_distribution` and other questions about sizes then end with it,
                and their sentences that contradict it by more than 25 % say so
                (`lengths_mvaema.py`). `mvaema measure` measures.
            batch_size: images per forward pass; fewer where several answers to each question are
                decoded.
            decoding: how, one of `DECODINGS` (`decoding_mvaema.py` explains them): "greedy",
                "beam", "sample", "consensus", "contrast", "rerank", "consensus+itm".
                `default_decoding` when `None`, unless `options` say how to decode.
            options: of `generate` (`max_new_tokens=64`, `repetition_penalty=1.2`, ...), and those
                of the decoding.

        Returns:
            for one image the answer, the list of answers, or with `questions=None` a dictionary
            from question id to answer; for a list of images the list of these.

        Raises:
            ValueError: there is no such decoding, it contradicts an option, or it needs a matching
                head that was not trained; there are no questions; or one of `captions`,
                `pixel_size_nm`, `scale_bars` and `measurements` is not there for each image.
        """
        chosen = self.check_decoding(decoding, **options)
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        if questions is None:
            texts = list(self.config.questions.values())
        else:
            texts = [questions] if isinstance(questions, str) else list(questions)
        if not texts:
            raise ValueError("questions is empty: ask at least one.")
        if measurements is not None:  # before answers are decoded, which takes long
            measurements = _one_each("measurements", measurements, len(images))
        known = {"captions": captions, "pixel_size_nm": pixel_size_nm, "scale_bars": scale_bars}
        known = {
            k: v if isinstance(v, list | tuple) else [v] * len(images) for k, v in known.items()
        }
        answers, at_once = [], max(1, batch_size // chosen.candidates)
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            inputs = self._processed(
                images=images[part],
                text=[texts] * len(images[part]),
                **{name: values[part] for name, values in known.items()},
            )
            answers += self._decoded(inputs, chosen)
        rows = [answers[i : i + len(texts)] for i in range(0, len(answers), len(texts))]
        if measurements is not None:
            rows = [
                measured_answers(row, texts, self.config.questions, measurement)
                for row, measurement in zip(rows, measurements, strict=True)
            ]
        if questions is None:
            rows = [dict(zip(self.config.questions, row, strict=True)) for row in rows]
        elif isinstance(questions, str):
            rows = [row[0] for row in rows]
        return rows[0] if single else rows

    @torch.no_grad()
    def answer_prompts(
        self, inputs: BatchFeature, decoding: str | None = None, **options
    ) -> list[str]:
        """Answer what the processor made of images and questions, for batches of one's own.

        Args:
            inputs: `pixel_values`, `input_ids` and `attention_mask`, with as many prompts for each
                image, one image's after the other.
            decoding, options: as in `answer`.

        Returns:
            an answer to each prompt.

        Raises:
            ValueError: as in `answer`.
        """
        chosen = self.check_decoding(decoding, **options)
        return self._decoded(
            inputs if self.device.type == "meta" else inputs.to(self.device), chosen
        )

    @torch.no_grad()
    def support(self, images, answers, batch_size: int = 8) -> float | list | dict:
        """The probability, by the matching head, that each answer is true of its micrograph.

        It is a method of its own because any text can be asked about: an answer of this student, of
        another one, of a person.

        Args:
            images: one image (PIL, numpy, path) or a list of them.
            answers: what `answer` returns for them: for one image a text, a list of texts, or a
                dictionary of texts; for a list of images the list of these.
            batch_size: images encoded at once.

        Returns:
            a probability in place of each text, 0 for a blank one.

        Raises:
            ValueError: there are not as many answers as images, or the matching head was not
                trained.
        """
        self._check_matching("support")
        single = not isinstance(images, list | tuple)
        images, rows = ([images], [answers]) if single else (list(images), list(answers))
        if len(images) != len(rows):
            raise ValueError(f"{len(images)} images and answers about {len(rows)}: give as many.")
        found = []
        for start in range(0, len(images), batch_size):
            pixels = self._processed(images=images[start : start + batch_size])
            states = self.image_encoder(pixels["pixel_values"])
            for state, row in zip(states, rows[start:], strict=False):
                texts = (
                    [row] if isinstance(row, str) else list(getattr(row, "values", row.__iter__)())
                )
                fits = self._match_logits(state.unsqueeze(0), texts).sigmoid().tolist()
                if isinstance(row, Mapping):
                    fits = dict(zip(row, fits, strict=True))
                found.append(fits[0] if isinstance(row, str) else fits)
        return found[0] if single else found

    @torch.no_grad()
    def classify(
        self,
        images,
        categories: Mapping[str, str] | None = None,
        by: str = "itc",
        batch_size: int = 8,
        views: int = 1,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Rank categories by their captions, best first; the image's own caption is not given.

        Args:
            images: one image (PIL, numpy, path) or a list of them.
            categories: category to the caption that names it; the checkpoint's own
                (`config.categories`) when `None`.
            by: "itc", softmax over the similarities of image and caption; "itm", the matching
                head's probability of each caption (they need not sum to 1); "lm", softmax over
                the decoder's log-likelihoods of the captions as answers to
                `config.category_question`; "itc+itm", softmax over the sum of the logarithms of
                the first two.
            batch_size: images per forward pass.
            views: how many of the 8 flips and quarter turns of each image are looked at, itself
                first; their log-probabilities are averaged.

        Returns:
            category to score in falling order, one dictionary per image.

        Raises:
            ValueError: `by` or `views` is none of these, or there are no categories.
        """
        rankers = {
            "itc": self._scores_itc,
            "itm": self._scores_itm,
            "lm": self._scores_lm,
            "itc+itm": lambda *given: self._scores_itc(*given) + self._scores_itm(*given),
        }
        if by not in rankers:
            raise ValueError(f"by must be one of {', '.join(rankers)}; got {by!r}.")
        if views not in range(1, 9):
            raise ValueError(f"views must be from 1 to 8; got {views!r}.")
        categories = dict(self.config.categories if categories is None else categories)
        if not categories:
            raise ValueError("categories is empty: name at least one, with its caption.")
        single = not isinstance(images, list | tuple)
        images = [images] if single else list(images)
        captions, ranked = list(categories.values()), []
        for start in range(0, len(images), batch_size):
            pixels = self._processed(images=images[start : start + batch_size])["pixel_values"]
            shown = [rankers[by](_view(pixels, i), captions) for i in range(views)]
            scores = torch.stack(shown).mean(dim=0)
            scores = scores.exp() if by == "itm" else scores.softmax(dim=-1)
            for row in scores.tolist():
                pairs = zip(categories, row, strict=True)
                ranked.append(dict(sorted(pairs, key=lambda pair: -pair[1])))
        return ranked[0] if single else ranked

    # ---- how categories are ranked ---------------------------------------------------------------

    def _processed(self, **inputs) -> BatchFeature:
        """The processor's tensors, on the model's device; accelerate moves those of a model that is
        offloaded, which has none."""
        tensors = self.processor(**inputs)
        return tensors if self.device.type == "meta" else tensors.to(self.device)

    def _scores_itc(self, pixel_values: Tensor, captions: list[str]) -> Tensor:
        """Log-probabilities (images, captions), as those below."""
        texts = self._processed(statements=captions)
        logits = self(pixel_values=pixel_values, **texts, return_loss=False).logits_per_image
        return logits.log_softmax(dim=-1)

    def _scores_itm(self, pixel_values: Tensor, captions: list[str]) -> Tensor:
        states = self.image_encoder(pixel_values)
        logits = self._match_logits(states, captions * len(pixel_values))
        return nn.functional.logsigmoid(logits.view(len(pixel_values), len(captions)))

    def _scores_lm(self, pixel_values: Tensor, captions: list[str]) -> Tensor:
        inputs = self._processed(
            text=[self.config.category_question] * len(pixel_values),
            answers=captions * len(pixel_values),
        )
        mask, labels = inputs["attention_mask"], inputs["labels"]
        memory = self.encode_prompt(pixel_values, inputs["input_ids"], mask)
        # The question is encoded once per image, for all captions.
        rows = memory.questions.repeat_interleave(len(captions), dim=0)
        start, pad = self.config.dec_token_id, self.config.pad_token_id
        logits = self(
            encoder_outputs=dataclasses.replace(memory, questions=rows),
            attention_mask=mask.repeat_interleave(len(captions), dim=0),
            decoder_input_ids=shift_right(labels, start, pad),
        ).logits
        likelihoods = -lm_losses(logits, labels).sum(dim=1)
        return likelihoods.view(len(pixel_values), len(captions)).log_softmax(dim=-1)


def _one_each(name: str, values: str | Sequence[str | None], count: int) -> Sequence[str | None]:
    """One value for each of `count` images."""
    values = [values] * count if isinstance(values, str) else values
    if len(values) != count:
        raise ValueError(f"{name}: expected {count}, one per image; got {len(values)}.")
    return values


def _view(pixel_values: Tensor, number: int) -> Tensor:
    """One of the eight symmetries of a square: 0 the image, 1 mirrored, then turned by 90° each."""
    mirrored = pixel_values.flip(-1) if number % 2 else pixel_values
    return mirrored.rot90(number // 2, (-2, -1))


__all__ = ["MVaEMaCache", "MVaEMaGenerationMixin", "MVaEMaMemory", "MVaEMaPromptEncoder"]
