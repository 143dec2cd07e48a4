"""Bars of known length, found without reading print."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mvaema.measuring.bars import find_bars
from mvaema.measuring.edges import ends_of_bar

TEXT = (120, 150, 180, 170)  # where the print beside the bar would be
LEFT, LONG, ROW = 100, 97, 178


def noise(width=320, height=240, low=60, high=140, seed=0):
    grey = np.random.default_rng(seed).integers(low, high, (height, width)).astype(np.uint8)
    smooth = Image.fromarray(grey).filter(ImageFilter.GaussianBlur(2))
    return smooth.convert("RGB")


def line(image, fill, thick=4, left=LEFT, long=LONG, row=ROW):
    box = (left, row, left + long - 1, row + thick - 1)
    ImageDraw.Draw(image).rectangle(box, fill=fill)
    return image


def best(image, text=TEXT):
    bars = find_bars(image, text)
    assert bars, "no bar was found"
    return bars[0]


@pytest.mark.parametrize("fill", [(255, 255, 255), (0, 0, 0), (255, 230, 0), (220, 0, 0)])
@pytest.mark.parametrize("thick", [2, 6])
def test_a_solid_bar_of_any_colour(fill, thick):
    image = noise(low=90, high=160)
    bar = best(line(image, fill, thick))
    assert bar.pixels == pytest.approx(LONG, abs=0.5)
    assert bar.box[0] == pytest.approx(LEFT, abs=1) and bar.box[1] == pytest.approx(ROW, abs=1)
    assert bar.style == "line" and not bar.cut and not bar.broken


def test_ticks_are_measured_from_middle_to_middle():
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.line((LEFT, ROW, LEFT + LONG, ROW), fill=(0, 255, 0))
    for column in (LEFT, LEFT + LONG):
        draw.line((column, ROW - 7, column, ROW + 7), fill=(0, 255, 0))
    bar = best(image)
    assert bar.style == "ticks" and bar.pixels == pytest.approx(LONG, abs=0.3)


def test_a_bar_broken_by_its_text():
    image = Image.new("RGB", (320, 240), "black")
    line(image, (255, 255, 255), 2, left=60, long=181, row=160)
    ImageDraw.Draw(image).rectangle((120, 150, 180, 170), fill=(0, 0, 0))
    bars = [bar for bar in find_bars(image, TEXT) if bar.broken]
    assert bars[0].pixels == pytest.approx(181, abs=0.5)


def test_a_row_of_eleven_ticks_and_not_of_nine():
    def ticks(columns):
        image = noise()
        for column in columns:
            ImageDraw.Draw(image).rectangle((column, ROW, column + 1, ROW + 6), fill="white")
        return [bar for bar in find_bars(image, TEXT) if bar.style == "row"]

    whole = range(80, 80 + 11 * 14, 14)
    assert ticks(whole)[0].pixels == pytest.approx(140, abs=0.5)
    assert not ticks([*whole][:9])


def test_a_dashed_bar():
    image = noise()
    for column in range(80, 170, 18):
        ImageDraw.Draw(image).rectangle((column, ROW, column + 8, ROW + 2), fill="white")
    bar = next(bar for bar in find_bars(image, TEXT) if bar.style == "dashed")
    assert bar.pixels == pytest.approx(81, abs=0.6)  # five dashes of 9 pixels, four gaps of 9


def test_a_dash_is_no_bar_and_a_hidden_dash_is_not_left_out():
    image = noise()
    for column in range(80, 170, 18):
        ImageDraw.Draw(image).rectangle((column, ROW, column + 8, ROW + 2), fill="white")
    # A bright object hides the last dash, and with it the end of the line.
    ImageDraw.Draw(image).rectangle((146, ROW - 8, 175, ROW + 12), fill="white")
    bars = [bar for bar in find_bars(image, TEXT) if bar.box[1] in range(ROW - 1, ROW + 2)]
    assert not [bar for bar in bars if bar.style == "dashed" or bar.pixels < 20]


@pytest.mark.parametrize("factor", [0.6, 0.77, 0.9])
def test_half_a_pixel_after_scaling(factor):
    image = line(noise(640, 480), (255, 255, 255), 8, left=200, long=197, row=356)
    size = round(640 * factor), round(480 * factor)
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    text = tuple(round(side * 2 * factor) for side in TEXT)
    assert best(scaled, text).pixels == pytest.approx(197 * size[0] / 640, abs=0.5)


def test_a_bar_at_the_border_is_cut():
    image = line(noise(), (255, 255, 255), left=0, long=60)
    bars = find_bars(image, (10, 150, 70, 170))
    assert bars[0].cut


def test_a_picture_without_a_bar_has_none():
    assert not [bar for bar in find_bars(noise(seed=3), TEXT) if bar.quality > 0.5]


def test_edges_lie_between_pixels():
    profile = np.array([0, 0, 0, 0, 25, 100, 100, 100, 100, 75, 0, 0, 0, 0.0])
    left, right = ends_of_bar(profile, 5, 10)
    # The area of the ink is 5 pixels: a quarter of one at the left, three at the right.
    assert right - left == pytest.approx(5, abs=0.2)
    assert ends_of_bar(np.zeros(20), 5, 10) is None
