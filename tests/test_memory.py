"""Freed memory is kept: the system is asked for pages once, not for every tensor."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from mvaema.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(12):  # the heap grows until it holds what is asked for
    torch.empty(2**23).fill_(1)  # 32 MiB: the most that glibc gets used to
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.empty(2**23).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.slow
def test_pages_are_asked_for_once():
    faults = {}
    for how in ("usual", "kept"):
        command = [sys.executable, "-c", PROGRAM, how]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    assert faults["usual"] > 1000 and faults["kept"] < faults["usual"] / 10
