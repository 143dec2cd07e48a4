"""OMP_NUM_THREADS=1 python -m benchmarks.one_micrograph --model . --exported bench/student

From one file to its answers, without torch: where the time goes. The file is a 16-bit TIFF of 2,048
x 1,536 pixels, drawn by the synthetic microscope; the student, as `mvaema export` wrote it, is
asked its own questions.

Milliseconds of processor time, in which other work on the machine hardly counts; medians and
quartiles over turns. A floor is what cannot be left out: for reading, Pillow's decoding alone; for
what the student computes, its matrix products and convolutions, counted in torch where complete
answers leave too, at the best rate of a matrix product here.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from benchmarks.speed import measure
from mvaema.evaluation.table import Table, markdown
from mvaema.micrographs.microscope import read_micrograph
from mvaema.students.loading import load_student
from mvaema.synthetic.dataset import SyntheticSplit, rows
from onnx_mvaema import OnnxStudent
from pixels_mvaema import stretch

TILE, WIDTH, HEIGHT = 512, 2048, 1536
ANSWERED = ("greedy", "consensus")


def deep_pixels() -> np.ndarray:
    """A scene, repeated, with noise in the lower byte: uint16 (HEIGHT, WIDTH)."""
    (row,) = rows(SyntheticSplit(seed=1, size=TILE), 1)
    tile = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L"))
    pixels = np.tile(tile, (HEIGHT // TILE, WIDTH // TILE)).astype(np.uint16) << 8
    return pixels | np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint16)


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def stages(student: OnnxStudent, path: Path, pixels: np.ndarray) -> dict[str, Callable[[], object]]:
    """What is timed; the student's stages begin with all that comes before them but reading."""
    image = read_micrograph(path).image
    input_ids, _ = student.prompt_ids(list(student.questions.values()))
    ready = student.pixel_values([image])
    answers = {
        decoding: lambda decoding=decoding: student.answer_prompts(ready, input_ids, decoding)
        for decoding in ANSWERED
    }
    return {
        "read": lambda: read_micrograph(path),
        "decode": lambda: decoded(path),
        "stretch": lambda: stretch(pixels),
        "pixels": lambda: student.pixel_values([image]),
        "eyes": lambda: student.embed_images([image]),
        **answers,
    }


def products(model, path: Path) -> dict[str, int]:
    """FLOPs of the eyes and of each way to answer, without the eyes."""
    questions = list(model.config.questions.values())
    inputs = model.processor(images=[read_micrograph(path).image], text=[questions])
    with torch.no_grad():
        count = {
            "eyes": measure.Work.count(lambda: model.image_encoder(inputs["pixel_values"])).flops
        }
        for decoding in ANSWERED:
            work = measure.Work.count(lambda d=decoding: model.answer_prompts(inputs, decoding=d))
            count[decoding] = work.flops - count["eyes"]
    return count


def line(name: str, times: Sequence[float], floor: float | None) -> list[str]:
    low, median, high = 1000 * np.percentile(times, [25, 50, 75])
    share = ["–", "–"] if floor is None else [f"{1000 * floor:.1f}", f"{median / 1000 / floor:.1f}"]
    return [name, f"{median:.1f} ({low:.1f}–{high:.1f})", *share]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student")
    parser.add_argument("--exported", required=True, help="folder of the same student, exported")
    parser.add_argument("--repeats", type=int, default=15, help="turns (15)")
    args = parser.parse_args(argv)
    disable_progress_bar()
    student = OnnxStudent(args.exported, threads=torch.get_num_threads())
    rate = measure.Machine.measure("cpu", "float32", "cpu").matmul
    with tempfile.TemporaryDirectory() as folder:
        path, pixels = Path(folder) / "deep.tif", deep_pixels()
        Image.fromarray(pixels).save(path)
        times = measure.alternate(stages(student, path, pixels), args.repeats, "cpu")
        flops = products(load_student(args.model).eval(), path)
    taken = {name: np.array(seconds) for name, seconds in times.items()}
    floors = {name: count / rate for name, count in flops.items()}
    questions = len(student.questions)
    lines = [
        line("file to 8-bit image", taken["read"], np.median(taken["decode"])),
        line("  of it: 16 bits stretched to 8", taken["stretch"], None),
        line("image to pixels of the student", taken["pixels"], None),
        line("eyes", taken["eyes"] - taken["pixels"], floors["eyes"]),
    ]
    for decoding in ANSWERED:
        own = taken[decoding] - taken["eyes"] + taken["pixels"]
        lines.append(line(f"{questions} answers, {decoding}", own, floors[decoding]))
    for decoding in ANSWERED:
        whole = taken["read"] + taken["pixels"] + taken[decoding]
        lines.append(line(f"file to {questions} answers, {decoding}", whole, None))
    title = f"{args.exported}, {torch.get_num_threads()} thread(s), {rate / 1e9:.0f} GFLOP/s"
    print(markdown(Table(title, ["stage", "ms of processor time", "floor, ms", "× floor"], lines)))


if __name__ == "__main__":
    main()
