"""The micrographs of a fold, and batches of them.

What is special about it:
- folds are those of `mvaema train`: specimens and near-duplicates stay together, and no part shares
  one with another;
- each image is decoded once and kept as an 8-bit picture a little larger than the rows see, so
  that an epoch costs no decoding. 1,000 grey pictures of 280 x 280 are 78 MB;
- views are those that a student is trained on (`mvaema/training/views.py`). There are no texts that
  a view could make false, so all flips, turns and close-ups are allowed;
- seed, epoch, row and showing decide each view, whatever prepares it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from baselines.settings import Settings
from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.evaluation.conditions import blank_image
from mvaema.micrographs.dataset import DatasetError, decode_image, load_micrographs
from mvaema.micrographs.folds import check_no_leak
from mvaema.micrographs.schema import OTHER
from mvaema.training.examples import NOISE, VIEW
from mvaema.training.mixing import draw_rows
from mvaema.training.provenance import dataset_fingerprint
from mvaema.training.split import FoldedRows, Rows, load_folds
from mvaema.training.views import CLOSE_UPS, View
from pixels_mvaema import to_8bit

MARGIN = 1.25  # side of a kept picture over that of what is seen; close-ups need some of it
ORDER = 4  # stream of random numbers, beside those of `mvaema/training/examples.py`
FORWARD_SIZE = 64  # micrographs in a batch without gradients


class Labelled(NamedTuple):
    """A batch.

    Attributes:
        pixel_values: float (batch, 3, image_size, image_size), in [-1, 1].
        labels: int (batch,), category numbers.
    """

    pixel_values: torch.Tensor
    labels: torch.Tensor


class Data:
    """All folds of a dataset.

    Attributes:
        settings: which dataset and folds.
        folded: the rows with their folds.
        test: the rows of `settings.test_split`, if there is one.
        categories: those of the dataset, in the order of the model's captions.
        fingerprint: of what is in it and in the further datasets that are trained on.

    Raises:
        DatasetError: it cannot be used, or has fewer than two categories.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folded: FoldedRows = load_folds(settings.recipe(), answered=False)
        parts = [self.folded.dataset]
        self.test = None
        if settings.test_split is not None:
            self.test = load_micrographs(settings.dataset, settings.test_split)
            parts.append(self.test)
        found = {name for rows in parts for name in rows["category"][:]} - {None, OTHER}
        order = [*CATEGORY_CAPTIONS, *sorted(found - CATEGORY_CAPTIONS.keys())]
        self.categories = [name for name in order if name in found]
        if len(self.categories) < 2:
            raise DatasetError(
                f"{settings.dataset} has {len(self.categories)} categories in its column "
                "'category'; two or more are needed to classify."
            )
        more = [load_micrographs(name, settings.split) for name in settings.train_also]
        self.fingerprint = "-".join(map(dataset_fingerprint, [*parts, *more]))

    def fold(self, number: int) -> "FoldData":
        """The micrographs of a fold.

        Raises:
            LeakError: a specimen or a micrograph is in two parts.
            DatasetError: a part is empty.
        """
        rows = self.folded.split(number, cross_validation=self.test is None)
        if self.test is not None:
            check_no_leak(rows.train, self.test)
            check_no_leak(rows.validation, self.test)
            rows.test = self.test
        held_out = len(rows.validation) + (len(rows.test) if self.test is None else 0)
        own = len(self.folded.dataset) - held_out
        return FoldData(number, rows, own, self.categories, self.settings)


@dataclass
class FoldData:
    """The micrographs of a fold.

    Attributes:
        number: the fold.
        rows: `train`, `validation` and `test` in the micrograph schema, for rows that read more
            than pictures and categories.
        own: so many of the first rows of `train` are of the dataset itself, not of `train_also`.
        categories: labels are their numbers.
        settings: of the folder.
    """

    number: int
    rows: Rows
    own: int
    categories: list[str]
    settings: Settings
    _seen: dict[int, "Micrographs"] = field(default_factory=dict, repr=False)

    def micrographs(self, image_size: int) -> "Micrographs":
        """The labelled micrographs as rows see them; those of one image size are kept."""
        if image_size not in self._seen:
            self._seen.clear()
            self._seen[image_size] = Micrographs(self, image_size)
        return self._seen[image_size]


class Micrographs:
    """The labelled micrographs of a fold, for one image size.

    Attributes:
        categories: labels are their numbers.
        train, validation, test: the parts.
        counts: float (rows of `train`,), how often an epoch shows each; None for once.
    """

    def __init__(self, data: FoldData, image_size: int):
        self.categories, self.image_size, self.settings = data.categories, image_size, data.settings
        rows = data.rows
        self.train, self.validation, self.test = (
            Part.of(part, self.categories, image_size, name)
            for name, part in (
                *(("training", rows.train), ("validation", rows.validation)),
                ("test", rows.test),
            )
        )
        self.counts = None if rows.counts is None else rows.counts[self.train.rows]

    def training_batches(self, seed: int) -> "TrainingBatches":
        return TrainingBatches(self, seed)

    def plain_batches(self, part: "Part", order: np.ndarray | None = None) -> Iterator[Labelled]:
        """A part as it is, in its own order or another one."""
        order = np.arange(len(part.labels)) if order is None else order
        for start in range(0, len(order), FORWARD_SIZE):
            chosen = order[start : start + FORWARD_SIZE]
            pixels = [plain_pixels(part.pictures[i], self.image_size) for i in chosen]
            yield Labelled(
                torch.from_numpy(np.stack(pixels)), torch.from_numpy(part.labels[chosen])
            )

    @cached_property
    def blank(self) -> torch.Tensor:
        """What a blind twin is shown: float (1, 3, image_size, image_size)."""
        return torch.from_numpy(plain_pixels(blank_image(), self.image_size))[None]


@dataclass(frozen=True)
class Part:
    """Labelled micrographs.

    Attributes:
        rows: int (n,), places in the dataset.
        pictures: 8-bit, square, `MARGIN` times the image size.
        labels: int64 (n,), category numbers.
        records: `image_id`, `group` and `category` of each.
    """

    rows: np.ndarray
    pictures: list[Image.Image]
    labels: np.ndarray
    records: list[dict]

    @classmethod
    def of(cls, rows: Dataset, categories: list[str], image_size: int, name: str) -> Self:
        """The rows that have one of the categories.

        Raises:
            DatasetError: there is none, or an image cannot be read.
        """
        places = np.flatnonzero([category in categories for category in rows["category"][:]])
        if not len(places):
            raise DatasetError(f"no micrograph of the {name} part has a category.")
        side = round(image_size * MARGIN)
        pictures, records = [], []
        for row in tqdm(rows.select(places), desc=f"Pictures for {name}", leave=False):
            try:
                picture = to_8bit(decode_image(row))
            except DatasetError:
                raise
            except ValueError as error:
                raise DatasetError(f"image {row['image_id']} cannot be used: {error}") from error
            pictures.append(_square(picture, side))
            records.append({key: row[key] for key in ("image_id", "group", "category")})
        labels = np.array([categories.index(record["category"]) for record in records], np.int64)
        return cls(places, pictures, labels, records)


class TrainingBatches:
    """Batches of views; iterated once an epoch.

    All batches of an epoch have as many micrographs, but for one: batch norms have no use for a
    last batch of one.
    """

    def __init__(self, micrographs: Micrographs, seed: int):
        self._order = _EpochOrder(micrographs, seed)
        workers = micrographs.settings.workers
        self._loader = DataLoader(
            _Views(micrographs, seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
        )

    def __call__(self, epoch: int) -> Iterator[Labelled]:
        self._order.epoch = epoch
        return iter(self._loader)


class _EpochOrder(Sampler):
    """Batches of (row, showing, epoch)."""

    def __init__(self, micrographs: Micrographs, seed: int):
        self.counts = micrographs.counts
        if self.counts is None:
            self.counts = np.ones(len(micrographs.train.labels))
        self.batch_size, self.seed = micrographs.settings.batch_size, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        rng = np.random.default_rng([ORDER, self.seed, self.epoch])
        shown = np.stack(draw_rows(self.counts, rng), axis=1)
        for batch in np.array_split(shown, -(-len(shown) // self.batch_size)):
            yield [(row, showing, self.epoch) for row, showing in batch.tolist()]


class _Views:
    def __init__(self, micrographs: Micrographs, seed: int):
        self.part, self.image_size, self.seed = micrographs.train, micrographs.image_size, seed

    def __getitem__(self, drawn: tuple[int, int, int]) -> tuple[np.ndarray, int]:
        row, showing, epoch = drawn
        seed = [self.seed, epoch, row, showing]
        rng = np.random.default_rng([VIEW, *seed])
        view = View.draw(rng, (), close_up=rng.random() < CLOSE_UPS)
        pixels = plain_pixels(view.show(self.part.pictures[row]), self.image_size)
        view.add_noise(pixels, np.random.default_rng([NOISE, *seed]))
        return pixels, self.part.labels[row]


def _collate(items: list[tuple[np.ndarray, int]]) -> Labelled:
    pixels, labels = zip(*items, strict=True)
    return Labelled(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))


def plain_pixels(picture: Image.Image, image_size: int) -> np.ndarray:
    """An 8-bit picture as float32 (3, image_size, image_size) in [-1, 1]; grey is repeated."""
    pixels = np.asarray(_square(picture, image_size), np.float32) / np.float32(127.5) - 1
    if pixels.ndim == 2:
        return np.repeat(pixels[None], 3, axis=0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _square(picture: Image.Image, side: int) -> Image.Image:
    # As the student's processor resizes.
    return picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
