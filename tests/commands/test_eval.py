"""mvaema eval and eval.py: what is printed, and errors without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.tiny_student import MAX_NEW_TOKENS, save_tiny_student, write_splits

from mvaema.commands.eval import main
from mvaema.evaluation.verdict import verdict_lines


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    lab = tmp_path_factory.mktemp("lab")
    save_tiny_student(lab / "student")
    write_splits(lab / "data")
    return lab


def flags(lab: Path) -> list[str]:
    words = ["--model", str(lab / "student"), "--dataset", str(lab / "data"), "--no_synonyms"]
    words += ["--output_dir", str(lab / "report"), "--batch_size", "2"]
    return [*words, "--max_new_tokens", str(MAX_NEW_TOKENS)]


@pytest.mark.slow
def test_tables_and_the_way_to_the_report_are_printed(lab, capsys):
    assert main(flags(lab)) == 0
    printed = capsys.readouterr().out
    assert "| student, blank image |" in printed and "| chance |" in printed
    verdict = json.loads((lab / "report" / "results.json").read_text())["verdict"]
    last = printed[printed.index("Does it see?") :].splitlines()
    assert last == [*verdict_lines(verdict), f"report: {lab / 'report' / 'index.html'}"]
    assert main([*flags(lab), "--max_new_tokens", "3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "error: " in captured.err
    assert "differs in max_new_tokens; choose another --output_dir" in captured.err


@pytest.mark.slow
def test_how_answers_are_decoded_is_part_of_an_evaluation(lab, capsys):
    words = [*flags(lab), "--output_dir", str(lab / "drawn"), "--decoding", "sample"]
    assert main(words) == 0
    assert json.loads((lab / "drawn" / "evaluation.json").read_text())["decoding"] == "sample"
    assert main([*words, "--decoding", "greedy"]) == 1
    assert "differs in decoding; choose another --output_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--decoding", "best"])


def test_abbreviated_flags_are_refused(lab, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*flags(lab), "--comp", "other"])
    assert stop.value.code == 2 and "--comp" in capsys.readouterr().err


def test_a_model_that_is_nowhere_is_named(lab, capsys):
    assert main([*flags(lab), "--model", "runs/nope"]) == 1
    assert capsys.readouterr().err.startswith("error: runs/nope is no folder here")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["eval.py"], ["-m", "mvaema", "eval"]])
def test_both_ways_to_run_it_end_in_the_same_error(lab, command):
    words = ["--model", "student", "--dataset", "nowhere", "--output_dir", "new", "--no_synonyms"]
    command = [sys.executable, *command]
    if command[1] == "eval.py":
        command[1] = str(ROOT / "eval.py")
    run = subprocess.run(
        [*command, *words],
        cwd=lab,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith("error: cannot read")
    assert "Traceback" not in run.stderr and not (lab / "new").exists()
