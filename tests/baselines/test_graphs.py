"""Graph neural networks on patches: every row trains, and each sees what its paper lets it see."""

import pytest
import torch
from support.row_checks import build, check_evaluation, reached, same, stripes_and_dots, train
from transformers import set_seed

pytest.importorskip("torch_geometric", reason="the environment of baselines (make baselines)")

from torch_geometric.nn import NNConv, SuperGATConv

from baselines.graphs import ATTENTION_WEIGHT, ROWS
from baselines.learners import Learner

ROW = {row.name: row for row in ROWS}
SIDE = 64  # no multiple of 7
every_row = pytest.mark.parametrize("name", ROW)


def seeded(name: str) -> Learner:
    """A row; what draws pairs for SuperGAT is Python's `random`."""
    set_seed(3)
    return build(ROW[name], SIDE)


def trained(name: str, steps: int) -> tuple[Learner, list[float]]:
    """A row after some steps on all of eight pictures, and its losses."""
    learner = seeded(name)
    batch = stripes_and_dots(SIDE, 8)
    return learner, train(learner, lambda: learner.loss(*batch), ROW[name].learning_rate, steps)


def test_the_rows_are_those_of_the_paper():
    assert len(ROW) == len(ROWS) == 15
    assert {row.table for row in ROWS} == {3}
    assert max(ROWS, key=lambda row: row.paper["top_1"]).name == "gcn2"
    assert "guess" in ROW["gcn"].note
    assert all(0 < row.paper["top_1"] < row.paper["top_5"] < 1 for row in ROWS)


@pytest.mark.slow
@every_row
def test_a_row_learns_to_tell_stripes_from_dots(name):
    learner, losses = trained(name, steps=20)
    assert losses[-1] < 0.8 * losses[0]
    pictures, labels = stripes_and_dots(SIDE, 8)
    with torch.no_grad():
        assert (learner.eval()(pictures).argmax(1) == labels).float().mean() >= 0.75


@pytest.mark.slow
@every_row
def test_gradients_reach_every_weight(name):
    learner = seeded(name)
    names = {name for name, _ in learner.named_parameters()}
    assert reached(learner, learner.loss(*stripes_and_dots(SIDE, 4))) == names


@pytest.mark.slow
@every_row
def test_a_seed_decides_everything(name):
    (first, losses), (second, again) = trained(name, steps=2), trained(name, steps=2)
    assert losses == again
    assert same(first.state_dict(), second.state_dict())


@pytest.mark.slow
@every_row
@pytest.mark.parametrize("side", [96, 224])
def test_logits_are_of_each_picture(name, side):
    check_evaluation(ROW[name], side, classes=10)


def test_supergat_adds_the_loss_of_its_attention():
    learner = seeded("supergat")
    pictures, labels = stripes_and_dots(SIDE, 4)
    set_seed(0)
    loss = learner.loss(pictures, labels)
    layers = [module for module in learner.modules() if isinstance(module, SuperGATConv)]
    assert len(layers) == 3
    expected = torch.nn.functional.cross_entropy(learner(pictures), labels)
    set_seed(0)
    learner(pictures)
    for layer in layers:
        scores, is_edge = layer.att_x.mean(1), layer.att_y
        assert 0 < is_edge.sum() < len(is_edge)
        likelihood = torch.where(is_edge == 1, scores.sigmoid(), 1 - scores.sigmoid())
        expected = expected - ATTENTION_WEIGHT * likelihood.log().mean()
    assert torch.allclose(loss, expected, rtol=1e-4)
    learner.eval()
    plain = torch.nn.functional.cross_entropy(learner(pictures), labels)
    assert torch.allclose(learner.loss(pictures, labels), plain)


def test_supergat_draws_pairs_within_a_micrograph():
    learner = seeded("supergat")
    seen = []

    def remember(module, inputs, keywords, states):
        seen.append((inputs, keywords))

    layer = next(module for module in learner.modules() if isinstance(module, SuperGATConv))
    layer.register_forward_hook(remember, with_kwargs=True)
    learner(stripes_and_dots(SIDE, 3)[0])
    (_, edges), keywords = seen[0]
    pairs = layer.negative_sampling(edges, 3 * 49, keywords["batch"])
    assert torch.equal(pairs[0] // 49, pairs[1] // 49)
    adjacent = set(zip(*edges.tolist(), strict=True))
    assert not adjacent & set(zip(*pairs.tolist(), strict=True))


def test_mpnn_tells_directions_apart():
    """Its messages depend on where the sender is: each offset has its own weights."""
    learner = seeded("mpnn")
    layer = next(module for module in learner.modules() if isinstance(module, NNConv))
    offsets = learner.graphs.offsets.unique(dim=0)
    assert len(layer.nn(offsets).unique(dim=0)) == len(offsets) > 8
    picture = stripes_and_dots(SIDE, 1)[0]
    with torch.no_grad():
        straight, turned = learner(picture), learner(picture.flip(2))
    assert not torch.allclose(straight, turned, atol=1e-4)
