"""How many synthetic micrographs per second this machine makes.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py --count 600

Rows are complete, as `mvaema synthetic` writes them: image, PNG, pixel hash and ten answers. Prints
images per second of all workers together and processor time per image, under the machine's present
load; then the least time per image of each category, and the rate on an idle machine that follows.
"""

import argparse
import os
import resource
import time

from mvaema.synthetic.dataset import SyntheticSplit, rows
from mvaema.synthetic.scenes import CATEGORIES


def best_times(split: SyntheticSplit, count: int = 20, repeats: int = 4) -> float:
    """Mean over rows of the least processor time (s) of each, which other programs that share the
    caches disturb least."""
    split.rows(0, 4)
    best = [float("inf")] * count
    for _ in range(repeats):
        for index in range(count):
            start = time.process_time()
            split.row(index)
            best[index] = min(best[index], time.process_time() - start)
    return sum(best) / count


def main():
    parser = argparse.ArgumentParser(description="Speed of the synthetic microscope.")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, size {args.size}, seed 1")

    start = time.perf_counter()
    made = sum(1 for _ in rows(SyntheticSplit(1, size=args.size), args.count, workers=args.workers))
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{args.workers} workers: {made / wall:.0f} images per second ({wall:.1f} s wall, ", end=""
    )
    print(f"{1000 * cpu / made:.1f} ms of processor time per image, start of workers included)")

    total = 0.0
    for category in CATEGORIES:
        best = best_times(SyntheticSplit(1, size=args.size, categories=(category,)))
        total += best
        print(f"  {category:30s}{best * 1000:6.1f} ms")
    rate = args.workers * len(CATEGORIES) / total
    print(f"undisturbed, {args.workers} cores make {rate:.0f} images per second")


if __name__ == "__main__":
    main()
