"""Cross-validation: a student per fold, tested on micrographs that it has never seen.

What is special about it:
- three parts, not two: fold k tests, fold k + 1 chooses the checkpoint and the learning rate, and
  the others are trained on. A fold that both chooses and tests would make the scores too good;
- every fold has the references of an evaluation (`mvaema/evaluation/scores.py`): the typical
  training answer, the student shown a blank image or another micrograph, the most frequent
  category;
- folds are independent. A fold with scores is left alone and a killed one resumes. Processes or
  machines can share the folds of one folder with `--fold`; whoever finishes last writes the tables.

The folder of a cross-validation holds

    recipe.yaml             of all folds
    fold-K/                 training run (`mvaema/training/run_folder.py`) of the student that is
                            tested on fold K
    fold-K/test/            its evaluation (`mvaema/evaluation/run.py`), report included
    fold-K/scores.json      its figures; a fold that has them is done
    cross_validation.json   the figures of all folds, with mean and standard deviation
    cross_validation.md     the same as tables
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import PartialState
from datasets import Dataset

from mvaema.evaluation.fold_tables import (
    CATEGORY_FIGURES,
    MOST_FREQUENT,
    SIGHT_FIGURES,
    STUDENT,
    write_fold_tables,
)
from mvaema.evaluation.questions import Micrographs, Questions
from mvaema.evaluation.run import EvaluationArguments, evaluate_questions
from mvaema.evaluation.scores import CHANCE
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.files import read_json_lines, write_json, write_text
from mvaema.micrographs.folds import LeakError, check_no_leak
from mvaema.training import run_folder
from mvaema.training.provenance import dataset_fingerprint
from mvaema.training.recipe import Recipe
from mvaema.training.run import train
from mvaema.training.split import FoldedRows, Rows, load_folds

# Settings that folds need not share: those that a run may change, except how long it is trained.
FREE = {*run_folder.FREE, "fold"} - {"epochs", "stop_after"}


def cross_validate(recipe: Recipe) -> Path:
    """Train and score every fold, or only `recipe.fold`. When all have scores, write the tables.

    Every process of a distributed training calls this; the main one scores.

    Returns:
        `output_dir`, as the top of this module describes it.

    Raises:
        DatasetError: the dataset cannot be used.
        LeakError: a micrograph, or a group, would be in two parts.
        FileExistsError: `output_dir` holds something else.
        ValueError: the recipe has settings that make no sense here, the dataset has changed between
            folds, or what `mvaema.training.run.train` raises.
    """
    _check_settings(recipe)
    process = PartialState(cpu=not torch.accelerator.is_available())
    group = None
    if process.num_processes > 1:
        # The others wait while the main process scores, which may exceed the default timeout.
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=365))
    folder = Path(recipe.output_dir)
    pending = None
    if process.is_main_process:
        _claim(folder, recipe)
        folds = range(recipe.folds) if recipe.fold is None else [recipe.fold]
        pending = [fold for fold in folds if not _scores_file(folder, fold).is_file()]
        if pending:
            rows, synonyms = _load(recipe, pending), has_wordnet()
    for fold in _from_main_process(pending, group):
        of_fold = replace(recipe, fold=fold, output_dir=str(folder / f"fold-{fold}"), resume=False)
        if process.is_main_process:
            print(f"\nFold {fold} of {recipe.folds}", flush=True)
        train(of_fold)
        if process.is_main_process:
            _score(of_fold, rows, synonyms)
        _from_main_process(None, group)  # wait
    if process.is_main_process:
        _write_tables(folder, recipe.folds)
    return folder


def _check_settings(recipe: Recipe) -> None:
    if recipe.push_to_hub:
        raise ValueError(
            "--push_to_hub uploads one student, but --cross_validation trains one per fold, to "
            "measure the recipe: leave one of the two out."
        )
    if recipe.streaming:
        raise ValueError(
            "--streaming assigns folds without looking for near-duplicates, so a student could be "
            "tested on what it was trained on: leave it out of a cross-validation."
        )


def _from_main_process(value, group: dist.ProcessGroup | None):
    """The main process's `value`, on every process. All of them wait for it."""
    if group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def _claim(folder: Path, recipe: Recipe) -> None:
    """Claim `folder` for this recipe, or check that it is this recipe's."""
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
                f"{folder} holds another cross-validation ({changes}), and all folds are trained "
                "with the same settings: choose another --output_dir."
            )
        return
    # Hidden files belong to another process that is writing the recipe right now.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no cross-validation (no recipe.yaml); choose another "
            "--output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(settings, sort_keys=False))


def _load(recipe: Recipe, folds: Sequence[int]) -> FoldedRows:
    """The rows. Everything that could stop the scoring of `folds` is checked before training."""
    rows = load_folds(recipe)
    _check_groups(rows.keys, recipe.dataset)
    Micrographs(rows.dataset, recipe.dataset)  # raises unless each has its own id
    for fold in folds:
        parts = rows.split(fold, cross_validation=True)
        check_no_leak(parts.validation, parts.test)
        _questions(replace(recipe, fold=fold), parts)
    earlier = _read_scores(Path(recipe.output_dir), recipe.folds)
    dataset_of = {fold: scores["dataset"] for fold, scores in earlier.items()}
    _check_same_dataset(dataset_of | {folds[0]: _folds_fingerprint(rows)})
    return rows


def _questions(recipe: Recipe, parts: Rows) -> Questions:
    """What the student of `recipe.fold` is tested on."""
    return Questions.of_splits(
        Micrographs(parts.test, recipe.dataset),
        Micrographs(parts.train, recipe.dataset),
        dataset=recipe.dataset,
        split=f"fold {recipe.fold} of {recipe.folds}",
        train_split="the folds trained on",
    )


def _folds_fingerprint(rows: FoldedRows) -> str:
    """Of micrographs, answers and folds. Folds depend on groups and near-duplicates."""
    text = f"{dataset_fingerprint(rows.dataset)} {rows.folds.tolist()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_groups(keys: Dataset, name: str) -> None:
    """Refuse a micrograph that is in several groups: its specimen would be ambiguous."""
    groups = {}
    for image_id, group in zip(keys["image_id"], keys["group"], strict=True):
        groups.setdefault(image_id, set()).add(group)
    crossing = sorted(i for i, of_image in groups.items() if i and len(of_image) > 1)
    if crossing:
        raise LeakError(
            f"{len(crossing)} micrographs of {name} are in several groups, such as "
            f"{crossing[0]!r} in {', '.join(sorted(map(repr, groups[crossing[0]])))}. Keep each "
            "micrograph once, and give groups that share one the same name."
        )


def _score(recipe: Recipe, rows: FoldedRows, synonyms: bool) -> None:
    """Evaluate the student of a fold on its test micrographs and write `scores.json`."""
    folder = Path(recipe.output_dir)
    parts = rows.split(recipe.fold, cross_validation=True)
    arguments = EvaluationArguments(
        model=str(folder),
        dataset=recipe.dataset,
        output_dir=str(folder / "test"),
        synonyms=synonyms,
    )
    results = evaluate_questions(arguments, _questions(recipe, parts), STUDENT)
    scores = {
        "fold": recipe.fold,
        "dataset": _folds_fingerprint(rows),
        "answers": {
            name: {
                metric: score["mean"]
                for metric, score in summary["overall"]["scores"].items()
                if metric in results["metrics"]
            }
            for name, summary in results["answers"].items()
        },
        "sight": {
            name: {
                figure: summary["overall"]["scores"][figure]["mean"]
                for figure in SIGHT_FIGURES
                if summary["overall"]["scores"][figure]["n"]
            }
            for name, summary in results["sight"].items()
        },
        "categories": {
            MOST_FREQUENT if method == CHANCE else method: {f: found[f] for f in CATEGORY_FIGURES}
            for method, found in results["classification"].items()
        },
        "training": _training_figures(folder, parts),
    }
    write_json(folder / "scores.json", scores)


def _training_figures(folder: Path, parts: Rows) -> dict[str, dict]:
    """Sizes of the parts, and the epoch that was kept."""
    log = read_json_lines(folder / "training_log.jsonl")
    best = min(log, key=lambda record: record["validation"]["loss"])
    return {
        "micrographs": {
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
            "unreadable": len(parts.skipped),
        },
        "epochs": {"best": best["epoch"], "all": len(log)},
        "validation": best["validation"],
    }


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
            "the folds are not of the same dataset: its micrographs, groups or answers have "
            f"changed ({named}). Choose another --output_dir, or remove the older folds."
        )


def _write_tables(folder: Path, folds: int) -> None:
    """The tables of all folds, if all have scores."""
    scores = _read_scores(folder, folds)
    if missing := [str(fold) for fold in range(folds) if fold not in scores]:
        print(
            f"Folds without scores yet: {', '.join(missing)}. The tables follow when all have them."
        )
        return
    _check_same_dataset({fold: of_fold["dataset"] for fold, of_fold in scores.items()})
    print(f"\n{write_fold_tables(list(scores.values()), folder)}")
