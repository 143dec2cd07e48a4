"""Cross-validation: figures by hand, folds shared out, kills, refusals; a tiny student."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.micrograph_data import write_dataset

from mvaema.evaluation.conditions import BLANK, CAPTION, PLAIN
from mvaema.evaluation.cross_validation import cross_validate
from mvaema.evaluation.fold_tables import write_fold_tables
from mvaema.evaluation.records import score_records
from mvaema.evaluation.wordnet import has_wordnet
from mvaema.files import read_json_lines
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.folds import LeakError
from mvaema.training.recipe import Recipe

FOLDS = 3
SHAPES = (
    "hidden_size=16,intermediate_size=32,num_image_layers=1,num_text_layers=1,"
    "max_position_embeddings=64"
)


def make_recipe(folder: Path, **settings) -> Recipe:
    """Three folds of seconds, of the dataset in `folder`."""
    settings = {
        "folds": FOLDS,
        "cross_validation": True,
        "epochs": 3,
        "learning_rate": 0.03,
        "batch_size": 2,
        "questions_per_image": 2,
        "vocab_size": 300,
        "warmup_steps": 2,
        "workers": 0,
        "sample_micrographs": 0,
        "config_overrides": SHAPES,
    } | settings
    return Recipe(str(folder / "data"), str(folder / "folds"), **settings)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("empty_pictures")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_pictures) -> Path:
    """The folder of a finished cross-validation; its dataset is beside it.

    Two commands have shared the folds.
    """
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "data", 24)
    recipe = make_recipe(folder)
    cross_validate(replace(recipe, fold=2))
    assert (folder / "folds/fold-2/scores.json").exists()
    assert not list((folder / "folds").glob("fold-[01]"))
    assert not (folder / "folds/cross_validation.json").exists()
    return cross_validate(recipe)


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of it that may be changed."""
    return shutil.copytree(whole, tmp_path / "folds")


@pytest.fixture
def recipe(whole, tmp_path) -> Recipe:
    """A cross-validation of the same dataset in another folder."""
    (tmp_path / "data").symlink_to(whole.parent / "data")
    return make_recipe(tmp_path)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "cross_validation.json").read_text())


def test_every_micrograph_is_tested_once_and_never_by_a_student_that_saw_its_specimen(whole):
    rows = load_micrographs(whole.parent / "data")
    group_of = dict(zip(rows["image_id"], rows["group"], strict=True))
    tested = [
        {r["image_id"] for r in read_json_lines(whole / f"fold-{fold}/test/answers.jsonl")}
        for fold in range(FOLDS)
    ]
    assert Counter(i for ids in tested for i in ids) == dict.fromkeys(group_of, 1)
    groups = [{group_of[i] for i in ids} for ids in tested]
    for a in range(FOLDS):
        assert not any(groups[a] & groups[b] for b in range(a))
        counts = results_of(whole)["training"]["micrographs"]
        found = {name: counts[name]["folds"][a] for name in ("train", "validation", "test")}
        validation = tested[(a + 1) % FOLDS]
        expected = {"test": len(tested[a]), "validation": len(validation)}
        assert found == {**expected, "train": 24 - len(tested[a]) - len(validation)}


def test_figures_are_those_of_scoring_each_fold_by_hand(whole):
    results = results_of(whole)
    for name, condition in (
        ("student", PLAIN),
        ("student, caption given", CAPTION),
        ("student, blank image", BLANK),
    ):
        means = []
        for fold in range(FOLDS):
            rows = read_json_lines(whole / f"fold-{fold}/test/answers.jsonl")
            rows = score_records([r for r in rows if r["condition"] == condition], False)
            means.append(np.mean([r["scores"]["bleu_2"] for r in rows]))
        assert results["answers"][name]["bleu_2"]["folds"] == pytest.approx(means)
        assert min(means) > 0
    for figures in results["answers"].values():
        for found in figures.values():
            assert found["mean"] == pytest.approx(np.mean(found["folds"]))
            assert found["std"] == pytest.approx(np.std(found["folds"], ddof=1))
    assert results["answers"]["nearest image's answer"]["bleu_2"]["std"] > 0
    rows = load_micrographs(whole.parent / "data")
    category_of = dict(zip(rows["image_id"], rows["category"], strict=True))
    tops, frequent = [], []
    for fold in range(FOLDS):
        rows = read_json_lines(whole / f"fold-{fold}/test/categories.jsonl")
        rows = [r for r in rows if r["method"] == "ITM"]
        best = [max(r["probabilities"], key=r["probabilities"].get) for r in rows]
        tops.append(
            np.mean([category_of[r["image_id"]] == b for r, b in zip(rows, best, strict=True)])
        )
        held_out = {r["image_id"] for r in rows} | {
            r["image_id"]
            for r in read_json_lines(whole / f"fold-{(fold + 1) % FOLDS}/test/categories.jsonl")
        }
        trained = Counter(c for i, c in category_of.items() if i not in held_out)
        ((guess, count), *others) = trained.most_common()
        if not others or others[0][1] < count:  # else either may be guessed
            frequent.append((fold, np.mean([category_of[r["image_id"]] == guess for r in rows])))
    assert results["categories"]["ITM"]["top_1"]["folds"] == pytest.approx(tops)
    chance = results["categories"]["most frequent category"]["top_1"]["folds"]
    assert [(fold, chance[fold]) for fold, _ in frequent] == frequent
    # The answers follow from the category, so that of the true category is the teacher's own.
    told = results["answers"]["typical answer of the category"]["rouge_l"]
    assert (told["mean"], told["std"]) == pytest.approx((1, 0))


def test_training_figures_are_those_of_the_best_epoch(whole):
    results = results_of(whole)["training"]
    for fold in range(FOLDS):
        log = read_json_lines(whole / f"fold-{fold}/training_log.jsonl")
        best = min(range(len(log)), key=lambda i: log[i]["validation"]["loss"])
        assert results["epochs"]["best"]["folds"][fold] == best + 1
        assert results["epochs"]["all"]["folds"][fold] == len(log) == 3
        for name in ("itc_loss", "itm_loss", "lm_loss"):
            found = results["validation"][name]["folds"][fold]
            assert found == log[best]["validation"][name]


def test_the_tables_say_what_the_figures_say(whole):
    text, results = (whole / "cross_validation.md").read_text(), results_of(whole)
    score = results["answers"]["typical answer"]["bleu_4"]
    (row,) = (line for line in text.splitlines() if line.startswith("| typical answer |"))
    assert f"{score['mean']:.3f}±{score['std']:.3f}" in row
    assert ("METEOR (↑)" if has_wordnet() else "METEOR without synonyms (↑)") in text
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    titles = [section.split("\n")[0] for section in sections[1:]]
    assert titles[:4] == ["Answers", "What the image is worth", "Categories", "Training"]
    assert {"Answers: student", "Answers: student, blank image", "Categories: LM"} <= set(titles)
    (section,) = (s for s in sections if s.startswith("Categories: ITC\n"))
    for fold in range(FOLDS):
        figures = [results["categories"]["ITC"][f]["folds"][fold] for f in ("top_1", "top_5")]
        assert f"| {fold} | {figures[0]:.3f} | {figures[1]:.3f} |" in section
    assert "| mean | " in section


def test_finished_folds_are_left_alone(finished, tmp_path):
    """Not even their dataset is needed, and settings that may change have changed."""
    recipe = make_recipe(tmp_path, resume=True, workers=1)
    assert not Path(recipe.dataset).exists()
    tables = finished / "cross_validation.md"
    expected = tables.read_bytes()
    tables.unlink()
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert cross_validate(recipe) == finished
    assert tables.read_bytes() == expected
    assert {p: p.read_bytes() for p in before} == before


def flags(recipe: Recipe) -> list[str]:
    """What to type for a recipe."""
    values = {f.name: (getattr(recipe, f.name), f.default) for f in fields(recipe)}
    return [f"--{name}={value}" for name, (value, default) in values.items() if value != default]


def kill_when(arrived: Path, command: list[str], environment: dict[str, str]) -> int:
    """Run a command and kill it as soon as a file has content; returns its status."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (arrived.is_file() and arrived.stat().st_size):
            time.sleep(0.001)
        process.kill()
        return process.wait()


@pytest.mark.slow
def test_killed_between_folds_and_within_them_it_ends_in_the_same_tables(whole, recipe):
    folder = Path(recipe.output_dir)
    command = [sys.executable, str(ROOT / "train.py"), *flags(recipe)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arrived in (
        "fold-0/training_log.jsonl",  # in training
        "fold-0/test/answers.jsonl",  # in scoring
        "fold-0/scores.json",  # between two folds
        "fold-1/test/categories.jsonl",
        "fold-2/scores.json",
    ):
        assert kill_when(folder / arrived, command, environment) == -signal.SIGKILL
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    for name in ("cross_validation.json", "cross_validation.md"):
        assert (folder / name).read_text() == (whole / name).read_text()
    for fold in range(FOLDS):
        weights = (f / f"fold-{fold}" / "model.safetensors" for f in (folder, whole))
        assert next(weights).read_bytes() == next(weights).read_bytes()


PATIENT = """
import datetime, sys, time
import torch.distributed as dist
from mvaema.commands.train import main
from mvaema.evaluation import cross_validation

# The timeout of the training's own group, which is much longer in earnest.
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
evaluate_questions = cross_validation.evaluate_questions

def slowly(*arguments):
    time.sleep(25)
    return evaluate_questions(*arguments)

cross_validation.evaluate_questions = slowly
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_train_together_and_the_second_waits_for_the_scores(whole, recipe, tmp_path):
    script = tmp_path / "patient.py"
    script.write_text(PATIENT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [sys.executable, *launcher, str(script), *flags(recipe)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found, expected = results_of(Path(recipe.output_dir)), results_of(whole)
    assert found["training"]["micrographs"] == expected["training"]["micrographs"]
    for name in ("itc_loss", "lm_loss"):
        losses = (r["training"]["validation"][name]["folds"] for r in (found, expected))
        assert next(losses) == pytest.approx(next(losses), abs=1e-3)
    references = ("typical answer", "random answer")
    for name in references:
        assert found["answers"][name] == expected["answers"][name]


def test_several_that_finish_at_once_write_the_same(whole):
    scores = [json.loads((whole / f"fold-{k}/scores.json").read_text()) for k in range(FOLDS)]
    names = ("cross_validation.json", "cross_validation.md")
    before = {name: (whole / name).read_bytes() for name in names}
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            torn.extend(n for n, content in before.items() if (whole / n).read_bytes() != content)

    def write():
        for _ in range(20):
            write_fold_tables(scores, whole)

    reader, *writers = [threading.Thread(target=t) for t in (read, *[write] * 6)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not torn
    assert not [path for path in whole.iterdir() if path.name.startswith(".")]


def test_groups_that_cross_are_refused_before_training(tmp_path):
    folder = write_dataset(tmp_path / "data", 24)
    file = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[20]["image_id"] = rows[0]["image_id"]

    def refused(error, message):
        file.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(error, match=message):
            cross_validate(make_recipe(tmp_path))
        assert not list((tmp_path / "folds").glob("fold-*"))

    refused(LeakError, "'image0' in 'specimen0', 'specimen5'")
    rows[20]["group"] = rows[0]["group"]
    refused(DatasetError, "name each micrograph once")
    rows[20]["image_id"] = None
    refused(DatasetError, "`image_id` must be filled in")
    rows[20]["image_id"] = "image20"
    rows[20]["qa"] = [{**rows[20]["qa"][0], "question_id": "own", "question": "Which lot?"}]
    refused(ValueError, "question 'own' has no answer in the training split")


def test_folds_of_another_dataset_are_refused(finished, whole, tmp_path):
    (tmp_path / "data").symlink_to(whole.parent / "data")
    shutil.rmtree(finished / "fold-0")
    scores = finished / "fold-1" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"dataset": "0123"}))
    with pytest.raises(ValueError, match=r"answers have changed \(fold 1: 0123, fold 2: .*fold 0"):
        cross_validate(make_recipe(tmp_path))
    assert not (finished / "fold-0").exists()


def test_another_run_is_not_overwritten(whole):
    recipe = make_recipe(whole.parent)
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    for other, message in (
        (
            replace(recipe, epochs=9, learning_rate=0.1, fold=1),
            "another cross-validation .*epochs was 3, is 9, learning_rate was",
        ),
        (replace(recipe, output_dir=recipe.dataset), "holds no cross-validation"),
    ):
        with pytest.raises(FileExistsError, match=message):
            cross_validate(other)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_settings_that_make_no_sense_are_refused(recipe):
    for setting, message in (
        ({"push_to_hub": "lab/student"}, "leave one of the two out"),
        ({"streaming": True}, "without looking for near-duplicates"),
    ):
        with pytest.raises(ValueError, match=message):
            cross_validate(replace(recipe, **setting))
    assert not Path(recipe.output_dir).exists()
