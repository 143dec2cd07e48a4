"""One of several processes that train together, started by torchrun (see `scaling.py`).

    torchrun --standalone --nproc_per_node 2 -m benchmarks.speed.ranks ours '{"losses": "all"}'

The first prints the seconds of each step, as JSON.
"""

import json
import sys

import torch.distributed as dist

from benchmarks.speed.measure import seconds
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload

STEPS = 3


def main(who: str, workload: Workload) -> None:
    dist.init_process_group("gloo")
    _, step = training_step(who, workload, seed=dist.get_rank())
    step()
    times = []
    for _ in range(STEPS):
        dist.barrier()
        times.append(seconds(step))
    if dist.get_rank() == 0:
        print(json.dumps(times))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Workload.from_json(sys.argv[2]))
