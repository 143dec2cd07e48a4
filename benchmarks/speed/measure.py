"""How things are measured: alternated times, peak memory, and the floor the machine sets.

What is special about it:
- two things are compared by running them in turns in one process, and by the ratio within each
  turn: what else the machine does falls on both;
- a floor is a count over a measured rate: FLOPs of matrix products (attention written out, so that
  a fused kernel's are counted too, the masked half of a causal one included) over the best rate of
  a large matrix product, and the bytes that matrix products and attention read and write once,
  over the bandwidth of a copy. What stays in a cache costs less than the second says, and what the
  optimizer and everything between the products read and write is not in it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# "cpu" is for a machine that others use too, with one thread: what they take is not counted.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(function: Callable[[], object], clock: str = "wall") -> float:
    now = CLOCKS[clock]
    synchronize()
    start = now()
    function()
    synchronize()
    return now() - start


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int, clock: str = "wall", warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function in each of `repeats` turns; every other turn goes backwards."""
    times = {name: [] for name in functions}
    for turn in range(-warmup, repeats):
        order = list(functions.items())
        for name, function in order if turn % 2 == 0 else reversed(order):
            elapsed = seconds(function, clock)
            if turn >= 0:
                times[name].append(elapsed)
    return times


@dataclass
class Ratio:
    """Median over turns, and the quartiles."""

    median: float
    low: float
    high: float


def ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """Of the two values of each turn."""
    values = [a / b for a, b in zip(numerators, denominators, strict=True)]
    if len(values) == 1:
        return Ratio(*values * 3)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, low, high)


# --------------------------------------------------------------------------------------------
# Memory


def _memory(field: str) -> int:
    """A field of Linux's /proc/self/status, bytes; elsewhere the peak so far stands in.

    `ru_maxrss` would not do on Linux, where it starts at the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split(f"{field}:")[1].split()[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int:
    """Bytes of the resident set now."""
    return _memory("VmRSS")


def peak_resident() -> int:
    """Largest resident set of this process so far, bytes."""
    return _memory("VmHWM")


# --------------------------------------------------------------------------------------------
# Floors


@dataclass
class Machine:
    """Rates measured here: FLOP/s of a matrix product, bytes/s of a copy."""

    matmul: float
    bandwidth: float

    @classmethod
    def measure(cls, device: str, dtype: str, clock: str = "wall") -> "Machine":
        side = 8192 if device == "cuda" else 1024
        left, right = torch.randn(2, side, side, device=device, dtype=getattr(torch, dtype))
        product = min(seconds(lambda: left @ right, clock) for _ in range(12))
        source = torch.ones(64 * side * side // 4, device=device)  # 64 MiB, or 4 GiB
        target = torch.empty_like(source)
        copy = min(seconds(lambda: target.copy_(source), clock) for _ in range(8))
        return cls(2 * side**3 / product, 2 * source.nbytes / copy)


class _ProductBytes(TorchDispatchMode):
    """Sums what matrix products, convolutions and attention read and write."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet in flop_registry or "attention" in str(packet):
            for value in tree_leaves((args, kwargs, output)):
                if isinstance(value, torch.Tensor):
                    # An expanded tensor is read as often as it is stored.
                    size = value.numel() * value.element_size()
                    self.bytes += min(size, value.untyped_storage().nbytes())
        return output


@dataclass
class Work:
    """FLOPs and bytes that something needs."""

    flops: int
    bytes: int

    @classmethod
    def count(cls, function: Callable[[], object]) -> "Work":
        counter, traffic = FlopCounterMode(display=False), _ProductBytes()
        with sdpa_kernel(SDPBackend.MATH), counter:
            function()
        with traffic:
            function()
        return cls(counter.get_total_flops(), traffic.bytes)

    def floor(self, machine: Machine, took: float) -> dict:
        """Least seconds by either count, and how many times the first `took` is."""
        compute, memory = self.flops / machine.matmul, self.bytes / machine.bandwidth
        return asdict(self) | {
            "compute_seconds": compute,
            "memory_seconds": memory,
            "times_compute_floor": took / compute,
        }


def top_operators(function: Callable[[], object], count: int = 12) -> list[dict]:
    """Where the time goes: the operators with the largest share of their own, and their calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        function()
        synchronize()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events)
    return [
        {"operator": e.key, "share": getattr(e, own) / total, "calls": e.count}
        for e in events[:count]
    ]
