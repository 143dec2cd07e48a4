"""The paper's vision transformers: each learns, at 96 pixels and at 224."""

import pytest
from support.row_checks import build, check_evaluation, reached, stripes_and_dots, train

from baselines.vision_transformers import ROWS

pytest.importorskip("timm", reason="needs the environment of `make baselines`")

pytestmark = pytest.mark.slow
NAMES = {row.name: row for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=NAMES)


@rows
def test_a_row_learns_and_repeats_itself(row):
    size = row.size(96)
    pictures, labels = stripes_and_dots(size)
    runs = []
    for steps in (12, 2):
        learner = build(row, size)
        runs.append(
            train(learner, lambda: learner.loss(pictures, labels), row.learning_rate, steps)  # noqa: B023
        )
    assert sum(runs[0][-3:]) < sum(runs[0][:3]), runs[0]
    assert runs[1] == runs[0][:2]


@rows
@pytest.mark.parametrize("size", [96, 224])
def test_a_row_scores_each_micrograph_by_itself(row, size):
    check_evaluation(row, row.size(size))


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
