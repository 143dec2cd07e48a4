"""Scores of a classifier: its own, and its blind twin's, which is shown a blank image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.data import Micrographs, Part
from mvaema.evaluation.categories import score_categories

FIGURES = ("top_1", "top_5", "macro_f1", "expected_calibration_error")


@torch.no_grad()
def logits(model: nn.Module, micrographs: Micrographs, part: Part) -> torch.Tensor:
    """(micrographs, classes), on the CPU; the model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    found = [
        model(batch.pixel_values.to(device)).float().cpu()
        for batch in micrographs.plain_batches(part)
    ]
    return torch.cat(found)


def score(model: nn.Module, micrographs: Micrographs) -> dict[str, float | list]:
    """Figures on the test part.

    Returns:
        `top_1`, `top_1_interval` (95 %, over specimens), `top_5`, `macro_f1`,
        `expected_calibration_error`; those of the blind twin with `blind_` before them; `n`.

    Raises:
        ValueError: a logit is not finite.
    """
    seen = logits(model, micrographs, micrographs.test)
    if not seen.isfinite().all():
        raise ValueError("the classifier gives logits that are not finite for test micrographs.")
    with torch.no_grad():
        blank = micrographs.blank.to(next(model.parameters()).device)
        blind = model(blank).float().cpu().expand_as(seen)
    figures = of_probabilities(seen.double().softmax(1).numpy(), micrographs)
    twin = of_probabilities(blind.double().softmax(1).numpy(), micrographs)
    return figures | {f"blind_{name}": twin[name] for name in ("top_1", "macro_f1")}


def of_probabilities(probabilities: np.ndarray, micrographs: Micrographs) -> dict:
    """The figures of `score` without the blind twin's, of probabilities (test, classes)."""
    categories: Sequence[str] = micrographs.categories
    records = [
        record | {"probabilities": dict(zip(categories, row.tolist(), strict=True))}
        for record, row in zip(micrographs.test.records, probabilities, strict=True)
    ]
    scores = score_categories(records, categories)
    return {name: scores[name] for name in (*FIGURES, "top_1_interval", "n")}


def gflop(model: nn.Module, micrographs: Micrographs) -> float:
    """Billions of floating-point operations for one micrograph: products and sums of matrices,
    convolutions and attention, two for a product that is added."""
    model.eval()
    blank = micrographs.blank.to(next(model.parameters()).device)
    # With gradients: without, the counter fails on a module that is given a parameter (CaiT, PiT).
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(blank)
    return counter.get_total_flops() / 1e9
