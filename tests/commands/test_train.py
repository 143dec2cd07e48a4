"""`mvaema train` and train.py: exit status and messages."""

import subprocess
import sys

import pytest
from support import ROOT

from mvaema.commands.train import main


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    for options, message in (
        (f"--dataset {tmp_path}/no --output_dir {tmp_path}/run", "error: cannot read split"),
        (f"--output_dir {tmp_path}/run --resume", "holds no run to resume"),
        (f"--output_dir {tmp_path}/run --dataset d --public", "error: public is for an upload"),
    ):
        assert main(options.split()) == 1
        said = capsys.readouterr().err
        assert message in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path):
    line = [sys.executable, str(ROOT / "train.py"), "--output_dir", str(tmp_path), "--resume"]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("error: "), run.stderr
    assert "holds no run to resume" in run.stderr
