"""Folds for cross-validation in which no test micrograph was seen in training.

What is special about it:
- rows stay together if they share a specimen (`group`) or show the same picture
  (`mvaema.micrographs.near_duplicates`), also by way of a third row;
- the categories are spread evenly (scikit-learn's StratifiedGroupKFold);
- the same dataset, k and seed give the same folds on any machine.
"""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from mvaema.files import write_csv
from mvaema.micrographs.near_duplicates import components, near_duplicate_clusters
from mvaema.micrographs.shards import write_shards


class LeakError(ValueError):
    """Two splits share a specimen or a micrograph."""


def check_no_leak(train: Dataset, validation: Dataset):
    """Refuse splits that share a specimen or a micrograph.

    Args:
        train, validation: with the columns `group` and `image_id`; either may be missing.

    Raises:
        LeakError: rows of both have the same `group` or `image_id`; the message names them.
    """
    for column in ("group", "image_id"):
        if column not in train.column_names or column not in validation.column_names:
            continue
        seen = set(train[column][:]) - {None}  # `unique` would first copy selected rows
        shared = sorted(seen & set(validation[column][:]))
        if shared:
            named = ", ".join(map(repr, shared[:10])) + (", ..." if len(shared) > 10 else "")
            raise LeakError(
                f"training and validation share {len(shared)} values of {column}: {named}. The "
                "scores would count micrographs seen in training; split with `mvaema folds`."
            )


def assign_folds(
    dataset: Dataset, k: int, seed: int = 0, clusters: np.ndarray | None = None
) -> list[int]:
    """The fold of each row, 0 to k - 1.

    Args:
        dataset: with the columns `group`, `category` and `image`.
        k: number of folds, at least 2 and at most the number of independent groups.
        seed: selects one of many equally good assignments.
        clusters: result of `near_duplicate_clusters`, if known already.

    Raises:
        ValueError: `k` is below 2, or there are fewer independent groups than folds.
    """
    if clusters is None:
        clusters = near_duplicate_clusters(dataset)
    return _split(_labels(dataset), _independent(dataset, clusters), k, seed).tolist()


def _labels(dataset: Dataset) -> np.ndarray:
    """int (rows,): categories as numbers; unknown is one of them."""
    names = [name or "" for name in dataset["category"][:]]
    return np.unique(names, return_inverse=True)[1]


def _independent(dataset: Dataset, clusters: np.ndarray) -> np.ndarray:
    """int (rows,): rows with the same number share a specimen or are near-duplicates."""
    rows = np.arange(len(dataset))
    groups = _groups(dataset)
    _, first = np.unique(groups, return_index=True)
    a, b = np.concatenate([rows, rows]), np.concatenate([first[groups], clusters])
    return components(a, b, len(rows))


def _groups(dataset: Dataset) -> np.ndarray:
    """int (rows,): groups as numbers; a row without a group is its own."""
    names = [name or f" row {row}" for row, name in enumerate(dataset["group"][:])]
    return np.unique(names, return_inverse=True)[1]


def _split(labels: np.ndarray, groups: np.ndarray | None, k: int, seed: int) -> np.ndarray:
    """int (rows,): scikit-learn's folds, grouped or (without `groups`) ordinary."""
    count = len(labels) if groups is None else len(np.unique(groups))
    if not 2 <= k <= count:
        raise ValueError(
            f"k must be between 2 and the {count} independent groups (specimens, joined by "
            f"near-duplicates); got {k}."
        )
    stratified = k <= np.bincount(labels).max()  # else no category reaches every fold
    if groups is None:
        splitter = StratifiedKFold if stratified else KFold
    else:
        splitter = StratifiedGroupKFold if stratified else GroupKFold
    folds = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A category may have fewer rows than there are folds; the report shows it.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = splitter(k, shuffle=True, random_state=seed).split(labels, labels, groups)
        for fold, (_, rows) in enumerate(splits):
            folds[rows] = fold
    return folds


@dataclass
class FoldReport:
    """Folds, and what would have leaked across simpler ones.

    Attributes:
        folds: int (rows,), as from `assign_folds`.
        rows, groups, independent: their numbers; `independent` counts groups that are joined by
            near-duplicates once.
        near_duplicates: rows that have a near-duplicate.
        clusters: near-duplicate clusters of two rows or more.
        leaked_ordinary: rows with a near-duplicate in another fold of scikit-learn's
            StratifiedKFold: they are tested after their near-duplicate was trained on.
        leaked_by_specimen: the same for folds that keep specimens together, but not
            near-duplicates.
        specimens_ordinary: rows with a row of their specimen in another ordinary fold.
        categories: (category, rows in each fold); the unknown category is "".
    """

    folds: np.ndarray
    rows: int
    groups: int
    independent: int
    near_duplicates: int
    clusters: int
    leaked_ordinary: int
    leaked_by_specimen: int
    specimens_ordinary: int
    categories: list[tuple[str, list[int]]]

    def __str__(self) -> str:
        k = len(self.categories[0][1])
        width = max(len(name) for name, _ in self.categories) + 2
        lines = [
            f"{self.rows:,} micrographs of {self.groups:,} groups. {self.near_duplicates:,} have a "
            f"near-duplicate, in {self.clusters:,} clusters. That leaves {self.independent:,} "
            "independent groups.",
            f"{'fold':{width}}" + "".join(f"{fold:>7}" for fold in range(k)),
        ]
        for name, counts in [*self.categories, ("all", np.bincount(self.folds, minlength=k))]:
            lines.append(f"{name or '(unknown)':{width}}" + "".join(f"{n:7,}" for n in counts))
        lines += [
            f"Ordinary stratified folds would leak {self.leaked_ordinary:,} near-duplicates and "
            f"{self.specimens_ordinary:,} micrographs of a specimen that was trained on.",
            f"Folds grouped by specimen alone would leak {self.leaked_by_specimen:,} "
            "near-duplicates. These folds leak none.",
        ]
        return "\n".join(lines)


def report_folds(dataset: Dataset, k: int, seed: int = 0, workers: int | None = None) -> FoldReport:
    """Assign folds, and count what simpler folds would leak.

    Args:
        dataset, k, seed: as for `assign_folds`.
        workers: processes that decode images; None decodes in this process.

    Raises:
        ValueError: `k` is below 2, or there are fewer independent groups than folds.
    """
    clusters = near_duplicate_clusters(dataset, workers=workers)
    labels, independent = _labels(dataset), _independent(dataset, clusters)
    groups = _groups(dataset)
    folds = _split(labels, independent, k, seed)
    ordinary = _split(labels, None, k, seed)
    by_specimen = _split(labels, groups, k, seed)
    if _leaked(folds, clusters) or _leaked(folds, groups):
        raise AssertionError("folds share a group; this is a bug in mvaema.micrographs.folds.")
    names = sorted({name or "" for name in dataset["category"]})
    sizes = np.bincount(clusters)
    return FoldReport(
        folds=folds,
        rows=len(dataset),
        groups=int(groups.max()) + 1,
        independent=len(np.unique(independent)),
        near_duplicates=int((sizes[clusters] > 1).sum()),
        clusters=int((sizes > 1).sum()),
        leaked_ordinary=_leaked(ordinary, clusters),
        leaked_by_specimen=_leaked(by_specimen, clusters),
        specimens_ordinary=_leaked(ordinary, groups),
        categories=[
            (name, np.bincount(folds[labels == label], minlength=k).tolist())
            for label, name in enumerate(names)
        ],
    )


def _leaked(folds: np.ndarray, belongs: np.ndarray) -> int:
    """Rows that have a row of the same group in another fold."""
    pairs = np.unique(np.stack([belongs, folds]), axis=1)
    torn = np.bincount(pairs[0]) > 1
    return int(torn[belongs].sum())


def hold_out(dataset: Dataset, folds: np.ndarray, folder: Path) -> None:
    """Write the rows of fold 0 as the split `validation`, all others as `train`.

    Args:
        dataset: from `mvaema.micrographs.dataset.load_micrographs`.
        folds: int (rows,).
        folder: for the Parquet shards; it appears complete or not at all.

    Raises:
        FileExistsError: `folder` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another folder for --hold_out.")
    features = Features({**dataset.features, "image": Image()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        for split, chosen in (("train", folds != 0), ("validation", folds == 0)):
            part = dataset.select(np.flatnonzero(chosen))
            rows = ({**row, "image": {"bytes": _encoded(row["image"])}} for row in part)
            write_shards(rows, Path(temporary) / "dataset", split, features, total=len(part))
        (Path(temporary) / "dataset").replace(folder)


def _encoded(image: dict) -> bytes:
    """The content of the image's file, without its name."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def write_folds(dataset: Dataset, folds: np.ndarray, path: Path) -> None:
    """Write the fold of each row as a CSV table with the columns `image_id` and `fold`."""
    rows = zip(dataset["image_id"], folds.tolist(), strict=True)
    write_csv(path, ("image_id", "fold"), rows)
