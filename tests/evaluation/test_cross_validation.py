"""Cross-validation: figures by hand, folds shared out, kills, refusals; a tiny student."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.micrograph_data import write_dataset

from mvaema.evaluation import cross_validation
from mvaema.evaluation import run as evaluation
from mvaema.evaluation.cross_validation import cross_validate
from mvaema.evaluation.scores import read_records, score_records
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.micrographs.folds import LeakError
from mvaema.training import run as training
from mvaema.training.recipe import Recipe, read_recipe

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


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Without pictures, which take seconds and have tests of their own, and without synonyms."""

    def results_only(results, answers, images, folder, log):
        (folder / "results.json").write_text(json.dumps(results, allow_nan=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "write_report", results_only)
        patch.setattr(training, "loss_curves", lambda *_: None)
        patch.setattr(cross_validation, "has_wordnet", lambda: False)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted cross-validation; its dataset is beside it."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "data", 24)
    return cross_validate(make_recipe(folder))


@pytest.fixture
def recipe(whole, tmp_path) -> Recipe:
    """A cross-validation of the same dataset in a new folder."""
    (tmp_path / "data").symlink_to(whole.parent / "data")
    return make_recipe(tmp_path)


@pytest.fixture
def untrained(monkeypatch):
    def refuse(recipe):
        raise AssertionError(f"{recipe.output_dir} was trained")

    monkeypatch.setattr(cross_validation, "train", refuse)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "cross_validation.json").read_text())


def test_every_micrograph_is_tested_once_and_never_by_a_student_that_saw_its_specimen(whole):
    rows = load_micrographs(whole.parent / "data")
    group_of = dict(zip(rows["image_id"], rows["group"], strict=True))
    tested = [
        {r["image_id"] for r in read_records(whole / f"fold-{fold}/test/answers.jsonl")}
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
        ("student", evaluation.PLAIN),
        ("student, caption given", evaluation.CAPTION),
        ("student, blank image", evaluation.BLANK),
    ):
        means = []
        for fold in range(FOLDS):
            rows = read_records(whole / f"fold-{fold}/test/answers.jsonl")
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
        rows = read_records(whole / f"fold-{fold}/test/categories.jsonl")
        rows = [r for r in rows if r["method"] == "ITM"]
        best = [max(r["probabilities"], key=r["probabilities"].get) for r in rows]
        tops.append(
            np.mean([category_of[r["image_id"]] == b for r, b in zip(rows, best, strict=True)])
        )
        held_out = {r["image_id"] for r in rows} | {
            r["image_id"]
            for r in read_records(whole / f"fold-{(fold + 1) % FOLDS}/test/categories.jsonl")
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
        log = read_records(whole / f"fold-{fold}/training_log.jsonl")
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
    assert "METEOR without synonyms (↑)" in text
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    titles = [section.split("\n")[0] for section in sections[1:]]
    assert titles[:3] == ["Answers", "Categories", "Training"]
    assert {"Answers: student", "Answers: student, blank image", "Categories: LM"} <= set(titles)
    (section,) = (s for s in sections if s.startswith("Categories: ITC\n"))
    for fold in range(FOLDS):
        figures = [results["categories"]["ITC"][f]["folds"][fold] for f in ("top_1", "top_5")]
        assert f"| {fold} | {figures[0]:.3f} | {figures[1]:.3f} |" in section
    assert "| mean | " in section


def test_finished_folds_are_left_alone(whole, untrained, monkeypatch):
    monkeypatch.setattr(cross_validation, "evaluate_rows", lambda *_: 1 / 0)
    monkeypatch.setattr(cross_validation, "load_folds", lambda *_: 1 / 0)
    before = (whole / "cross_validation.md").read_bytes()
    (whole / "cross_validation.md").unlink()
    recipe = make_recipe(whole.parent, resume=True, workers=1)  # settings that may change
    assert cross_validate(recipe) == whole
    assert (whole / "cross_validation.md").read_bytes() == before


def test_folds_may_be_shared_out_and_interrupted(whole, recipe, monkeypatch, capsys):
    class Stop(Exception):
        pass

    trained = []
    train, append = cross_validation.train, evaluation.JsonLines.append

    def counted(of_fold):
        trained.append(of_fold.fold)
        if trained == [2, 0, 0, 1]:
            raise Stop  # between two folds
        return train(of_fold)

    def stopped(self, rows):
        append(self, rows)
        if trained == [2, 0]:
            raise Stop  # in the scoring of a fold

    monkeypatch.setattr(cross_validation, "train", counted)
    monkeypatch.setattr(evaluation.JsonLines, "append", stopped)
    folder = Path(recipe.output_dir)
    cross_validate(replace(recipe, fold=2))
    assert "when these folds are scored: 0, 1." in capsys.readouterr().out
    for _ in range(2):
        with pytest.raises(Stop):
            cross_validate(recipe)
    assert not (folder / "cross_validation.json").exists()
    again = read_recipe(["--resume", "--output_dir", str(folder)])
    assert again == replace(recipe, resume=True)
    cross_validate(again)
    assert trained == [2, 0, 0, 1, 1]
    for name in ("cross_validation.json", "cross_validation.md"):
        assert (folder / name).read_text() == (whole / name).read_text()


def flags(recipe: Recipe) -> list[str]:
    """What to type for a recipe."""
    values = {f.name: (getattr(recipe, f.name), f.default) for f in fields(recipe)}
    return [f"--{name}={value}" for name, (value, default) in values.items() if value != default]


KILLED = """
import os, signal, sys
import train
from mvaema.evaluation import cross_validation
from mvaema.evaluation import run as evaluation
from mvaema.training import loop as training

moment, calls = sys.argv.pop(1), 0

def kill_after(function, count):
    def killed(*arguments, **options):
        global calls
        result = function(*arguments, **options)
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return killed

evaluation.write_report = lambda *_: None
cross_validation.has_wordnet = lambda: False
if moment == "training":
    training.validate = kill_after(training.validate, 2)  # after the first checkpoint
elif moment == "scoring":
    evaluation.JsonLines.append = kill_after(evaluation.JsonLines.append, 3)
elif moment == "scored":
    cross_validation.write_json = kill_after(cross_validation.write_json, 1)
elif moment == "tables":  # one of the two is there
    cross_validation.write_json = kill_after(cross_validation.write_json, FOLDS)
sys.exit(train.main())
"""


@pytest.mark.slow
def test_killed_between_folds_and_within_them_it_ends_in_the_same_tables(whole, recipe, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("FOLDS", str(FOLDS)))
    folder = Path(recipe.output_dir)

    def run(moment: str) -> int:
        return subprocess.run(
            [sys.executable, str(script), moment, *flags(recipe)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        ).returncode

    assert run("training") == -signal.SIGKILL
    assert len(read_records(folder / "fold-0/training_log.jsonl")) == 1
    assert run("scoring") == -signal.SIGKILL
    answers = (folder / "fold-0/test/answers.jsonl").read_text()
    assert answers and not (folder / "fold-0/scores.json").exists()
    assert run("scored") == -signal.SIGKILL
    assert (folder / "fold-0/test/answers.jsonl").read_text().startswith(answers)
    assert (folder / "fold-0/scores.json").exists() and not (folder / "fold-1").exists()
    assert run("tables") == -signal.SIGKILL
    assert not (folder / "cross_validation.md").exists()
    assert run("never") == 0
    for name in ("cross_validation.json", "cross_validation.md"):
        assert (folder / name).read_text() == (whole / name).read_text()
    for fold in range(FOLDS):
        weights = (f / f"fold-{fold}" / "model.safetensors" for f in (folder, whole))
        assert next(weights).read_bytes() == next(weights).read_bytes()


PATIENT = """
import datetime, os, sys, time
import torch.distributed as dist
import train
from mvaema.evaluation import cross_validation
from mvaema.evaluation import run as evaluation

# The timeout of the training's own group, which is much longer in earnest.

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
score = cross_validation._score

def slow_score(*arguments):
    time.sleep(25)
    score(*arguments)

cross_validation._score = slow_score
evaluation.write_report = lambda *_: None
cross_validation.has_wordnet = lambda: False
sys.exit(train.main())
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
    before = {name: (whole / name).read_bytes() for name in ("cross_validation.json",)}
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            torn.extend(n for n, content in before.items() if (whole / n).read_bytes() != content)

    def write():
        for _ in range(20):
            cross_validation._write_tables(whole, FOLDS)

    reader, *writers = [threading.Thread(target=t) for t in (read, *[write] * 6)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not torn
    assert not [path for path in whole.iterdir() if path.name.startswith(".")]


def test_a_figure_that_a_fold_lacks_has_no_mean(whole):
    results = results_of(whole)
    sections = [
        {"ITC": {"top_1": 0.5}, "LM": {"top_1": 0.1}},
        {"ITC": {"top_1": 0.7}},
        {"ITC": {"top_1": 0.9}, "LM": {"top_1": 0.3}},
    ]
    results["categories"] = cross_validation._over_folds(sections)
    assert results["categories"]["ITC"]["top_1"]["mean"] == pytest.approx(0.7)
    tables = {t.title: t for t in cross_validation.cross_validation_tables(results)}
    assert tables["Categories"].rows == [
        ["ITC", "0.700±0.200", "–", "–"],
        ["LM", "–", "–", "–"],
    ]
    assert [row[1] for row in tables["Categories: LM"].rows] == ["0.100", "–", "0.300", "–"]


def test_groups_that_cross_are_refused(tmp_path, untrained):
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


def test_folds_of_another_dataset_are_refused(recipe, untrained):
    scores = Path(recipe.output_dir) / "fold-1" / "scores.json"
    with pytest.raises(AssertionError, match="fold-0 was trained"):
        cross_validate(recipe)
    scores.parent.mkdir()
    scores.write_text(json.dumps({"fold": 1, "dataset": "0123"}))
    with pytest.raises(ValueError, match=r"groups or answers have changed \(fold 1: 0123, fold 0"):
        cross_validate(recipe)


def test_another_run_is_not_overwritten(recipe, untrained):
    with pytest.raises(AssertionError, match="fold-0 was trained"):
        cross_validate(recipe)
    with pytest.raises(FileExistsError, match="epochs was 3, is 9, learning_rate was"):
        cross_validate(replace(recipe, epochs=9, learning_rate=0.1, fold=1))
    with pytest.raises(FileExistsError, match="holds no cross-validation"):
        cross_validate(replace(recipe, output_dir=recipe.dataset))
    with pytest.raises(ValueError, match="leave one of the two out"):
        cross_validate(replace(recipe, push_to_hub="lab/student"))
    with pytest.raises(ValueError, match="without looking for near-duplicates"):
        cross_validate(replace(recipe, streaming=True))
