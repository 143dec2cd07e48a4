"""Each loss against its paper's formula, and two phases that train what they should."""

from math import exp, log

import pytest
import torch
from support.row_checks import (
    build,
    check_evaluation,
    reached,
    same,
    state,
    stripes_and_dots,
    train,
)

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


def first_phase(learner: SelfSupervised, steps: int) -> list[float]:
    pictures, _ = stripes_and_dots(SIDE)
    return train(
        learner, lambda: learner.pretraining_loss(pictures), 1e-3, steps, learner.after_step
    )


def test_views_drop_edges_and_mask_pixels():
    learner = build(ROW["grace"], SIDE)
    pictures, _ = stripes_and_dots(SIDE, 2)
    whole, views = learner.graphs(pictures), learner.views(pictures)
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
    losses = first_phase(build(ROW[name], SIDE), steps=25)
    start, end = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert end < start - 0.1 * abs(start)


@pytest.mark.slow
@every_row
def test_each_phase_trains_its_own_weights(name):
    learner = build(ROW[name], SIDE)
    pictures, labels = stripes_and_dots(SIDE, 4)
    first = reached(learner, learner.pretraining_loss(pictures))
    others = {name for name, _ in learner.named_parameters()} - first
    assert any(name.startswith("encoder.project.") for name in first)
    assert any(name.startswith("encoder.layers.") for name in first)
    assert {name.split(".")[0] for name in others} <= {"probe", "target"}
    learner.freeze()
    assert reached(learner, learner.loss(pictures, labels)) == {"probe.1.weight", "probe.1.bias"}


@pytest.mark.slow
@every_row
def test_the_probe_learns_and_leaves_the_encoder_untouched(name):
    learner = build(ROW[name], SIDE)
    first_phase(learner, steps=15)
    learner.freeze()
    before = state(learner)
    batch = stripes_and_dots(SIDE)
    losses = train(learner, lambda: learner.loss(*batch), 1e-2, steps=40)
    assert losses[-1] < 0.8 * losses[0]
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("probe."), name


@pytest.mark.slow
@every_row
def test_a_seed_decides_everything(name):
    learners = [build(ROW[name], SIDE) for _ in range(2)]
    losses = []
    for learner in learners:
        torch.manual_seed(5)
        losses.append(first_phase(learner, steps=2))
    assert losses[0] == losses[1]
    assert same(*(state(learner) for learner in learners))


@pytest.mark.slow
@every_row
@pytest.mark.parametrize("side", [96, 224])
def test_logits_are_of_each_picture(name, side):
    check_evaluation(ROW[name], side, classes=10)


def test_the_target_follows_slowly():
    learner = build(ROW["bgrl"], SIDE)
    target = [value.clone() for value in learner.target.parameters()]
    with torch.no_grad():
        for online in learner.encoder.parameters():
            online.add_(1.0)
    learner.after_step()
    for before, after in zip(target, learner.target.parameters(), strict=True):
        assert torch.allclose(after - before, torch.full_like(before, 1 - MOMENTUM), atol=1e-5)
        assert not after.requires_grad
