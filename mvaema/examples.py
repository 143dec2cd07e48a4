"""What the student is fed: prompts, answers and statements drawn from a micrograph dataset.

What is special about it:
- what is drawn for a micrograph depends on the seed, the epoch and its row alone, whatever the
  number of workers and processes, so that a run can be repeated and resumed;
- caption and scale are dropped at random, so that the student answers with and without them;
- the texts of ITC/ITM pairs are statements about the image (its caption, an answer), never the
  bare question;
- augmentation keeps a micrograph true: mirror images and quarter turns.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import Sampler

from mvaema.dataset import decode_image
from processing_mvaema import MVaEMaProcessor

TRANSPOSES = (None, *Image.Transpose)


class MicrographExamples(torch.utils.data.Dataset):
    """Micrographs with prompts and answers, and two statements each.

    Args:
        dataset: rows of the micrograph schema.
        questions_per_image: questions drawn for each micrograph; the category question is one of
            those to draw from where the caption is known.
        seed: of all draws.
        training: draw, drop and augment; otherwise all questions, without caption, with scale, on
            the image as it is.
        drop: probability to drop the caption, and the scale, from a prompt.
    """

    def __init__(
        self,
        dataset: Dataset,
        category_question: str,
        questions_per_image: int = 4,
        seed: int = 0,
        training: bool = True,
        drop: float = 0.5,
    ):
        self.dataset = dataset
        self.category_question = category_question
        self.questions_per_image = questions_per_image
        self.seed = seed
        self.training = training
        self.drop = drop

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        """Row `index % len(self)` as drawn in epoch `index // len(self)`."""
        epoch, index = divmod(index, len(self))
        row = self.dataset[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        answered = [(qa["question"], qa["answer"]) for qa in row["qa"] if qa["outcome"] == "ok"]
        caption, scale_bar, image = row["caption"], row["scale_bar"], decode_image(row)
        pairs = list(answered)
        if caption:
            pairs.append((self.category_question, caption))
        if self.training:
            count = min(self.questions_per_image, len(pairs))
            transpose = TRANSPOSES[rng.integers(len(TRANSPOSES))]
            image = image if transpose is None else image.transpose(transpose)
            pairs = [pairs[i] for i in rng.choice(len(pairs), count, replace=False)]
            picks = rng.integers(len(answered), size=2)
            first, second = (answered[i][1] for i in picks)
            both = caption and rng.random() < 0.5
        else:
            first, second, both = answered[0][1], answered[-1][1], False
        prompts, answers = [], []
        for question, answer in pairs:
            # The caption would give the category away.
            hidden = question == self.category_question
            show_caption = self.training and not hidden and rng.random() >= self.drop
            show_scale = not self.training or rng.random() >= self.drop
            width = row["pixel_size_nm"] and row["pixel_size_nm"] * image.width
            prompts.append(
                MVaEMaProcessor.prompt(
                    question,
                    caption=caption if show_caption else None,
                    field_of_view_nm=width if show_scale else None,
                    scale_bar=scale_bar if show_scale else None,
                )
            )
            answers.append(answer)
        return {
            "image": image,
            "image_id": row["image_id"],
            "prompts": prompts,
            "answers": answers,
            # The caption alone, where it is known, and an answer with or without it.
            "statements": [caption or first, f"{caption} {second}" if both else second],
        }


class EpochSampler(Sampler[int]):
    """A new permutation each epoch, and the epoch itself in the index (see `MicrographExamples`).

    `set_epoch` decides the epoch, so that a resumed run draws what the uninterrupted one would.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        return iter((rng.permutation(self.length) + self.epoch * self.length).tolist())


class Collator:
    """Examples to the model's inputs; every micrograph of a batch has as many questions."""

    def __init__(self, processor: MVaEMaProcessor):
        self.processor = processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        # Rows must share out evenly: a micrograph with fewer questions repeats its own.
        most = max(len(example["prompts"]) for example in examples)

        def rows(column: str) -> list[str]:
            texts = [example[column] for example in examples]
            return [text[i % len(text)] for text in texts for i in range(most)]

        return dict(
            self.processor(
                images=[example["image"] for example in examples],
                text=rows("prompts"),
                answers=rows("answers"),
                statements=[example["statements"] for example in examples],
            )
        )
