"""Whole readings, with the reader of print, and what is refused."""

import builtins

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks.drawn_bars import STYLES, drawn
from mvaema.measuring import text as print_reader
from mvaema.measuring.measure import measure
from mvaema.measuring.scale import ScaleReading, pixel_size_read, read_scale_bar, scale_of

pytest.importorskip("rapidocr")

FONT = ImageFont.load_default(20)


def picture(*prints, width=400, height=300):
    """Noise with prints of (text, x, y, left end of the bar, its length or 0, its row)."""
    grey = np.random.default_rng(1).normal(90, 6, (height, width)).clip(0, 255)
    image = Image.fromarray(grey.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for text, x, y, left, long, row in prints:
        draw.text((x, y), text, font=FONT, fill=255)
        if long:
            draw.rectangle((left, row, left + long - 1, row + 3), fill=255)
    return image


def test_a_bar_and_its_text_are_read():
    reading = read_scale_bar(picture(("500 nm", 60, 230, 50, 100, 262)))
    assert reading.pixel_size_nm == pytest.approx(5.0, rel=0.005) and reading.reason is None
    assert reading.length_nm == 500 and reading.bar_pixels == pytest.approx(100, abs=0.5)
    assert reading.bar_box == pytest.approx((50, 262, 150, 266), abs=1)
    left, upper, right, lower = reading.text_box
    assert 40 <= left < right <= 150 and 220 <= upper < lower <= 262
    assert 0.35 <= reading.confidence <= 1
    assert reading.agrees_with(5.1) and not reading.agrees_with(6.0)


def test_one_grey_level_shows_nothing():
    for level in (0, 255):
        reading = read_scale_bar(Image.new("L", (300, 200), level))
        assert reading.pixel_size_nm is None and "one grey level" in reading.reason


@pytest.mark.parametrize(
    ("prints", "reason"),
    [
        pytest.param([], "no print states a length", marks=pytest.mark.slow),
        ([("500 nm", 60, 230, 0, 0, 0)], "no bar"),
        pytest.param(
            [("SAMPLE 12", 60, 230, 50, 100, 262)],
            "no print states a length",
            marks=pytest.mark.slow,
        ),
        ([("WD 8.5 mm", 60, 230, 50, 100, 262)], "no print states a length"),
        ([("500 nm", 10, 230, 0, 100, 262)], "cut off"),
        (
            [("500 nm", 40, 230, 30, 100, 262), ("500 nm", 280, 30, 270, 70, 62)],
            "two scale bars disagree",
        ),
    ],
)
def test_doubt_gives_none_and_the_reason(prints, reason):
    reading = read_scale_bar(picture(*prints))
    assert reading.pixel_size_nm is None and reading.confidence == 0
    assert reason in reading.reason


def test_a_reciprocal_length_gives_no_scale(monkeypatch):
    image = picture(("5 1/nm", 60, 230, 50, 100, 262))
    assert read_scale_bar(image).pixel_size_nm is None
    # However the print is rendered: what it says is refused by name.
    line = print_reader.Line("5 1/nm", 0.99, (58, 228, 130, 256))
    monkeypatch.setattr("mvaema.measuring.scale.read_lines", lambda image: [line])
    monkeypatch.setattr("mvaema.measuring.scale.read_parts", lambda image: [])
    assert "reciprocal" in read_scale_bar(image).reason


def test_one_huge_object_is_no_bar():
    image = picture(("500 nm", 60, 250, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((20, 20, 380, 240), fill=255)
    reading = read_scale_bar(image)
    assert reading.pixel_size_nm is None and reading.reason


def test_a_line_without_a_length_is_no_bar(monkeypatch):
    """A tick whose ends fall together has no length to divide by."""
    image = picture(("500 nm", 60, 230, 50, 100, 262))
    monkeypatch.setattr("mvaema.measuring.bars.ends_of_bar", lambda *_: (7.0, 7.0))
    reading = read_scale_bar(image)
    assert reading.pixel_size_nm is None and "no bar" in reading.reason


@pytest.mark.slow
def test_what_is_wrong_with_the_bar_is_told_beside_the_sizes():
    disagree = [("500 nm", 40, 230, 30, 100, 262), ("500 nm", 280, 30, 270, 70, 62)]
    image = picture(*disagree)
    draw = ImageDraw.Draw(image)
    for column in range(30, 380, 50):
        for row in range(110, 210, 50):
            draw.ellipse((column - 12, row - 12, column + 12, row + 12), fill=190)
    result = measure(image, kind="particles")
    assert result.trusted and result.unit == "px" and result.pixel_size_nm is None
    assert any("two scale bars disagree" in note for note in result.notes)


def test_panels_that_agree_are_read():
    prints = [("500 nm", 40, 230, 30, 100, 262), ("500 nm", 280, 30, 270, 100, 62)]
    assert pixel_size_read(picture(*prints)) == pytest.approx(5.0, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_styles_of_instruments_and_journals(style):
    """Each style is read in most pictures, and where it is refused a reason is given."""
    found = []
    for seed in range(3, 7):
        image, length_nm, pixel_nm = drawn(style, seed, published=False)
        reading = read_scale_bar(image)
        if reading.pixel_size_nm is None:
            assert reading.reason
        else:
            assert reading.length_nm == pytest.approx(length_nm)
            assert reading.pixel_size_nm == pytest.approx(pixel_nm, rel=0.03)
            found.append(reading)
    # Of dashed bars a third is read (docs/measuring.md).
    assert len(found) >= (1 if "dash" in style else 2)


class TestWhatCounts:
    """Typed before recorded before read."""

    @pytest.fixture
    def read(self, monkeypatch):
        reading = ScaleReading(5.0, 0.9, 500.0, 100.0, "500 nm")
        monkeypatch.setattr("mvaema.measuring.scale.read_scale_bar", lambda image: reading)
        return reading

    def test_order(self, read):
        image = Image.new("L", (9, 9))
        assert scale_of(image).pixel_size_nm == 5.0 and scale_of(image).source == "read"
        recorded = scale_of(image, recorded_nm=5.05)
        assert (recorded.pixel_size_nm, recorded.source) == (5.05, "recorded")
        assert recorded.contradiction is None
        typed = scale_of(image, typed_nm=7.0, recorded_nm=5.0)
        assert (typed.pixel_size_nm, typed.source) == (7.0, "typed")

    def test_a_contradiction_is_reported(self, read):
        scale = scale_of(Image.new("L", (9, 9)), recorded_nm=2.0)
        assert scale.pixel_size_nm == 2.0
        assert "500 nm" in scale.contradiction and "2 nm is recorded" in scale.contradiction

    def test_a_typed_size_is_a_positive_length(self):
        with pytest.raises(ValueError, match="positive length"):
            scale_of(Image.new("L", (9, 9)), typed_nm=-1.0)


def test_a_missing_reader_is_told(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "rapidocr":
            raise ModuleNotFoundError("No module named 'rapidocr'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    print_reader._engine.cache_clear()
    with pytest.raises(print_reader.MissingExtra, match=r'pip install "mvaema\[measuring\]"'):
        read_scale_bar(picture(("500 nm", 60, 230, 50, 100, 262)))
    print_reader._engine.cache_clear()
