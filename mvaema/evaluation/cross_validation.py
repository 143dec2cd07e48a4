"""Cross-validation: a student per fold, tested on micrographs that it has never seen.

What is special about it:
- three parts, not two: fold k tests, fold k + 1 chooses the checkpoint and the learning rate, and
  the others are trained on. A fold that both chose and tested would flatter itself;
- the references of the evaluation (`mvaema/evaluation/run.py`) stand beside the student in every fold:
  the typical training answer, the student shown a blank image, the most frequent category. A
  figure above 0 says little, one above its references does;
- folds are independent: one with scores is left alone, a killed one goes on, and processes or
  machines may share them out by `--fold` in one folder. Whoever finishes last writes the tables.

The folder of a cross-validation holds

    recipe.yaml             of all folds
    fold-K/                 training run (`mvaema/training/run_folder.py`) of the student to test on fold K
    fold-K/test/            its evaluation (`mvaema/evaluation/run.py`), report included
    fold-K/scores.json      its figures; a fold that has them is done
    cross_validation.json   the figures of all folds, with mean and standard deviation
    cross_validation.md     the same as tables
"""

import dataclasses
import datetime
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import PartialState
from datasets import Dataset

from mvaema.evaluation.report import NAMES, TABLE_1, Table, markdown
from mvaema.evaluation.run import (
    EvaluationArguments,
    Micrographs,
    evaluate_rows,
    records_to_score,
)
from mvaema.evaluation.scores import read_records
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.files import write_json, write_text
from mvaema.micrographs.folds import LeakError, check_no_leak
from mvaema.training import run_folder
from mvaema.training.provenance import dataset_fingerprint
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.split import FoldedRows, Rows, load_folds

STUDENT = "student"
CHANCE = "most frequent category"
LOSSES = {"loss": "Loss", "itc_loss": "ITC loss", "itm_loss": "ITM loss", "lm_loss": "LM loss"}
CATEGORY_FIGURES = {"top_1": "Top-1", "top_5": "Top-5", "macro_f1": "Macro F1"}
# Settings that folds need not share: those that a run may change, but how long it is trained.
FREE = {*run_folder.FREE, "fold"} - {"epochs", "stop_after"}


def cross_validate(recipe: Recipe) -> Path:
    """Train and score every fold, or only `recipe.fold`, and write the tables when all are there.

    Every process of a distributed training calls this; the main one scores.

    Returns:
        `output_dir`, as the top of this module describes it.

    Raises:
        DatasetError: the dataset cannot be used.
        LeakError: a micrograph, or a group, would be in two parts.
        FileExistsError: `output_dir` holds something else.
        ValueError: the recipe makes no sense for several students, the data changed between folds,
            or what `mvaema.training.run.train` raises.
    """
    if recipe.push_to_hub:
        raise ValueError(
            "cross_validation trains a student per fold to measure the recipe, and push_to_hub "
            "uploads one: leave one of the two out."
        )
    if recipe.streaming:
        raise ValueError(
            "folds of a stream are made without looking for near-duplicates, which would be tested "
            "on after they were trained on: leave --streaming out of a cross-validation."
        )
    process = PartialState(cpu=not torch.accelerator.is_available())
    group = None
    if process.num_processes > 1:
        # The others wait while the main process scores, longer than the default group would.
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=365))
    folder = Path(recipe.output_dir)
    pending = None
    if process.is_main_process:
        _claim(folder, recipe)
        folds = range(recipe.folds) if recipe.fold is None else [recipe.fold]
        pending = [fold for fold in folds if not _scores_file(folder, fold).is_file()]
        if pending:
            rows, synonyms = _load(recipe, pending), has_wordnet()
    for fold in _told(pending, group):
        of_fold = replace(recipe, fold=fold, output_dir=str(folder / f"fold-{fold}"), resume=False)
        if process.is_main_process:
            print(f"\nFold {fold} of {recipe.folds}", flush=True)
        train(of_fold)
        if process.is_main_process:
            _score(of_fold, rows, synonyms)
        _told(None, group)
    if process.is_main_process:
        _write_tables(folder, recipe.folds)
    return folder


def _told(value, group: dist.ProcessGroup | None):
    """The main process's `value`, on every process; they wait for it."""
    if group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _claim(folder: Path, recipe: Recipe) -> None:
    """Make `folder` that of this recipe's folds, or see that it is."""
    settings = dataclasses.asdict(replace(recipe, fold=None, resume=False))
    file = folder / "recipe.yaml"
    if file.is_file():
        earlier = yaml.safe_load(file.read_text(encoding="utf-8"))
        differing = [n for n in settings if settings[n] != earlier.get(n) and n not in FREE]
        if differing:
            changes = ", ".join(
                f"{n} was {earlier.get(n)!r}, is {settings[n]!r}" for n in differing
            )
            raise FileExistsError(
                f"{folder} holds another run ({changes}); the folds of a cross-validation are "
                "trained alike: choose another --output_dir."
            )
        return
    # Hidden files are another process's, which writes the recipe just now.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no cross-validation (no recipe.yaml); choose another "
            "--output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(settings, sort_keys=False))


def _load(recipe: Recipe, folds: Sequence[int]) -> FoldedRows:
    """The rows, with everything about them that could stop the scoring of `folds` looked at."""
    rows = load_folds(recipe)
    _check_groups(rows.keys, recipe.dataset)
    Micrographs(rows.dataset, recipe.dataset)  # each has an id, and its own
    for fold in folds:
        parts = rows.split(fold, cross_validation=True)
        check_no_leak(parts.validation, parts.test)
        records_to_score(*_test_and_train(parts, recipe))
    earlier = _read_scores(Path(recipe.output_dir), recipe.folds)
    dataset_of = {fold: scores["dataset"] for fold, scores in earlier.items()}
    _check_same_dataset(dataset_of | {folds[0]: _fingerprint(rows)})
    return rows


def _test_and_train(parts: Rows, recipe: Recipe) -> tuple[Micrographs, Micrographs]:
    return Micrographs(parts.test, recipe.dataset), Micrographs(parts.train, recipe.dataset)


def _fingerprint(rows: FoldedRows) -> str:
    """Of micrographs, answers and folds; the latter follow from groups and near-duplicates."""
    text = f"{dataset_fingerprint(rows.dataset)} {rows.folds.tolist()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_groups(keys: Dataset, name: str) -> None:
    """Refuse a micrograph in several groups: what is one specimen cannot be known then."""
    groups = {}
    for image_id, group in zip(keys["image_id"], keys["group"], strict=True):
        groups.setdefault(image_id, set()).add(group)
    crossing = sorted(i for i, of_image in groups.items() if i and len(of_image) > 1)
    if crossing:
        raise LeakError(
            f"groups of {name} cross: {len(crossing)} micrographs are in several, such as "
            f"{crossing[0]!r} in {', '.join(sorted(map(repr, groups[crossing[0]])))}. Keep each "
            "micrograph once, and give groups that share one the same name."
        )


def _score(recipe: Recipe, rows: FoldedRows, synonyms: bool) -> None:
    """Evaluate the student of a fold on its test micrographs and write `scores.json`."""
    folder = Path(recipe.output_dir)
    parts = rows.split(recipe.fold, cross_validation=True)
    test, train_rows = _test_and_train(parts, recipe)
    results = evaluate_rows(
        EvaluationArguments(
            model=str(folder),
            dataset=recipe.dataset,
            output_dir=str(folder / "test"),
            split=f"fold {recipe.fold} of {recipe.folds}",
            train_split="the folds trained on",
            synonyms=synonyms,
        ),
        test,
        train_rows,
        STUDENT,
    )
    log = read_records(folder / "training_log.jsonl")
    best = min(log, key=lambda record: record["validation"]["loss"])
    categories = {CHANCE if m == "chance" else m: s for m, s in results["classification"].items()}
    scores = {
        "fold": recipe.fold,
        "dataset": _fingerprint(rows),
        "answers": {
            name: {
                metric: score["mean"]
                for metric, score in summary["overall"]["scores"].items()
                if metric in TABLE_1
            }
            for name, summary in results["answers"].items()
        },
        "categories": {
            method: {figure: found[figure] for figure in CATEGORY_FIGURES}
            for method, found in categories.items()
        },
        "training": {
            "micrographs": {
                "train": len(parts.train),
                "validation": len(parts.validation),
                "test": len(parts.test),
                "unreadable": len(parts.skipped),
            },
            "epochs": {"best": best["epoch"], "all": len(log)},
            "validation": best["validation"],
        },
    }
    write_json(folder / "scores.json", scores)


def _scores_file(folder: Path, fold: int) -> Path:
    return folder / f"fold-{fold}" / "scores.json"


def _read_scores(folder: Path, folds: int) -> dict[int, dict]:
    """The scores of the folds that have them."""
    files = {fold: _scores_file(folder, fold) for fold in range(folds)}
    return {
        fold: json.loads(file.read_text(encoding="utf-8"))
        for fold, file in files.items()
        if file.is_file()
    }


def _check_same_dataset(fingerprints: Mapping[int, str]) -> None:
    if len(set(fingerprints.values())) > 1:
        named = ", ".join(f"fold {fold}: {found}" for fold, found in fingerprints.items())
        raise ValueError(
            "the folds are not of one dataset; its micrographs, groups or answers have changed "
            f"({named}). Choose another --output_dir, or remove the folds of the older one."
        )


def _write_tables(folder: Path, folds: int) -> None:
    """The figures of all folds, if all are there. Several processes may do so at once."""
    scores = _read_scores(folder, folds)
    if missing := [fold for fold in range(folds) if fold not in scores]:
        print(f"The tables follow when these folds are scored: {', '.join(map(str, missing))}.")
        return
    _check_same_dataset({k: of_fold["dataset"] for k, of_fold in scores.items()})
    results = {"folds": folds, "dataset": scores[0]["dataset"]}
    for section in ("answers", "categories", "training"):
        results[section] = _over_folds([of_fold[section] for of_fold in scores.values()])
    answers, categories, training, *per_fold = map(markdown, cross_validation_tables(results))
    write_json(folder / "cross_validation.json", results)
    text = "\n".join([f"# Cross-validation, {folds} folds\n", answers, categories, training])
    print(f"\n{text}")
    write_text(folder / "cross_validation.md", "\n".join([text, *per_fold]))


def _over_folds(sections: Sequence[Mapping[str, Mapping]]) -> dict[str, dict[str, dict]]:
    """Name and figure to `folds`, the values, and their `mean` and `std`.

    These are None where a fold has no such value: a mean over other folds than its neighbour's
    could not be compared with it.
    """
    found = {}
    for section in sections:
        for name, figures in section.items():
            found.setdefault(name, {}).update(dict.fromkeys(figures))
    for name, figures in found.items():
        for figure in figures:
            values = [section.get(name, {}).get(figure) for section in sections]
            whole = None not in values
            figures[figure] = {
                "mean": statistics.fmean(values) if whole else None,
                "std": statistics.stdev(values) if whole else None,
                "folds": values,
            }
    return found


def cross_validation_tables(results: Mapping) -> list[Table]:
    """Answers, categories and training over all folds, then each of them fold by fold.

    Args:
        results: of `cross_validation.json`: `folds`, how many, and `answers`, `categories` and
            `training`, each from a name and a figure to `mean`, `std` and `folds`.
    """
    answers, categories, training = (results[s] for s in ("answers", "categories", "training"))
    metrics = {m: f"{NAMES[m]} (↑)" for m in TABLE_1 if m in answers[STUDENT]}
    spread = "± is the standard deviation (n - 1) over the folds."
    parts = {
        **{("micrographs", name): name.capitalize() for name in training["micrographs"]},
        ("epochs", "best"): "Best epoch",
        ("epochs", "all"): "Epochs",
        **{("validation", n): LOSSES[n] for n in LOSSES if n in training["validation"]},
    }
    columns = [training[name][figure] for name, figure in parts]
    tables = [
        Table(
            "Answers",
            ["Method", *metrics.values()],
            [[name, *(_mean_std(of.get(m)) for m in metrics)] for name, of in answers.items()],
            f"{spread} A student that does not beat the typical training answer, and itself shown "
            "a blank image, has learnt nothing from the images.",
        ),
        Table(
            "Categories",
            ["Method", *CATEGORY_FIGURES.values()],
            [
                [name, *(_mean_std(of.get(f)) for f in CATEGORY_FIGURES)]
                for name, of in categories.items()
            ],
            f"{spread} F1 is averaged over the categories that occur in a fold. The {CHANCE} is "
            "that of the micrographs trained on; for top-5 the five most frequent.",
        ),
        Table(
            "Training",
            ["Fold", *parts.values()],
            _fold_rows(columns),
            "Micrographs of the three parts, and those left out as unreadable; the epoch with the "
            "lowest validation loss, whose checkpoint is tested, of all epochs; its losses.",
        ),
    ]
    for title, names, of_names in (
        ("Answers", metrics, answers),
        ("Categories", CATEGORY_FIGURES, categories),
    ):
        for name, figures in of_names.items():
            rows = _fold_rows([figures[figure] for figure in names if figure in figures])
            header = ["Fold", *(names[figure] for figure in names if figure in figures)]
            tables.append(Table(f"{title}: {name}", header, rows))
    return tables


def _fold_rows(columns: Sequence[Mapping]) -> list[list[str]]:
    """A row per fold, and their mean."""
    rows = [
        [str(fold), *map(_cell, values)]
        for fold, values in enumerate(zip(*(column["folds"] for column in columns), strict=True))
    ]
    return [*rows, ["mean", *map(_mean_std, columns)]]


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _mean_std(figure: Mapping | None) -> str:
    if figure is None or figure["mean"] is None:
        return "–"
    form = ".1f" if isinstance(figure["folds"][0], int) else ".3f"
    return f"{figure['mean']:{form}}±{figure['std']:{form}}"
