"""Peak memory of training steps, in a process that does nothing else.

    python -m benchmarks.speed.memory ours '{"preset": "paper", "batch": 8}'

Prints JSON, in bytes: `training`, all that training takes (weights, gradients, Adam's moments,
activations), which is the peak less what the process had after its imports; `step`, the peak less
what it had before the first step. On a GPU both are of its memory.
"""

import json
import subprocess
import sys

import torch

from benchmarks.speed import measure
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload, lengths

STEPS = 2  # Adam's moments are there from the first on


def peak(who: str, workload: Workload) -> dict[str, int]:
    """Peak memory of training, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.speed.memory", who, workload.to_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"measuring the memory of {who} failed, exit status {done.returncode}:\n"
            f"{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout)


def main(who: str, workload: Workload) -> dict[str, int]:
    on_gpu = workload.device == "cuda"
    lengths()  # reads the answers
    imported = 0 if on_gpu else measure.resident()
    _, step = training_step(who, workload)
    before = torch.cuda.memory_allocated() if on_gpu else measure.resident()
    for _ in range(STEPS):
        step()
    most = torch.cuda.max_memory_allocated() if on_gpu else measure.peak_resident()
    return {"training": most - imported, "step": most - before}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Workload.from_json(sys.argv[2]))))
