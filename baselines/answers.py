"""Answers to train chat models on, in batches of the model's own inputs.

What is special about it:
- questions, captions, scales and views are drawn as for a student (`mvaema/training/examples.py`),
  and an epoch shows each micrograph with as many of its answers;
- micrographs are shown in full, and the model's own processor resizes them; only a model of random
  weights is built for the image size of the run;
- the validation loss is that of the same few questions each time, as the evaluation asks them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from baselines.data import ORDER
from configuration_mvaema import CATEGORY_QUESTION
from mvaema.evaluation.chats import IGNORED, Chats
from mvaema.micrographs.dataset import DatasetError
from mvaema.training.examples import Draws, Example, ExampleDrawer
from mvaema.training.mixing import draw_rows
from mvaema.training.split import good_answers

VALIDATED = 2  # questions about each micrograph that validates
# What the loss of a batch is not computed from.
COUNTED = "micrographs"


class Answers:
    """The answered micrographs of a part, as batches for a chat model.

    Args:
        rows: in the micrograph schema; those without an answer and a caption are left out.
        counts: float (rows,), how often an epoch shows each; None for once.
        batch_size: answers in a batch, about.
        draws: what is drawn of each micrograph.
        name: what error messages call the part.

    Raises:
        DatasetError: no row is left.
    """

    def __init__(
        self,
        rows: Dataset,
        counts: np.ndarray | None,
        batch_size: int,
        draws: Draws,
        name: str,
    ):
        columns = rows.select_columns(["qa", "caption"])
        told = [i for i, row in enumerate(columns) if good_answers(row["qa"]) or row["caption"]]
        if not told:
            raise DatasetError(f"no micrograph of the {name} part has an answer.")
        self.rows = rows.select(told)
        self.counts = np.ones(len(told)) if counts is None else counts[told]
        self.drawer = ExampleDrawer(CATEGORY_QUESTION, draws)
        self.per_batch = max(1, batch_size // draws.questions_per_image)

    def texts(self) -> list[str]:
        """All questions and answers."""
        columns = self.rows.select_columns(["qa", "caption"])
        pairs = [pair for row in columns for pair in good_answers(row["qa"])]
        captions = [caption for caption in columns["caption"] if caption]
        return [*(text for pair in pairs for text in pair), CATEGORY_QUESTION, *captions]

    def batches(self, chats: Chats, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch in random order, as `answer_loss` takes them."""
        rng = np.random.default_rng([ORDER, self.drawer.draws.seed, epoch])
        shown = np.stack(draw_rows(self.counts, rng), axis=1)
        for part in np.array_split(shown, -(-len(shown) // self.per_batch)):
            # Another showing in the same epoch is another draw.
            numbers = part[:, 0] + len(self.rows) * part[:, 1]
            yield self._batch(chats, part[:, 0], numbers, epoch)

    def plain_batches(self, chats: Chats) -> Iterator[dict[str, Tensor]]:
        """All micrographs, in order, with the texts of the first epoch."""
        for start in range(0, len(self.rows), self.per_batch):
            places = np.arange(start, min(start + self.per_batch, len(self.rows)))
            yield self._batch(chats, places, places, 0)

    def _batch(
        self, chats: Chats, places: np.ndarray, numbers: np.ndarray, epoch: int
    ) -> dict[str, Tensor]:
        examples: list[Example] = [
            self.drawer(self.rows[place], number, epoch)
            for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
        ]
        inputs, labels = chats.examples(
            [example.image for example in examples for _ in example.prompts],
            [prompt for example in examples for prompt in example.prompts],
            [answer for example in examples for answer in example.answers],
        )
        # The loop counts rows of the first tensor.
        return {COUNTED: torch.as_tensor(places), "labels": labels, **inputs}


def training_answers(
    rows: Dataset, counts: np.ndarray | None, batch_size: int, seed: int
) -> Answers:
    """Those to train on.

    Raises:
        DatasetError: there are none.
    """
    return Answers(rows, counts, batch_size, Draws(seed=seed), "training")


def validation_answers(rows: Dataset, batch_size: int) -> Answers:
    """Those to validate on: the same for all seeds.

    Raises:
        DatasetError: there are none.
    """
    draws = Draws(VALIDATED, caption_dropout=1.0, scale_dropout=0.0, augmentation=False)
    return Answers(rows, None, batch_size, draws, "validation")


def answer_losses(chats: Chats, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The sum of the negative log-likelihoods of a batch's answers, in nats, and their tokens."""
    inputs = {n: value for n, value in batch.items() if n not in (COUNTED, "labels")}
    logits, labels = chats.logits(inputs, batch["labels"])
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


def answer_loss(chats: Chats, batch: dict[str, Tensor]) -> Tensor:
    """Per token, as the models' own loss."""
    loss, tokens = answer_losses(chats, batch)
    return loss / tokens


def validation_loss(chats: Chats, answers: Answers) -> float:
    """Per token, over all micrographs of a part."""
    device = chats.model.device
    found = [
        answer_losses(chats, {name: value.to(device) for name, value in batch.items()})
        for batch in answers.plain_batches(chats)
    ]
    return sum(loss.item() for loss, _ in found) / sum(tokens for _, tokens in found)
