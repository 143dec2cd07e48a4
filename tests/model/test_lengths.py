"""What a measurement says beside a student's words."""

import pytest

from lengths_mvaema import CONTRADICTS, beside_measurement, contradicted

MEASURED = "Measured: 143 particles, median 38 nm, 22–71 nm (5–95 %)."


@pytest.mark.parametrize(
    "right",
    [
        "The particles are about 40 nm across.",
        "Diameters are 20 to 70 nm.",
        "The largest particles have 75 nm.",
        "They reach up to 70 nm.",
        "The smallest of them are 20 nm wide.",
        "The scale bar marks 500 nm.",  # nothing was said of the bar
        "The particles form chains, which are up to 5 µm long.",  # nor of lengths
        "The pitch is 200 nm.",
        "They differ in size.",
        "",
    ],
)
def test_words_within_a_quarter_of_the_measurement_stand(right):
    assert contradicted(right, MEASURED) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "The particles are about 50 nm across.",  # 32 % off
        "The particles are roughly 70 nm across.",  # the largest are; these words say all
        "The mean diameter is 0.5 µm.",
        "Sizes range from 100 to 300 nm.",
        "They reach up to 38 nm.",
        "The scale bar marks 1 µm and the particles are 400 nm wide.",
    ],
)
def test_words_further_off_are_told(wrong):
    before = "Round particles."
    assert contradicted(f"{before} {wrong} They touch.", MEASURED) == [wrong]


def test_each_quantity_is_compared_with_its_own():
    measured = "Measured: pitch 400 nm, 12 periods in view. Scale bar: 2 µm."
    assert contradicted("The pitch is 380 nm. The lines are 150 nm wide.", measured) == []
    assert contradicted("They repeat every 600 nm.", measured) == ["They repeat every 600 nm."]
    assert contradicted("The bar stands for 2 µm.", measured) == []
    assert contradicted("A grating; the bar stands for 5 µm.", measured) == [
        "the bar stands for 5 µm."
    ]


def test_a_quarter_is_the_limit():
    measured = "Measured: 30 pores, median 100 nm, 100–100 nm (5–95 %), 12 % of the area."
    assert contradicted("Pores of 124 nm.", measured) == []
    assert contradicted("Pores of 76 nm.", measured) == []
    assert contradicted("Pores of 126 nm.", measured) == ["Pores of 126 nm."]


def test_nothing_measured_contradicts_nothing():
    said = "The grains are 3 mm wide."
    in_pixels = "Measured: 12 grains, median 31 px, 20–44 px (5–95 %)."
    for measured in (in_pixels, "Not measured: the image is black."):
        assert contradicted(said, measured) == []
        assert beside_measurement(said, measured) == f"{said} {measured}"


def test_both_stay_and_the_wrong_words_are_marked():
    said = beside_measurement("Round grains. They are 0.5 µm wide.", MEASURED)
    assert said == f"Round grains. They are 0.5 µm wide {CONTRADICTS}. {MEASURED}"
    assert beside_measurement("", MEASURED) == MEASURED
