"""What the light parts of the training leave alone when they are imported."""

import subprocess
import sys

import pytest
from support import ROOT


@pytest.mark.slow
def test_looking_at_a_run_or_its_rows_imports_neither_peft_nor_microscopes():
    code = (
        "import sys, mvaema.training.run_folder, mvaema.training.split\n"
        "print([n for n in ('peft', 'mvaema.micrographs.microscope') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stderr
