"""mvaema ask, as a lab runs it: in a process of its own, on an instrument's file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.microscope_files import write_olympus
from support.tiny_student import save_tiny_student

from mvaema.commands.ask import main
from mvaema.students.loading import load_student


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A student, a micrograph with a pixel size of 2.5 nm, one without, and a torn file."""
    lab = tmp_path_factory.mktemp("lab")
    save_tiny_student(lab / "student")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
    write_olympus(lab / "wafer.tif", pixels, 2.5e-9, 40_000)
    Image.fromarray(pixels).save(lab / "plain.png")
    (lab / "torn.png").write_bytes((lab / "plain.png").read_bytes()[:100])
    return lab


def ask(lab: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mvaema", "ask", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_all_questions_about_micrographs_of_which_one_is_torn(lab):
    run = ask(lab, "wafer.tif", "torn.png", "plain.png", "--model", "student", "--json")
    assert run.returncode == 1
    (error,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert "torn.png" in error and "Traceback" not in run.stderr
    wafer, plain = map(json.loads, run.stdout.splitlines())
    assert (wafer["micrograph"], plain["micrograph"]) == ("wafer.tif", "plain.png")
    assert wafer["pixel_size_nm"] == pytest.approx(2.5) and plain["pixel_size_nm"] is None
    # The instrument's pixel size is in the prompt.
    model = load_student(lab / "student").eval()
    image = Image.open(lab / "plain.png")
    for found, size in ((wafer, wafer["pixel_size_nm"]), (plain, None)):
        answers = {a["question_id"]: a["answer"] for a in found["answers"]}
        assert answers == model.answer(image, pixel_size_nm=size)
        assert {a["question_id"]: a["question"] for a in found["answers"]} == model.config.questions
    assert [a["answer"] for a in wafer["answers"]] != [a["answer"] for a in plain["answers"]]


def test_own_questions_are_answered_readably(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    questions = ["What is it?", "How large are the grains?"]
    typed = [word for question in questions for word in ("-q", question)]
    assert main(["wafer.tif", "--model", "student", "--decoding", "greedy", *typed]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "wafer.tif (2.5 nm per pixel)"
    model = load_student(lab / "student").eval()
    image = Image.open("plain.png")
    answers = model.answer(image, questions, pixel_size_nm=2.5, decoding="greedy")
    expected = [text for pair in zip(questions, answers, strict=True) for text in pair]
    assert [line.strip() for line in lines] == expected


@pytest.mark.slow
def test_how_answers_are_decoded(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    model = load_student(lab / "student").eval()
    found = {}
    for decoding in ("greedy", "beam"):
        asked = ["plain.png", "--model", "student", "-q", "What is it?", "--decoding", decoding]
        assert main([*asked, "--json"]) == 0
        (answer,) = json.loads(capsys.readouterr().out)["answers"]
        expected = model.answer(Image.open("plain.png"), "What is it?", decoding=decoding)
        found[decoding] = answer["answer"]
        assert found[decoding] == expected
    assert found["greedy"] != found["beam"]
    with pytest.raises(SystemExit):
        main(["plain.png", "--model", "student", "--decoding", "best"])
    assert "invalid choice: 'best'" in capsys.readouterr().err


@pytest.mark.slow
def test_measured_sizes_stand_behind_answers_about_sizes(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    pixels = np.full((240, 240), 60, dtype=np.uint8)
    rows, columns = np.mgrid[:240, :240]
    for row in range(24, 240, 48):
        for column in range(24, 240, 48):
            pixels[(rows - row) ** 2 + (columns - column) ** 2 < 15**2] = 190
    write_olympus(lab / "discs.tif", pixels, 2e-9, 40_000)
    asked = ["-q", "How large are they?", "-q", "Why?", "--measure", "--json"]
    known = {}
    for typed in ([], ["--pixel_size_nm", "4"]):
        assert main(["discs.tif", "--model", "student", *asked, *typed]) == 0
        found = json.loads(capsys.readouterr().out)
        measured = found["measurement"]
        known[round(found["pixel_size_nm"], 6)] = measured["scale_source"]
        size, why = (answer["answer"] for answer in found["answers"])
        assert size.endswith(measured["sentence"]) and measured["sentence"] not in why
        assert "objects" not in measured
    assert known == {2.0: "recorded", 4.0: "typed"}
    with pytest.raises(SystemExit):
        main(["discs.tif", "--model", "student", "--pixel_size_nm", "-1"])
    assert "expected a positive length in nm, got '-1'" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_model_the_student_of_this_repository_is_asked(lab, capsys):
    question = "How large are the grains?"
    picture = str(lab / "plain.png")
    assert main([picture, "-q", question]) == 0
    unnamed = capsys.readouterr().out
    assert main([picture, "-q", question, "--model", str(ROOT)]) == 0
    assert unnamed == capsys.readouterr().out and question in unnamed


def test_a_model_that_is_not_there(lab, capsys):
    assert main([str(lab / "plain.png"), "--model", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: the model 'nowhere' cannot be")
