"""What the student is fed: prompts, answers and statements drawn from a micrograph.

What is special about it:
- what is drawn for a micrograph depends only on the seed, the epoch and its row, not on the number
  of workers and processes, so that a run can be repeated and resumed;
- texts are drawn without decoding the image, so that micrographs can be sorted by their length;
- caption and scale are dropped at random, so that the student answers with and without them;
- the texts of ITC/ITM pairs are statements about the image (its caption, an answer), never the
  bare question;
- the view of a micrograph (`views.py`) is chosen so that the texts drawn for it stay true.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from mvaema.micrographs.dataset import DatasetError, decode_image, image_size
from mvaema.training.features import FeatureStore
from mvaema.training.recipe import Recipe
from mvaema.training.split import good_answers
from mvaema.training.views import CLOSE_UPS, View, survives_close_up
from pixels_mvaema import to_8bit
from processing_mvaema import MVaEMaProcessor

# Streams of random numbers. numpy pads seeds with zeros, so the purpose comes first.
TEXTS, VIEW, NOISE = 1, 2, 3


class Texts(NamedTuple):
    """What is said about a micrograph in an example."""

    pairs: list[tuple[str, str]]  # question, answer
    with_caption: list[bool]  # whether each prompt states the caption
    with_scale: list[bool]  # and the scale
    statements: list[str]
    close_up: bool = False  # whether a close-up is shown; all texts are true of it then


@dataclass
class Example:
    """A micrograph as it is fed.

    Attributes:
        image: None where `features` are known.
        noise_seed: for the noise that `view` adds to the pixels.
        key: the name of the view's features, where a frozen vision model is fed.
        features: these, if they have been computed.
    """

    image: Image.Image | None
    image_id: str
    prompts: list[str]
    answers: list[str]
    statements: list[str]
    view: View
    noise_seed: list[int]
    key: str | None = None
    features: torch.Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """What is drawn at random in training.

    Attributes:
        questions_per_image: questions drawn for each micrograph in an epoch.
        caption_dropout, scale_dropout: probability that a prompt leaves it out.
        augmentation: whether a view is drawn.
        seed: of all draws.
        views: different views of a micrograph that are drawn; 0 for as many as there are draws.
    """

    questions_per_image: int = 4
    caption_dropout: float = 0.5
    scale_dropout: float = 0.5
    augmentation: bool = True
    seed: int = 0
    views: int = 0

    @classmethod
    def of(cls, recipe: Recipe, views: int = 0) -> Self:
        names = cls.__dataclass_fields__.keys() - {"views"}
        return cls(**{name: getattr(recipe, name) for name in names}, views=views)


@dataclass(frozen=True)
class ExampleDrawer:
    """Makes rows of the micrograph schema into examples.

    Args:
        category_question: asked as well where the caption, its answer, is known.
        draws: of training. Without them an example has all questions, prompts with the scale and
            without the caption, and the image as it is.
        store: of the features of a frozen vision model, if there is one.
    """

    category_question: str
    draws: Draws | None = None
    store: FeatureStore | None = None

    def draw(self, row: dict, number: int, epoch: int) -> Texts:
        """The texts for a row, from its columns `qa` and `caption`.

        Args:
            number: of the row in its dataset.

        Raises:
            DatasetError: the row has no answer to train on.
        """
        answered, caption = good_answers(row["qa"]), row["caption"]
        if not answered and not caption:
            raise DatasetError(f"micrograph {row['image_id']} has no answer with outcome 'ok'.")
        named = [(self.category_question, caption)] if caption else []
        if self.draws is None:
            pairs = answered + named
            statements = [caption or answered[0][1], answered[-1][1] if answered else caption]
            return Texts(pairs, [False] * len(pairs), [True] * len(pairs), statements)

        draws = self.draws
        rng = np.random.default_rng([TEXTS, draws.seed, epoch, number])
        close_up = draws.augmentation and rng.random() < CLOSE_UPS
        if close_up:
            surviving = [pair for pair in answered if survives_close_up(pair[1])]
            close_up = bool(surviving)
            answered = surviving or answered
        pairs = answered + named
        count = min(draws.questions_per_image, len(pairs))
        pairs = [pairs[i] for i in rng.choice(len(pairs), count, replace=False)]
        said = [answered[i][1] for i in rng.integers(len(answered), size=2)] if answered else []
        # The caption, which classification asks about, and an answer, which support does. Never
        # both in one: the caption would be enough to tell whether it is true.
        statements = [caption or said[0], said[-1] if said else caption]
        # Beside the category question, the caption would give the answer away.
        with_caption = [
            bool(caption) and draw >= draws.caption_dropout and question != self.category_question
            for draw, (question, _) in zip(rng.random(count), pairs, strict=True)
        ]
        with_scale = (rng.random(count) >= draws.scale_dropout).tolist()
        return Texts(pairs, with_caption, with_scale, statements, close_up)

    def prompts(
        self, row: dict, drawn: Texts, view: View | None = None, width_nm: float | None = None
    ) -> list[str]:
        """The prompts of the questions that were drawn.

        Args:
            width_nm: field of view of the image as it is shown, where it is known.
        """
        view = View() if view is None else view
        # A close-up may have cut the scale bar off.
        scale_bar = row["scale_bar"] if view.box is None else None
        return [
            MVaEMaProcessor.prompt(
                view.text(question),
                caption=row["caption"] if show_caption else None,
                field_of_view_nm=width_nm if show_scale else None,
                scale_bar=scale_bar if show_scale else None,
            )
            for (question, _), show_caption, show_scale in zip(
                drawn.pairs, drawn.with_caption, drawn.with_scale, strict=True
            )
        ]

    def __call__(self, row: dict, number: int, epoch: int) -> Example:
        """The example of a row in an epoch, its image decoded.

        Args:
            number: of the row in its dataset.

        Raises:
            DatasetError: the image cannot be read, or there is no answer to train on.
        """
        drawn, view = self.draw(row, number, epoch), View()
        seed, variant = 0, epoch
        if self.draws:
            seed, views = self.draws.seed, self.draws.views
            variant = epoch % views if views else epoch
        if self.draws and self.draws.augmentation:
            rng = np.random.default_rng([VIEW, seed, variant, number])
            said = [text for pair in drawn.pairs for text in pair] + drawn.statements
            view = View.draw(rng, said, drawn.close_up)
        noise_seed = [NOISE, seed, variant, number]
        key = self.store.key(row, view, noise_seed) if self.store else None
        features = self.store.read(key) if self.store else None
        image, width = None, 0
        try:
            if features is None:
                image = view.show(to_8bit(decode_image(row)))
                width = image.width
            elif row["pixel_size_nm"]:
                width = view.width(image_size(row))
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(f"image {row['image_id']} cannot be used: {error}") from error
        width_nm = row["pixel_size_nm"] and row["pixel_size_nm"] * width
        prompts = self.prompts(row, drawn, view, width_nm)
        return Example(
            image,
            row["image_id"],
            prompts,
            [view.text(answer) for _, answer in drawn.pairs],
            [view.text(statement) for statement in drawn.statements],
            view,
            noise_seed,
            key,
            features,
        )


def collate(
    examples: list[Example], processor: MVaEMaProcessor
) -> tuple[dict[str, torch.Tensor], int]:
    """The model's inputs, and the number of answers that were cut because they were too long.

    Every micrograph of a batch has the same number of questions: one with fewer repeats its own.
    """
    most = max(len(example.prompts) for example in examples)

    def rows(texts: list[list[str]]) -> list[str]:
        return [text[i % len(text)] for text in texts for i in range(most)]

    unseen = [example for example in examples if example.features is None]
    with _without_warnings(processor):
        inputs = processor(
            text=rows([example.prompts for example in examples]),
            answers=rows([example.answers for example in examples]),
            statements=[example.statements for example in examples],
        )
    if unseen:
        inputs |= processor(images=[example.image for example in unseen])
        scaling = processor.image_processor.image_mean, processor.image_processor.image_std
        for pixels, example in zip(inputs["pixel_values"], unseen, strict=True):
            rng = np.random.default_rng(example.noise_seed)
            example.view.add_noise(pixels.numpy(), rng, *scaling)
    return dict(inputs), sum(map(bool, inputs.truncated["answers"]))


@contextlib.contextmanager
def _without_warnings(processor: MVaEMaProcessor) -> Iterator[None]:
    """Cut texts are counted; the processor would also warn of them in each batch."""
    logger = logging.getLogger(type(processor).__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
