"""Vision transformers for small data sets: each learns, and distillation spares its teacher."""

import math
from functools import partial

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
from torch.nn import functional as F

from baselines.small_vits import ROWS, Performer, SequencePooling

pytest.importorskip("timm", reason="needs the environment of `make baselines`")
pytest.importorskip("vit_pytorch", reason="needs the environment of `make baselines`")

NAMES = {row.name: row for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=NAMES)


@pytest.mark.slow
@rows
def test_a_row_learns_to_tell_stripes_from_dots_and_repeats_itself(row):
    pictures, labels = stripes_and_dots(64)
    runs = []
    for steps in (12, 2):
        learner = build(row, 64)
        if row.name == "deit-tiny-distilled":
            learner.freeze()
        # The rate that the warm-up reaches early on.
        rate = row.learning_rate / 4
        runs.append(train(learner, partial(learner.loss, pictures, labels), rate, steps))
    assert min(runs[0][-3:]) < 0.85 * runs[0][0], runs[0]
    assert runs[1] == runs[0][:2]


@pytest.mark.slow
@rows
@pytest.mark.parametrize("size", [96, 224])
def test_a_row_scores_each_micrograph_by_itself(row, size):
    check_evaluation(row, size)


@pytest.mark.slow
@rows
def test_gradients_reach_all_of_a_row(row):
    learner = build(row, 64)
    pictures, labels = stripes_and_dots(64, 4)
    if row.name == "deit-tiny-distilled":
        learner.freeze()
    names = reached(learner, learner.loss(pictures, labels))
    wanted = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert names == wanted


@pytest.mark.slow
def test_the_teacher_is_trained_first_and_then_left_alone():
    learner = build(NAMES["deit-tiny-distilled"], 64)
    pictures, labels = stripes_and_dots(64)
    student, teacher = state(learner.student), state(learner.teacher)
    losses = train(learner, lambda: learner.first_loss(pictures, labels), 1e-3, 4)
    assert losses[-1] < losses[0]
    assert same(state(learner.student), student)
    assert not same(state(learner.teacher), teacher)

    learner.freeze()
    teacher = state(learner.teacher)
    learner.train()
    train(learner, lambda: learner.loss(pictures, labels), 1e-3, 2)
    assert same(state(learner.teacher), teacher), "batch norm included"
    assert not same(state(learner.student), student)


@pytest.mark.slow
def test_the_second_head_learns_what_the_teacher_names():
    learner = build(NAMES["deit-tiny-distilled"], 64, classes=3)
    learner.freeze()
    pictures, labels = stripes_and_dots(64, 6)
    with torch.no_grad():
        loss = learner.loss(pictures, labels)
        first, second = learner.student(pictures)
        named = learner.teacher.eval()(pictures).argmax(-1)
    assert (named != labels).any()
    expected = (F.cross_entropy(first, labels) + F.cross_entropy(second, named)) / 2
    torch.testing.assert_close(loss, expected)
    learner.eval()
    torch.testing.assert_close(learner(pictures), (first + second) / 2)


@pytest.mark.slow
def test_distilled_students_have_no_dropout_or_stochastic_depth():
    """So that training and evaluation can be compared above."""
    learner = build(NAMES["deit-tiny-distilled"], 64)
    assert all(m.p == 0 for m in learner.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.slow
def test_adaptive_sampling_drops_tokens_at_random_in_training_only():
    learner = build(NAMES["ats"], 96)
    pictures, _ = stripes_and_dots(96, 2)
    with torch.no_grad():
        assert not torch.equal(learner(pictures), learner(pictures))
        learner.eval()
        before = torch.get_rng_state()
        assert torch.equal(learner(pictures), learner(pictures))
    assert torch.equal(torch.get_rng_state(), before), "the run's own random numbers go on"
    _, kept = learner.model(pictures, return_sampled_token_ids=True)
    assert kept.shape[1] < 36 / 2


def test_an_image_size_is_rounded_up_to_whole_patches():
    sizes = {row.name: [row.size(asked) for asked in (96, 100, 224)] for row in ROWS}
    assert sizes.pop("regionvit") == [96, 128, 224]
    assert all(found == [96, 112, 224] for found in sizes.values())


def test_sequence_pooling_is_a_weighted_mean():
    pool = SequencePooling(2)
    with torch.no_grad():
        pool.weigh.weight[:], pool.weigh.bias[:] = torch.tensor([[math.log(3), 0.0]]), 5.0
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 8.0]]])
    torch.testing.assert_close(pool(tokens), torch.tensor([[0.75, 2.0]]))


def test_performers_attend_as_their_features_say():
    """Against quadratic attention with the same features."""
    torch.manual_seed(0)
    performer = Performer(5, 8)
    tokens = torch.randn(2, 6, 5)
    key, query, value = performer.key_query_value(tokens).chunk(3, dim=-1)
    mixed = torch.zeros_like(value)
    for b in range(2):
        for i in range(6):
            of = torch.stack(
                [performer.features(query[b, i]) @ performer.features(key[b, j]) for j in range(6)]
            )
            mixed[b, i] = (of / of.sum()) @ value[b]
    expected = value + performer.project(mixed)
    expected = expected + performer.network(expected)
    torch.testing.assert_close(performer(tokens), expected, atol=1e-4, rtol=1e-4)


def test_random_features_are_those_of_softmax_attention():
    torch.manual_seed(0)
    query, key = torch.randn(2, 16) / 8
    products = []
    for _ in range(2000):
        performer = Performer(4, 16)
        products.append((performer.features(query) @ performer.features(key)).item())
    assert sum(products) / len(products) == pytest.approx(math.exp(query @ key), rel=0.03)
