"""The picture of a training run shows what its log says."""

import numpy as np
import pytest
from PIL import Image

from mvaema.training.curves import loss_curves

TRAIN = {"itc_loss": [3.0, 2.0, 1.0], "itm_loss": [0.7, 0.6, 0.5], "lm_loss": [5.0, 4.0, 3.0]}
VALIDATION = {"itc_loss": [3.0, 2.5, 2.7], "itm_loss": [0.7, 0.6, 0.65], "lm_loss": [5.0, 4.5, 4.4]}
RATES = [1e-3, 1e-3, 5e-4]


def make_log(names=tuple(TRAIN)) -> list[dict]:
    log = []
    for i, rate in enumerate(RATES):
        parts = [{name: part[name][i] for name in names} for part in (TRAIN, VALIDATION)]
        train, validation = ({"loss": sum(part.values()), **part} for part in parts)
        record = {"epoch": i + 1, "learning_rate": rate, "seconds": 1.0}
        log.append({**record, "train": train, "validation": validation})
    return log


def curves(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 3]


def test_every_loss_and_the_learning_rate_are_drawn_and_the_best_epoch_is_marked(tmp_path):
    figure = loss_curves(make_log(), tmp_path / "losses.png")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for title, name in (("(ITC)", "itc_loss"), ("(ITM)", "itm_loss"), ("(LM)", "lm_loss")):
        (axes,) = (panel for text, panel in panels.items() if text.endswith(title))
        assert curves(axes) == [TRAIN[name], VALIDATION[name]]
        assert axes.texts[0].get_text() == f"{VALIDATION[name][1]:.3f}"  # lowest total: epoch 2
    assert curves(panels["Total loss"])[1] == pytest.approx([8.7, 7.6, 7.75])
    assert curves(panels["Learning rate"]) == [RATES]
    assert "epoch 2" in figure.legends[0].get_texts()[1].get_text()
    pixels = np.asarray(Image.open(tmp_path / "losses.png").convert("L"))
    assert pixels.std() > 5


@pytest.mark.parametrize("names", [("lm_loss",), ("itc_loss", "lm_loss")])
def test_a_run_without_some_losses(names):
    figure = loss_curves(make_log(names))
    assert len(figure.axes) == len(names) + 2


def test_a_run_of_one_epoch_shows_its_points():
    figure = loss_curves(make_log()[:1])
    for axes in figure.axes:
        assert axes.lines[0].get_marker() == "o"


def test_bad_logs():
    with pytest.raises(ValueError, match="has no losses"):
        loss_curves([])
    with pytest.raises(ValueError, match="no `learning_rate`"):
        loss_curves([{k: v for k, v in r.items() if k != "learning_rate"} for r in make_log()])
