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

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import layers_mvaema
from benchmarks.speed import inference, measure
from benchmarks.speed.report import Comparison
from benchmarks.speed.settings import Settings
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload, batch, lengths
from candidates_mvaema import CANDIDATES
from generation_mvaema import MVaEMaMemory
from loop_mvaema import LeavingRows

TARGET = 1.1


def tricks(settings: Settings) -> Iterator[Comparison]:
    """Groups of like length, logits where there are labels, what questions of an image share,
    complete answers that leave."""
    lm, everything = settings.workload(), settings.workload(losses="all")
    for name, workload in (("LM", lm), ("ITC + ITM + LM", everything)):
        yield _grouped(settings, f"texts in groups, {name}", workload)
    yield _labelled_words(settings, lm)
    yield _shared_images(settings, lm)
    yield _shared_keys(settings, replace(lm, batch=settings.batch or 8, questions=10))
    yield _leaving_rows(settings, replace(lm, batch=1, questions=10), 1)
    yield _leaving_rows(settings, replace(lm, batch=settings.batch or 8, questions=10), 1)
    candidates = 1 + CANDIDATES["num_return_sequences"]
    yield _leaving_rows(settings, replace(lm, batch=1, questions=10), candidates)


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


class EndsAt(StoppingCriteria):
    """Ends each row after as many words as an answer has. An untrained model does not end."""

    def __init__(self, rows: int):
        drawn = np.quantile(lengths()["answers"], np.random.default_rng(0).random(rows))
        self.lengths = torch.from_numpy(drawn.round())

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return (input_ids.shape[1] > self.lengths).to(input_ids.device)


def _leaving_rows(settings: Settings, workload: Workload, candidates: int) -> Comparison:
    """Transformers' loop, which decodes rows on when they are complete.

    Args:
        candidates: rows for each question. What draws them leaves with the rows, and is not here.
    """
    model = inference.our_model(workload)
    inputs = {n: t for n, t in batch(workload).items() if n != "labels"}
    rows = workload.batch * workload.questions * candidates
    options = {
        "stopping_criteria": StoppingCriteriaList([EndsAt(rows)]),
        "max_new_tokens": int(lengths()["answers"].max()),
        "do_sample": False,
    }
    repeated = {
        name: inputs[name].repeat_interleave(candidates, dim=0)
        for name in ("input_ids", "attention_mask")
    }

    def answers(**loop) -> torch.Tensor:
        memory = model.encode_prompt(**inputs)
        questions = memory.questions.repeat_interleave(candidates, dim=0)
        memory = replace(memory, questions=questions)
        return model.generate(**repeated, encoder_outputs=memory, **options, **loop)

    def leaving() -> torch.Tensor:
        return answers(custom_generate=LeavingRows())

    case = f"complete answers leave, {workload.batch} x 10 x {candidates}"
    return _compared(settings, case, rows, torch.no_grad()(leaving), torch.no_grad()(answers))


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
