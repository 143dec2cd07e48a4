"""One question about one micrograph, from a cold process: import, load, first answer.

Each turn starts one new process for each: ours and BLIP's as their model cards have it, and one
that imports torch and what the code of any generating model in transformers imports, and no more.
The time is from the start of the process to its first line of output. Files are in the disk cache.
"""

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

IMPORTS = """
import torch
from transformers import GenerationMixin, PreTrainedModel
print("imported", flush=True)
"""
OURS = """
from PIL import Image
from transformers import AutoModel
model = AutoModel.from_pretrained("ours", trust_remote_code=True)
answer = model.answer(Image.open("image.png"), {question!r}, {length})
print("answered", repr(answer), flush=True)
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


def first_line(script: str, folder: Path) -> float:
    """Seconds from the start of a Python process that runs `script` to its first line.

    Raises:
        RuntimeError: the script failed; the message has what it said.
    """
    environment = os.environ | {
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",  # ours is to be loaded from its checkpoint
    }
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        elapsed = time.perf_counter() - start
        _, errors = process.communicate()
    if not line or process.returncode:
        raise RuntimeError(f"a cold start failed:\n{script}\n{errors[-2000:]}")
    return elapsed


def write_checkpoints(folder: Path, workload: Workload) -> None:
    """`ours` and `blip`, complete, and `image.png`."""
    config = workload.config()
    ours = inference.our_model(workload)
    ours.save_pretrained(folder / "ours")
    peers.answering(config).save_pretrained(folder / "blip")
    BlipProcessor(
        inference.image_processor_of_blip(config), processor(config).tokenizer
    ).save_pretrained(folder / "blip")
    images(1)[0].save(folder / "image.png")


def cold_start(settings: Settings) -> Iterator[Comparison]:
    """Ours against the imports alone, and against BLIP; a CPU process, whatever the device."""
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
            "imports alone": IMPORTS,
            "BLIP": BLIP.format(**fields),
        }
        times = {who: [] for who in scripts}
        for turn in range(-1, settings.repeats):  # the first fills the caches
            for who, script in scripts.items():
                elapsed = first_line(script, folder)
                if turn >= 0:
                    times[who].append(elapsed)
    for who, target in {"imports alone": 1.3, "BLIP": None}.items():
        yield Comparison(
            "cold start to first answer",
            settings.preset,
            "s",
            median(times["ours"]),
            who,
            median(times[who]),
            measure.ratio(times["ours"], times[who]),
            target,
            at_most=True,
            details={"seconds": times},
        )
