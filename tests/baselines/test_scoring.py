"""A classifier's figures, against ones counted by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from baselines.references import ROWS as REFERENCES
from baselines.scoring import gflop, logits, score


class OfOnePixel(nn.Module):
    """Logits that follow the mean brightness."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, pixel_values):
        brightness = pixel_values.mean(dim=(1, 2, 3)) * self.scale
        return torch.stack([brightness, -0.4 - brightness], dim=1)


def test_figures_are_those_of_the_logits(data):
    seen, model = data.micrographs(32), OfOnePixel()
    figures = score(model, seen)
    guesses = logits(model, seen, seen.test).argmax(1).numpy()
    assert figures["top_1"] == pytest.approx((guesses == seen.test.labels).mean())
    expected = f1_score(seen.test.labels, guesses, average="macro")
    assert figures["macro_f1"] == pytest.approx(expected)
    assert figures["n"] == len(seen.test.labels)
    # The blind twin says one category of all micrographs: half of them are of it.
    assert figures["blind_top_1"] == pytest.approx(0.5)
    assert figures["blind_macro_f1"] == pytest.approx(1 / 3)


def test_logits_that_are_not_finite_are_refused(data):
    model = OfOnePixel()
    with torch.no_grad():
        model.scale.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        score(model, data.micrographs(32))


def test_floating_point_operations_are_counted(data):
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 32 * 32, 2))
    expected = 2 * (32 * 32 * 5 * 3 * 9 + 5 * 32 * 32 * 2)
    assert gflop(model, data.micrographs(32)) == pytest.approx(expected / 1e9)


def test_the_most_frequent_category_is_that_of_training(run):
    outcome = REFERENCES[0].train_and_score(run)
    seen = run.data.micrographs(32)
    most = np.bincount(seen.train.labels).argmax()
    assert outcome.figures["top_1"] == pytest.approx((seen.test.labels == most).mean())
    assert not outcome.training


class GivenItsToken(nn.Module):
    """A layer is called with a parameter, as CaiT and PiT do."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 32))
        self.project, self.head = nn.Linear(32, 8), nn.Linear(8, 2)

    def forward(self, pixel_values):
        return self.head(self.project(self.token) + pixel_values.mean((1, 2, 3))[:, None])


def test_operations_of_a_module_that_is_given_a_parameter(data):
    expected = 2 * (32 * 8 + 8 * 2)
    assert gflop(GivenItsToken(), data.micrographs(32)) == pytest.approx(expected / 1e9)
