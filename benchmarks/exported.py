"""python -m benchmarks.exported --model . --dataset data/micrographs --output_dir runs/exported

What a student loses when it is exported, in each precision: it is asked ten questions, classifies,
and judges true answers, beside itself in torch.

- answers changed: of greedy ones, letter by letter; METEOR against the true answers;
- top-1: category by ITC;
- image gain: by how much the likelihood of a true answer's token rises with its image over a blank
  one, in nats, as in `mvaema eval`;
- MB: of the graphs with their weights;
- answers/s: ten greedy questions about one micrograph at a time.

Runtimes take turns, micrograph by micrograph, so that what else the machine does falls on all.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parent.parent))

from decoding_mvaema import BLANK_GREY
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.table import Table, markdown
from mvaema.evaluation.texts import METEOR, score_texts
from mvaema.micrographs.dataset import decode_image, load_micrographs
from mvaema.students.exporting import PRECISIONS, export_onnx
from mvaema.students.loading import load_student
from onnx_mvaema import GRAPHS, WEIGHTS, OnnxStudent
from pixels_mvaema import to_8bit

Likelihoods = Callable[[Image.Image, list[str], list[str]], np.ndarray]


@torch.inference_mode()
def log_likelihoods(
    model: MVaEMaModel, image: Image.Image, prompts: list[str], answers: list[str]
) -> np.ndarray:
    """Of each answer to its prompt, in nats: (answers,)."""
    inputs = model.processor(images=image, text=prompts, answers=answers)
    mask = inputs["attention_mask"]
    memory = model.encode_prompt(inputs["pixel_values"], inputs["input_ids"], mask)
    return -model.answer_losses(inputs["labels"], memory, mask).sum(dim=1).numpy()


def ask(student: MVaEMaModel | OnnxStudent, likelihoods: Likelihoods, row: dict) -> dict:
    """What one student says of one micrograph."""
    image = to_8bit(decode_image(row))
    pairs = [pair for pair in row["qa"] if pair["outcome"] == "ok"]
    questions, true = ([pair[name] for pair in pairs] for name in ("question", "answer"))
    start = time.perf_counter()
    answers = student.answer(image, questions, decoding="greedy")
    elapsed = time.perf_counter() - start
    blank = Image.new("L", image.size, BLANK_GREY)
    gain = likelihoods(image, questions, true) - likelihoods(blank, questions, true)
    return {
        "answers": answers,
        "true": true,
        "rate": len(answers) / elapsed,
        "category": next(iter(student.classify(image))),
        "gain": gain.sum(),
    }


def line(name: str, found: list[dict], torch_s: list[dict], rows: list[dict], size: float) -> list:
    said, plain = ([a for one in some for a in one["answers"]] for some in (found, torch_s))
    true = [a for one in found for a in one["true"]]
    changed = np.mean([a != b for a, b in zip(said, plain, strict=True)])
    labelled = [
        one["category"] == row["category"]
        for one, row in zip(found, rows, strict=True)
        if row["category"]
    ]
    low, rate, high = np.percentile([one["rate"] for one in found], [25, 50, 75])
    gain = np.mean([one["gain"] / one["tokens"] for one in found])
    return [
        name,
        f"{size:.1f}",
        f"{rate:.1f} ({low:.1f}–{high:.1f})",
        f"{100 * changed:.1f} %",
        f"{np.mean(score_texts(said, true)[METEOR]):.3f}",
        f"{np.mean(labelled):.3f}" if labelled else "–",
        f"{gain:.4f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of a student")
    parser.add_argument("--dataset", required=True, help="answered micrograph dataset")
    parser.add_argument("--output_dir", required=True, type=Path, help="of the exported students")
    parser.add_argument("--split", default="validation", help="(validation)")
    parser.add_argument("--micrographs", type=int, help="ask about the first ones only")
    args = parser.parse_args(argv)
    disable_progress_bar()
    model = load_student(args.model).eval()
    students: dict[str, MVaEMaModel | OnnxStudent] = {"torch, float32": model}
    ways: dict[str, Likelihoods] = {
        "torch, float32": lambda image, prompts, answers: log_likelihoods(
            model, image, prompts, answers
        )
    }
    sizes = {"torch, float32": sum(p.nbytes for p in model.parameters()) / 1e6}
    for precision in PRECISIONS:
        folder = args.output_dir / precision
        if not (folder / "decoder.onnx").is_file():
            export_onnx(model, folder, precision)
        name = f"ONNX, {precision}"
        students[name] = OnnxStudent(folder, threads=torch.get_num_threads())
        ways[name] = students[name].log_likelihoods
        files = (*(f"{graph}.onnx" for graph in GRAPHS), WEIGHTS)
        sizes[name] = sum((folder / file).stat().st_size for file in files) / 1e6
    dataset = load_micrographs(args.dataset, args.split)
    rows = dataset.select(range(min(args.micrographs or len(dataset), len(dataset))))
    found: dict[str, list[dict]] = {name: [] for name in students}
    for number, row in enumerate(tqdm(rows, desc="micrographs")):
        tokens = sum(
            len(ids) + 1
            for ids in model.processor.tokenizer(
                [pair["answer"] for pair in row["qa"] if pair["outcome"] == "ok"],
                add_special_tokens=False,
            )["input_ids"]
        )
        order = list(students) if number % 2 else list(students)[::-1]
        for name in order:
            found[name].append(ask(students[name], ways[name], row) | {"tokens": tokens})
    plain = found["torch, float32"]
    header = "runtime, MB, answers/s, answers changed, METEOR, top-1 by ITC, image gain".split(", ")
    lines = [line(name, some, plain, list(rows), sizes[name]) for name, some in found.items()]
    print(markdown(Table(f"{len(rows)} micrographs", header, lines)))


if __name__ == "__main__":
    main()
