"""transformers' own `Trainer` trains a student."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.trainer_worker import trainer

LABELS = ("pixel_values", "input_ids", "attention_mask", "labels")
STATEMENTS = ("pixel_values", "statement_ids", "statement_mask")


@pytest.fixture
def rows(batch):
    """Four micrographs, a question about each; answers of equal length, all tokens labelled."""
    batch = {k: v[:4] for k, v in batch.items()}
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == -100, 9)
    return [{k: v[i] for k, v in batch.items()} for i in range(4)]


def test_accumulated_gradients_are_those_of_the_whole_batch(make_model, rows, tmp_path):
    whole, parts = make_model(), make_model()
    first = trainer(whole, rows, tmp_path, LABELS)
    first.train()
    second = trainer(
        parts, rows, tmp_path, LABELS, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    second.train()
    losses = [t.state.log_history[0]["loss"] for t in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(make_model, rows, tmp_path):
    """With all three losses: half a batch each, compared with all of it in one process."""
    rows = [row | {"image_ids": torch.tensor(i)} for i, row in enumerate(rows)]
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    torch.save(rows, tmp_path / "rows.pt")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*launcher, "--nproc_per_node", "2", ROOT / "tests/support/trainer_worker.py", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    trainer(model, rows, tmp_path / "one").train()
    for name, weight in torch.load(tmp_path / "trained.pt").items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name)


def test_label_smoothing(make_model, rows, tmp_path):
    model, expected = make_model(), make_model()

    def add(batch):  # as DataCollatorForSeq2Seq does
        return {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}

    run = trainer(model, rows, tmp_path, LABELS, add=add, label_smoothing_factor=0.2)
    run.train()
    batch = {name: torch.stack([row[name] for row in rows]) for name in LABELS}
    logits = expected(**batch).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.2)
    assert run.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_statements_alone_have_an_evaluation_loss(make_model, rows, tmp_path):
    model = make_model()
    run = trainer(model, rows, tmp_path, names=STATEMENTS, label_names=[])
    batch = {name: torch.stack([row[name] for row in rows]) for name in STATEMENTS}
    assert run.evaluate()["eval_loss"] == pytest.approx(float(model(**batch).loss), rel=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_gradient(make_model, batch, use_reentrant):
    plain, checkpointed = make_model().train(), make_model().train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for model in (plain, checkpointed):
        model(**batch).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
