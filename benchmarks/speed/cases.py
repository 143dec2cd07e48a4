"""The cases of the benchmark that compare models in one process; each yields `Comparison`s."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from torch import nn

from benchmarks.speed import inference, measure, memory
from benchmarks.speed.report import Comparison
from benchmarks.speed.training import training_step
from benchmarks.speed.workload import Workload

# Micrographs per step or call: the recipe's 48 where that is a matter of seconds.
BATCHES = {"cpu": {"paper": 48, "small": 4, "base": 2}, "cuda": {}}


@dataclass
class Settings:
    """What the command's options say, for one preset."""

    preset: str
    device: str
    dtype: str
    compile: bool
    repeats: int
    batch: int | None
    machine: measure.Machine
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


def compare(
    settings: Settings,
    case: str,
    unit: str,
    amount: int,
    build: Callable[[str], tuple[nn.Module, Callable]],
    peers: dict[str, float | None],
) -> Iterator[Comparison]:
    """Rates of what `build` makes for "ours" and for each peer, run in turns.

    Args:
        amount: how many of `unit` a call does.
        build: who -> (model, call).
        peers: who -> the target of ours over theirs, if any.
    """
    built = {who: build(who) for who in ("ours", *peers)}
    calls = {who: call for who, (_, call) in built.items()}
    times = measure.alternate(calls, settings.repeats)
    about = {}
    for who, (model, call) in built.items():
        work = measure.Work.count(call)
        about[who] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": times[who],
            "floor": work.floor(settings.machine, min(times[who])),
            "top_operators": measure.top_operators(call),
        }
    rates = {who: amount / median(seconds) for who, seconds in times.items()}
    for who, target in peers.items():
        yield Comparison(
            case,
            settings.preset,
            unit,
            rates["ours"],
            who,
            rates[who],
            measure.ratio(times[who], times["ours"]),
            target,
            details={"ours": about["ours"], "peer": about[who]},
        )


def compare_memory(
    settings: Settings, case: str, workload: Workload, peers: dict[str, float | None]
) -> Iterator[Comparison]:
    """Peak memory of training in processes of their own; `details` has that of the step alone."""
    turns = [
        {who: memory.peak(who, workload) for who in ("ours", *peers)}
        for _ in range(min(settings.repeats, 3))
    ]
    for who, target in peers.items():
        ours, theirs = ([turn[name]["training"] for turn in turns] for name in ("ours", who))
        yield Comparison(
            case,
            settings.preset,
            "MiB",
            median(ours) / 2**20,
            who,
            median(theirs) / 2**20,
            measure.ratio(ours, theirs),
            target,
            at_most=True,
            details={"bytes": turns},
        )


def train_lm(settings: Settings) -> Iterator[Comparison]:
    """LM only, as BLIP's VQA trains: one question per micrograph, and the recipe's four."""
    for questions in (1, 4):
        workload = settings.workload(questions=questions)
        # With one question, BLIP's public call encodes each image once too.
        peers = {"BLIP": 2.0} if questions == 1 else {"BLIP": 2.0, "BLIP, parts": None}
        yield from compare(
            settings,
            f"train LM, {questions} question{'s' * (questions > 1)}",
            "micrographs/s",
            workload.batch,
            lambda who, workload=workload: training_step(who, workload),
            peers,
        )
        memory_peers = dict.fromkeys(peers, 0.7 if questions == 4 else None)
        memory_peers = {
            who: target if who == "BLIP" else None for who, target in memory_peers.items()
        }
        yield from compare_memory(settings, "  memory", workload, memory_peers)


def train_all(settings: Settings) -> Iterator[Comparison]:
    """ITC, ITM and LM, against a BLIP assembled to do the same."""
    workload = settings.workload(losses="all")
    yield from compare(
        settings,
        "train ITC + ITM + LM",
        "micrographs/s",
        workload.batch,
        lambda who: training_step(who, workload),
        {"BLIP, parts": 2.5},
    )
    yield from compare_memory(settings, "  memory", workload, {"BLIP, parts": 0.7})


def answer(settings: Settings) -> Iterator[Comparison]:
    """Ten questions about each micrograph, images to text."""
    workload = settings.workload(questions=10)
    workload.batch = max(1, workload.batch // 4)
    yield from compare(
        settings,
        "answer 10 questions each",
        "answers/s",
        workload.batch * workload.questions,
        lambda who: inference.answering(who, workload),
        {"BLIP": 4.0, "BLIP, parts": None},
    )


def classify(settings: Settings) -> Iterator[Comparison]:
    """Ten categories, by ITC and by ITM, images to names."""
    workload = settings.workload()
    for by in ("itc", "itm"):
        yield from compare(
            settings,
            f"classify by {by.upper()}",
            "micrographs/s",
            workload.batch,
            lambda who, by=by: inference.classifying(who, workload, by),
            {"BLIP": None} if by == "itc" else {"BLIP": None, "BLIP, parts": None},
        )


CASES = {
    "train-lm": train_lm,
    "train-all": train_all,
    "answer": answer,
    "classify": classify,
}
