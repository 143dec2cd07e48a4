"""What a training run reads: its rows, folded, and batches of them.

What is special about it:
- `batch_size` is the global one: a process gets its contiguous share of each batch, so that
  several processes see together what one would see. Nothing is left for accelerate to shard;
- an epoch may be entered at any batch without preparing those before, and the batches from there on
  are the ones of an uninterrupted epoch, bit for bit, whatever the number of workers;
- iterating draws nothing from torch's global random state;
- micrographs whose drawn texts are of like length share batches: less padding.

Streamed (`mvaema.training.streaming`), each process reads its own part of an epoch's row groups, so that
other numbers of processes give other batches. A block of rows at a time is in memory, once for each
worker; they share the reading and the page cache, not the decoding. Near-duplicates are not looked
for; folds keep specimens (`group`) and equal `image_id`s together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.folds import assign_folds, check_no_leak
from mvaema.micrographs.near_duplicates import near_duplicate_clusters
from mvaema.training.examples import Example, ExampleDrawer, collate, good_answers
from mvaema.training.recipe import Recipe
from mvaema.training.streaming import ParquetRows, RowReader, open_shards
from processing_mvaema import MVaEMaProcessor

ORDER = 0  # a stream of random numbers beside those of mvaema.training.examples
WINDOW = 16  # batches that are sorted by length together
BLOCK_ROWS, BLOCK_BYTES = 1024, 256 * 2**20  # streamed rows that are shuffled together, at most
TEXT_COLUMNS = ["image_id", "category", "caption", "scale_bar", "qa"]
TEXT_RUNS, TEXT_RUN = 100, 200  # rows of a stream for the tokenizer: so many, so long


@dataclass
class Rows:
    """What a training run reads.

    Attributes:
        train, validation: rows of the micrograph schema; they share no specimen.
        texts: the columns of `train` that hold no images; of a stream, of some of its rows,
            evenly spread and with all categories.
        captions: category to caption, of all folds: labels are the dataset's, not a fold's.
        skipped: ids of micrographs left out since their image cannot be read. Of a stream it turns
            out later (`Batch.skipped`).
        test: in cross-validation, the rows to test on.
    """

    train: Dataset | ParquetRows
    validation: Dataset | ParquetRows
    texts: Dataset
    captions: dict[str, str]
    skipped: list[str]
    test: Dataset | ParquetRows | None = None


@dataclass
class FoldedRows:
    """All rows of a recipe's split that can be trained on, and the fold of each.

    Finding the folds takes a pass over all images (streamed: over the groups); `split` takes none.
    """

    dataset: Dataset | ParquetRows
    keys: Dataset  # image_id, group and category of each
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
        for name, places in chosen.items():
            if not len(places):
                raise DatasetError(
                    f"no micrographs are left for {name} of fold {fold}: its independent groups "
                    "(specimens and near-duplicates together) are too few or too uneven for this "
                    "number of folds; change --folds."
                )
        keys = {name: self.keys.select(places) for name, places in chosen.items()}
        for name in held_out:
            check_no_leak(keys["train"], keys[name])
        parts = {name: self.dataset.select(places) for name, places in chosen.items()}
        texts = _texts(parts["train"], keys["train"])
        captions = _captions(self.dataset, self.keys)
        return Rows(**parts, texts=texts, captions=captions, skipped=self.skipped)


def load_folds(recipe: Recipe) -> FoldedRows:
    """The rows of a recipe and their folds.

    Every image is decoded once, to find near-duplicates. One that cannot be is left out, or with
    `recipe.strict` refused. With `recipe.streaming` no image is read.

    Raises:
        DatasetError: the dataset cannot be used.
        ValueError: it has fewer independent groups than there are folds.
    """
    if recipe.streaming:
        rows, keys = open_shards(recipe.dataset, recipe.split)
        names = [name or f" row {row}" for row, name in enumerate(keys["image_id"][:])]
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        folds = assign_folds(keys, recipe.folds, clusters=first[inverse])
        return FoldedRows(rows, keys, np.array(folds), [])
    rows = load_micrographs(recipe.dataset, recipe.split)
    usable = [i for i, row in enumerate(rows.select_columns("qa")) if good_answers(row["qa"])]
    if not usable:
        raise DatasetError(
            f"{recipe.dataset} has no answers with outcome 'ok' in its column 'qa'; run "
            "generate_teacher_data.py on it first."
        )
    rows = rows.select(usable)
    processes = recipe.workers if recipe.workers > 1 else None
    clusters = near_duplicate_clusters(rows, workers=processes, skip_unreadable=True)
    unreadable = rows.select(np.flatnonzero(clusters < 0))["image_id"][:]
    if unreadable:
        if recipe.strict or len(unreadable) == len(rows):
            named = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
            raise DatasetError(
                f"{len(unreadable)} of {len(rows)} images of {recipe.dataset} cannot be read: "
                f"{named}. Mend or remove them"
                + (", or leave --strict out to skip them." if recipe.strict else ".")
            )
        readable = np.flatnonzero(clusters >= 0)
        rows, clusters = rows.select(readable), clusters[readable]
        clusters = np.searchsorted(readable, clusters)  # named by their first rows
    folds = assign_folds(rows, recipe.folds, clusters=clusters)
    # Without the images, which to look for values would copy.
    keys = rows.select_columns(["image_id", "group", "category"])
    return FoldedRows(rows, keys, np.array(folds), unreadable)


def load_rows(recipe: Recipe) -> Rows:
    """The rows of a recipe, for its fold (0 if it names none); see `load_folds`."""
    return load_folds(recipe).split(recipe.fold or 0, recipe.cross_validation)


def _texts(rows: Dataset | ParquetRows, keys: Dataset) -> Dataset:
    if isinstance(rows, Dataset):
        return rows.select_columns(TEXT_COLUMNS)
    starts = np.linspace(0, max(0, len(rows) - TEXT_RUN), TEXT_RUNS).astype(int)
    runs = np.unique(starts[:, None] + np.arange(min(TEXT_RUN, len(rows))))
    return rows.read(rows.rows[np.union1d(_of_each_category(keys), runs)], TEXT_COLUMNS)


def _captions(rows: Dataset | ParquetRows, keys: Dataset) -> dict[str, str]:
    columns = ["category", "caption"]
    if isinstance(rows, Dataset):
        found = rows.select_columns(columns)
    else:
        found = rows.read(rows.rows[_of_each_category(keys)], columns)
    return {row["category"]: row["caption"] for row in found if row["category"] and row["caption"]}


def _of_each_category(keys: Dataset) -> np.ndarray:
    """The first row of each category."""
    return np.unique([name or "" for name in keys["category"][:]], return_index=True)[1]


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

    An image that cannot be read is an error. In a stream, where nobody has looked before, the next
    readable micrograph of the process' share stands in for it, unless `recipe.strict`.

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
        rows: Dataset | ParquetRows,
        processor: MVaEMaProcessor,
        category_question: str,
        recipe: Recipe,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        drawer = ExampleDrawer(
            category_question,
            recipe.questions_per_image,
            recipe.caption_dropout,
            recipe.scale_dropout,
            recipe.augmentation,
            recipe.seed,
            training,
        )
        plan = _Plan.of(len(rows), recipe, training, rank, world_size)
        tokenizer = processor.tokenizer if training and recipe.length_bucketing else None
        if isinstance(rows, ParquetRows):
            self._shares = _Numbers(plan)
            examples = _Streamed(rows, drawer, plan, tokenizer, recipe.strict)
        else:
            self._shares = _Shares(rows, drawer, plan, tokenizer)
            examples = _Mapped(rows, drawer)
        self._loader = DataLoader(
            examples,
            batch_sampler=self._shares,
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


@dataclass(frozen=True)
class _Plan:
    """How the rows of an epoch are shared out.

    Attributes:
        size: micrographs in a batch, over all processes.
        batches: of an epoch.
        used: rows of an epoch, the rest is dropped.
    """

    size: int
    batches: int
    used: int
    rank: int
    world_size: int

    @classmethod
    def of(cls, count: int, recipe: Recipe, training: bool, rank: int, world_size: int) -> "_Plan":
        parts = recipe.gradient_accumulation_steps
        size = recipe.batch_size // parts
        if size % world_size:
            raise ValueError(
                f"batch_size={recipe.batch_size} in {parts} part(s) cannot be shared out evenly to "
                f"{world_size} processes; make it a multiple of {parts * world_size}."
            )
        # Losses compare the micrographs of a batch: a rest of one would have no negatives.
        if not training:
            batches = -(-count // size)
        elif count >= recipe.batch_size:
            batches = count // recipe.batch_size * parts
        else:
            batches = max(1, count // size)
        return cls(size, batches, min(count, batches * size), rank, world_size)

    @property
    def share(self) -> int:
        """Micrographs of a whole batch that are this process'."""
        return self.size // self.world_size


class _Numbers(Sampler[list[tuple[int, int]]]):
    """(epoch, batch) for each batch of `epoch`, from `start` on."""

    def __init__(self, plan: _Plan):
        self.plan = plan
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.epoch, batch)] for batch in range(self.start, len(self)))


class _Shares(_Numbers):
    """(epoch, row) of this process' share of each batch of `epoch`, from `start` on."""

    def __init__(self, rows: Dataset, drawer: ExampleDrawer, plan: _Plan, tokenizer):
        super().__init__(plan)
        self.texts = rows.select_columns(["image_id", "caption", "qa"])
        self.drawer = drawer
        self.tokenizer = tokenizer

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, plan, seed = self.epoch, self.plan, self.drawer.seed
        order = np.arange(len(self.texts))
        if self.drawer.training:
            order = np.random.default_rng([ORDER, seed, epoch]).permutation(order)
        order = order[: plan.used]
        for first in range(self.start - self.start % WINDOW, plan.batches, WINDOW):
            window = order[first * plan.size : (first + WINDOW) * plan.size]
            lengths = None
            if self.tokenizer is not None:
                drawn = zip(window.tolist(), self.texts.select(window), strict=True)
                lengths = longest_answers(self.tokenizer, self.drawer, drawn, epoch)
            batches = _batches(lengths, len(window), plan.size, [ORDER, seed, epoch, first + 1])
            for batch in batches[max(0, self.start - first) :]:
                batch = window[batch]
                batch = np.append(batch, np.resize(order, -len(batch) % plan.world_size))
                mine = np.split(batch, plan.world_size)[plan.rank]
                yield [(epoch, row) for row in mine.tolist()]


def _batches(
    lengths: np.ndarray | None, count: int, size: int, seed: Sequence[int]
) -> list[np.ndarray]:
    """Places 0 ... count - 1 in batches; of like lengths and in random order, given lengths."""
    places = np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
    batches = np.split(places, range(size, count, size))
    if lengths is not None:
        batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
    return batches


def longest_answers(
    tokenizer, drawer: ExampleDrawer, rows: Iterable[tuple[int, dict]], epoch: int
) -> np.ndarray:
    """int (rows,): the tokens of the longest answer drawn for each, which its batch pads to.

    Args:
        rows: (number, row) with the columns `image_id`, `caption` and `qa`.
    """
    answers = [[a for _, a in drawer.draw(row, number, epoch).pairs] for number, row in rows]
    flat = [answer for some in answers for answer in some]
    ids = tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"]
    starts = np.cumsum([0, *map(len, answers)])[:-1]
    return np.maximum.reduceat([len(one) for one in ids], starts)


class _Mapped(torch.utils.data.Dataset):
    """The examples of a share of a batch, and no ids of unreadable images."""

    def __init__(self, rows: Dataset, drawer: ExampleDrawer):
        self.rows = rows
        self.drawer = drawer

    def __getitems__(self, share: list[tuple[int, int]]):
        try:
            return [self.drawer(self.rows[number], number, epoch) for epoch, number in share], []
        except DatasetError as error:
            # As a value: a worker's exception would arrive as the text of a traceback.
            return error


class _Streamed(torch.utils.data.Dataset):
    """The examples of a share of a batch, and the ids of unreadable images among them."""

    def __init__(
        self, rows: ParquetRows, drawer: ExampleDrawer, plan: _Plan, tokenizer, strict: bool
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

    def __getitems__(self, numbers: list[tuple[int, int]]):
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
        """Have a block of rows in memory, and its batches drawn up."""
        if self._reader is None:
            self._reader = RowReader(self.rows)
        if epoch != self._epoch:
            self._epoch, self._block, self._sequence = epoch, None, self._shared_out(epoch)
        if block == self._block:
            return
        size = self.block_batches * self.plan.share
        numbers = self._sequence[block * size : (block + 1) * size]
        self._table = None  # not two at a time
        table = self._reader.read(numbers)
        lengths = None
        seed = [ORDER, self.drawer.seed, epoch, block + 1, self.plan.rank]
        if self.drawer.training:
            order = np.random.default_rng(seed).permutation(len(numbers))
            numbers, table = numbers[order], table.take(order)
        if self.tokenizer is not None:
            texts = table.select(["image_id", "caption", "qa"]).to_pylist()
            drawn = zip(numbers.tolist(), texts, strict=True)
            lengths = longest_answers(self.tokenizer, self.drawer, drawn, epoch)
        self._batches = _batches(lengths, len(numbers), self.plan.share, [*seed, 1])
        self._block, self._numbers, self._table = block, numbers, table

    def _shared_out(self, epoch: int) -> np.ndarray:
        """int (rows,): the numbers of this process' rows in an epoch, row group by row group."""
        plan, sequence = self.plan, self.rows.rows
        if self.drawer.training:
            sequence = self.rows.shuffled(np.random.default_rng([ORDER, self.drawer.seed, epoch]))
        sequence = sequence[: plan.used]
        rest = plan.used - (plan.batches - 1) * plan.size
        mine = (plan.batches - 1) * plan.share + -(-rest // plan.world_size)
        sequence = np.append(sequence, np.resize(sequence, mine * plan.world_size - plan.used))
        return sequence[plan.rank * mine : (plan.rank + 1) * mine]


class _Collator:
    def __init__(self, processor: MVaEMaProcessor):
        self.processor = processor

    def __call__(self, found: tuple[list[Example], list[str]] | DatasetError):
        if isinstance(found, DatasetError):
            return found
        examples, skipped = found
        inputs, truncated = collate(examples, self.processor)
        return Batch(inputs, [example.image_id for example in examples], truncated, skipped)
