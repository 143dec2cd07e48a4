"""mvaema demo, made small: every stage says what it does, and the report is there."""

import json
import os
import re
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
    lines = run.stdout.splitlines()
    places = []
    for number, word in enumerate(("Rendering", "Training", "Scoring", "Asking"), start=1):
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{number}/4 {word}")]
        (end,) = [i for i, line in enumerate(lines) if re.match(rf" +{number}/4 took \d+ s$", line)]
        places += [place, end]
    assert places == sorted(places)
    assert "truth: " in run.stdout
    results = json.loads((tmp_path / "demo" / "report" / "results.json").read_text())
    said = [f"{part['question']} " for part in results["verdict"]]
    assert [s for s in said if any(line.startswith(s) for line in lines[places[-1] :])] == said
    assert run.stdout.splitlines()[-1] == "Open demo/report/index.html"
    assert (tmp_path / "demo" / "report" / "index.html").is_file()
