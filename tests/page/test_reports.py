"""A report in three forms says the same, and names no file and no host."""

import json
import re
import shutil
import subprocess

import pytest
from support.drawn_structures import scattered_discs

from mvaema.measuring.measure import measure
from mvaema.micrographs.microscope import Micrograph

pytest.importorskip("reportlab", reason="the page needs the extra `demo`")

from mvaema.page import reports
from mvaema.page.subject import Subject
from mvaema.page.trust import NO_SUPPORT

QUESTIONS = {"basics": "What is it?", "surface": "How rough is it?"}


@pytest.fixture
def subject() -> Subject:
    image = scattered_discs().image
    answers = {
        "What is it?": ("Particles of 9 µm & <b>more</b>.", "greedy"),
        "How rough is it?": ("", "greedy"),
        "A question of my own, 5 ≤ µ?": ("Yes.", "consensus"),
    }
    one = Subject(Micrograph(image, 2.0, {"technique": "SEM"}, None), answers=answers)
    one.ranked = {"Particles": 0.9, "Porous_Sponge": 0.1}
    one.measurement = measure(image, kind="particles", pixel_size_nm=2.0)
    return one


def test_json_has_all_and_sizes_that_are_contradicted_are_marked(subject):
    found = json.loads(reports.as_json(subject, QUESTIONS, "lab/student"))
    basics, surface, own = found["answers"]
    assert basics["question_id"] == "basics" and own["question_id"] is None
    assert "(contradicts the measurement)" in basics["answer"]
    assert basics["answer"].endswith(subject.measurement.sentence())
    assert (surface["answer"], own["answer"]) == ("", "Yes.")
    assert own["decoding"] == "consensus"
    assert found["pixel_size_nm"] == 2.0 and found["pixel_size_source"] == "recorded"
    assert found["measurement"]["count"] == subject.measurement.count
    assert found["categories"] == subject.ranked and found["instrument"] == {"technique": "SEM"}
    assert found["student"] == "lab/student" and found["note"] == NO_SUPPORT


def test_a_measured_region_does_not_stand_beside_answers_about_all(subject):
    subject.measured_region = (0, 0, 50, 50)
    (basics, *_) = reports.answers_of(subject, QUESTIONS)
    assert "Measured" not in basics["answer"]


def test_html_stands_alone(subject):
    page = reports.as_html(subject, QUESTIONS, "lab/student").decode()
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page
    assert "Particles of 9 µm &amp; &lt;b&gt;more" in page and NO_SUPPORT.split("'")[0] in page
    assert subject.image_id in page and "greedy" in page


def test_pdf_has_the_words_and_two_pictures_more(subject):
    plain = reports.as_pdf(Subject(subject.micrograph), QUESTIONS, "lab/student")
    full = reports.as_pdf(subject, QUESTIONS, "lab/student")
    count = {
        name: content.count(b"/Subtype /Image")
        for name, content in (("plain", plain), ("full", full))
    }
    assert count == {"plain": 1, "full": 4}  # overlay, histogram and its transparency


@pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed")
def test_pdf_can_be_searched(subject, tmp_path):
    (tmp_path / "a.pdf").write_bytes(reports.as_pdf(subject, QUESTIONS, "lab/student"))
    run = subprocess.run(
        ["pdftotext", str(tmp_path / "a.pdf"), "-"], capture_output=True, text=True, check=True
    )
    assert "5 ≤ µ?" in run.stdout and "<b>more</b>" in run.stdout
