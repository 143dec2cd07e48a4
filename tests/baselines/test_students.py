"""Students as rows: each ablation changes one thing, and a row is trained and scored for real."""

import dataclasses
import json
import signal

import pytest
from support.micrograph_data import write_dataset

from baselines.answer_figures import questions_of
from baselines.data import Data
from baselines.settings import Run
from baselines.students import LITE0, ROWS, _history, recipe_changes
from baselines.training import RowFailed
from mvaema.training.recipe import Recipe
from mvaema.training.signals import Interrupted

BY_NAME = {row.name: row for row in ROWS}
ABLATIONS = [row for row in ROWS if row.group == "Ablations" and row.name != "mvaema-lite0"]


@pytest.fixture
def no_eyes(monkeypatch):
    """Rows whose eyes are a name only."""

    def change(row):
        return dataclasses.replace(row, eyes=row.eyes and (lambda name, folder: f"eyes of {name}"))

    return change


@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row.name)
def test_an_ablation_differs_from_the_student_in_what_it_names(row, run, no_eyes):
    recipes = [
        dataclasses.asdict(no_eyes(BY_NAME[name])._recipe(run))
        for name in ("mvaema-lite0", row.name)
    ]
    differing = {n for n in recipes[0] if recipes[0][n] != recipes[1][n]}
    expected = {
        "without-caption-dropout": {"caption_dropout"},
        "without-simulated": set(),  # this run has none
        "tuned-eyes": {"train_vision"},
        "untrained-eyes": {"train_vision", "vision_learning_rate"},
    }
    assert differing == expected.get(row.name, {"config_overrides"})


def test_a_student_is_that_of_the_recipe(run, no_eyes):
    changed = recipe_changes(no_eyes(BY_NAME["mvaema-lite0"])._recipe(run))
    for setting in ("preset", "vision_layers", "learning_rate", "warmup_steps", "weight_decay"):
        assert changed[setting] == recipe_of_file("lite0")[setting]
    assert changed["vision"] == f"eyes of {LITE0}" and changed["fold"] == 0


def recipe_of_file(name):
    import yaml
    from support import ROOT

    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())


def test_nothing_can_be_left_out_where_there_is_nothing(run):
    with pytest.raises(RowFailed, match="--train_also"):
        BY_NAME["without-simulated"].train_and_score(run)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(20, ("early stopping", 2)), (40, ("budget", 1))]
)
def test_why_training_ended(seconds, expected, tmp_path):
    """Two epochs of fifty within a minute; a budget cuts the last one short."""
    record = json.dumps({"seconds": seconds})
    (tmp_path / "training_log.jsonl").write_text(f"{record}\n{record}\n")
    (tmp_path / "steps.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    recipe = Recipe("data", str(tmp_path), epochs=50, max_minutes=1)
    history = _history(recipe, {"best_epoch": 1})
    assert (history.stopped, history.epochs) == expected
    assert history.steps == 3 and history.micrographs == 3 * recipe.batch_size


def test_ctrl_c_in_training_stops_all_rows(run, monkeypatch):
    def interrupted(recipe, rows):
        raise Interrupted(signal.SIGINT, "Interrupted after step 3.")

    monkeypatch.setattr("baselines.students.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        BY_NAME["mvaema-paper"].train_and_score(run)


def test_rows_that_answer_are_tested_on_the_questions_that_settings_name(settings, run):
    everything = questions_of(run)
    (first, *_) = {record["question_id"] for record in everything.records}
    some = questions_of(
        dataclasses.replace(run, settings=dataclasses.replace(settings, questions=(first,)))
    )
    assert some.records == [r for r in everything.records if r["question_id"] == first]
    assert 0 < len(some.records) < len(everything.records)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvaema-paper", "without-itc"])
def test_a_student_is_trained_and_scored_as_by_the_commands(name, run):
    row = BY_NAME[name]
    if row.eyes:
        overrides = {"itc_weight": row.overrides["itc_weight"]}
        row = dataclasses.replace(row, eyes=None, recipe={"preset": "paper"}, overrides=overrides)
    outcome = row.train_and_score(run)
    figures = outcome.figures
    for figure in ("top_1", "top_5", "macro_f1", "blind_top_1", "bleu_4", "among_eight"):
        assert 0 <= figures[figure] <= 1
    low, high = figures["image_gain_interval"]
    assert low <= figures["image_gain"] <= high
    results = json.loads((run.folder / "scores" / "results.json").read_text())
    method = "ITM" if name == "without-itc" else "ITC+ITM"
    assert figures["top_1"] == results["classification"][method]["top_1"]
    assert ("ITC" in results["classification"]) == (name != "without-itc")
    assert (
        figures["typical_bleu_4"]
        == (results["answers"]["typical answer"]["overall"]["scores"]["bleu_4"]["mean"])
    )
    assert outcome.training["training"].epochs == 3 and outcome.parameters > 1e5
    assert not (run.folder / "features").exists()


@pytest.mark.slow
def test_further_datasets_are_left_out_of_training_only(settings, run, tmp_path, monkeypatch):
    more = write_dataset(tmp_path / "more", 16, first=40)
    settings = dataclasses.replace(settings, train_also=(str(more),))
    data = Data(settings).fold(0)
    run = Run(settings, data, 0, tmp_path / "run", run.accelerator)
    seen = {}

    def noted(recipe, rows):
        seen[recipe.train_also and tuple(recipe.train_also)] = len(rows.train)
        raise KeyboardInterrupt

    monkeypatch.setattr("baselines.students.train", noted)
    for name in ("mvaema-lite0", "without-simulated"):
        row = dataclasses.replace(BY_NAME[name], eyes=lambda name, folder: "eyes")
        with pytest.raises(KeyboardInterrupt):
            row.train_and_score(run)
    assert seen == {(str(more),): data.own + 16, None: data.own}


@pytest.mark.slow
@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row.name)
def test_an_ablation_is_trained_and_scored(row, settings, run, tmp_path):
    """With the eyes of the package, for an epoch."""
    more = write_dataset(tmp_path / "more", 16, first=40)
    settings = dataclasses.replace(settings, train_also=(str(more),), epochs=1)
    run = Run(settings, Data(settings).fold(0), 0, tmp_path / "run", run.accelerator)
    outcome = row.train_and_score(run)
    assert 0 <= outcome.figures["top_1"] <= 1 and 0 <= outcome.figures["bleu_4"] <= 1
    frozen = outcome.parameters > outcome.trainable_parameters
    assert frozen == (row.name not in ("tuned-eyes", "untrained-eyes"))
    if row.name == "without-cross-attention":  # neither answers nor their likelihoods see
        assert outcome.figures["image_gain"] == pytest.approx(0, abs=1e-4)
