"""Two processes compute what one computes on the same global batch."""

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    ["all differ", "some are equal across ranks"],
)
def test_two_ranks_give_the_losses_and_gradients_of_one_process(
    make_model, processor, images, tmp_path, texts
):
    statements = ["a film", "wires of 5 nm", "pores in a sponge", "a sharp tip, seen from above"]
    image_ids = torch.arange(4)
    if texts != "all differ":
        statements[2] = statements[0]
        image_ids[3] = image_ids[1]
    batch = dict(
        processor(
            images=images,
            text=[["What is it?", "How large are the structures?"]] * 4,
            # Ranks have different numbers of words: the LM loss is a mean over all of them.
            answers=["a", "b", "c", "d", "many more words here", "and here", "x y z", "end"],
            statements=statements,
        ),
        image_ids=image_ids,
    )
    model = make_model().train()
    model.save_pretrained(tmp_path / "model")
    torch.save(batch, tmp_path / "batch.pt")
    output = model(**batch)
    output.loss.backward()
    worker = ROOT / "tests/support/ddp_worker.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*launcher, "--nproc_per_node", "2", worker, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = torch.load(tmp_path / "result.pt")
    expected = [output[name].item() for name in ("loss", "itc_loss", "itm_loss", "lm_loss")]
    assert result["losses"].tolist() == pytest.approx(expected, abs=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            result["gradients"][name],
            parameter.grad,
            atol=1e-5,
            rtol=1e-4,
            msg=lambda m, name=name: f"{name}: {m}",
        )
