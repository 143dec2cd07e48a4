"""How many synthetic micrographs per second this machine makes.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py --count 600

Rows are complete: image, PNG, pixel hash and ten answers, as `python -m mvaema.synthetic` makes
them. Reported: images per second with all workers together, processor time per image, what that
comes to when no other program takes the cores, and the mean for each category in this process.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mvaema.synthetic import CATEGORIES, rows


def main():
    parser = argparse.ArgumentParser(description="Speed of the synthetic microscope.")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, size {args.size}, seed 1")

    start = time.perf_counter()
    made = sum(1 for _ in rows(args.count, 1, size=args.size, workers=args.workers))
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{args.workers} workers: {made / wall:.0f} images per second ({wall:.1f} s wall, ", end=""
    )
    print(f"{1000 * cpu / made:.1f} ms of processor time per image, start of workers included)")
    print(f"with {args.workers} cores to itself: {args.workers * made / cpu:.0f} images per second")

    for category in CATEGORIES:
        sum(1 for _ in rows(2, 2, size=args.size, categories=(category,), workers=0))
        start = time.process_time()
        sum(1 for _ in rows(40, 1, size=args.size, categories=(category,), workers=0))
        print(f"  {category:30s}{(time.process_time() - start) / 40 * 1000:6.1f} ms")


if __name__ == "__main__":
    main()
