"""python -m mvaema.demo

The whole pipeline on simulated micrographs, in minutes on two CPU cores: render, train, score on
scenes that were not trained on, ask questions, write a report to open. `make demo` runs it.
"""

import argparse
import shutil
from pathlib import Path

from mvaema.dataset import load_micrographs
from mvaema.evaluation import EvaluationArguments, evaluate
from mvaema.synthetic.__main__ import main as render
from mvaema.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mvaema.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (demo)")
    parser.add_argument("--count", type=int, default=1200, help="micrographs to render (1200)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them (10)")
    args = parser.parse_args()
