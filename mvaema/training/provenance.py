"""What tells one run from another: the data it trains on, and the versions of what runs it."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from datasets import Dataset

PACKAGES = ("accelerate", "datasets", "numpy", "peft", "tokenizers", "torch", "transformers")


def dataset_fingerprint(dataset: Dataset) -> str:
    """16 hex digits of the image ids (hashes of the pixels), captions and answers, in order."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(
        [n for n in ("image_id", "qa", "caption") if n in dataset.column_names]
    ):
        digest.update(repr(row).encode())
    return digest.hexdigest()[:16]


def provenance() -> dict:
    """Git commit of this code, and versions of Python and of the packages it stands on."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "git_commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
