"""Graph neural networks on patches: every row trains, and each sees what its paper lets it see."""

import pytest
import torch
from support.stripes_and_dots import stripes_and_dots
from transformers import set_seed

pytest.importorskip("torch_geometric", reason="the environment of baselines (make baselines)")

from torch_geometric.nn import NNConv, SuperGATConv

from baselines.graphs import ATTENTION_WEIGHT, ROWS
from baselines.learners import Learner
from baselines.rows import Shapes

ROW = {row.name: row for row in ROWS}
SIDE = 64  # no multiple of 7
every_row = pytest.mark.parametrize("name", ROW)


def built(name: str, side: int = SIDE, classes: int = 2) -> Learner:
    set_seed(3)
    return ROW[name].build(Shapes(classes=classes, image_size=side))


def trained(name: str, steps: int) -> tuple[Learner, list[float]]:
    """A row after some steps on all of 16 micrographs, and its losses."""
    learner = built(name)
    pictures, labels = stripes_and_dots(16, SIDE)
    optimizer = torch.optim.Adam(learner.parameters(), lr=ROW[name].learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = learner.loss(pictures, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return learner, losses


def test_the_rows_are_those_of_the_paper():
    assert len(ROW) == len(ROWS) == 15
    assert {row.table for row in ROWS} == {3}
    assert max(ROWS, key=lambda row: row.paper["top_1"]).name == "gcn2"
    assert "guess" in ROW["gcn"].note
    assert all(0 < row.paper["top_1"] < row.paper["top_5"] < 1 for row in ROWS)


@pytest.mark.slow
@every_row
def test_a_row_learns_to_tell_stripes_from_dots(name):
    learner, losses = trained(name, steps=30)
    assert losses[-1] < 0.8 * losses[0]
    pictures, labels = stripes_and_dots(16, SIDE, seed=1)
    learner.eval()
    with torch.no_grad():
        found = learner(pictures).argmax(1)
    assert (found == labels).float().mean() >= 0.75


@pytest.mark.slow
@every_row
def test_gradients_reach_every_weight(name):
    learner = built(name)
    learner.loss(*stripes_and_dots(4, SIDE)).backward()
    reached = {key: parameter.grad is not None for key, parameter in learner.named_parameters()}
    assert all(reached.values()), [key for key in reached if not reached[key]]


@pytest.mark.slow
@every_row
def test_a_seed_decides_everything(name):
    (first, losses), (second, again) = trained(name, steps=2), trained(name, steps=2)
    assert losses == again
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@every_row
@pytest.mark.parametrize("side", [96, 224])
def test_logits_do_not_depend_on_the_batch(name, side):
    learner = built(name, side, classes=10).eval()
    pictures, _ = stripes_and_dots(3, side)
    with torch.no_grad():
        together = learner(pictures)
        alone = torch.cat([learner(picture[None]) for picture in pictures])
    assert together.shape == (3, 10)
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.slow
@every_row
def test_a_state_dict_holds_all(name):
    learner, _ = trained(name, steps=1)
    set_seed(4)
    other = ROW[name].build(Shapes(classes=2, image_size=SIDE))
    other.load_state_dict(learner.state_dict())
    pictures, _ = stripes_and_dots(2, SIDE)
    with torch.no_grad():
        assert torch.equal(learner.eval()(pictures), other.eval()(pictures))


def test_supergat_adds_the_loss_of_its_attention():
    learner = built("supergat")
    pictures, labels = stripes_and_dots(4, SIDE)
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
    learner = built("supergat")
    seen = []

    def remember(module, inputs, keywords, states):
        seen.append((inputs, keywords))

    layer = next(module for module in learner.modules() if isinstance(module, SuperGATConv))
    layer.register_forward_hook(remember, with_kwargs=True)
    learner(stripes_and_dots(3, SIDE)[0])
    (_, edges), keywords = seen[0]
    pairs = layer.negative_sampling(edges, 3 * 49, keywords["batch"])
    assert torch.equal(pairs[0] // 49, pairs[1] // 49)
    adjacent = set(zip(*edges.tolist(), strict=True))
    assert not adjacent & set(zip(*pairs.tolist(), strict=True))


def test_mpnn_tells_directions_apart():
    """Its messages depend on where the sender is: each offset has its own weights."""
    learner = built("mpnn")
    layer = next(module for module in learner.modules() if isinstance(module, NNConv))
    offsets = learner.graphs.offsets.unique(dim=0)
    assert len(layer.nn(offsets).unique(dim=0)) == len(offsets) > 8
    picture = stripes_and_dots(1, SIDE)[0]
    with torch.no_grad():
        straight, turned = learner(picture), learner(picture.flip(2))
    assert not torch.allclose(straight, turned, atol=1e-4)
