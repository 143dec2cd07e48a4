"""What a chat model is given: prompts by its own template, and answers as it would write them.

What is special about it:
- an answer is what the model's own template puts after the prompt, up to the token at which the
  model stops. So it is trained on, and scored by, the very tokens that it generates;
- a micrograph's tokens belong to the prompt, and to it alone: a model that reads the prompt a
  second time (InstructBLIP's Q-Former) never reads the answer;
- labels are -100 everywhere but on the answer.

Decoders continue the prompt: it is padded on the left, answers on the right. Encoder-decoders read
the prompt and write the answer; their inputs are those of the prompt, their labels the answer.
"""

import inspect
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from pixels_mvaema import to_8bit

IGNORED = -100


class Chats:
    """The inputs of one chat model.

    Args:
        model: any `image-text-to-text` model of transformers.
        processor: with a chat template. Its padding is changed.
        name: what error messages call the model.

    Attributes:
        reads_first: whether it is an encoder-decoder.
        parameters: names of what its `forward` takes.
        stops: ids of the tokens at which the model stops; the first ends answers that the template
            does not end.

    Raises:
        ValueError: the processor has no chat template, or no token ends an answer.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, name: str):
        self.template = getattr(processor, "chat_template", None)
        if self.template is None:
            raise ValueError(
                f"{name} is not an MVaEMa model and its processor has no chat template, so it "
                "cannot be asked questions. Give a template with --chat_template FILE."
            )
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.reads_first = bool(model.config.is_encoder_decoder)
        self.parameters = frozenset(inspect.signature(model.forward).parameters)
        stops = model.generation_config.eos_token_id
        if stops is None:
            stops = self.tokenizer.eos_token_id
        if stops is None:
            raise ValueError(
                f"{name} has no token that ends an answer: set eos_token_id in its "
                "generation_config.json, or eos_token in its tokenizer_config.json."
            )
        self.stops = tuple(stops) if isinstance(stops, list | tuple) else (stops,)
        # The answer follows the prompt, so padding must come before it.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prompts(self, images: Sequence[Image.Image], texts: Sequence[str]) -> BatchFeature:
        """The model's inputs for a text about each image, ready to be answered."""
        pictures = ({"type": "image", "image": to_8bit(image).convert("RGB")} for image in images)
        conversations = [_asked(*pair) for pair in zip(pictures, texts, strict=True)]
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)

    def examples(
        self, images: Sequence[Image.Image], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The inputs for prompts that are answered, and the labels.

        Returns:
            inputs as `prompts` gives them, for a decoder with the answers behind them, and labels
            (batch, tokens), of as many tokens as `input_ids` or, for an encoder-decoder, as the
            longest answer. They are `IGNORED` everywhere but on the answers.
        """
        inputs = dict(self.prompts(images, texts))
        ids = [self.answer_ids(*pair) for pair in zip(texts, answers, strict=True)]
        tokens, written = self.padded(ids)
        labels = tokens.masked_fill(~written, IGNORED)
        if self.reads_first:
            return inputs, labels
        prompt = inputs["input_ids"]
        behind = {"input_ids": tokens, "attention_mask": written}
        for name, value in inputs.items():
            if name in behind:
                inputs[name] = torch.cat([value, behind[name].to(value.dtype)], dim=1)
            elif runs_along(name, value, prompt):  # an answer is text, as the end of a prompt is
                last = value[:, -1:].repeat_interleave(tokens.shape[1], dim=1)
                inputs[name] = torch.cat([value, last], dim=1)
        return inputs, torch.cat([torch.full_like(prompt, IGNORED), labels], dim=1)

    def logits(self, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (batch, tokens, vocabulary) of `examples`' answers, and their labels.

        The labels (batch, tokens) are those of the answers alone.
        """
        if self.reads_first:
            return self.model(**inputs, labels=labels).logits, labels
        labels = labels[:, (labels != IGNORED).any(dim=0)]  # the answers come last
        count = labels.shape[1]
        logits = self.model(**inputs, **self.last_logits(count + 1)).logits
        return logits[:, -count - 1 : -1], labels

    def last_logits(self, tokens: int) -> dict[str, int]:
        """What has the model compute the logits of the last tokens only, if it can."""
        return {"logits_to_keep": tokens} if "logits_to_keep" in self.parameters else {}

    def answer_ids(self, text: str, answer: str) -> list[int]:
        """The tokens of an answer to a prompt, with the one that ends it."""
        if self.reads_first:
            return self._ended(self.tokenizer(text_target=answer)["input_ids"])
        conversation = _asked({"type": "image"}, text)
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        asked = self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        whole = self.processor.apply_chat_template([*conversation, said])
        # Some templates write no answers, and some put thoughts before them.
        rest = whole.removeprefix(asked) if whole.startswith(asked) else answer
        ids = self._continuation(asked, rest)
        if not any(token in self.stops for token in ids):  # a space may stand for the end
            ids = self._continuation(asked, rest.rstrip())
        return self._ended(ids)

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Answers as one tensor (answers, tokens), padded on the right, and where they are."""
        device = self.model.device
        rows = [torch.tensor(of_answer, device=device) for of_answer in ids]
        padding = self.tokenizer.pad_token_id
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(of_answer) for of_answer in ids], device=device)
        return tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None]

    def _continuation(self, asked: str, rest: str) -> list[int]:
        """The tokens of `rest` behind `asked`; by itself if a token would have parts of both."""
        before, both, alone = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (asked, asked + rest, rest)
        )
        return both[len(before) :] if both[: len(before)] == before else alone

    def _ended(self, ids: list[int]) -> list[int]:
        """Tokens up to the first that stops the model, which is added if there is none."""
        for place, token in enumerate(ids):
            if token in self.stops:
                return ids[: place + 1]
        return [*ids, self.stops[0]]


def runs_along(name: str, value: Tensor, prompt: Tensor) -> bool:
    """Whether an input of the model has an entry for each token of the prompt (batch, tokens)."""
    # A Q-Former has a text of its own, which may happen to be as long.
    return not name.startswith("qformer") and value.shape[:2] == prompt.shape


def _asked(picture: dict, text: str) -> list[dict]:
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
