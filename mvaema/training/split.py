"""The rows of a training run: which are trained on, which validate, and which are tested on.

What is special about it:
- folds keep specimens (`group`), near-duplicates and equal `image_id`s together, and a split is
  checked for leaks before anything is trained;
- every image is decoded once beforehand, to find near-duplicates and unreadable files. A stream
  (`streaming.py`) is not looked at: its folds are made of `group` and `image_id` alone.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets

from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.folds import assign_folds, check_no_leak
from mvaema.micrographs.near_duplicates import near_duplicate_clusters
from mvaema.training.mixing import join, licensed, showings
from mvaema.training.recipe import Recipe
from mvaema.training.streaming import ParquetRows, open_shards

TEXT_COLUMNS = ["image_id", "category", "caption", "scale_bar", "qa"]
# Rows of a stream whose texts are read for the tokenizer: so many runs of so many rows.
TEXT_RUNS, TEXT_RUN = 100, 200


def good_answers(qa: list[dict] | None) -> list[tuple[str, str]]:
    """(question, answer) of the entries that may be trained on."""
    return [
        (x["question"], x["answer"])
        for x in qa or []
        if x["outcome"] == "ok" and (x["question"] or "").strip() and (x["answer"] or "").strip()
    ]


@dataclass
class Rows:
    """What a training run reads.

    Attributes:
        train, validation: rows of the micrograph schema; they share no specimen.
        texts: the columns of `train` that hold no images. Of a stream: of some of its rows, evenly
            spread and with all categories.
        captions: category to caption, of all folds: categories are the dataset's, not a fold's.
        skipped: ids of micrographs that were left out because their images cannot be read. In a
            stream these are found while training (`Batch.skipped`).
        test: in cross-validation, the rows to test on.
        counts: float (rows,), how often an epoch shows each row of `train`; None for once.
    """

    train: Dataset | ParquetRows
    validation: Dataset | ParquetRows
    texts: Dataset
    captions: dict[str, str]
    skipped: list[str]
    test: Dataset | ParquetRows | None = None
    counts: np.ndarray | None = None


@dataclass
class FoldedRows:
    """All rows of a recipe's split that can be trained on, and the fold of each.

    Attributes:
        dataset: the rows.
        keys: `image_id`, `group` and `category` of each.
        folds: int (rows,).
        skipped: ids of micrographs whose images cannot be read.
        recipe: what they are folded for.
    """

    dataset: Dataset | ParquetRows
    keys: Dataset
    folds: np.ndarray
    skipped: list[str]
    recipe: Recipe

    def split(self, fold: int, cross_validation: bool = False) -> Rows:
        """The rows of one run; no image is read.

        Args:
            fold: the one that validates. In cross-validation it tests and the next one validates.
                All others are trained on.

        Raises:
            DatasetError: one of the parts would be empty.
            LeakError: a specimen or a micrograph is in two parts.
        """
        held_out = {"validation": fold}
        if cross_validation:
            held_out = {"test": fold, "validation": (fold + 1) % (int(self.folds.max()) + 1)}
        chosen = {name: np.flatnonzero(self.folds == k) for name, k in held_out.items()}
        chosen["train"] = np.flatnonzero(~np.isin(self.folds, list(held_out.values())))
        for name, places in chosen.items():
            if not len(places):
                raise DatasetError(
                    f"no micrographs are left for {name} of fold {fold}: there are too few "
                    "independent groups (specimens and near-duplicates together), or they are too "
                    "uneven, for this number of folds. Change --folds."
                )
        keys = {name: self.keys.select(places) for name, places in chosen.items()}
        for name in held_out:
            check_no_leak(keys["train"], keys[name])
        parts = {name: self.dataset.select(places) for name, places in chosen.items()}
        captions = _captions(self.dataset, self.keys)
        counts = None
        if self.recipe.train_also or self.recipe.balance:
            parts["train"], counts, more = self._mixed(parts)
            keys["train"] = parts["train"].select_columns(["image_id", "group", "category"])
            captions = more | captions
        texts = _texts(parts["train"], keys["train"])
        return Rows(**parts, texts=texts, captions=captions, skipped=self.skipped, counts=counts)

    def _mixed(
        self, parts: dict[str, Dataset]
    ) -> tuple[Dataset, np.ndarray | None, dict[str, str]]:
        """What is trained on with the recipe's further datasets, how often, and their captions."""
        recipe = self.recipe
        held_out = concatenate_datasets([rows for name, rows in parts.items() if name != "train"])
        joined = join(parts["train"], recipe, held_out)
        train = concatenate_datasets(joined)
        counts = showings(joined, recipe.showings, recipe.balance)
        return train, counts, _captions(train, train.select_columns("category"))


def load_rows(recipe: Recipe) -> Rows:
    """The rows of a recipe, for its fold (0 if it names none); see `load_folds`."""
    return load_folds(recipe).split(recipe.fold or 0, recipe.cross_validation)


def load_folds(recipe: Recipe, answered: bool = True) -> FoldedRows:
    """The rows of a recipe and their folds.

    Every image is decoded once, to find near-duplicates. Unreadable ones are left out. With
    `recipe.streaming` only the columns that folds are made of are read.

    Args:
        answered: refuse a dataset without answers; else all its rows are taken.

    Raises:
        DatasetError: the dataset cannot be used, or an image cannot be read and `recipe.strict`.
        ValueError: it has fewer independent groups than there are folds.
    """
    if recipe.streaming:
        rows, keys = open_shards(recipe.dataset, recipe.split)
        names = [name or f" row {row}" for row, name in enumerate(keys["image_id"][:])]
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        clusters, unreadable = first[inverse], []
    else:
        rows = load_micrographs(recipe.dataset, recipe.split)
        rows = licensed(rows, recipe.licences, recipe.dataset)
        usable = [i for i, row in enumerate(rows.select_columns("qa")) if good_answers(row["qa"])]
        if not usable and answered:
            raise DatasetError(
                f"{recipe.dataset} has no answers with outcome 'ok' in its column 'qa'. Run "
                "generate_teacher_data.py on it first."
            )
        rows = rows.select(usable) if usable else rows
        rows, clusters, unreadable = _readable(rows, recipe)
        # Without the images, which a search for values would copy.
        keys = rows.select_columns(["image_id", "group", "category"])
    folds = assign_folds(keys, recipe.folds, clusters=clusters)
    return FoldedRows(rows, keys, np.array(folds), unreadable, recipe)


def _readable(rows: Dataset, recipe: Recipe) -> tuple[Dataset, np.ndarray, list[str]]:
    """Rows whose image can be read, the first row of the near-duplicates of each, other ids."""
    processes = recipe.workers if recipe.workers > 1 else None
    clusters = near_duplicate_clusters(rows, workers=processes, skip_unreadable=True)
    unreadable = rows.select(np.flatnonzero(clusters < 0))["image_id"][:]
    if not unreadable:
        return rows, clusters, []
    if recipe.strict or len(unreadable) == len(rows):
        named = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
        raise DatasetError(
            f"{len(unreadable)} of {len(rows)} images of {recipe.dataset} cannot be read: {named}. "
            "Repair or remove them"
            + (", or leave --strict out to skip them." if recipe.strict else ".")
        )
    readable = np.flatnonzero(clusters >= 0)
    # A cluster is named by its first row, whose number has changed.
    clusters = np.searchsorted(readable, clusters[readable])
    return rows.select(readable), clusters, unreadable


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
