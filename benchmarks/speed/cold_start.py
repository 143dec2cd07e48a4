"""One question about one micrograph, from a cold process: import, load, first answer.

Each turn starts one new process for each: ours and BLIP's as their model cards have it, ours as
exported, and one that imports torch and what the code of any generating model in transformers
imports, and no more. The time is from the start of the process to its first line of output. Files
are in the disk cache.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from transformers import BlipProcessor

from benchmarks.speed import inference, measure, peers
from benchmarks.speed.report import Comparison
from benchmarks.speed.settings import Settings
from benchmarks.speed.workload import Workload, images, processor
from configuration_mvaema import QUESTIONS
from mvaema.students.exporting import export_onnx

IMPORTS = """
import torch
from transformers import GenerationMixin, PreTrainedModel
print("imported", flush=True)
"""
OURS = """
from PIL import Image
from transformers import AutoModel
model = AutoModel.from_pretrained("ours", trust_remote_code=True)
answer = model.answer(Image.open("image.png"), {question!r}, decoding="greedy", {length})
print("answered", repr(answer), flush=True)
"""
EXPORTED = """
import sys
sys.path.insert(0, "exported")
from onnx_mvaema import OnnxStudent
answer = OnnxStudent("exported").answer("image.png", {question!r}, decoding="greedy")
print("answered", repr(answer), flush=True)
"""
# The largest resident set, in KiB, which is Linux's; in all of them after the answer.
PEAK = """
import sys
if sys.platform == "linux":
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
BLIP = """
from PIL import Image
from transformers import BlipForQuestionAnswering, BlipProcessor
model = BlipForQuestionAnswering.from_pretrained("blip")
processor = BlipProcessor.from_pretrained("blip")
inputs = processor(images=Image.open("image.png"), text={question!r}, return_tensors="pt")
ids = model.generate(**inputs, {length})
print("answered", repr(processor.decode(ids[0], skip_special_tokens=True)), flush=True)
"""


def first_line(script: str, folder: Path) -> tuple[float, float]:
    """Seconds from the start of a Python process that runs `script` to its first line, and the MiB
    that it needed at most; NaN elsewhere than on Linux.

    Raises:
        RuntimeError: the script failed; the message has what it said.
    """
    environment = os.environ | {
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",  # ours is to be loaded from its checkpoint
    }
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", script + PEAK],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        line = process.stdout.readline()
        elapsed = time.perf_counter() - start
        rest = process.stdout.read()  # `communicate` loses what `readline` has buffered
        if process.wait() or not line:
            errors.seek(0)
            raise RuntimeError(f"a cold start failed:\n{script}\n{errors.read()[-2000:]}")
    return elapsed, int(rest) / 1024 if rest.strip() else float("nan")


def write_checkpoints(folder: Path, workload: Workload) -> None:
    """`ours`, `exported` and `blip`, complete, and `image.png`."""
    config = workload.config()
    ours = inference.our_model(workload)
    ours.save_pretrained(folder / "ours")
    ours.generation_config.max_new_tokens = inference.new_tokens(workload)
    export_onnx(ours, folder / "exported")
    settings = json.loads((folder / "exported" / "config.json").read_text())
    settings["eos_token_id"] = -1  # all answers have the same length
    (folder / "exported" / "config.json").write_text(json.dumps(settings))
    peers.answering(config).save_pretrained(folder / "blip")
    BlipProcessor(
        inference.image_processor_of_blip(config), processor(config).tokenizer
    ).save_pretrained(folder / "blip")
    images(1)[0].save(folder / "image.png")


def cold_start(settings: Settings) -> Iterator[Comparison]:
    """Ours against the imports alone and BLIP, and exported against ours, on a CPU."""
    workload = settings.workload(device="cpu", dtype="float32", compile=False)
    count = inference.new_tokens(workload)
    fields = {
        "question": next(iter(QUESTIONS.values())),
        "length": f"min_new_tokens={count}, max_new_tokens={count}",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoints(folder, workload)
        scripts = {
            "ours": OURS.format(**fields),
            "exported": EXPORTED.format(**fields),
            "imports alone": IMPORTS,
            "BLIP": BLIP.format(**fields),
        }
        times, peaks = ({who: [] for who in scripts} for _ in range(2))
        for turn in range(-1, settings.repeats):  # the first fills the caches
            for who, script in scripts.items():
                elapsed, peak = first_line(script, folder)
                if turn >= 0:
                    times[who].append(elapsed)
                    peaks[who].append(peak)
    for ours, peer, target in (
        ("ours", "imports alone", 1.3),
        ("ours", "BLIP", None),
        ("exported", "ours", None),
    ):
        name = "" if ours == "ours" else ", ONNX"
        for case, unit, values, aim in (
            (f"cold start to first answer{name}", "s", times, target),
            (f"memory to first answer{name}", "MiB", peaks, None),
        ):
            yield Comparison(
                case,
                settings.preset,
                unit,
                median(values[ours]),
                "ours, torch" if peer == "ours" else peer,
                median(values[peer]),
                measure.ratio(values[ours], values[peer]),
                aim,
                at_most=True,
                details={"turns": values},
            )
