"""The benchmark of scale bars: its truth and its counting."""

import numpy as np
import pytest

from benchmarks.drawn_bars import STYLES, drawn
from benchmarks.scale_bars import outcome, stated_nm, summary


def test_outcomes():
    assert outcome(None, None) == "none" and outcome(None, 5.0) == "false"
    assert outcome(500.0, None) == "missed" and outcome(500.0, 50.0) == "wrong"
    assert outcome(500.0, 500.0) == "right"


def test_labels_are_compared_in_nanometres():
    assert stated_nm("0.5 µm") == stated_nm("500nm") == pytest.approx(500)
    assert stated_nm("5 1/nm") is None and stated_nm(None) is None


def test_a_summary_counts_by_style():
    row = {"style": "overlay", "seconds": 0.5, "error": None}
    rows = [
        {**row, "outcome": "right", "error": -0.02},
        {**row, "outcome": "missed"},
        {**row, "outcome": "false"},
        {**row, "outcome": "none", "style": "strip"},
    ]
    lines = summary(rows)
    assert "| overlay | 3 | 2 | 1 | 0 | 1 | 0.500 | 0.500 | 2.00% | 2.00% |" in lines
    assert "| strip | 1 | 0 | 0 | 0 | 0 | – | – | – | – |" in lines
    assert lines[-1] == "2.00 micrographs per second"


@pytest.mark.parametrize("style", ["white line", "line on a patch", "bar left of the text"])
def test_a_drawn_bar_is_as_long_as_it_is_said(style):
    image, length_nm, pixel_nm = drawn(style, 4, published=False)
    white = np.asarray(image.convert("L")) == 255
    # Columns at which ink begins and ends, of each row in turn.
    edges = [np.flatnonzero(np.diff(np.pad(row, 1).astype(int))) for row in white]
    longest = max(np.diff(ends)[::2].max(initial=0) for ends in edges)
    assert longest * pixel_nm == pytest.approx(length_nm)


def test_a_published_bar_keeps_its_scale():
    _, length_nm, pixel_nm = drawn(STYLES[0], 5, published=False)
    image, same_nm, larger_nm = drawn(STYLES[0], 5, published=True)
    assert same_nm == length_nm and larger_nm * image.width == pytest.approx(pixel_nm * 512)
