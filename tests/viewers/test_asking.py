"""Asking about pixels that a program has open: what the student is shown and told."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from configuration_mvaema import QUESTIONS
from mvaema.micrographs.calibration import NotAMicrograph
from mvaema.viewers.asking import ask, pixel_size_nm


class Listener:
    """An answerer that keeps what it is given."""

    questions, methods = QUESTIONS, ("ITC", "ITC+ITM")

    def __init__(self, answer: str = "They are 900 nm wide."):
        self.words, self.told = answer, {}

    def answer(self, images, questions, captions, pixel_size_nm, scale_bars):
        self.told = {"images": images, "questions": questions, "pixel_size_nm": pixel_size_nm}
        return [[self.words]]

    def classify(self, images, method):
        self.told_method = method
        return [{"Particles": 0.9, "Tips": 0.1}]


def discs(count: int = 5, diameter: int = 24) -> Image.Image:
    """Discs of one size on a grid of 64 pixels, without print."""
    image = Image.new("L", (64 * count, 64 * count), 40)
    draw = ImageDraw.Draw(image)
    for x in range(count):
        for y in range(count):
            left, upper = 64 * x + 20, 64 * y + 20
            draw.ellipse((left, upper, left + diameter - 1, upper + diameter - 1), fill=210)
    noise = np.random.default_rng(0).normal(0, 4, image.size[::-1])
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def test_a_region_is_shown_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)
    listener = Listener("Wires.")
    reply = ask(listener, pixels, " What? ", region=(100, 30, 400, 70), measured=False)
    (image,) = listener.told["images"]
    assert np.array_equal(np.asarray(image), pixels[30:70, 100:])
    assert listener.told_method == "ITC+ITM"
    assert (reply.answer, reply.measurement, reply.pixel_size_nm) == ("Wires.", None, None)
    assert reply.lines() == [
        "Wires.",
        "Category: Particles 90 %, Tips 10 %.",
        "Seen with scale unknown.",
    ]


@pytest.mark.slow
def test_what_is_measured_stands_behind_answers_about_sizes():
    listener = Listener()
    reply = ask(listener, discs(), QUESTIONS["size_distribution"], pixel_size_nm=5.0)
    assert reply.measurement.trusted and reply.measurement.unit == "nm"
    assert reply.measurement.statistics.median == pytest.approx(24 * 5.0, rel=0.05)
    assert listener.told["pixel_size_nm"] == [5.0]
    assert reply.answer.startswith("They are 900 nm wide (contradicts the measurement).")
    assert "\n".join(reply.lines()).count(reply.measurement.sentence()) == 1
    other = ask(listener, discs(), QUESTIONS["imaging"], pixel_size_nm=5.0)
    assert other.answer == "They are 900 nm wide."
    assert other.lines()[2] == other.measurement.sentence()


@pytest.mark.slow
def test_a_region_is_measured_in_its_place():
    image = discs()
    image.paste(40, (0, 0, 320, 128))  # nothing is left above
    region = (0, 192, 320, 320)
    reply = ask(Listener(), image, "How many?", pixel_size_nm=5.0, region=region)
    assert reply.measurement.count == 10


def test_a_deep_image_is_stretched_as_everywhere():
    pixels = np.linspace(0, 60000, 64 * 64).reshape(64, 64)
    listener = Listener()
    ask(listener, pixels, "What?", measured=False)
    (image,) = listener.told["images"]
    assert image.mode == "L" and image.getextrema() == (0, 255)


@pytest.mark.parametrize(
    ("scales", "units", "expected"),
    [
        ((2.0, 2.0), ("nm", "nm"), 2.0),
        ((0.004, 0.004), ("µm", "um"), 4.0),
        ((0.5, 0.5), ("nanometer", "nanometer"), 0.5),
        ((5.0, 5.0), ("Å", "Å"), 0.5),
        ((-2.0, 2.0), ("nm", "nm"), 2.0),
        ((1.0, 1.0), ("pixel", "pixel"), None),
        ((1.0, 1.0), ("", ""), None),
        ((2.0, 3.0), ("nm", "nm"), None),  # no square
        ((2.0, 2.0), ("nm", "pixel"), None),
    ],
)
def test_the_length_of_a_pixel_from_two_axes(scales, units, expected):
    found = pixel_size_nm(scales, units)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_an_axis_that_is_no_place_is_refused():
    with pytest.raises(NotAMicrograph, match="spectrum"):
        pixel_size_nm((0.1, 0.1), ("eV", "nm"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question": " "}, "the question is blank"),
        ({"region": (0, 0, 8, 60)}, "covers 8 × 60 pixels"),
        ({"region": (200, 0, 300, 60)}, "covers 0 × 60 pixels"),
        ({"pixels": np.zeros((4, 4, 4, 4))}, "an image must be"),
    ],
)
def test_what_cannot_be_asked(wrong, message):
    given = {"pixels": np.zeros((64, 64), np.uint8), "question": "What?", "measured": False}
    with pytest.raises(ValueError, match=message):
        ask(Listener(), **{**given, **wrong})
