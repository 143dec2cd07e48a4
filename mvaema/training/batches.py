"""Batches of micrographs, for each epoch and each process of a run.

What is special about it:
- `batch_size` is the global one: a process gets its contiguous share of each batch, so that
  several processes together see what one would see. Nothing is left for accelerate to shard;
- an epoch can be entered at any batch without preparing those before it. The batches from there on
  are those of an uninterrupted epoch, bit for bit, whatever the number of workers;
- iterating draws nothing from torch's global random state;
- micrographs whose drawn texts have similar lengths share batches: less padding.

Of a stream (`streaming.py`), each process reads its own part of an epoch's row groups, so another
number of processes gives other batches. Each worker has one block of rows in memory. Workers share
the reading and the page cache, not the decoding.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from mvaema.micrographs.dataset import DatasetError
from mvaema.training.examples import Example, ExampleDrawer, collate
from mvaema.training.features import FrozenVision
from mvaema.training.mixing import draw_rows
from mvaema.training.recipe import Recipe
from mvaema.training.streaming import ParquetRows, RowReader
from processing_mvaema import MVaEMaProcessor

ORDER = 0  # a stream of random numbers beside those of examples.py
WINDOW = 16  # batches that are sorted by length together
BLOCK_ROWS, BLOCK_BYTES = 1024, 256 * 2**20  # streamed rows that are shuffled together, at most


class Batch(NamedTuple):
    """A process's share of what one forward pass takes."""

    inputs: dict[str, torch.Tensor]  # what model(**inputs) takes, on the CPU
    image_ids: list[str]
    truncated: int  # answers that were cut because they are longer than the model allows
    skipped: list[str]  # ids of unreadable images, each replaced by another micrograph
    keys: Sequence[str | None] = ()  # of the images' features, where a vision model is frozen
    features: Sequence[torch.Tensor | None] = ()  # these, where they are known


class ProcessShare(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    world_size: int = 1


class BatchLoader:
    """Batches of micrographs, epoch by epoch.

    With a drawer that draws (training), each epoch has a new order and whole batches of
    `recipe.batch_size`; the remaining rows are dropped. (Where there are fewer rows than that, an
    epoch has as many whole parts of a batch as there are, or all rows as one.) Otherwise an epoch
    has all rows in their order, and the last batch is filled up to a multiple of `world_size` with
    the first rows.

    An image that cannot be read is an error. In a stream, which nobody has looked through before,
    the next readable micrograph of the share replaces it, unless `recipe.strict`.

    Args:
        rows: of the micrograph schema, with answers to train on (`split.py`).
        drawer: makes the examples.
        processor: of the model.
        recipe: how large batches are, and how many workers prepare them.
        process: whose share of each batch is returned.
        counts: float (rows,), how often an epoch shows each row (`mixing.py`); None for once.
        vision: completes the batches of a student whose vision model is frozen.

    Raises:
        ValueError: a batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        rows: Dataset | ParquetRows,
        drawer: ExampleDrawer,
        processor: MVaEMaProcessor,
        recipe: Recipe,
        process: ProcessShare = ProcessShare(),  # noqa: B008 (immutable)
        counts: np.ndarray | None = None,
        vision: FrozenVision | None = None,
    ):
        self.vision = vision
        total = len(rows) if counts is None else max(1, round(float(counts.sum())))
        plan = EpochPlan.of(total, drawer, recipe, process)
        bucketing = drawer.draws is not None and recipe.length_bucketing
        tokenizer = processor.tokenizer if bucketing else None
        if isinstance(rows, ParquetRows):
            self._sampler = BatchNumbers(plan)
            examples = StreamedExamples(rows, drawer, plan, tokenizer, recipe.strict)
        else:
            self._sampler = RowNumbers(rows, drawer, plan, tokenizer, counts)
            examples = LoadedExamples(rows, drawer)
        self._loader = DataLoader(
            examples,
            batch_sampler=self._sampler,
            collate_fn=_Collator(processor),
            num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Else each iteration would draw a seed from the global state.
            generator=torch.Generator().manual_seed(recipe.seed),
        )

    def __len__(self) -> int:
        """Batches in an epoch, the same on every process."""
        return len(self._sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, beginning with number `start`.

        Raises:
            DatasetError: an image cannot be read; the message names its id.
        """
        self._sampler.epoch, self._sampler.start = epoch, start
        for batch in self._loader:
            if isinstance(batch, DatasetError):
                raise batch
            if self.vision is not None:
                inputs = self.vision.complete(batch.inputs, batch.keys, batch.features)
                batch = batch._replace(inputs=inputs)
            yield batch


@dataclass(frozen=True)
class EpochPlan:
    """How the rows of an epoch are divided into batches and among processes.

    Attributes:
        size: micrographs in a batch, over all processes.
        batches: batches in an epoch.
        used: rows in an epoch; the rest is dropped.
        process: whose share is meant.
    """

    size: int
    batches: int
    used: int
    process: ProcessShare

    @classmethod
    def of(
        cls, count: int, drawer: ExampleDrawer, recipe: Recipe, process: ProcessShare
    ) -> "EpochPlan":
        parts = recipe.gradient_accumulation_steps
        size = recipe.batch_size // parts
        if size % process.world_size:
            raise ValueError(
                f"batch_size={recipe.batch_size} in {parts} part(s) cannot be divided evenly among "
                f"{process.world_size} processes; make it a multiple of "
                f"{parts * process.world_size}."
            )
        # Losses compare the micrographs of a batch: a remainder of one would have no negatives.
        if drawer.draws is None:
            batches = -(-count // size)
        elif count >= recipe.batch_size:
            batches = count // recipe.batch_size * parts
        else:
            batches = max(1, count // size)
        return cls(size, batches, min(count, batches * size), process)

    @property
    def share(self) -> int:
        """Micrographs of a whole batch that are this process's."""
        return self.size // self.process.world_size


class BatchNumbers(Sampler[list[tuple[int, int]]]):
    """(epoch, batch) for each batch of `epoch`, beginning with `start`."""

    def __init__(self, plan: EpochPlan):
        self.plan = plan
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, batch)] for batch in range(self.start, len(self)))


class RowNumbers(BatchNumbers):
    """(epoch, row) of this process's share of each batch of `epoch`, beginning with `start`."""

    def __init__(
        self,
        rows: Dataset,
        drawer: ExampleDrawer,
        plan: EpochPlan,
        tokenizer: PreTrainedTokenizerBase | None,
        counts: np.ndarray | None = None,
    ):
        super().__init__(plan)
        self.counts = counts
        # Showings of a row in one epoch draw differently, as if they were in several.
        self.most = 1 if counts is None else math.ceil(counts.max())
        self.texts = rows.select_columns(["image_id", "caption", "qa"])
        self.drawer = drawer
        self.tokenizer = tokenizer

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, plan, (rank, world_size) = self.epoch, self.plan, self.plan.process
        order, seed = np.arange(len(self.texts)), []
        showing = np.zeros_like(order)
        if self.drawer.draws is not None:
            seed = [ORDER, self.drawer.draws.seed, epoch]
            rng = np.random.default_rng(seed)
            if self.counts is None:
                order = rng.permutation(order)
            else:
                order, showing = draw_rows(self.counts, rng)
        # Numbers of rows, and the epochs that draws are made for.
        order = np.stack([order, epoch * self.most + showing], axis=1)[: plan.used]
        for first in range(self.start - self.start % WINDOW, plan.batches, WINDOW):
            window = order[first * plan.size : (first + WINDOW) * plan.size]
            lengths = None
            if self.tokenizer is not None:
                numbers, epochs = window.T.tolist()
                drawn = zip(numbers, self.texts.select(numbers), epochs, strict=True)
                lengths = longest_answers(self.tokenizer, self.drawer, drawn)
            batches = _batches(lengths, len(window), plan.size, [*seed, first + 1])
            for batch in batches[max(0, self.start - first) :]:
                batch = window[batch]
                more = -len(batch) % world_size
                batch = np.concatenate([batch, np.resize(order, (more, 2))])
                share = np.split(batch, world_size)[rank]
                yield [(epoch, row) for row, epoch in share.tolist()]


def _batches(
    lengths: np.ndarray | None, count: int, size: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """Places 0 ... count - 1 in batches; given lengths, of similar ones and in random order."""
    places = np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
    batches = np.split(places, range(size, count, size))
    if lengths is not None:
        batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
    return batches


def longest_answers(
    tokenizer: PreTrainedTokenizerBase,
    drawer: ExampleDrawer,
    rows: Iterable[tuple[int, dict, int]],
) -> np.ndarray:
    """int (rows,): tokens of the longest answer drawn for each row, to which its batch is padded.

    Args:
        rows: (number, row, epoch), the row with the columns `image_id`, `caption` and `qa`.
    """
    answers = [[a for _, a in drawer.draw(row, n, epoch).pairs] for n, row, epoch in rows]
    flat = [answer for some in answers for answer in some]
    ids = tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
    starts = np.cumsum([0, *map(len, answers)])[:-1]
    return np.maximum.reduceat([len(one) for one in ids], starts)


class LoadedExamples(torch.utils.data.Dataset):
    """The examples of a share of a batch, from (epoch, row), and no ids of unreadable images."""

    def __init__(self, rows: Dataset, drawer: ExampleDrawer):
        self.rows = rows
        self.drawer = drawer

    def __getitems__(
        self, share: list[tuple[int, int]]
    ) -> tuple[list[Example], list[str]] | DatasetError:
        try:
            return [self.drawer(self.rows[number], number, epoch) for epoch, number in share], []
        except DatasetError as error:
            # As a value: a worker's exception would arrive as the text of a traceback.
            return error


class StreamedExamples(torch.utils.data.Dataset):
    """The examples of a share, from (epoch, batch), and the ids of unreadable images among them."""

    def __init__(
        self,
        rows: ParquetRows,
        drawer: ExampleDrawer,
        plan: EpochPlan,
        tokenizer: PreTrainedTokenizerBase | None,
        strict: bool,
    ):
        self.rows = rows
        self.drawer = drawer
        self.plan = plan
        self.tokenizer = tokenizer
        self.strict = strict
        most = min(BLOCK_ROWS, int(BLOCK_BYTES / rows.row_bytes))
        self.block_batches = max(1, most // plan.share)
        # Made by the process that reads; files must not be shared with it.
        self._reader = self._epoch = self._block = None

    def __getitems__(
        self, numbers: list[tuple[int, int]]
    ) -> tuple[list[Example], list[str]] | DatasetError:
        ((epoch, batch),) = numbers
        self._go_to(epoch, batch // self.block_batches)
        places = self._batches[batch % self.block_batches]
        rows = self._table.take(places).to_pylist()
        examples, skipped = [], []
        for number, row in zip(self._numbers[places].tolist(), rows, strict=True):
            try:
                examples.append(self.drawer(row, number, epoch))
            except DatasetError as error:
                if self.strict:
                    return error
                examples.append(None)
                skipped.append(row["image_id"])
        if len(skipped) == len(rows):
            return DatasetError(f"no image of a whole batch can be read: {skipped}.")
        for place, example in reversed([*enumerate(examples)] * 2):
            if example is None:
                examples[place] = examples[(place + 1) % len(examples)]
        return examples, skipped

    def _go_to(self, epoch: int, block: int) -> None:
        """Read a block of rows, unless it is in memory, and divide it into batches."""
        if self._reader is None:
            self._reader = RowReader(self.rows)
        if epoch != self._epoch:
            self._epoch, self._block, self._sequence = epoch, None, self._share_of(epoch)
        if block == self._block:
            return
        size, seed = self.block_batches * self.plan.share, []
        numbers = self._sequence[block * size : (block + 1) * size]
        self._table = None  # two blocks are never in memory together
        table = self._reader.read(numbers)
        if self.drawer.draws is not None:
            seed = [ORDER, self.drawer.draws.seed, epoch, block + 1, self.plan.process.rank]
            order = np.random.default_rng(seed).permutation(len(numbers))
            numbers, table = numbers[order], table.take(order)
        lengths = None
        if self.tokenizer is not None:
            texts = table.select(["image_id", "caption", "qa"]).to_pylist()
            drawn = zip(numbers.tolist(), texts, [epoch] * len(texts), strict=True)
            lengths = longest_answers(self.tokenizer, self.drawer, drawn)
        self._batches = _batches(lengths, len(numbers), self.plan.share, [*seed, 1])
        self._block, self._numbers, self._table = block, numbers, table

    def _share_of(self, epoch: int) -> np.ndarray:
        """int (rows,): the numbers of this process's rows in an epoch, row group by row group."""
        plan, sequence = self.plan, self.rows.rows
        rank, world_size = plan.process
        if self.drawer.draws is not None:
            rng = np.random.default_rng([ORDER, self.drawer.draws.seed, epoch])
            sequence = self.rows.shuffled(rng)
        sequence = sequence[: plan.used]
        rest = plan.used - (plan.batches - 1) * plan.size
        share = (plan.batches - 1) * plan.share + -(-rest // world_size)
        sequence = np.append(sequence, np.resize(sequence, share * world_size - plan.used))
        return sequence[rank * share : (rank + 1) * share]


class _Collator:
    def __init__(self, processor: MVaEMaProcessor):
        self.processor = processor

    def __call__(self, found: tuple[list[Example], list[str]] | DatasetError):
        if isinstance(found, DatasetError):
            return found
        examples, skipped = found
        inputs, truncated = collate(examples, self.processor)
        return Batch(
            inputs,
            [example.image_id for example in examples],
            truncated,
            skipped,
            [example.key for example in examples],
            [example.features for example in examples],
        )
