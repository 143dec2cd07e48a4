"""What each speed trick of the model gains: the model beside itself without the trick.

What is special about it:
- a trick is switched off from outside, through a public call or a constant of the module, so the
  model has no switches for a benchmark;
- a trick that gains less than 1.1x on every preset is not worth its lines (CONTRIBUTING.md).
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import torch

import layers_mvaema
from benchmarks.speed import inference, measure
from benchmarks.speed.report import Comparison
from benchmarks.speed.settings import Settings
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload, batch
from generation_mvaema import MVaEMaMemory

TARGET = 1.1


def tricks(settings: Settings) -> Iterator[Comparison]:
    """Groups of like length, logits where there are labels, what questions of an image share."""
    lm, everything = settings.workload(), settings.workload(losses="all")
    for name, workload in (("LM", lm), ("ITC + ITM + LM", everything)):
        yield _grouped(settings, f"texts in groups, {name}", workload)
    yield _labelled_words(settings, lm)
    yield _shared_images(settings, lm)
    yield _shared_keys(settings, replace(lm, batch=settings.batch or 8, questions=10))


def _grouped(settings: Settings, case: str, workload: Workload) -> Comparison:
    """All texts as one group, padded to the longest."""
    _, step = training_step("ours", workload)

    def one_group() -> None:
        with patch.object(layers_mvaema, "GROUP_PADDING", sys.maxsize):
            step()

    return _compared(settings, case, workload.batch, step, one_group)


def _labelled_words(settings: Settings, workload: Workload) -> Comparison:
    """In evaluation mode (no preset has dropout) the model computes all logits."""
    model, step = training_step("ours", workload)
    whole, step_of_all = training_step("ours", workload)
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0
    whole.eval()
    return _compared(settings, "logits of labelled words, LM", workload.batch, step, step_of_all)


def _shared_images(settings: Settings, workload: Workload) -> Comparison:
    """Each question with an image of its own, as BLIP's public calls have it."""
    _, step = training_step("ours", workload)
    inputs = batch(workload)
    repeated = inputs["pixel_values"].repeat_interleave(workload.questions, dim=0)
    inputs = {**inputs, "pixel_values": repeated}
    return _compared(
        settings,
        f"images encoded once, {workload.questions} questions",
        workload.batch,
        step,
        lambda: step(inputs),
    )


def _shared_keys(settings: Settings, workload: Workload) -> Comparison:
    """Decoding with [V ; M] as each question's own, instead of V once per image."""
    model = inference.our_model(workload)
    count = inference.new_tokens(workload)
    length = {"min_new_tokens": count, "max_new_tokens": count}
    inputs = {n: t for n, t in batch(workload).items() if n != "labels"}

    def answers() -> torch.Tensor:
        return model.generate(**inputs, **length)

    def own_keys() -> torch.Tensor:
        memory = model.encode_prompt(**inputs)
        return model.generate(
            encoder_outputs=MVaEMaMemory(memory.last_hidden_state),
            attention_mask=inputs["attention_mask"],
            **length,
        )

    rows = workload.batch * workload.questions
    case = f"keys of an image read once, {workload.questions} questions"
    return _compared(settings, case, rows, torch.no_grad()(answers), torch.no_grad()(own_keys))


def _compared(
    settings: Settings,
    case: str,
    amount: int,
    ours: Callable[[], object],
    without: Callable[[], object],
) -> Comparison:
    times = measure.alternate({"ours": ours, "without": without}, settings.repeats, settings.clock)
    rates = {who: amount / median(seconds) for who, seconds in times.items()}
    return Comparison(
        case,
        settings.preset,
        "rows/s",
        rates["ours"],
        "without it",
        rates["without"],
        measure.ratio(times["without"], times["ours"]),
        TARGET,
        details={"seconds": times},
    )
