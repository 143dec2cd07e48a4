"""How cost grows: with image size, answer length, batch, width, and over processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import median

from benchmarks.speed import inference, measure
from benchmarks.speed.report import Comparison
from benchmarks.speed.settings import Settings
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload

TURNS = 3
ANSWER_TOKENS = (16, 32, 64, 128)
# Times the preset's, and the workload's. As many heads, which are wider.
IMAGE_SIZES, WIDTHS, BATCHES = (1, 2, 3), (1, 2, 4), (1, 0.5, 0.25)
PROCESSES = (1, 2)


def scaling(settings: Settings) -> Iterator[Comparison]:
    """One quantity at a time, from a training step with all losses and a third of the batch."""
    base = settings.workload(losses="all")
    base.batch = max(2, base.batch // 3)
    config = base.config()
    lengths = [n for n in ANSWER_TOKENS if n < config.max_position_embeddings]
    for factor in IMAGE_SIZES:
        size = factor * config.image_size
        yield _trained(settings, f"train, images of {size}", base, image_size=size)
    for length in lengths:
        yield _trained(settings, f"train, answers of {length}", base, answer_tokens=length)
    for part in BATCHES:
        batch = max(2, int(part * settings.workload().batch))
        yield _trained(settings, f"train, batch of {batch}", base, batch=batch)
    for factor in WIDTHS:
        yield _trained(
            settings,
            f"train, width {factor * config.hidden_size}",
            base,
            hidden_size=factor * config.hidden_size,
            intermediate_size=factor * config.intermediate_size,
        )
    for length in lengths:
        workload = _changed(base, answer_tokens=length, questions=10)
        workload.batch = max(1, base.batch // 4)
        yield _compared(
            settings,
            f"answer, {length} tokens each",
            "answers/s",
            workload.batch * workload.questions,
            lambda who, workload=workload: inference.answering(who, workload),
            "BLIP",
        )
    if settings.device == "cpu":
        yield from _processes(settings)


def _changed(base: Workload, **changes) -> Workload:
    fields = {name: changes.pop(name) for name in list(changes) if hasattr(base, name)}
    overrides = base.overrides | changes
    return Workload(**vars(base) | fields | {"overrides": overrides})


def _trained(settings: Settings, case: str, base: Workload, **changes) -> Comparison:
    workload = _changed(base, **changes)
    return _compared(
        settings,
        case,
        "micrographs/s",
        workload.batch,
        lambda who: training_step(who, workload),
        "BLIP, parts",
    )


def _compared(
    settings: Settings, case: str, unit: str, amount: int, build: Callable, peer: str
) -> Comparison:
    calls = {who: build(who)[1] for who in ("ours", peer)}
    times = measure.alternate(calls, min(settings.repeats, TURNS), settings.clock)
    return _comparison(settings, case, unit, amount, times, peer)


def _comparison(
    settings: Settings, case: str, unit: str, amount: int, times: dict[str, list[float]], peer: str
) -> Comparison:
    return Comparison(
        case,
        settings.preset,
        unit,
        amount / median(times["ours"]),
        peer,
        amount / median(times[peer]),
        measure.ratio(times[peer], times["ours"]),
        details={"seconds": times},
    )


def _processes(settings: Settings) -> Iterator[Comparison]:
    """The same global batch on one process and on two, one thread each, gloo between them.

    The assembled BLIP gathers no negatives from the other process; ours does.
    """
    workload = settings.workload(losses="all")
    for count in PROCESSES:
        times = {who: run_ranks(who, workload, count) for who in ("ours", "BLIP, parts")}
        yield _comparison(
            settings,
            f"train, {count} process{'es' * (count > 1)}",
            "micrographs/s",
            workload.batch // count * count,
            times,
            "BLIP, parts",
        )


def run_ranks(who: str, workload: Workload, processes: int) -> list[float]:
    """Seconds of a few training steps on several processes, which share out the batch."""
    workload = _changed(workload, batch=workload.batch // processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", "benchmarks.speed.ranks"]
    done = subprocess.run(
        [*command, who, workload.to_json()],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"training on {processes} processes failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)
