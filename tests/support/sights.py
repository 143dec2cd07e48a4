"""Micrographs that have to be looked at: a bright square, and answers that say where it is."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.questions import Questions

SIDE = 4  # cells; a tiny student has as many patches
ASKED = ("basics", "surface")


def write_sights(folder: Path) -> Path:
    """16 micrographs to score on, all of other specimens, and two to answer from."""
    for split, first in (("train", 100), ("validation", 0)):
        (folder / split).mkdir(parents=True)
        rows = []
        for i in range(2 if split == "train" else SIDE**2):
            row, column = divmod(i, SIDE)
            pixels = np.zeros((64, 64), np.uint8)
            pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
            pixels[0, 0] = first  # no two splits share a micrograph
            Image.fromarray(pixels).save(folder / split / f"{i}.png")
            place = f"row {row + 1} and column {column + 1}"
            texts = (f"A square in {place}.", f"It is smooth in {place}.")
            qa = [
                {"question_id": q, "question": QUESTIONS[q], "answer": text, "outcome": "ok"}
                for q, text in zip(ASKED, texts, strict=True)
            ]
            rows.append(
                {
                    "file_name": f"{i}.png",
                    "image_id": f"image{first + i}",
                    "category": "Particles",
                    "caption": CATEGORY_CAPTIONS["Particles"],
                    "scale_bar": f"{i + 1} µm",
                    "group": f"specimen{first + i}",
                    "qa": qa,
                }
            )
        lines = "\n".join(map(json.dumps, rows))
        (folder / split / "metadata.jsonl").write_text(lines)
    return folder


def learn_by_heart(model: MVaEMaModel, questions: Questions, steps: int) -> MVaEMaModel:
    """Train a student on the very micrographs that it is scored on."""
    of_image: dict[str, list[dict]] = {}
    for record in questions.records:
        of_image.setdefault(record["image_id"], []).append(record)
    inputs = model.processor(
        images=[questions.micrographs[image_id] for image_id in of_image],
        text=[[r["question"] for r in asked] for asked in of_image.values()],
        answers=[r["reference"] for asked in of_image.values() for r in asked],
        statements=[[r["reference"] for r in asked] for asked in of_image.values()],
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    return model.eval()
