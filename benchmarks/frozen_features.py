"""python -m benchmarks.frozen_features --dataset data/micrographs --vision eyes/lite0

What it saves to keep the features of a frozen vision model: training steps that compute the
features of their views, and the same steps once these are on disk, in turns in one run. Prints the
median of the seconds of a step, and the ratio with its quartiles. On a machine that others use:
OMP_NUM_THREADS=1 and --clock cpu.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.speed.measure import CLOCKS, ratio
from mvaema.students.freezing import train_vision
from mvaema.training.batches import Batch, BatchLoader
from mvaema.training.examples import Draws, ExampleDrawer
from mvaema.training.features import FeatureStore, FrozenVision
from mvaema.training.recipe import Recipe
from mvaema.training.run import start_student
from mvaema.training.split import load_rows


def main() -> None:
    args = _parser().parse_args()
    recipe = Recipe(
        dataset=args.dataset,
        output_dir="",
        vision=args.vision,
        preset="lite",
        batch_size=args.batch_size,
        workers=0,
        seed=args.seed,
    )
    rows = load_rows(recipe)
    torch.manual_seed(args.seed)
    student = start_student(recipe, rows)
    train_vision(student, "none")
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad])
    seconds: dict[str, list[float]] = {"computed": [], "kept": []}
    now = CLOCKS[args.clock]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), student, limit_gb=100)
        drawer = ExampleDrawer(student.config.category_question, Draws.of(recipe, views=1), store)
        vision = FrozenVision(student, store)
        loader = BatchLoader(rows.train, drawer, student.processor, recipe, vision=vision)
        student.train()
        for step in range(min(args.steps, len(loader))):
            # The same batch twice: its views are new the first time.
            for name in seconds:
                started = now()
                _train_on(student, optimizer, next(loader.epoch(0, step)))
                seconds[name].append(now() - started)
    seconds = {name: times[1:] for name, times in seconds.items()}
    saved = ratio(seconds["computed"], seconds["kept"])
    result = {
        "seconds_per_step": {name: statistics.median(times) for name, times in seconds.items()},
        "speed_up": [round(value, 2) for value in (saved.low, saved.median, saved.high)],
        "vision": student.config.vision_config.model_type,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


def _train_on(student: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    student(**batch.inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", required=True, help="micrographs with answers")
    add("--vision", required=True, help="folder or Hub id of a vision model")
    add("--batch_size", type=int, default=24, help="micrographs in a step (24)")
    add("--steps", type=int, default=8, help="steps of each kind (8)")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time (wall)")
    add("--seed", type=int, default=0, help="of the order and of all draws (0)")
    return parser


if __name__ == "__main__":
    main()
