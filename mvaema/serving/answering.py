"""A batch of prompts to answers, in one forward pass where they share its shape.

What is special about it:
- equal images are encoded once, whoever sent them;
- where one answer to a prompt is decoded, each word is passed on once the next begins. Where
  several are (consensus), the answer is known at the end only;
- a batch that nobody waits for any more is given up in the middle.
"""

import re
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from modeling_mvaema import MVaEMaModel
from mvaema.serving.batching import Answer, Job

# The last word of a text, which the next token may change, and the space before it.
LAST_WORD = re.compile(r"\s*\S*\Z")
# transformers does not hand out the words of a beam search.
WITHOUT_WORDS = ("beam",)


class Answering:
    """Answers batches of jobs with one student."""

    def __init__(self, model: MVaEMaModel):
        self.model = model

    @torch.inference_mode()
    def __call__(self, jobs: list[Job]) -> None:
        """Tell each job its answer. Their prompts have equal options."""
        for images in _alike(jobs):
            if not all(job.withdrawn for image in images for job in image):
                self._answer(images)

    def _answer(self, images: list[list[Job]]) -> None:
        """Answer as many jobs about each of several images."""
        model, jobs = self.model, [job for image in images for job in image]
        ids = [job.prompt.input_ids for job in jobs]
        pad = model.config.pad_token_id
        inputs = BatchFeature(
            {
                "pixel_values": torch.cat([image[0].prompt.pixel_values for image in images]),
                "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
                "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            }
        )
        options = dict(jobs[0].prompt.options)
        if options["decoding"] == "sample":
            options.setdefault("seed", secrets.randbelow(2**31))
        words = Words(jobs, model.processor.tokenizer, _ends(model.generation_config.eos_token_id))
        if options["decoding"] not in WITHOUT_WORDS:
            options["streamer"] = words
        options["stopping_criteria"] = StoppingCriteriaList([Abandoned(jobs)])
        texts = model.answer_prompts(inputs, **options)
        for row, (job, text) in enumerate(zip(jobs, texts, strict=True)):
            tokens, ended = words.of(row, text)
            job.tell(Answer(text, tokens, not ended and tokens >= options["max_new_tokens"]))


def _alike(jobs: list[Job]) -> Iterator[list[list[Job]]]:
    """Jobs by image, in groups with as many about each: the prompt encoder needs them so."""
    of_image: dict[bytes, list[Job]] = defaultdict(list)
    for job in jobs:
        of_image[job.prompt.image].append(job)
    of_count: dict[int, list[list[Job]]] = defaultdict(list)
    for image in of_image.values():
        of_count[len(image)].append(image)
    yield from of_count.values()


def _ends(ids: int | list[int] | None) -> set[int]:
    """The tokens of a generation configuration that end an answer: one, or any of several."""
    return set(ids) if isinstance(ids, list) else {ids}


class Words(BaseStreamer):
    """What `generate` writes, token by token, for every row.

    Args:
        jobs: to which texts are told as they come, where there is one row for each and it wants to.
        tokenizer: of the student.
        ends: the tokens that end an answer.
    """

    def __init__(self, jobs: Sequence[Job], tokenizer, ends: Collection[int]):
        self.jobs, self.tokenizer, self.ends = jobs, tokenizer, ends
        self.rows: list[list[int]] = []
        self.ended: list[bool] = []
        self.told = [""] * len(jobs)

    def put(self, value: Tensor) -> None:
        """The rows' first token, which begins every answer, and then one more for each."""
        if not self.rows:
            self.rows, self.ended = [[] for _ in value], [False] * len(value)
            return
        for row, token in enumerate(value.view(-1).tolist()):
            if self.ended[row]:
                continue  # padding
            self.rows[row].append(token)
            self.ended[row] = token in self.ends
            if len(self.rows) == len(self.jobs) and self.jobs[row].in_pieces:
                self._tell(row)

    def end(self) -> None:
        """All rows are written; their jobs are told with the answer."""

    def _tell(self, row: int) -> None:
        text = LAST_WORD.sub("", self._text(row), count=1)
        if text.startswith(self.told[row]) and text != self.told[row]:
            self.jobs[row].tell(text[len(self.told[row]) :])
            self.told[row] = text

    def _text(self, row: int) -> str:
        return self.tokenizer.decode(self.rows[row], skip_special_tokens=True)

    def of(self, job: int, text: str) -> tuple[int, bool]:
        """How many tokens a job's answer has, and whether it came to its end."""
        each = len(self.rows) // len(self.jobs)
        for row in range(job * each, job * each + each):
            if self._text(row) == text:
                return len(self.rows[row]), self.ended[row]
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return len(ids) + 1, False


class Abandoned(StoppingCriteria):
    """Stops decoding when no job of the batch is wanted any more."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs = jobs

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        given_up = all(job.withdrawn for job in self.jobs)
        return torch.full((len(input_ids),), given_up, device=input_ids.device)
