"""Tests run on one thread each, however they are started (`tests/conftest.py`)."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

ASK = """
import json, cv2, numba, numpy, scipy.linalg, skimage, sklearn, torch
from threadpoolctl import threadpool_info

def test_ask():
    pools = {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}
    print("POOLS", json.dumps({**pools, "torch": torch.get_num_threads()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "expected"), [(None, 1), ("2", 2)])
def test_every_pool_has_the_threads_it_should_have(tmp_path, asked, expected):
    """Without a word one thread, and what the environment says where it says something."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_ask.py").write_text(ASK)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    if asked:
        names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        environment |= {f"{name}_NUM_THREADS": asked for name in names}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_ask.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if "POOLS" in line]
    pools = json.loads(line.partition("POOLS ")[2])
    assert {"openmp", "openblas", "torch"} <= pools.keys()
    assert set(pools.values()) == {expected}, pools
