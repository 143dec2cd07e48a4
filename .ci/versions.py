"""Stored numbers on the oldest and the newest transformers that pyproject.toml allows.

    .venv/bin/python .ci/versions.py

A version that is installed has been tested already. Others are installed into a folder of their
own, which comes before the environment's.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
TESTS = ["tests/model/test_stored_logits.py", "tests/model/test_inputs.py"]


def oldest() -> str:
    """The lower bound in pyproject.toml, with the last of its releases."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (d for d in project["dependencies"] if d.startswith("transformers>="))
    return f"transformers=={bound.removeprefix('transformers>=')}.*"


def resolved(requirement: str) -> str:
    """The version that pip takes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*PIP, "download", "--quiet", "--no-deps", "-d", folder, requirement], check=True
        )
        (wheel,) = Path(folder).iterdir()
        return wheel.name.split("-")[1]


def test_on(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        install = [*PIP, "install", "--quiet", "--target", folder, f"transformers=={version}"]
        subprocess.run(install, check=True)
        environment = os.environ | {"PYTHONPATH": folder}
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT, env=environment, check=True
        )


if __name__ == "__main__":
    versions = {resolved(oldest()), resolved("transformers")}
    print(f"transformers {', '.join(sorted(versions))}; {transformers.__version__} is installed.")
    for version in sorted(versions - {transformers.__version__}):
        print(f"On transformers {version}:", flush=True)
        test_on(version)
