"""The paper's vision transformers: each learns, at 96 pixels and at 224."""

from dataclasses import replace

import pytest
import torch
from support.row_checks import build, check_evaluation, reached, stripes_and_dots, train

from baselines.learners import Learner
from baselines.vision_transformers import ROWS

pytest.importorskip("timm", reason="needs the environment of `make baselines`")

pytestmark = pytest.mark.slow
NAMES = {row.name: row for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=NAMES)


@rows
def test_a_row_learns_and_repeats_itself(row):
    size = row.size(96)
    pictures, labels = stripes_and_dots(size, 8)
    runs = []
    for steps in (8, 2):
        learner = build(row, size)
        runs.append(
            train(learner, lambda: learner.loss(pictures, labels), row.learning_rate, steps)  # noqa: B023
        )
    assert sum(runs[0][-2:]) < sum(runs[0][:2]), runs[0]
    assert runs[1] == runs[0][:2]


@rows
@pytest.mark.parametrize("size", [96, 224])
def test_a_row_scores_each_micrograph_by_itself(row, size):
    if row.name == "cait-xxs24":
        row = replace(row, build=lambda shapes: louder(NAMES["cait-xxs24"].build(shapes)))
    check_evaluation(row, row.size(size))


@torch.no_grad()
def louder(learner: Learner) -> Learner:
    """CaiT's layers add 1e-5 of what they compute at first: hardly anything of the picture."""
    for name, parameter in learner.named_parameters():
        if "gamma" in name:
            parameter.fill_(0.1)
    return learner


@rows
def test_gradients_reach_every_weight(row):
    size = row.size(96)
    learner = build(row, size)
    assert reached(learner, learner.loss(*stripes_and_dots(size, 4))) == {
        name for name, _ in learner.named_parameters()
    }


def test_crossvit_sees_the_next_multiple_of_its_patches():
    row = NAMES["crossvit-tiny"]
    assert [row.size(size) for size in (96, 120, 224, 240)] == [120, 120, 240, 240]
