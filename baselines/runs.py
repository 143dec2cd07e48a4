"""Runs of rows in one folder: done once, resumed row by row, shared by several processes.

    settings.json                  what all rows share, and the fingerprint of the data
    ROW/fold-K/seed-S/result.json  figures, cost, versions, machine; a run that has it is done
    ROW/fold-K/seed-S/failure.txt  why it failed, if it did; it is tried again

What is special about it:
- a result is written whole when a run is finished; a run that was killed begins anew;
- a row that fails does not stop the others;
- a run is locked while it is trained, so two commands on one folder share its rows.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from baselines.data import Data
from baselines.outcome import Outcome
from baselines.rows import TableRow
from baselines.settings import Run, Settings
from baselines.training import RowFailed
from mvaema.files import write_json, write_text
from mvaema.micrographs.dataset import DatasetError
from mvaema.micrographs.folds import LeakError
from mvaema.training.provenance import provenance

RESULT, FAILURE, SETTINGS = "result.json", "failure.txt", "settings.json"
CLEAR = Path("/proc/self/clear_refs")  # "5" forgets the process's peak of memory


class Busy(Exception):
    """Another process trains this run."""


@dataclass
class Report:
    """What became of the runs, "resnet-18, fold 0, seed 1" each.

    Attributes:
        done, skipped: finished now, and before.
        busy: left to another process.
        failed: and why, in a line.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_rows(
    rows: Iterable[TableRow],
    settings: Settings,
    output_dir: Path,
    folds: Iterable[int],
    seeds: Iterable[int],
) -> Report:
    """Train and score each row on each fold with each seed.

    Args:
        folds: their numbers.

    Raises:
        DatasetError, LeakError: the dataset cannot be used.
        FileExistsError: `output_dir` holds rows under other settings, or something else.
    """
    rows, seeds, report = list(rows), list(seeds), Report()
    _claim(output_dir, settings.compared())
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    data = None
    for number in folds:
        of_fold = None
        # Seed by seed: a table of all rows stands early, and its intervals narrow.
        for seed in seeds:
            for row in rows:
                name = f"{row.name}, fold {number}, seed {seed}"
                folder = output_dir / row.name / f"fold-{number}" / f"seed-{seed}"
                if (folder / RESULT).is_file():
                    report.skipped.append(name)
                    continue
                if of_fold is None:
                    if data is None:
                        data = _load(settings, output_dir)
                    of_fold = data.fold(number)
                try:
                    with _locked(folder):
                        if (folder / RESULT).is_file():  # finished by another process meanwhile
                            report.skipped.append(name)
                            continue
                        print(f"{name} ...", flush=True)
                        _one(row, Run(settings, of_fold, seed, folder, accelerator))
                        report.done.append(name)
                except Busy:
                    report.busy.append(name)
                except (DatasetError, LeakError):
                    raise
                except Exception as error:
                    report.failed[name] = _failure(error, folder)
                    print(f"  failed: {report.failed[name]}", flush=True)
    return report


def _claim(folder: Path, settings: dict) -> None:
    """Make a folder these settings', or see that it is."""
    file = folder / SETTINGS
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        differing = {
            n: v for n, v in settings.items() if json.loads(json.dumps(v)) != earlier.get(n)
        }
        if differing:
            changes = ", ".join(
                f"{n} was {earlier.get(n)!r}, is {v!r}" for n, v in differing.items()
            )
            raise FileExistsError(
                f"{folder} holds rows under other settings ({changes}), and rows of one table must "
                "share them. Choose another --output_dir."
            )
        return
    if folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no rows (no {SETTINGS}). Choose another --output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, settings | {"dataset_fingerprint": None})


def _load(settings: Settings, folder: Path) -> Data:
    """The data of a folder; its fingerprint is noted.

    Raises:
        FileExistsError: the folder's rows were trained on other data.
    """
    data = Data(settings)
    kept = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if kept["dataset_fingerprint"] is None:
        write_json(folder / SETTINGS, kept | {"dataset_fingerprint": data.fingerprint})
    elif kept["dataset_fingerprint"] != data.fingerprint:
        raise FileExistsError(
            f"{settings.dataset} is not what the rows in {folder} were trained on: its micrographs "
            "or answers have changed. Choose another --output_dir."
        )
    return data


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise Busy from None
    with lock:
        yield


def _one(row: TableRow, run: Run) -> None:
    """A run, and its result."""
    _forget_peak(run.accelerator.device)
    start, processor = time.perf_counter(), time.process_time()
    outcome = row.train_and_score(run)
    spent = {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_memory_mb": _peak_memory_mb(run.accelerator.device),
    }
    write_json(run.folder / RESULT, _result(row, run, outcome) | spent)
    (run.folder / FAILURE).unlink(missing_ok=True)
    shown = ", ".join(
        f"{name} {value:.3f}" for name, value in outcome.figures.items() if isinstance(value, float)
    )
    print(f"  {shown} ({spent['seconds']:.0f} s)", flush=True)


def _result(row: TableRow, run: Run, outcome: Outcome) -> dict:
    return {
        "row": row.name,
        "title": row.title,
        "table": row.table,
        "group": row.group,
        "paper": dict(row.paper),
        "note": row.note,
        "fold": run.data.number,
        "seed": run.seed,
        "figures": dict(outcome.figures),
        "parameters": outcome.parameters,
        "trainable_parameters": outcome.trainable_parameters,
        "learning_rate": row.learning_rate,
        "warmup_steps": row.warmup_steps,
        "pretrained": _shown(row.pretrained),
        "training": {name: history.facts() for name, history in outcome.training.items()},
        "details": dict(outcome.details),
        "settings": run.settings.compared(),
        "library": row.library,
        "library_version": _version(row.library),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": run.accelerator.device.type,
        "machine": machine(run.accelerator.device),
        "threads": torch.get_num_threads(),
        **provenance(),
    }


def _shown(pretrained: str | None) -> str | None:
    """A Hub id as it is; of a folder its name, for tables are passed on."""
    if pretrained is None or not Path(pretrained).exists():
        return pretrained
    return Path(pretrained).name


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _failure(error: Exception, folder: Path) -> str:
    """Keep what is known of a failure; returns it in a line."""
    write_text(folder / FAILURE, traceback.format_exc())
    if isinstance(error, RowFailed):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    hint = " Rows need the environment of `make baselines`." * isinstance(error, ImportError)
    return f"{type(error).__name__}: {first}{hint}"


def machine(device: torch.device) -> str:
    """What kind of machine it is: its accelerator, or its processor and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    kind = "" if device.type == "cpu" else f"{device.type}, "
    return f"{kind}{name}, {os.cpu_count()} cores"


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def _peak_memory_mb(device: torch.device) -> float:
    """Of the accelerator, or of this process; where it cannot be reset, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = [
            line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")
        ]
        if peaks:
            return int(peaks[0]) * 1024 / 1e6
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
