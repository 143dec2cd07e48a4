"""The paper's convolutional networks: each learns, and GoogLeNet by three losses."""

import pytest
import torch
from support.row_checks import build, check_evaluation, reached, stripes_and_dots, train
from torch.nn import functional as F

from baselines.convnets import ROWS

pytest.importorskip("torchvision", reason="needs the environment of `make baselines`")
pytest.importorskip("timm", reason="needs the environment of `make baselines`")

pytestmark = pytest.mark.slow
NAMES = {row.name: row for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=NAMES)


@rows
def test_a_row_learns_and_repeats_itself(row):
    pictures, labels = stripes_and_dots(64)
    runs = []
    for steps in (8, 2):
        learner = build(row, 64)
        runs.append(
            train(learner, lambda: learner.loss(pictures, labels), row.learning_rate, steps)  # noqa: B023
        )
    assert sum(runs[0][-2:]) < sum(runs[0][:2]), runs[0]
    assert runs[1] == runs[0][:2]


@pytest.mark.parametrize("row", [r for r in ROWS if r.name != "googlenet"], ids=lambda r: r.name)
@pytest.mark.parametrize("size", [96, 224])
def test_a_row_scores_each_micrograph_by_itself(row, size):
    check_evaluation(row, size)


@torch.no_grad()
@pytest.mark.parametrize("size", [96, 224])
def test_googlenet_scores_each_micrograph_by_itself(size):
    """Its 22 layers pass on what differs only when batch norms have seen pictures."""
    learner = build(NAMES["googlenet"], size, classes=3)
    pictures, _ = stripes_and_dots(size, 4)
    for _ in range(20):
        learner(pictures)
    learner.eval()
    logits = learner(pictures)
    assert logits.shape == (4, 3) and not torch.allclose(logits[0], logits[1])
    alone = torch.cat([learner(picture[None]) for picture in pictures])
    torch.testing.assert_close(alone, logits, atol=1e-4, rtol=1e-4)
    other = build(NAMES["googlenet"], size, classes=3, seed=1).eval()
    other.load_state_dict(learner.state_dict())
    torch.testing.assert_close(other(pictures), logits)


@rows
def test_gradients_reach_every_weight(row):
    learner = build(row, 64)
    assert reached(learner, learner.loss(*stripes_and_dots(64, 4))) == {
        name for name, _ in learner.named_parameters()
    }


def test_googlenet_has_two_auxiliary_losses():
    learner = build(NAMES["googlenet"], 64)
    pictures, labels = stripes_and_dots(64, 4)
    torch.manual_seed(1)
    loss = learner.loss(pictures, labels)
    torch.manual_seed(1)
    output = learner.model(pictures)
    single = [F.cross_entropy(logits, labels) for logits in output]
    assert len(single) == 3
    torch.testing.assert_close(loss, single[0] + 0.3 * single[1] + 0.3 * single[2])
    learner.eval()
    torch.testing.assert_close(
        learner.loss(pictures, labels), F.cross_entropy(learner(pictures), labels)
    )
