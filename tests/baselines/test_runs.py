"""Rows in a folder: done once, resumed, shared; a row that fails does not stop the others."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
import torch
from filelock import FileLock
from support import ROOT

from baselines.beyond import SmallCNN
from baselines.learners import Classifier, SelfSupervised
from baselines.outcome import Outcome
from baselines.rows import Row, TableRow
from baselines.runs import run_rows
from baselines.training import RowFailed

CNN = Row(
    *("cnn", "A CNN", 2, "ConvNets", "torch"),
    lambda shapes: Classifier(SmallCNN(shapes.classes, (8, 16))),
    paper={"top_1": 0.5},
    learning_rate=1e-2,
    warmup_steps=2,
)


@dataclass(frozen=True)
class Broken(TableRow):
    error: Exception | None = None

    def train_and_score(self, run) -> Outcome:
        raise self.error


def result(folder, row="cnn", fold=0, seed=0):
    return json.loads((folder / row / f"fold-{fold}/seed-{seed}/result.json").read_text())


def test_a_row_leaves_its_figures_and_their_cost(settings, tmp_path):
    report = run_rows([CNN], replace(settings, epochs=6), tmp_path, [0], [0, 1])
    assert report.done == ["cnn, fold 0, seed 0", "cnn, fold 0, seed 1"]
    found = result(tmp_path)
    assert found["figures"]["top_1"] > 0.8  # stripes and dots are easily told apart
    assert found["figures"]["blind_top_1"] == 0.5
    phase = found["training"]["training"]
    assert phase["log"][-1]["train"] < phase["log"][0]["train"]
    assert phase["epochs"] == 6 and phase["stopped"] == "epochs"
    assert found["parameters"] == found["trainable_parameters"] > 1000
    assert found["library_version"] == torch.__version__
    assert found["peak_memory_mb"] > 50 and found["seconds"] > 0 and found["threads"] >= 1
    assert result(tmp_path, seed=1)["training"] != found["training"]


def test_a_seed_decides_the_result(settings, tmp_path):
    for name in ("a", "b"):
        run_rows([CNN], settings, tmp_path / name, [0], [3])
    first, second = (result(tmp_path / name, seed=3) for name in ("a", "b"))
    assert first["figures"] == second["figures"]
    losses = [
        [record["train"] for record in found["training"]["training"]["log"]]
        for found in (first, second)
    ]
    assert losses[0] == losses[1]


def test_what_is_done_is_not_done_again(settings, tmp_path):
    run_rows([CNN], settings, tmp_path, [0], [0])
    file = tmp_path / "cnn/fold-0/seed-0/result.json"
    before = file.stat().st_mtime_ns
    report = run_rows([CNN], settings, tmp_path, [0, 1], [0])
    assert report.skipped == ["cnn, fold 0, seed 0"] and report.done == ["cnn, fold 1, seed 0"]
    assert file.stat().st_mtime_ns == before
    assert result(tmp_path, fold=1)["figures"] != {} and result(tmp_path, fold=1)["fold"] == 1


def test_other_settings_are_refused_by_name(settings, tmp_path):
    run_rows([], settings, tmp_path, [0], [0])
    with pytest.raises(FileExistsError, match="epochs was 3, is 4"):
        run_rows([], replace(settings, epochs=4), tmp_path, [0], [0])


def test_other_data_are_refused(settings, tmp_path, tmp_path_factory):
    from support.micrograph_data import write_dataset

    run_rows([CNN], settings, tmp_path, [0], [0])
    other = write_dataset(tmp_path_factory.mktemp("other") / "data", 20, first=500)
    with pytest.raises(FileExistsError, match="have changed"):
        run_rows([CNN], replace(settings, dataset=str(other)), tmp_path, [0], [1])
    with pytest.raises(FileExistsError, match="have changed"):  # trained on more than the others
        run_rows([CNN], replace(settings, train_also=(str(other),)), tmp_path, [0], [1])


def test_a_folder_with_something_else_is_refused(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no rows"):
        run_rows([CNN], settings, tmp_path, [0], [0])


def test_a_row_that_fails_does_not_stop_the_others(settings, tmp_path):
    common = (None, "Broken", "torch")
    plain = Broken("plain", "Plain", *common, RowFailed("the loss is nan."))
    missing = Broken("missing", "Missing", *common, ModuleNotFoundError("No module named 'timm'"))
    report = run_rows([plain, missing, CNN], settings, tmp_path, [0], [0])
    assert report.done == ["cnn, fold 0, seed 0"]
    assert report.failed["plain, fold 0, seed 0"] == "the loss is nan."
    assert "make baselines" in report.failed["missing, fold 0, seed 0"]
    trace = (tmp_path / "plain/fold-0/seed-0/failure.txt").read_text()
    assert "Traceback" in trace and "the loss is nan." in trace
    # It is tried again, and then its failure is forgotten.
    mended = replace(CNN, name="plain")
    assert run_rows([mended], settings, tmp_path, [0], [0]).done == ["plain, fold 0, seed 0"]
    assert not (tmp_path / "plain/fold-0/seed-0/failure.txt").exists()


def test_a_rate_that_is_far_too_high_is_a_plain_failure(settings, tmp_path):
    class Explodes(Classifier):
        def loss(self, pixel_values, labels):
            return super().loss(pixel_values, labels) * torch.inf

    row = replace(CNN, build=lambda shapes: Explodes(SmallCNN(shapes.classes, (8,))))
    report = run_rows([row], settings, tmp_path, [0], [0])
    (reason,) = report.failed.values()
    assert reason.startswith("the loss is inf in step 1 of epoch 1, with a learning rate of 0.01.")


def test_a_row_of_another_process_is_left_to_it(settings, tmp_path):
    run_rows([], settings, tmp_path, [0], [0])
    folder = tmp_path / "cnn/fold-0/seed-0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        report = run_rows([CNN], settings, tmp_path, [0], [0, 1])
    assert report.busy == ["cnn, fold 0, seed 0"] and report.done == ["cnn, fold 0, seed 1"]


def test_two_phases_share_the_budget(settings, tmp_path):
    class Alike(SelfSupervised):
        """Its first phase wants features of equal size; then it is probed."""

        def __init__(self, classes):
            super().__init__()
            self.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))
            self.head = torch.nn.Linear(8, classes)
            self.steps = 0

        def forward(self, pixel_values):
            return self.head(self.encoder(pixel_values))

        def pretraining_loss(self, pixel_values):
            return (self.encoder(pixel_values).norm(dim=1) - 1).square().mean()

        def after_step(self):
            self.steps += 1

        def freeze(self):
            self.kept = [p.clone() for p in self.encoder.parameters()]
            self.encoder.requires_grad_(False)

    learners = []

    def build(shapes):
        learners.append(Alike(shapes.classes))
        return learners[-1]

    row = replace(CNN, name="alike", build=build)
    budget = replace(settings, budget=0.02, epochs=1000, stop_after=1000)
    run_rows([row], budget, tmp_path, [0], [0])
    phases = result(tmp_path, "alike")["training"]
    assert list(phases) == ["first phase", "training"]
    assert all(phase["stopped"] == "budget" for phase in phases.values())
    assert phases["first phase"]["log"][-1]["train"] < phases["first phase"]["log"][0]["train"]
    (learner,) = learners
    assert learner.steps == phases["first phase"]["steps"]
    assert all(map(torch.equal, learner.kept, learner.encoder.parameters()))
    assert result(tmp_path, "alike")["trainable_parameters"] == 8 * 2 + 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_a_run_that_is_interrupted_goes_on_where_it_was(stripes_and_dots, tmp_path):
    command = [sys.executable, "-m", "baselines", "run", "most-frequent", "small-cnn"]
    command += ["--dataset", str(stripes_and_dots), "--output_dir", str(tmp_path / "rows")]
    command += ["--folds", "5", "--image_size", "32", "--seeds", "0", "1"]
    endless = [*command, "--epochs", "1000000", "--stop_after", "1000000", "--budget", "0.2"]
    first = subprocess.Popen(endless, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    reference = tmp_path / "rows/most-frequent/fold-0/seed-0/result.json"
    until = time.monotonic() + 120
    while not reference.exists() and time.monotonic() < until and first.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and "Rerun the same command" in errors.decode()
    before = reference.stat().st_mtime_ns
    again = subprocess.run(endless, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert reference.stat().st_mtime_ns == before
    assert (tmp_path / "rows/small-cnn/fold-0/seed-1/result.json").is_file()
