"""One run of a row that classifies: built, trained, scored."""

from collections.abc import Callable

import torch
from accelerate.utils import set_seed
from torch.nn import functional as F

from baselines.data import Micrographs
from baselines.learners import Learner, SelfSupervised, TwoPhases
from baselines.outcome import Outcome
from baselines.scoring import gflop, logits, score
from baselines.settings import Run
from baselines.training import History, Plan, fit

PROBE_RATE, PROBE_WARMUP = 1e-3, 10  # of the linear probe on a self-supervised encoder


def train_classifier(
    build: Callable[[int, int], Learner],
    run: Run,
    learning_rate: float,
    warmup_steps: int,
    image_size: int,
) -> Outcome:
    """Build it, train it, score it.

    A learner in two phases spends half of the budget on each.

    Args:
        build: the learner for so many classes and an image size.
        image_size: height and width in pixels.

    Raises:
        RowFailed: it cannot be trained.
    """
    micrographs = run.data.micrographs(image_size)
    set_seed(run.seed)
    learner = build(len(micrographs.categories), image_size)
    batches = micrographs.training_batches(run.seed)
    training = {}
    share = 1.0
    if isinstance(learner, TwoPhases):
        share = 0.5
        training["first phase"] = fit(
            learner,
            lambda batch: learner.first_loss(batch.pixel_values, batch.labels),
            batches,
            Plan.of(run.settings, learning_rate, warmup_steps, share),
            run.accelerator,
            after_step=learner.after_step,
        )
        learner.freeze()
        if isinstance(learner, SelfSupervised):
            learning_rate, warmup_steps = PROBE_RATE, PROBE_WARMUP
    training["training"] = fit(
        learner,
        lambda batch: learner.loss(batch.pixel_values, batch.labels),
        batches,
        Plan.of(run.settings, learning_rate, warmup_steps, share),
        run.accelerator,
        validation_loss=lambda: _validation_loss(learner, micrographs),
    )
    return outcome(learner, micrographs, training)


def outcome(learner: Learner, micrographs: Micrographs, training: dict[str, History]) -> Outcome:
    """What a trained classifier comes to."""
    parameters = list(learner.parameters())
    return Outcome(
        figures=score(learner, micrographs),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        training=training,
        details={
            "gflop": gflop(learner, micrographs),
            "image_size": micrographs.image_size,
            **{
                f"{name}_micrographs": len(getattr(micrographs, name).labels)
                for name in ("train", "validation", "test")
            },
        },
    )


def _validation_loss(learner: Learner, micrographs: Micrographs) -> float:
    """Cross-entropy, whatever a row is trained by."""
    part = micrographs.validation
    return F.cross_entropy(logits(learner, micrographs, part), torch.from_numpy(part.labels)).item()
