"""Lengths as they are printed, and as they are misread."""

import pytest

from lengths_mvaema import normal_text
from mvaema.measuring.lengths import is_bare_unit, is_reciprocal, is_round
from mvaema.measuring.lengths import printed_length as parsed


def nanometres(text):
    length = parsed(normal_text(text))
    return length and pytest.approx(length.nm)


@pytest.mark.parametrize(
    ("text", "nm"),
    [
        ("500nm", 500),
        ("50.0nm", 50),
        ("10.0 um", 10_000),
        ("2 µm", 2000),  # the micro sign
        ("2 μm", 2000),  # the Greek letter
        ("1 micron", 1000),
        ("5 Å", 0.5),
        ("0,5 µm", 500),
        ("1 mm", 1e6),
        ("100nm JEOL", 100),
        ("Scale: 500 μm", 500_000),
        ("-200.0μm", 200_000),
    ],
)
def test_a_length_is_read(text, nm):
    assert nanometres(text) == nm
    assert parsed(normal_text(text)).sure


@pytest.mark.parametrize(
    ("text", "nm"),
    [
        ("5OO nm", 500),
        ("l0 nm", 10),
        ("2 pm", 2000),
        ("50 nrn", 50),
        ("1 jum", 1000),
        ("T30nmI", 30),
        ("5 wm", 5000),
    ],
)
def test_misread_signs_are_corrected_and_told(text, nm):
    assert nanometres(text) == nm
    assert not parsed(normal_text(text)).sure


@pytest.mark.parametrize(
    "text",
    [
        *("WD 10.1mm", "WD = 6 mm", "10.0kV 14.2mm x1.00k SE(M)", "Aperture Size = 30.00 µm"),
        *("5 1/nm", "3 nm^-1", "120 kV", "x30,000", "7/20/2022", "3:23:17 PM", "nm", "0 nm", ""),
        "2 nm and 5 nm",
        "I30nm",  # 30 with the tick of a bar, or 130
    ],
)
def test_what_is_no_length_of_a_bar(text):
    assert parsed(normal_text(text)) is None


def test_the_place_of_the_length_is_told():
    length = parsed("100nm JEOL")
    assert "100nm JEOL"[length.start : length.end] == "100nm"


def test_units_reciprocals_and_round_lengths():
    assert is_bare_unit("μm") and not is_bare_unit("1 μm")
    assert is_reciprocal("5 1/nm") and not is_reciprocal("5 nm")
    assert is_round(250) and is_round(0.5) and is_round(1.2e5)
    assert not is_round(207) and not is_round(14_900)
