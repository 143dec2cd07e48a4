"""Lengths in answers, and how far they are off."""

import math

import pytest

from lengths_mvaema import Length, parse_lengths, relative_error
from mvaema.evaluation.lengths import length_errors


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("about 80 nm", [(80, 80)]),
        ("0.2 µm", [(200, 200)]),  # micro sign
        ("0.2 μm", [(200, 200)]),  # Greek letter
        ("The scale bar marks 10.0um.", [(10_000, 10_000)]),
        ("5.00UM", [(5000, 5000)]),
        ("1,000 nm", [(1000, 1000)]),
        ("0,5 µm and 1,5 mm", [(500, 500), (1.5e6, 1.5e6)]),
        ("5 Å", [(0.5, 0.5)]),
        ("500-nm grains, 3 microns, 4 micrometers", [(500, 500), (3000, 3000), (4000, 4000)]),
        ("5–10 µm", [(5000, 10_000)]),
        ("80 to 120 nm", [(80, 120)]),
        ("500 nm to over 2 µm", [(500, 2000)]),
        ("between about 1 and 2 µm", [(1000, 2000)]),
        ("100 ± 20 nm", [(80, 120)]),
        ("10 and 20 nm", [(10, 10), (20, 20)]),
        ("2 × 3 µm", [(2000, 2000), (3000, 3000)]),
        ("12 kV, 20,000x, 5 nm", [(5, 5)]),
        ("0 to 5 nm", [(0, 5)]),
        ("1 to 11 percent of the width", []),
        ("30 nm² and 30 nm2 and 5 nm⁻¹ and 5 nm-1 and 5 1/nm and 3 nm/s", []),
        ("a few micrometres, 10³ nm, 10^3 nm, ½ µm, 1/2 µm", []),
        ("5 to" + " " * 20_000 + "µm", []),  # in no time
        ("no scale bar", []),
        ("", []),
    ],
)
def test_parse_lengths(text, lengths):
    assert [tuple(length) for length in parse_lengths(text)] == [
        pytest.approx(length) for length in lengths
    ]


def test_relative_error():
    assert relative_error(Length(80, 80), Length(100, 100)) == pytest.approx(0.2)
    assert relative_error(Length(800, 800), Length(80, 80)) == pytest.approx(9)
    assert relative_error(Length(80, 120), Length(80, 120)) == 0
    assert relative_error(Length(100, 100), Length(80, 120)) == pytest.approx(0.2)


def test_each_true_length_is_paired_with_its_nearest():
    errors = length_errors("1.1 µm wide with 10 nm pores in a 7 mm field", "20 nm and 1 µm")
    assert errors == pytest.approx([0.5, 0.1])


def test_unstated_lengths_are_infinitely_wrong():
    assert length_errors("No scale bar is visible.", "The scale bar states 1 µm.") == [math.inf]
    assert length_errors("80 nm", "20 nm and 80 nm") == [math.inf, 0]
    assert length_errors("80 nm", "No scale bar is visible.") == []
