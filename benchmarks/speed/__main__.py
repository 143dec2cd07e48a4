"""MVaEMa's speed and memory beside those of BLIP in transformers, in one run.

    python -m benchmarks.speed --output results.json
    python -m benchmarks.speed --preset paper --cases train-lm train-all answer --repeats 9
    python -m benchmarks.speed --device cuda --dtype bfloat16 --compile

Prints a table, and writes JSON with what is behind it: seconds of each turn, floors, operators. A
ratio is ours over the peer's, of the same turn. Threads are as torch finds them (OMP_NUM_THREADS).
What each case does is said in `cases.py`, what BLIP is given in `peers.py`. The options for a GPU
were written without one at hand: bfloat16 and --compile have run on a CPU only.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says when it starts and stops

import torch
import transformers
from datasets import disable_progress_bars

from benchmarks.speed.cases import CASES, ONCE, PAPER_MICROGRAPHS
from benchmarks.speed.measure import CLOCKS, Machine
from benchmarks.speed.report import HEADER, Comparison, number
from benchmarks.speed.settings import Settings
from benchmarks.speed.workload import micrograph_folder
from configuration_mvaema import PRESETS


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--preset", nargs="+", choices=PRESETS, default=["paper", "small"], help="shapes")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to compare (all)")
    add("--repeats", type=int, default=3, help="turns; medians and quartiles are over them (3)")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine, with one thread")
    add("--batch", type=int, help="micrographs per step (48; on a CPU 4 for small, 2 for base)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--compile", action="store_true", help="torch.compile, for both")
    add("--overrides", type=json.loads, default={}, help="fields of the configuration, as JSON")
    add("--output", type=Path, help="JSON file for everything measured")
    return result


def machine_facts(args: argparse.Namespace) -> dict:
    return {
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "lengths": "real" if micrograph_folder() else "table",
    }


def print_details(comparison: Comparison, before: Comparison | None) -> None:
    """How far from the floor, and where the time goes; ours once per case."""
    for who, about in comparison.details.items():
        if who == "paper_run_hours":
            print(
                f"    the paper's 10 folds x 50 epochs on {PAPER_MICROGRAPHS:,} micrographs would "
                f"take {about:,.1f} h"
            )
        if who not in ("ours", "peer") or "floor" not in about:
            continue
        if who == "ours" and before and before.case == comparison.case:
            continue
        floor = about["floor"]
        top = ", ".join(
            f"{o['operator'].removeprefix('aten::')} {o['share']:.0%}"
            for o in about["top_operators"][:5]
        )
        print(
            f"    {who if who == 'ours' else comparison.peer_name}: "
            f"{about['parameters'] / 1e6:.2f} M parameters, {floor['flops'] / 1e9:,.1f} GFLOP "
            f"({floor['compute_seconds']:.3g} s at the rate of matrix products), "
            f"{floor['bytes'] / 1e9:.2g} GB ({floor['memory_seconds']:.3g} s); "
            f"{floor['times_compute_floor']:.1f}x the first; {top}"
        )


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda, but torch sees no GPU.")
    machine = Machine.measure(args.device, args.dtype, args.clock)
    facts = machine_facts(args) | {"matmul_flops": machine.matmul, "bandwidth": machine.bandwidth}
    print(
        f"{facts['device']}, {facts['cores']} cores, {facts['threads']} threads, load "
        f"{facts['load']:.1f}; {args.dtype}; matrix products {number(machine.matmul / 1e9)} "
        f"GFLOP/s, copies {number(machine.bandwidth / 1e9)} GB/s; torch {facts['torch']}, "
        f"transformers {facts['transformers']}; text lengths: {facts['lengths']}; "
        f"{args.clock} clock; medians of {args.repeats} turns"
    )
    print(HEADER)
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    comparisons = []
    for preset in args.preset:
        settings = Settings(
            preset,
            args.device,
            args.dtype,
            args.compile,
            args.repeats,
            args.clock,
            args.batch,
            machine,
            args.overrides,
        )
        for name in args.cases:
            if name in ONCE and preset != args.preset[0]:
                continue
            for comparison in CASES[name](settings):
                print(comparison.line())
                print_details(comparison, comparisons[-1] if comparisons else None)
                sys.stdout.flush()
                comparisons.append(comparison)
                if args.output:
                    write(args.output, vars(args), facts, comparisons)


def write(path: Path, options: dict, facts: dict, comparisons: list[Comparison]) -> None:
    """After every line, so that an interrupted run has kept what it measured."""
    options = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
    results = {
        "options": options,
        "machine": facts,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
