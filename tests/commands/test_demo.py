"""mvaema demo, made small: every stage says what it does, and the report is there."""

import os
import subprocess
import sys

import pytest
from support import ROOT


@pytest.mark.slow
def test_the_demo_runs_every_stage(tmp_path):
    command = [sys.executable, "-m", "mvaema", "demo", "--output_dir", "demo"]
    run = subprocess.run(
        [*command, "--count", "60", "--epochs", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    stages = [line for line in run.stdout.splitlines() if line.startswith("[")]
    for number, word in enumerate(("Rendering", "Training", "Scoring", "Asking"), start=1):
        assert any(f"{number}/4 {word}" in line for line in stages)
    assert "truth: " in run.stdout and "chance: " in run.stdout
    assert run.stdout.splitlines()[-1] == "Open demo/report/index.html"
    assert (tmp_path / "demo" / "report" / "index.html").is_file()
