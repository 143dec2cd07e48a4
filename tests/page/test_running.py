"""The process: where it listens, and what it tells browsers."""

import re
import subprocess
import sys

import pytest
from support import ROOT

from mvaema.page.running import POLICY, _parser, main


def test_it_listens_to_this_machine_only_unless_it_is_a_space(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert _parser().parse_args([]).host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "lab/student")
    assert _parser().parse_args([]).host == "0.0.0.0"
    assert _parser().parse_args(["--host", "10.0.0.1"]).host == "10.0.0.1"


@pytest.mark.parametrize("arguments", [[], ["--model", "nowhere"]])
def test_without_a_student_it_says_so_and_ends(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(tmp_path, arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_browsers_may_load_nothing_from_elsewhere():
    for rule in POLICY.split("; "):
        name, *sources = rule.split()
        assert re.fullmatch(r"[a-z-]+", name)
        allowed = {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
        assert set(sources) <= allowed


@pytest.mark.slow
def test_neither_gradio_nor_onnxruntime_is_loaded_with_it():
    code = "import sys, mvaema.page.running; print({'gradio', 'onnxruntime'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
