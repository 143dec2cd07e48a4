"""The cases of the benchmark; each yields `Comparison`s."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

from benchmarks.speed import inference, measure, memory
from benchmarks.speed.cold_start import cold_start
from benchmarks.speed.data import read, wait
from benchmarks.speed.report import Comparison
from benchmarks.speed.scaling import scaling
from benchmarks.speed.settings import Settings
from benchmarks.speed.training import encoding, training_step
from benchmarks.speed.tricks import tricks
from benchmarks.speed.workload import Workload
from modeling_mvaema import MVaEMaModel
from mvaema.students.exporting import PRECISIONS

# As many micrographs at a time as `answer` takes.
ANSWER_BATCH = inspect.signature(MVaEMaModel.answer).parameters["batch_size"].default

# What the paper trained on, and how often.
PAPER_MICROGRAPHS, PAPER_FOLDS, PAPER_EPOCHS = 21_283, 10, 50


def compare(
    settings: Settings,
    case: str,
    unit: str,
    amount: int,
    build: Callable[[str, Workload], tuple[nn.Module, Callable]],
    workload: Workload,
    peers: dict[str, float | None],
) -> Iterator[Comparison]:
    """Rates of what `build` makes for "ours" and for each peer, run in turns.

    Args:
        amount: how many of `unit` a call does.
        build: (who, workload) -> (model, call).
        peers: who -> the target of ours over theirs, if any.
    """
    built = {who: build(who, workload) for who in ("ours", *peers)}
    calls = {who: call for who, (_, call) in built.items()}
    times = measure.alternate(calls, settings.repeats, settings.clock)
    about = {}
    for who, (model, call) in built.items():
        # What is compiled hides its operators.
        plain = build(who, replace(workload, compile=False))[1] if workload.compile else call
        about[who] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": times[who],
            "floor": measure.Work.count(plain).floor(settings.machine, min(times[who])),
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
        for _ in range(min(settings.repeats, 2))  # it hardly varies
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
        others = ["BLIP, parts"] if questions > 1 else []
        yield from compare(
            settings,
            f"train LM, {questions} question{'s' * (questions > 1)}",
            "micrographs/s",
            workload.batch,
            training_step,
            workload,
            {"BLIP": 2.0} | dict.fromkeys(others),
        )
        yield from compare_memory(
            settings,
            f"memory, LM, {questions} question{'s' * (questions > 1)}",
            workload,
            {"BLIP": 0.7} | dict.fromkeys(others),
        )


def train_all(settings: Settings) -> Iterator[Comparison]:
    """ITC, ITM and LM, against a BLIP assembled to do the same, of public calls and of parts."""
    workload = settings.workload(losses="all")
    for comparison in compare(
        settings,
        "train ITC + ITM + LM",
        "micrographs/s",
        workload.batch,
        training_step,
        workload,
        dict.fromkeys(("BLIP", "BLIP, parts"), 2.5),
    ):
        comparison.details["paper_run_hours"] = paper_run_hours(comparison.ours)
        yield comparison
    yield from compare_memory(
        settings, "memory, ITC + ITM + LM", workload, dict.fromkeys(("BLIP", "BLIP, parts"), 0.7)
    )


def paper_run_hours(rate: float) -> float:
    """The paper's ten folds of 50 epochs at `rate` micrographs per second of training.

    A fold trains on nine tenths and validates on one, whose forward pass is a third of a step. No
    early stopping, and no time for data.
    """
    passes = (1 - 1 / PAPER_FOLDS) + 1 / PAPER_FOLDS / 3
    return PAPER_FOLDS * PAPER_EPOCHS * PAPER_MICROGRAPHS * passes / rate / 3600


def answer(settings: Settings) -> Iterator[Comparison]:
    """Ten questions about each micrograph, images to text; as many at a time as `answer` takes."""
    workload = settings.workload(questions=10)
    workload.batch = settings.batch or ANSWER_BATCH
    yield from compare(
        settings,
        "answer 10 questions each",
        "answers/s",
        workload.batch * workload.questions,
        inference.answering,
        workload,
        {"BLIP": 4.0, "BLIP, parts": None},
    )


def answer_onnx(settings: Settings) -> Iterator[Comparison]:
    """The same with ONNX Runtime, in each precision; the floor is that of our products in torch."""
    workload = settings.workload(questions=10)
    workload.batch = settings.batch or ANSWER_BATCH
    runtimes = {f"ONNX, {precision}": precision for precision in PRECISIONS}
    built = {who: inference.answering(who, workload) for who in ("ours", "BLIP", "BLIP, parts")}
    calls = {who: call for who, (_, call) in built.items()}
    with tempfile.TemporaryDirectory() as folder:
        for who, precision in runtimes.items():
            calls[who] = inference.answering_onnx(precision, workload, Path(folder))
        times = measure.alternate(calls, settings.repeats, settings.clock)
    amount, work = workload.batch * workload.questions, measure.Work.count(calls["ours"])
    rates = {who: amount / median(seconds) for who, seconds in times.items()}
    parameters = sum(p.numel() for p in built["ours"][0].parameters())
    targets = {"BLIP": 4.0, "BLIP, parts": 2.0, "ours": None}
    for who, precision in runtimes.items():
        about = {
            "parameters": parameters,
            "seconds": times[who],
            "floor": work.floor(settings.machine, min(times[who])),
            "top_operators": [],
        }
        for peer, target in targets.items():
            yield Comparison(
                f"answer 10 questions each, ONNX {precision}",
                settings.preset,
                "answers/s",
                rates[who],
                "ours, torch" if peer == "ours" else peer,
                rates[peer],
                measure.ratio(times[peer], times[who]),
                target if precision == "float32" else None,
                details={"ours": about},
            )


def classify(settings: Settings) -> Iterator[Comparison]:
    """Ten categories, by ITC and by ITM, images to names."""
    workload = settings.workload()
    for by, peers in {"itc": ["BLIP"], "itm": ["BLIP", "BLIP, parts"]}.items():
        yield from compare(
            settings,
            f"classify by {by.upper()}",
            "micrographs/s",
            workload.batch,
            partial(inference.classifying, by=by),
            workload,
            dict.fromkeys(peers),
        )


def parts(settings: Settings) -> Iterator[Comparison]:
    """Image encoder and text encoder, forward and backward, against ViT and BERT."""
    workload = settings.workload()
    for part, peer, amount in (
        ("image", "ViT", workload.batch),
        ("text", "BERT", workload.batch * workload.questions),
    ):
        yield from compare(
            settings,
            f"{part} encoder, both passes",
            f"{part}s/s",
            amount,
            partial(encoding, part=part),
            workload,
            {peer: None},
        )


CASES = {
    "train-lm": train_lm,
    "train-all": train_all,
    "parts": parts,
    "answer": answer,
    "answer-onnx": answer_onnx,
    "classify": classify,
    "cold-start": cold_start,
    "wait": wait,
    "read": read,
    "scaling": scaling,
    "tricks": tricks,
}
# Say little new of a second preset: they are run for the first one named.
ONCE = ("wait", "read", "scaling")
