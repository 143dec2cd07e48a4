"""Each loss against its paper's formula, and two phases that train what they should."""

from math import exp, log

import pytest
import torch
from support.stripes_and_dots import stripes_and_dots
from transformers import set_seed

pytest.importorskip("torch_geometric", reason="the environment of baselines (make baselines)")

from baselines.graph_contrastive import (
    MOMENTUM,
    ROWS,
    bootstrap,
    local_global,
    node_contrast,
    redundancy,
)
from baselines.learners import SelfSupervised
from baselines.rows import Shapes

ROW = {row.name: row for row in ROWS}
SIDE = 64
every_row = pytest.mark.parametrize("name", ROW)


def two_views(nodes: int = 6, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(nodes, width, generator=generator, dtype=torch.float64)
    return first, first + 0.5 * torch.randn(nodes, width, generator=generator, dtype=torch.float64)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one @ one).sqrt() / (other @ other).sqrt())


def test_gbt_is_barlow_twins_formula():
    """Bielak and Kajdanowicz 2021: sum (1 - C_ii)^2 + lambda sum C_ij^2, lambda = 1 / width."""
    first, second = two_views()
    correlation = torch.corrcoef(torch.cat([first, second], dim=1).T)[:4, 4:]
    expected = 0.0
    for i in range(4):
        for j in range(4):
            c = float(correlation[i, j])
            expected += (1 - c) ** 2 if i == j else c**2 / 4
    assert float(redundancy(first, second)) == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(redundancy(torch.ones(6, 4), torch.ones(6, 4)))


def test_grace_is_its_papers_formula():
    """Zhu et al. 2020, equations 1 and 2."""
    first, second = two_views()
    temperature, count, expected = 0.4, len(first), 0.0
    for anchors, others in ((first, second), (second, first)):
        for i in range(count):
            positive = exp(cosine(anchors[i], others[i]) / temperature)
            between = sum(
                exp(cosine(anchors[i], others[k]) / temperature) for k in range(count) if k != i
            )
            within = sum(
                exp(cosine(anchors[i], anchors[k]) / temperature) for k in range(count) if k != i
            )
            expected -= log(positive / (positive + between + within))
    expected /= 2 * count
    assert float(node_contrast(first, second, temperature)) == pytest.approx(expected)


def test_bgrl_is_its_papers_formula():
    """Thakoor et al. 2021, equation 3."""
    predicted, target = two_views()
    expected = -2 / 6 * sum(cosine(p, t) for p, t in zip(predicted, target, strict=True))
    assert float(bootstrap(predicted, target)) == pytest.approx(expected)


def test_infograph_is_its_papers_formula():
    """Sun et al. 2019, equations 4 and 5: E_P[-sp(-T)] - E_PxP[sp(T)], to be maximised."""
    scores = two_views(6, 3)[0]
    micrograph = torch.tensor([0, 0, 1, 1, 2, 2])
    own, others = [], []
    for node in range(6):
        for graph in range(3):
            score = float(scores[node, graph])
            if graph == micrograph[node]:
                own.append(-log(1 + exp(-score)))
            else:
                others.append(log(1 + exp(score)))
    expected = sum(own) / len(own) - sum(others) / len(others)
    assert float(local_global(scores, micrograph)) == pytest.approx(-expected)


def test_infograph_bears_a_batch_of_one():
    loss = local_global(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    assert float(loss) == pytest.approx(log(2))


def built(name: str) -> SelfSupervised:
    set_seed(3)
    return ROW[name].build(Shapes(classes=2, image_size=SIDE))


def first_phase(learner: SelfSupervised, steps: int) -> list[float]:
    pictures, _ = stripes_and_dots(16, SIDE)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = learner.pretraining_loss(pictures)
        loss.backward()
        optimizer.step()
        learner.after_step()
        losses.append(float(loss))
    return losses


def test_views_drop_edges_and_mask_pixels():
    learner, pictures = built("grace"), stripes_and_dots(2, SIDE)[0]
    whole = learner.graphs(pictures)
    set_seed(0)
    views = learner.views(pictures)
    for view, dropped, masked in zip(views, (0.2, 0.4), (0.3, 0.4), strict=True):
        kept = view.edges.shape[1] / whole.edges.shape[1]
        assert abs(kept - (1 - dropped)) < 0.08
        assert len(view.offsets) == view.edges.shape[1]
        gone = (view.nodes == 0).all(0)
        assert abs(float(gone.float().mean()) - masked) < 0.08
        assert torch.equal(view.nodes[:, ~gone], whole.nodes[:, ~gone])
    assert not torch.equal(views[0].nodes == 0, views[1].nodes == 0)


@pytest.mark.slow
@every_row
def test_the_first_phase_lowers_its_loss(name):
    losses = first_phase(built(name), steps=25)
    start, end = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert end < start - 0.1 * abs(start)


@pytest.mark.slow
@every_row
def test_each_phase_trains_its_own_weights(name):
    learner = built(name)
    learner.pretraining_loss(stripes_and_dots(4, SIDE)[0]).backward()
    reached = {key for key, p in learner.named_parameters() if p.grad is not None}
    untouched = {key for key, _ in learner.named_parameters()} - reached
    assert any(key.startswith("encoder.") for key in reached)
    assert {key.split(".")[0] for key in untouched} <= {"probe", "target"}

    learner.zero_grad()
    learner.freeze()
    learner.loss(*stripes_and_dots(4, SIDE)).backward()
    reached = {key for key, p in learner.named_parameters() if p.grad is not None}
    assert reached == {"probe.weight", "probe.bias"}


@pytest.mark.slow
@every_row
def test_the_probe_learns_and_leaves_the_encoder_untouched(name):
    learner = built(name)
    first_phase(learner, steps=15)
    learner.freeze()
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    pictures, labels = stripes_and_dots(16, SIDE)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(pictures, labels).backward()
        optimizer.step()
    for key, value in learner.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("probe."), key
    test_pictures, test_labels = stripes_and_dots(16, SIDE, seed=1)
    with torch.no_grad():
        logits = learner.eval()(test_pictures)
        alone = learner(test_pictures[:1])
    assert logits.shape == (16, 2)
    assert (logits.argmax(1) == test_labels).float().mean() >= 0.75
    assert torch.allclose(logits[:1], alone, atol=1e-4)


@pytest.mark.slow
@every_row
def test_a_seed_decides_everything(name):
    first, second = built(name), built(name)
    set_seed(5)
    losses = first_phase(first, steps=2)
    set_seed(5)
    assert first_phase(second, steps=2) == losses
    other = ROW[name].build(Shapes(classes=2, image_size=SIDE))
    other.load_state_dict(first.state_dict())
    pictures = stripes_and_dots(2, SIDE)[0]
    with torch.no_grad():
        assert torch.equal(first.eval()(pictures), other.eval()(pictures))


def test_the_target_follows_slowly():
    learner = built("bgrl")
    target = [value.clone() for value in learner.target.parameters()]
    with torch.no_grad():
        for online in learner.encoder.parameters():
            online.add_(1.0)
    learner.after_step()
    for before, after in zip(target, learner.target.parameters(), strict=True):
        assert torch.allclose(after - before, torch.full_like(before, 1 - MOMENTUM), atol=1e-5)
        assert not after.requires_grad
