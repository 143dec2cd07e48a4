"""What the command's options say to every case."""

from dataclasses import dataclass

from benchmarks.speed.measure import Machine
from benchmarks.speed.workload import Workload

# Micrographs per step or call: the recipe's 48 where that is a matter of seconds.
BATCHES = {"cpu": {"paper": 48, "small": 4, "base": 2}, "cuda": {}}


@dataclass
class Settings:
    """The options, for one preset, and the rates measured before the first case."""

    preset: str
    device: str
    dtype: str
    compile: bool
    repeats: int
    clock: str
    batch: int | None
    machine: Machine
    overrides: dict

    def workload(self, **fields) -> Workload:
        batch = self.batch or BATCHES[self.device].get(self.preset, 48)
        common = {
            "preset": self.preset,
            "batch": batch,
            "device": self.device,
            "dtype": self.dtype,
            "compile": self.compile,
            "overrides": self.overrides,
        }
        return Workload(**common | fields)
