"""Micrographs of several datasets in one run, and how often an epoch shows each.

What is special about it:
- only the first dataset validates. From the others, whatever shows a specimen or a picture that
  validates or tests is left out;
- a micrograph without answers is trained on by its category: its caption is the answer to the
  category question and a statement about the image;
- an epoch may show a row twice, or every second time. What is drawn for each showing differs.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.near_duplicates import near_duplicate_clusters
from mvaema.micrographs.schema import FEATURES, QA_FEATURES
from mvaema.training.recipe import Recipe

# What training reads.
COLUMNS = "image image_id category caption pixel_size_nm scale_bar group qa".split()
ANSWER = ("question_id", "question", "answer", "outcome")


def common_columns(rows: Dataset) -> Dataset:
    """`COLUMNS` with the types of the schema, so that datasets can be joined.

    A caption that is missing is the one of its category; a row without answers has no entries.
    """
    nothing = dict.fromkeys(QA_FEATURES)

    def fill(batch: dict[str, list]) -> dict[str, list]:
        captions = zip(batch["caption"], batch["category"], strict=True)
        return {
            "caption": [own or CATEGORY_CAPTIONS.get(category) for own, category in captions],
            "qa": [
                [nothing | {"flags": []} | {name: x[name] for name in ANSWER} for x in qa or []]
                for qa in batch["qa"]
            ],
        }

    texts = rows.select_columns(["caption", "category", "qa"]).map(
        fill,
        batched=True,
        remove_columns=["category", "caption", "qa"],
        features=Features({"caption": FEATURES["caption"], "qa": FEATURES["qa"]}),
        keep_in_memory=True,
    )
    rest = rows.select_columns([name for name in COLUMNS if name not in ("caption", "qa")])
    types = {name: FEATURES[name] for name in rest.column_names} | {"image": rest.features["image"]}
    rest = rest.cast(Features(types))
    return concatenate_datasets([rest, texts], axis=1)


def licensed(rows: Dataset, licences: Sequence[str] | None, source: str) -> Dataset:
    """The rows whose licence begins with one of `licences`; all where there are none.

    Raises:
        DatasetError: no row has such a licence.
    """
    if licences is None:
        return rows
    own = [(name or "").startswith(tuple(licences)) for name in rows["licence"][:]]
    if not any(own):
        raise DatasetError(
            f"{source} has no micrographs whose licence begins with {' or '.join(licences)}."
        )
    return rows.select(np.flatnonzero(own))


def join(train: Dataset, recipe: Recipe, held_out: Dataset) -> list[Dataset]:
    """`train` and the recipe's further datasets, ready to be joined.

    Args:
        held_out: rows that validate or test.

    Raises:
        DatasetError: a dataset cannot be used, or nothing of it may be trained on.
    """
    parts = [common_columns(train)]
    for source in recipe.train_also or []:
        rows = licensed(load_micrographs(source, recipe.split), recipe.licences, source)
        rows = common_columns(rows)
        usable = [
            i
            for i, row in enumerate(rows.select_columns(["qa", "caption"]))
            if row["caption"] or any(x["outcome"] == "ok" for x in row["qa"])
        ]
        if not usable:
            raise DatasetError(
                f"{source} has neither answers with outcome 'ok' nor categories to train on."
            )
        rows = rows.select(usable)
        kept = np.flatnonzero(~_shown(rows, common_columns(held_out)))
        if not len(kept):
            raise DatasetError(f"all micrographs of {source} are held out for validation.")
        parts.append(rows.select(kept))
    return parts


def _shown(rows: Dataset, held_out: Dataset) -> np.ndarray:
    """bool (rows,): whether a row is unreadable or shows what is held out."""
    known = {name: set(held_out[name][:]) - {None} for name in ("group", "image_id")}
    columns = zip(rows["group"][:], rows["image_id"][:], strict=True)
    shared = [group in known["group"] or name in known["image_id"] for group, name in columns]
    clusters = near_duplicate_clusters(concatenate_datasets([held_out, rows]), skip_unreadable=True)
    of_rows, of_held_out = clusters[len(held_out) :], clusters[: len(held_out)]
    return np.array(shared) | np.isin(of_rows, of_held_out) | (of_rows < 0)


def showings(parts: Sequence[Dataset], mix: Sequence[float], balance: float) -> np.ndarray | None:
    """How often an epoch shows each row of the joined `parts`, on average, (rows,).

    Args:
        mix: showings of each row of each part.
        balance: 0, as the data is; 1, as much of every category. Between them, a category with n
            showings gets a share in proportion to n ** (1 - balance). As many rows are shown.

    Returns:
        float (rows,); None where each is shown once.
    """
    counts = np.repeat(np.asarray(mix, float), [len(part) for part in parts])
    if balance:
        categories = [name for part in parts for name in part["category"][:]]
        totals: Counter = Counter()
        for name, count in zip(categories, counts, strict=True):
            totals[name] += count
        total = counts.sum()
        counts *= np.array([totals[name] ** -balance if totals[name] else 0 for name in categories])
        counts *= total / counts.sum()
    return None if (counts == 1).all() else counts


def draw_rows(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an epoch in random order, and the how-manieth showing of its row each is.

    A row with a count of 1.3 is shown once or twice, and each epoch has as many rows: systematic
    sampling over rows in random order.
    """
    order = rng.permutation(len(counts))
    ends = counts[order].cumsum()
    total = max(1, round(float(ends[-1])))
    places = (np.arange(total) + rng.random()) * (ends[-1] / total)
    rows = np.sort(order[np.searchsorted(ends, places, side="right").clip(max=len(order) - 1)])
    first = np.searchsorted(rows, rows)
    shown = np.stack([rows, np.arange(total) - first])
    return tuple(shown[:, rng.permutation(total)])
