"""A subject in HTML: escaped, and said in words too."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from support.drawn_structures import scattered_discs

from mvaema.measuring.measure import measure
from mvaema.micrographs.microscope import Micrograph
from mvaema.page import drawing
from mvaema.page.subject import Subject

HOSTILE = '<img src=x onerror="alert(1)">'


def subject(**micrograph) -> Subject:
    image = Image.fromarray(np.full((300, 2000), 90, np.uint8))
    facts = {"pixel_size_nm": None, "instrument": {}, "info_bar": None, **micrograph}
    return Subject(Micrograph(image, **facts))


def test_a_picture_is_in_the_html_and_no_larger_than_a_screen():
    text = drawing.picture(subject())
    encoded = re.search(r'src="data:image/jpeg;base64,([^"]+)"', text)[1]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.size == (1024, 154) and not image.getexif()
    assert 'alt="The micrograph, 2000 by 300 pixels"' in text


def test_a_region_is_drawn_where_it_is():
    one = subject()
    one.choose((500, 30, 1500, 60))
    style = "left:25.000%;top:10.000%;width:50.000%;height:10.000%"
    assert style in drawing.picture(one)
    assert style not in drawing.picture(subject())


def test_what_a_student_or_a_visitor_says_is_escaped():
    weights = np.ones((2, 2), np.uint8)
    for text in (
        drawing.answer(HOSTILE, HOSTILE),
        drawing.answer(HOSTILE, HOSTILE, [(HOSTILE, weights)], notes=(HOSTILE,)),
        drawing.answers([(HOSTILE, HOSTILE)]),
        drawing.bars({HOSTILE: 0.5}),
        drawing.picture(subject(), HOSTILE),
        drawing.download(HOSTILE, b"", "text/csv", HOSTILE),
    ):
        assert "<img src=x" not in text and "&lt;img src=x" in text


@pytest.mark.parametrize(
    "cell, place",
    [((0, 0), "upper left"), ((3, 3), "middle"), ((6, 3), "bottom"), ((3, 6), "right")],
)
def test_where_a_word_looks_is_said(cell, place):
    weights = np.ones((7, 7), np.uint8)
    weights[cell] = 9
    assert drawing.where(weights) == f"most at the {place}, {9 * 49 / 57:.1f} times the mean"


def test_one_word_is_a_stop_for_the_tab_key():
    words = [("Fine", np.ones((2, 2), np.uint8)), ("wires.", np.eye(2, dtype=np.uint8))]
    text = drawing.answer("What?", "Fine wires.", words, about_region=True)
    assert re.findall(r'tabindex="(-?\d)"', text) == ["0", "-1"]
    maps = [
        np.frombuffer(base64.b64decode(m), np.uint8) for m in re.findall('data-map="(.+?)"', text)
    ]
    assert [m.tolist() for m in maps] == [[1, 1, 1, 1], [1, 0, 0, 1]]
    assert "about the region" in text and 'role="status">Answer: Fine wires.' in text


def test_an_answer_is_whole_although_its_last_words_have_no_map():
    words = [("Fine", np.ones((2, 2), np.uint8))]
    text = re.sub("<.*?>", "", drawing.answer("What?", "Fine wires & more.", words))
    assert "Fine wires &amp; more." in text.partition("Choose a word")[0]


def test_facts_are_in_words():
    one = subject(
        pixel_size_nm=2.5, instrument={"technique": "SEM", "accelerating_voltage_kv": 5.0}
    )
    assert drawing.fact_rows(one) == [
        ("Size", "2000 × 300 pixels"),
        ("Scale", "2.5 nm per pixel, recorded by the instrument"),
        ("Field of view", "5 µm wide"),
        ("Technique", "SEM"),
        ("Accelerating voltage", "5 kV"),
    ]


def test_a_measurement_has_its_sentence_and_pictures_with_words():
    drawn = scattered_discs()
    result = measure(drawn.image, kind="particles", pixel_size_nm=2.0)
    text = drawing.measurement(drawn.image, result)
    assert result.sentence() in text and text.count("<img") == 2
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', text))
    refused = measure(Image.new("L", (64, 64)), kind="particles")
    assert drawing.measurement(Image.new("L", (64, 64)), refused).count("<img") == 1
