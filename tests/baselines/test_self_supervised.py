"""Self-supervised rows: the first phase needs no categories, the second trains a probe alone."""

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

from baselines.self_supervised import BANK, MOMENTUM, ROWS

pytest.importorskip("timm", reason="needs the environment of `make baselines`")
pytest.importorskip("lightly", reason="needs the environment of `make baselines`")

pytestmark = pytest.mark.slow
NAMES = {row.name: row for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=NAMES)
followed = pytest.mark.parametrize("name", ["byol", "moco", "dino"])


@rows
def test_steps_on_the_same_views_lower_their_loss(row):
    """With banks and DINO's centre set back too: they make another loss of it each time."""
    learner = build(row, 64)
    pictures, _ = stripes_and_dots(64, 8)
    buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}

    def loss():
        for name, buffer in learner.named_buffers():
            buffer.copy_(buffers[name])
        torch.manual_seed(1)
        return learner.pretraining_loss(pictures)

    losses = train(learner, loss, row.learning_rate, 5)
    # Cosines fall from about 0 to -1, the others from above 0 to 0.
    assert losses[-1] < losses[0] - 0.05 * max(abs(losses[0]), 1), losses


@rows
def test_a_seed_repeats_the_first_phase(row):
    pictures, _ = stripes_and_dots(64, 4)
    runs = []
    for _ in range(2):
        learner = build(row, 64)
        loss = partial(learner.pretraining_loss, pictures)
        runs.append(train(learner, loss, row.learning_rate, 2, learner.after_step))
    assert runs[0] == runs[1]


@rows
@pytest.mark.parametrize("size", [96, 224])
def test_a_row_scores_each_micrograph_by_itself(row, size):
    check_evaluation(row, size)


@rows
def test_the_first_phase_trains_the_encoder_and_not_the_probe(row):
    learner = build(row, 64)
    pictures, labels = stripes_and_dots(64, 4)
    names = reached(learner, learner.first_loss(pictures, labels))
    trained = {
        name
        for name, p in learner.named_parameters()
        if p.requires_grad and not name.startswith("probe.")
    }
    assert names == trained
    assert any(name.startswith("encoder.") for name in names)


@rows
def test_the_probe_learns_and_leaves_the_encoder_as_it_is(row):
    learner = build(row, 64)
    pictures, labels = stripes_and_dots(64)
    train(learner, lambda: learner.pretraining_loss(pictures), 1e-4, 1, learner.after_step)
    learner.freeze()
    learner.train()
    before = state(learner)
    losses = train(learner, lambda: learner.loss(pictures, labels), 1e-2, 6)
    after = state(learner)
    probe = {name for name in before if name.startswith("probe.")}
    rest = before.keys() - probe
    assert same({n: before[n] for n in rest}, {n: after[n] for n in rest})
    assert losses[-1] < losses[0]
    assert {n for n, p in learner.named_parameters() if p.requires_grad} == {
        "probe.1.weight",
        "probe.1.bias",
    }


@followed
def test_momentum_encoders_follow_after_a_step_only(name):
    learner = build(NAMES[name], 64)
    pictures, _ = stripes_and_dots(64, 4)
    before = [p.clone() for p in learner.teacher.parameters()]
    train(learner, lambda: learner.pretraining_loss(pictures), 1e-2, 1)
    assert all(map(torch.equal, before, learner.teacher.parameters()))
    learner.after_step()
    online = [*learner.encoder.parameters(), *learner.projector.parameters()]
    moved = 0
    for old, new, leader in zip(before, learner.teacher.parameters(), online, strict=True):
        torch.testing.assert_close(new, MOMENTUM * old + (1 - MOMENTUM) * leader)
        moved += not torch.equal(old, new)
    assert moved > len(before) / 2


@pytest.mark.parametrize("name", ["moco", "nnclr"])
def test_banks_remember_one_view_of_each_batch(name):
    learner = build(NAMES[name], 64)
    bank = learner.bank if name == "nnclr" else learner.criterion.memory_bank
    assert bank.bank.shape == (BANK, 128)
    before = bank.bank.clone()
    pictures, _ = stripes_and_dots(64, 4)
    learner.pretraining_loss(pictures)
    changed = (bank.bank != before).any(1).nonzero().flatten().tolist()
    assert changed == list(range(4))


def test_dino_is_probed_on_its_momentum_encoder():
    learner = build(NAMES["dino"], 64).eval()
    pictures, _ = stripes_and_dots(64, 4)
    with torch.no_grad():
        before = learner(pictures)
        for parameter in learner.encoder.parameters():
            parameter.add_(0.1)
        assert torch.equal(learner(pictures), before)
        learner.after_step()
        assert not torch.equal(learner(pictures), before)


@pytest.mark.parametrize(("name", "hidden"), [("mae", 12), ("simmim", 10)])
def test_masked_rows_are_scored_on_what_was_hidden(name, hidden):
    """Of 16 patches at 64 pixels; the loss knows nothing of the patches that are seen."""
    learner = build(NAMES[name], 64).eval()
    given = []
    compare = learner.compare

    def watched(images, patches, seen, places):
        given.append((images, patches, seen, places))
        return compare(images, patches, seen, places)

    learner.compare = watched
    pictures, _ = stripes_and_dots(64, 2)
    learner.pretraining_loss(pictures)
    [(images, patches, seen, places)] = given
    assert places.shape == (2, hidden) and seen.shape == (2, 17 - hidden)
    assert (places > 0).all(), "the class token is never hidden"
    for of_image, image, numbers in zip(patches, images, places - 1, strict=True):
        for patch, number in zip(of_image, numbers.tolist(), strict=True):
            y, x = 16 * (number // 4), 16 * (number % 4)
            cut = image[:, y : y + 16, x : x + 16].permute(1, 2, 0).flatten()
            assert torch.equal(patch, cut)
    # A hidden patch is not looked at: other pixels there leave what the encoder gives.
    changed = images.clone()
    y, x = divmod(int(places[0, 0]) - 1, 4)
    changed[0, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] += 1
    with torch.no_grad():
        argument = {"idx_keep": seen} if name == "mae" else {"idx_mask": places}
        first = learner.encoder.encode(images, **argument)
        assert torch.equal(learner.encoder.encode(changed, **argument), first)
        assert not torch.equal(learner.encoder.encode(changed), learner.encoder.encode(images))
