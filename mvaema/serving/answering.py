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
from collections.abc import Iterator, Sequence

import numpy as np

from mvaema.serving.batching import Answer, Job
from mvaema.serving.student import Student

# The last word of a text, which the next token may change, and the space before it.
LAST_WORD = re.compile(r"\s*\S*\Z")


class Answering:
    """Answers batches of jobs with one student."""

    def __init__(self, student: Student):
        self.student = student

    def __call__(self, jobs: list[Job]) -> None:
        """Tell each job its answer. Their prompts have equal options."""
        for images in _alike(jobs):
            if not all(job.withdrawn for image in images for job in image):
                self._answer(images)

    def _answer(self, images: list[list[Job]]) -> None:
        """Answer as many jobs about each of several images."""
        jobs = [job for image in images for job in image]
        pixel_values = np.concatenate([image[0].prompt.pixel_values for image in images])
        options = dict(jobs[0].prompt.options)
        if options["decoding"] == "sample":
            options.setdefault("seed", secrets.randbelow(2**31))
        words = Words(jobs, self.student)
        input_ids = [job.prompt.input_ids for job in jobs]
        texts = self.student.answer(pixel_values, input_ids, options, words)
        for number, (job, text) in enumerate(zip(jobs, texts, strict=True)):
            tokens, ended = words.of(number, text)
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


class Words:
    """What a student writes, token by token, for every row: the listener of a batch.

    Args:
        jobs: to which texts are told as they come, where there is one row for each and it wants to.
        student: that writes.
    """

    def __init__(self, jobs: Sequence[Job], student: Student):
        self.jobs, self.student = jobs, student
        self.rows: list[list[int]] = []
        self.ended: list[bool] = []
        self.told = [""] * len(jobs)

    def wrote(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Some rows have one more token each; at first all have."""
        if not self.rows:
            self.rows, self.ended = [[] for _ in rows], [False] * len(rows)
        for row, token in zip(rows, tokens, strict=True):
            if self.ended[row]:
                continue  # padding
            self.rows[row].append(token)
            self.ended[row] = token in self.student.ends
            if len(self.rows) == len(self.jobs) and self.jobs[row].in_pieces:
                self._tell(row)

    def given_up(self) -> bool:
        """Whether no job of the batch is wanted any more."""
        return all(job.withdrawn for job in self.jobs)

    def _tell(self, row: int) -> None:
        text = LAST_WORD.sub("", self.student.text(self.rows[row]), count=1)
        if text.startswith(self.told[row]) and text != self.told[row]:
            self.jobs[row].tell(text[len(self.told[row]) :])
            self.told[row] = text

    def of(self, job: int, text: str) -> tuple[int, bool]:
        """How many tokens a job's answer has, and whether it came to its end."""
        each = len(self.rows) // len(self.jobs)
        for row in range(job * each, job * each + each):
            if self.student.text(self.rows[row]) == text:
                return len(self.rows[row]), self.ended[row]
        return self.student.count_tokens(text) + 1, False
