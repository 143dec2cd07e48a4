"""Turns micrographs, questions and answers into tensors for MVaEMa, and token ids back into text.

What is special about it:
- any micrograph goes in: a PIL image, a numpy array or a path; 8-bit or deeper, grey, RGBA or
  palette (`pixels_mvaema.to_8bit`);
- the tokenizer is lossless: µ, ±, ×, Å and line breaks survive a round trip, and a word such as
  "[EOS]" in a text is only a word;
- text that is too long is cut with a warning and a count (`inputs.truncated`), never silently.

This file travels with those that it imports: `save_pretrained` and `push_to_hub` copy all of them
into the model repository.
"""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_class_in_module, init_hf_modules
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import BatchFeature, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

try:  # inside a model repository, where transformers loads this file as part of a package
    from .pixels_mvaema import to_8bit
    from .prompt_mvaema import prompt
except ImportError:  # from the project's root
    from pixels_mvaema import to_8bit
    from prompt_mvaema import prompt

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[ENC]", "[DEC]", "[EOS]")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}{%- if part.type == 'text' -%}"
    "{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, max_length: int = 256
) -> PreTrainedTokenizerFast:
    """Train a lossless byte-level BPE tokenizer.

    Args:
        texts: questions, captions and answers of the training split.
        vocab_size: maximum number of tokens, including special ones; at least 261.
        max_length: maximum length of a text, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special_tokens(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False),
        max_length,
    )


def _with_special_tokens(tokenizer, max_length: int):
    """A Hugging Face tokenizer with [PAD] [CLS] [ENC] [DEC] [EOS]; those it has are kept."""
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if tokenizer.cls_token is None:
        tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    tokenizer.add_special_tokens({"eos_token": "[EOS]"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]", "[DEC]"]})
    tokenizer.model_max_length = max_length
    return tokenizer


class _Call:
    """What a function returns, pickled as the call."""

    def __init__(self, function: Callable, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Portable:
    """Can be read in another process, which need not have loaded the repository before.

    `datasets` fingerprints what `map` uses by pickling it. It would pickle the code of a class that
    cannot be imported, which is not the same in two processes, and never find its cache.
    """

    def __reduce_ex__(self, protocol):
        module, name = type(self).__module__, type(self).__name__
        if not module.startswith("transformers_modules."):
            return super().__reduce_ex__(protocol)
        found = _Call(get_class_in_module, name, module.replace(".", "/") + ".py")
        # The first of the two makes what the class's module imports importable.
        found = _Call(operator.getitem, (_Call(init_hf_modules), found), 1)
        return object.__new__, (found,), self.__getstate__()


class MVaEMaImageProcessor(PilBackend, Portable):
    """Micrographs to `pixel_values`; always with Pillow, never with torchvision.

    They lie in [-1, 1] unless a vision model wants another mean and deviation.
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    image_mean = 0.5
    image_std = 0.5

    def preprocess(self, images, **kwargs) -> BatchFeature:
        """One image or many, of any kind that `to_8bit` takes, as `pixel_values`."""
        return super().preprocess([to_8bit(image) for image in _flat(images)], **kwargs)

    def process_image(self, image, size=None, do_resize=True, **kwargs) -> np.ndarray:
        """One PIL image of mode L or RGB -> uint8 (1 or 3, height, width)."""
        if do_resize:
            # Resized here, as 8 bits: a third of the work for grey images, and `reducing_gap` lets
            # Pillow shrink large micrographs in two steps without a visible difference.
            image = image.resize(
                (size.width, size.height), kwargs.get("resample", self.resample), reducing_gap=3.0
            )
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)

    def normalize(self, image: np.ndarray, mean, std, **kwargs) -> np.ndarray:
        """As in transformers; grey images have three channels where the mean has."""
        if not isinstance(mean, float | int):
            image = np.broadcast_to(image, (len(mean), *image.shape[1:]))
        return super().normalize(image, mean, std, **kwargs)

    def _preprocess(self, images, do_resize=None, return_tensors=None, **kwargs) -> BatchFeature:
        features = super()._preprocess(images, do_resize=False, return_tensors=None, **kwargs)
        pixels = [
            np.broadcast_to(image, (3, *image.shape[1:])) for image in features["pixel_values"]
        ]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class ProcessedInputs(BatchFeature, Portable):
    """Tensors by name, and `truncated`: input -> number of tokens cut from each of its texts."""

    def __init__(self, data: dict[str, torch.Tensor], truncated: dict[str, list[int]]):
        super().__init__(data)
        self.truncated = truncated

    def __getstate__(self):
        return super().__getstate__() | {"truncated": self.truncated}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.truncated = state["truncated"]


class MVaEMaProcessorKwargs(ProcessingKwargs, total=False):
    """What may be said of images and texts, flat or in `images_kwargs` and `text_kwargs`."""


# Of the arguments that tokenizers take, those that mean something for a prompt, and those that
# transformers' pipelines pass to every processor.
TEXT_KWARGS = {"max_length", "padding", "return_tensors"}
OF_PIPELINES = {"truncation", "add_special_tokens"}


class MVaEMaProcessor(ProcessorMixin, Portable):
    """Image processor, tokenizer and the form of the prompt in one.

    Args:
        image_processor ([`MVaEMaImageProcessor`]): for the micrographs.
        tokenizer: any tokenizer with [PAD] [CLS] [ENC] [DEC] [EOS]. Texts are cut at its
            `model_max_length`.
        chat_template (`str`, *optional*): for `apply_chat_template`.

    Raises:
        ValueError: the tokenizer lacks one of these tokens.
    """

    valid_processor_kwargs = MVaEMaProcessorKwargs

    def __init__(self, image_processor, tokenizer, chat_template: str = CHAT_TEMPLATE):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        missing = [t for t in ("[ENC]", "[DEC]", "[EOS]") if t not in tokenizer.get_vocab()]
        if missing or tokenizer.pad_token is None or tokenizer.cls_token is None:
            raise ValueError(
                "the tokenizer needs the special tokens [PAD] [CLS] [ENC] [DEC] [EOS]. Build the "
                "processor with MVaEMaProcessor.from_tokenizer, which adds missing ones."
            )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer,
        image_size: int = 224,
        max_length: int = 256,
        images: Mapping | None = None,
    ) -> "MVaEMaProcessor":
        """A processor with a tokenizer, to which missing special tokens are added.

        Args:
            tokenizer: a tokenizer, or its name or folder.
            image_size: images are resized to a square of this side, in pixels.
            max_length: maximum length of a text, in tokens.
            images: fields of [`MVaEMaImageProcessor`] that differ from its own, such as the
                `image_mean` of a vision model.
        """
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        size = {"height": image_size, "width": image_size}
        image_processor = MVaEMaImageProcessor(size=size, **(images or {}))
        return cls(image_processor, _with_special_tokens(tokenizer, max_length))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "MVaEMaProcessor":
        """Load a processor from a folder or Hub id.

        Both parts are loaded by their own class. AutoImageProcessor, which the library would ask,
        would want this very file to be trusted as remote code a second time.
        """
        name = pretrained_model_name_or_path
        kwargs.pop("trust_remote_code", None)
        parts = [
            MVaEMaImageProcessor.from_pretrained(name, **kwargs),
            PreTrainedTokenizerFast.from_pretrained(name, **kwargs),
        ]
        fields, kwargs = cls.get_processor_dict(name, **kwargs)
        return cls.from_args_and_dict(parts, fields, **kwargs)

    def token_fields(self) -> dict[str, int]:
        """The fields of the model's configuration that depend on the tokenizer."""
        ids = self.tokenizer.convert_tokens_to_ids
        return {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "cls_token_id": self.tokenizer.cls_token_id,
            "enc_token_id": ids("[ENC]"),
            "dec_token_id": ids("[DEC]"),
            "eos_token_id": ids("[EOS]"),
        }

    prompt = staticmethod(prompt)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        captions: str | Sequence[str | None] | None = None,
        pixel_size_nm: float | Sequence[float | None] | None = None,
        scale_bars: str | Sequence[str | None] | None = None,
        answers: str | Sequence[str] | None = None,
        statements: str | Sequence[str] | None = None,
        **kwargs: Unpack[MVaEMaProcessorKwargs],
    ) -> ProcessedInputs:
        """Tensors of all that is given, padded to the longest text of the batch.

        Args:
            images: one image or many (PIL, numpy, path; see `to_8bit`).
            text: questions, one or n per image: as nested lists, or as a flat list with the n
                questions of each image one after the other.
            captions, pixel_size_nm, scale_bars: for the prompt, one for all or one per image
                (`None` if unknown). Without images, one per text.
            answers: for training, one or several per question.
            statements: for ITC and ITM, n texts per image that are true of it.
            kwargs: `max_length`, to cut texts there instead of at the tokenizer's
                `model_max_length`; `padding="max_length"`, to pad them to it; and what the image
                processor takes (`do_resize`, `size`, ...). `truncation` and `add_special_tokens`
                are taken too, since pipelines pass them, and change nothing.

        Returns:
            `pixel_values`, `input_ids`, `attention_mask`, `labels`, `statement_ids` and
            `statement_mask`, for the inputs given. The attribute `truncated` maps the name of an
            input to the number of tokens cut from each text.

        Raises:
            TypeError: an argument is unknown.
            ValueError: an image cannot be read, a text is empty, or the counts do not match.
        """
        of_images, max_length, pad_to = self._options(kwargs)
        data, truncated = {}, {}
        if images is not None:
            # Decoded here, once: the prompt may need the width.
            images = [to_8bit(image) for image in _flat(images)]
            data |= self.image_processor(images, **of_images)
        if text is not None:
            questions = _flat(text)
            rows = images if images is not None else questions
            known = self._known(rows, captions, pixel_size_nm, scale_bars)
            prompts = self._prompts(questions, known)
            data["input_ids"], data["attention_mask"], truncated["text"] = self._encode(
                prompts, max_length, pad_to, first=self.tokenizer.convert_tokens_to_ids("[ENC]")
            )
        if answers is not None:
            ids, mask, truncated["answers"] = self._encode(
                _flat(answers),
                max_length,
                pad_to,
                last=self.tokenizer.convert_tokens_to_ids("[EOS]"),
            )
            data["labels"] = ids.masked_fill(mask == 0, -100)
        if statements is not None:
            data["statement_ids"], data["statement_mask"], truncated["statements"] = self._encode(
                _flat(statements), max_length, pad_to, first=self.tokenizer.cls_token_id
            )
        if not data:
            raise ValueError("nothing to process: give images, text, answers or statements.")
        return ProcessedInputs(data, truncated)

    def _options(self, kwargs: dict) -> tuple[dict, int, int]:
        """What the image processor is called with, the longest text, and what texts are padded to.

        Raises:
            TypeError, ValueError: see `__call__`.
        """
        of_images = set(self.image_processor.valid_kwargs.__annotations__)
        flat = {name for name, value in kwargs.items() if value is not None}
        flat -= {"images_kwargs", "text_kwargs", "common_kwargs", "videos", "audio"}
        of_text = set(kwargs.get("text_kwargs") or ())
        unknown = (flat - of_images | of_text) - TEXT_KWARGS - OF_PIPELINES
        unknown |= set(kwargs.get("images_kwargs") or ()) - of_images
        unknown |= {name for name in ("videos", "audio") if kwargs.get(name)}
        if unknown:
            raise TypeError(f"MVaEMaProcessor does not take {', '.join(sorted(unknown))}.")
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text, images = merged["text_kwargs"], merged["images_kwargs"]
        for given in (text, images):
            if given.setdefault("return_tensors", "pt") != "pt":
                raise ValueError(
                    "return_tensors must be 'pt', or None for the same; got "
                    f"{given['return_tensors']!r}."
                )
        max_length = text.get("max_length") or self.tokenizer.model_max_length
        return images, max_length, max_length if text.get("padding") == "max_length" else 0

    def _prompts(self, questions: list[str], known: list[dict]) -> list[str]:
        """The prompts of n consecutive questions for each image of which something is `known`."""
        if len(questions) % len(known):
            raise ValueError(
                f"{len(questions)} questions cannot be divided evenly among {len(known)} images."
            )
        per_image = len(questions) // len(known)
        return [self.prompt(q, **known[i // per_image]) for i, q in enumerate(questions)]

    def _known(self, rows, captions, pixel_size_nm, scale_bars) -> list[dict]:
        """What is known of each row, as keyword arguments for `prompt`."""
        columns = {"captions": captions, "pixel_size_nm": pixel_size_nm, "scale_bars": scale_bars}
        for name, value in columns.items():
            if value is None or isinstance(value, str | float | int):
                columns[name] = [value] * len(rows)
            elif len(value) != len(rows):
                raise ValueError(
                    f"{name}: expected {len(rows)} values, one per image; got {len(value)}."
                )
        known = []
        for row, caption, size, bar in zip(rows, *columns.values(), strict=True):
            if size is not None and isinstance(row, str):
                raise ValueError("pixel_size_nm needs the image too, to know its width.")
            width = None if size is None else size * row.width
            known.append({"caption": caption, "field_of_view_nm": width, "scale_bar": bar})
        return known

    def _encode(
        self,
        texts: list[str],
        max_length: int,
        pad_to: int,
        first: int | None = None,
        last: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Ids and mask (texts, longest), and the number of tokens cut from each text.

        They are padded to the longest text, or to `pad_to` tokens if that is more.
        A text that is cut gets no `last`: an incomplete answer must not teach the student to stop.
        """
        if any(not text.strip() for text in texts):
            raise ValueError(f"text {[bool(t.strip()) for t in texts].index(False)} is empty.")
        # A special token's name in a text is only a word; the real ones are added below.
        encoded = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        rows, lost = [], []
        for ids in encoded:
            ids = ([] if first is None else [first]) + ids + ([] if last is None else [last])
            rows.append(ids[:max_length])
            lost.append(max(0, len(ids) - max_length))
        if any(lost):
            logger.warning(
                "%d of %d texts are longer than %d tokens and were cut, by %d tokens at most.",
                sum(map(bool, lost)),
                len(lost),
                max_length,
                max(lost),
            )
        lengths = torch.tensor([len(row) for row in rows])
        pad, width = self.tokenizer.pad_token_id, max(pad_to, *map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), lost


def _flat(values) -> list:
    """A value, (nested) lists of values, or an array of images, as a flat list."""
    if getattr(values, "ndim", 0) == 4:
        return list(values)
    if not isinstance(values, list | tuple):
        return [values]
    return [item for value in values for item in _flat(value)]


MVaEMaImageProcessor.register_for_auto_class()
MVaEMaProcessor.register_for_auto_class()

__all__ = ["MVaEMaImageProcessor", "MVaEMaProcessor", "train_tokenizer"]
