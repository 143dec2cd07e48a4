"""A student with torch, as it is served.

What is special about it: its twin shares the weights and has a tokenizer of its own, since a fast
tokenizer must not be used by two threads.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from candidates_mvaema import trained_methods
from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from mvaema.serving.student import Found, Listener, Read
from mvaema.students.loading import complete_model, load_to_answer, model_type
from mvaema.students.places import public_name
from mvaema.students.shipped import NAME_OF_SHIPPED, shipped_student

# transformers does not hand out the words of a beam search.
WITHOUT_WORDS = ("beam",)


class TorchStudent:
    """See `mvaema.serving.student.Student`.

    Args:
        model: with its processor, on its device.
    """

    def __init__(self, model: MVaEMaModel):
        self.model, config = model, model.config
        self.questions, self.default_decoding = dict(config.questions), model.default_decoding
        most = config.max_position_embeddings - 1
        self.longest = min(model.generation_config.max_new_tokens or most, most)
        # One token of a generation configuration ends an answer, or any of several.
        ends = model.generation_config.eos_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}

    def twin(self) -> "TorchStudent":
        shared = {id(p): p for p in (*self.model.parameters(), *self.model.buffers())}
        own = copy.deepcopy(self.model, shared)
        own.processor = copy.deepcopy(self.model.processor)
        return TorchStudent(own)

    def check_decoding(self, **options) -> object:
        return self.model.check_decoding(**options)

    def read(
        self,
        image: Image.Image,
        question: str,
        caption: str | None = None,
        pixel_size_nm: float | None = None,
        scale_bar: str | None = None,
    ) -> Read:
        inputs = self.model.processor(
            images=[image],
            text=[question],
            captions=[caption],
            pixel_size_nm=[pixel_size_nm],
            scale_bars=[scale_bar],
        )
        (cut,) = inputs.truncated["text"]
        return Read(inputs["pixel_values"].numpy(), inputs["input_ids"][0].numpy(), cut)

    @torch.inference_mode()
    def answer(
        self,
        pixel_values: np.ndarray,
        input_ids: Sequence[np.ndarray],
        options: Mapping,
        listener: Listener,
    ) -> list[str]:
        rows = [torch.from_numpy(ids) for ids in input_ids]
        pad = self.model.config.pad_token_id
        inputs = BatchFeature(
            {
                "pixel_values": torch.from_numpy(pixel_values),
                "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad),
                "attention_mask": pad_sequence(list(map(torch.ones_like, rows)), batch_first=True),
            }
        )
        heard = {"stopping_criteria": StoppingCriteriaList([GivenUp(listener)])}
        if options["decoding"] not in WITHOUT_WORDS:
            heard["streamer"] = Heard(listener)
        return self.model.answer_prompts(inputs, **options, **heard)

    def text(self, tokens: Sequence[int]) -> str:
        return self.model.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def count_tokens(self, text: str) -> int:
        ids = self.model.processor.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return len(ids)

    @torch.inference_mode()
    def rank(self, image: Image.Image) -> dict[str, float]:
        methods = trained_methods(vars(self.model.config))
        if not methods:
            return {}
        ranked = self.model.classify(image, by=methods[-1].lower())
        return {name: share / sum(ranked.values()) for name, share in ranked.items()}


class Heard(BaseStreamer):
    """What `generate` writes, passed on to a listener."""

    def __init__(self, listener: Listener):
        self.listener, self.begun = listener, False

    def put(self, value: Tensor) -> None:
        """The rows' first token, which begins every answer, and then one more for each."""
        if self.begun:
            self.listener.wrote(range(len(value)), value.view(-1).tolist())
        self.begun = True

    def end(self) -> None:
        """The answers follow."""


class GivenUp(StoppingCriteria):
    """Stops decoding when a listener wants no answers any more."""

    def __init__(self, listener: Listener):
        self.listener = listener

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        over = self.listener.given_up()
        return torch.full((len(input_ids),), over, device=input_ids.device)


def find_in_torch(source: str | None, root: Path | None) -> Found:
    """See `mvaema.serving.student.find_student`."""
    disable_progress_bar()
    place = source or (shipped_student() if root is None else shipped_student(root))
    kind = model_type(complete_model(place))
    if kind != MVaEMaConfig.model_type:
        raise ValueError(
            f"{place} is not a student of this project: its model_type is {kind!r}, not "
            f"{MVaEMaConfig.model_type!r}. `transformers serve` serves other models."
        )
    name = public_name(place) if source else NAME_OF_SHIPPED
    return Found(place, name, lambda: TorchStudent(load_to_answer(place)))
