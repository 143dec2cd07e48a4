"""What a training run reads: its rows, folded, and batches of them.

What is special about it:
- `batch_size` is the global one: a process gets its contiguous share of each batch, so that
  several processes see together what one would see. Nothing is left for accelerate to shard;
- an epoch may be entered at any batch without preparing those before, and the batches from there on
  are the ones of an uninterrupted epoch, bit for bit, whatever the number of workers;
- iterating draws nothing from torch's global random state;
- micrographs whose drawn texts are of like length share batches: less padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from mvaema.dataset import DatasetError, load_micrographs
from mvaema.examples import Example, ExampleDrawer, collate, good_answers
from mvaema.folds import assign_folds, check_no_leak
from mvaema.near_duplicates import near_duplicate_clusters
from mvaema.recipe import Recipe
from processing_mvaema import MVaEMaProcessor

ORDER = 0  # a stream of random numbers beside those of mvaema.examples
WINDOW = 16  # batches that are sorted by length together
TEXT_COLUMNS = ("image_id", "category", "caption", "scale_bar", "qa")


@dataclass
class Rows:
    """What a training run reads.

    Attributes:
        train, validation: rows of the micrograph schema; they share no specimen.
        texts: the columns of `train` that hold no images.
        skipped: ids of micrographs left out since their image cannot be read.
        test: in cross-validation, the rows to test on.
    """

    train: Dataset
    validation: Dataset
    texts: Dataset
    skipped: list[str]
    test: Dataset | None = None


@dataclass
class FoldedRows:
    """All rows of a recipe's split that can be trained on, and the fold of each.

    Finding the folds takes one pass over all images; `split` takes none.
    """

    dataset: Dataset
    folds: np.ndarray  # int (rows,)
    skipped: list[str]

    def split(self, fold: int, cross_validation: bool = False) -> Rows:
        """Rows for a run: `fold` validates, or in cross-validation is tested on.

        In cross-validation the fold after it validates. All others are trained on.

        Raises:
            DatasetError: nothing would be left for one of them.
            LeakError: a specimen or a micrograph is in two of them.
        """
        held_out = {"validation": fold}
        if cross_validation:
            held_out = {"test": fold, "validation": (fold + 1) % (int(self.folds.max()) + 1)}
        chosen = {name: np.flatnonzero(self.folds == k) for name, k in held_out.items()}
        chosen["train"] = np.flatnonzero(~np.isin(self.folds, list(held_out.values())))
        for name, rows in chosen.items():
            if not len(rows):
                raise DatasetError(
                    f"no micrographs are left for {name} of fold {fold}: its independent groups "
                    "(specimens and near-duplicates together) are too few or too uneven for this "
                    "number of folds; change --folds."
                )
        parts = {name: self.dataset.select(rows) for name, rows in chosen.items()}
        # Without the images, which to look for values would copy.
        keys = {name: part.select_columns(["group", "image_id"]) for name, part in parts.items()}
        for name in held_out:
            check_no_leak(keys["train"], keys[name])
        texts = parts["train"].select_columns(list(TEXT_COLUMNS))
        return Rows(**parts, texts=texts, skipped=self.skipped)


def load_folds(recipe: Recipe) -> FoldedRows:
    """The rows of a recipe and their folds.

    Every image is decoded once, to find near-duplicates. One that cannot be is left out, or with
    `recipe.strict` refused.

    Raises:
        DatasetError: the dataset cannot be used.
        ValueError: it has fewer independent groups than there are folds.
    """
    dataset = load_micrographs(recipe.dataset, recipe.split)
    texts = dataset.select_columns(["qa"])
    usable = [i for i, row in enumerate(texts) if good_answers(row["qa"])]
    if not usable:
        raise DatasetError(
            f"{recipe.dataset} has no answers with outcome 'ok' in its column 'qa'; run "
            "generate_teacher_data.py on it first."
        )
    dataset = dataset.select(usable)
    processes = recipe.workers if recipe.workers > 1 else None
    clusters = near_duplicate_clusters(dataset, num_proc=processes, skip_unreadable=True)
    unreadable = dataset.select(np.flatnonzero(clusters < 0))["image_id"][:]
    if unreadable:
        if recipe.strict or len(unreadable) == len(dataset):
            named = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
            raise DatasetError(
                f"{len(unreadable)} of {len(dataset)} images of {recipe.dataset} cannot be read: "
                f"{named}. Mend or remove them"
                + (", or leave --strict out to skip them." if recipe.strict else ".")
            )
        readable = np.flatnonzero(clusters >= 0)
        dataset, clusters = dataset.select(readable), clusters[readable]
        clusters = np.searchsorted(readable, clusters)  # named by their first rows
    folds = np.array(assign_folds(dataset, recipe.folds, clusters=clusters))
    return FoldedRows(dataset, folds, unreadable)


def load_rows(recipe: Recipe) -> Rows:
    """The rows of a recipe, for its fold (0 if it names none); see `load_folds`."""
    return load_folds(recipe).split(recipe.fold or 0, recipe.cross_validation)


class Batch(NamedTuple):
    """A process' share of what one forward pass takes."""

    inputs: dict[str, torch.Tensor]  # what model(**inputs) takes, on the CPU
    image_ids: list[str]
    truncated: int  # answers that were longer than the model allows and were cut
    skipped: list[str]  # ids of unreadable images that another micrograph stands in for


class BatchLoader:
    """Batches of micrographs, epoch by epoch.

    In training, an epoch has whole batches of `recipe.batch_size` and drops the rest (where there
    are fewer rows than that, whole parts of a batch; or all rows as one). Otherwise it has all
    rows in their order, and the last batch is filled up to a multiple of `world_size` with the
    first rows.

    Args:
        rows: of the micrograph schema, with answers to train on (`load_rows`).
        processor: of the model.
        category_question: of the model's configuration.
        recipe: what is drawn, in how large batches, by how many workers.
        training: draw, drop and augment as the recipe says, in a new order each epoch.
        rank, world_size: which of how many processes this is.

    Raises:
        ValueError: a batch cannot be shared out evenly to the processes.
    """

    def __init__(
        self,
        rows: Dataset,
        processor: MVaEMaProcessor,
        category_question: str,
        recipe: Recipe,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        size = recipe.batch_size // recipe.gradient_accumulation_steps
        if size % world_size:
            raise ValueError(
                f"batch_size={recipe.batch_size} in {recipe.gradient_accumulation_steps} part(s) "
                f"cannot be shared out evenly to {world_size} processes; make it a multiple of "
                f"{recipe.gradient_accumulation_steps * world_size}."
            )
        drawer = ExampleDrawer(
            category_question,
            recipe.questions_per_image,
            recipe.caption_dropout,
            recipe.scale_dropout,
            recipe.augmentation,
            recipe.seed,
            training,
        )
        bucketing = recipe.length_bucketing and training
        shares = _Shares(
            rows, drawer, processor.tokenizer if bucketing else None, recipe, rank, world_size
        )
        self._shares = shares
        self._loader = DataLoader(
            _Examples(rows, drawer),
            batch_sampler=shares,
            collate_fn=_Collator(processor),
            num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Else each iteration would draw a seed from the global state.
            generator=torch.Generator().manual_seed(recipe.seed),
        )

    def __len__(self) -> int:
        """Batches in an epoch, the same on every process."""
        return len(self._shares)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on.

        Raises:
            DatasetError: an image cannot be read; the message names its id.
        """
        self._shares.epoch, self._shares.start = epoch, start
        for batch in self._loader:
            if isinstance(batch, DatasetError):
                raise batch
            yield batch


class _Shares(Sampler[list[tuple[int, int]]]):
    """(epoch, row) of this process' share of each batch of `epoch`, from `start` on."""

    def __init__(self, rows: Dataset, drawer: ExampleDrawer, tokenizer, recipe, rank, world_size):
        self.texts = rows.select_columns(["image_id", "caption", "qa"])
        self.drawer = drawer
        self.tokenizer = tokenizer
        self.rank, self.world_size = rank, world_size
        parts = recipe.gradient_accumulation_steps
        self.size = recipe.batch_size // parts
        count = len(rows)
        if not drawer.training:
            self.batches = -(-count // self.size)
        elif count >= recipe.batch_size:
            # Losses compare the micrographs of a batch: a rest of one would have no negatives.
            self.batches = count // recipe.batch_size * parts
        else:
            self.batches = max(1, count // self.size)
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, count = self.epoch, len(self.texts)
        order = np.arange(count)
        if self.drawer.training:
            order = np.random.default_rng([ORDER, self.drawer.seed, epoch]).permutation(count)
        order = order[: self.batches * self.size]
        for first in range(self.start - self.start % WINDOW, self.batches, WINDOW):
            window = order[first * self.size : (first + WINDOW) * self.size]
            batches = np.split(window, range(self.size, len(window), self.size))
            if self.tokenizer is not None:
                batches = self._bucketed(window, first)
            for batch in batches[max(0, self.start - first) :]:
                missing = -len(batch) % self.world_size
                batch = np.concatenate([batch, np.resize(order, missing)])
                share = len(batch) // self.world_size
                mine = batch[self.rank * share : (self.rank + 1) * share]
                yield [(epoch, row) for row in mine.tolist()]

    def _bucketed(self, window: np.ndarray, first: int) -> list[np.ndarray]:
        """The batches of a window, each of rows whose longest answers have like lengths."""
        rows = self.texts[window]
        drawn = [
            self.drawer.draw(dict(zip(rows, row, strict=True)), number, self.epoch)
            for number, row in zip(window.tolist(), zip(*rows.values(), strict=True), strict=True)
        ]
        lengths = longest_answers(self.tokenizer, [[a for _, a in d.pairs] for d in drawn])
        window = window[np.argsort(lengths, kind="stable")]
        batches = np.split(window, range(self.size, len(window), self.size))
        rng = np.random.default_rng([ORDER, self.drawer.seed, self.epoch, first + 1])
        return [batches[i] for i in rng.permutation(len(batches))]


def longest_answers(tokenizer, answers: Sequence[Sequence[str]]) -> np.ndarray:
    """int (micrographs,): the tokens of the longest answer of each, which its batch pads to."""
    flat = [answer for some in answers for answer in some]
    ids = tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
    starts = np.cumsum([0, *map(len, answers)])[:-1]
    return np.maximum.reduceat([len(one) for one in ids], starts)


class _Examples(torch.utils.data.Dataset):
    """The examples of a share of a batch."""

    def __init__(self, rows: Dataset, drawer: ExampleDrawer):
        self.rows = rows
        self.drawer = drawer

    def __getitems__(self, share: list[tuple[int, int]]) -> list[Example] | DatasetError:
        try:
            return [self.drawer(self.rows[number], number, epoch) for epoch, number in share]
        except DatasetError as error:
            # As a value: a worker's exception would arrive as the text of a traceback.
            return error


class _Collator:
    def __init__(self, processor: MVaEMaProcessor):
        self.processor = processor

    def __call__(self, examples: list[Example] | DatasetError) -> Batch | DatasetError:
        if isinstance(examples, DatasetError):
            return examples
        inputs, truncated = collate(examples, self.processor)
        return Batch(inputs, [example.image_id for example in examples], truncated, [])
