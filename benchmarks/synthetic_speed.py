"""How many synthetic micrographs per second this machine makes.

    OMP_NUM_THREADS=1 python benchmarks/synthetic_speed.py --count 600

Rows are complete: image, PNG, pixel hash and ten answers, as `python -m mvaema.synthetic` makes
them. Reported: images per second with all workers together and processor time per image, as the
machine is now; then the least time per image of each category, and what that comes to when no
other program takes the cores.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mvaema.synthetic import CATEGORIES, Recipe, rows


def best_times(recipe: Recipe, count: int = 20, repeats: int = 4) -> float:
    """Mean over rows of the least processor time (s) that each took: other programs that share
    the caches count least in it."""
    recipe.rows(0, 4)
    best = [float("inf")] * count
    for _ in range(repeats):
        for index in range(count):
            start = time.process_time()
            recipe.row(index)
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
    made = sum(1 for _ in rows(args.count, 1, size=args.size, workers=args.workers))
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{args.workers} workers: {made / wall:.0f} images per second ({wall:.1f} s wall, ", end=""
    )
    print(f"{1000 * cpu / made:.1f} ms of processor time per image, start of workers included)")

    total = 0.0
    for category in CATEGORIES:
        best = best_times(Recipe(1, size=args.size, categories=(category,)))
        total += best
        print(f"  {category:30s}{best * 1000:6.1f} ms")
    rate = args.workers * len(CATEGORIES) / total
    print(f"undisturbed, {args.workers} cores make {rate:.0f} images per second")


if __name__ == "__main__":
    main()
