"""Micrographs that have to be looked at: patterns that nothing but the image tells apart."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS
from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.questions import Questions

WORDS = ("fibres", "particles", "tips", "powder")  # each is one token
ASKED = ("basics", "surface")


def write_sights(folder: Path) -> Path:
    """16 micrographs to score on, all of other specimens, and two to answer from."""
    for split, first in (("train", 100), ("validation", 0)):
        (folder / split).mkdir(parents=True)
        rows = []
        for i in range(2 if split == "train" else len(WORDS) ** 2):
            grey = np.random.default_rng(first + i).choice([0, 255], (4, 4)).astype(np.uint8)
            Image.fromarray(grey.repeat(16, 0).repeat(16, 1)).save(folder / split / f"{i}.png")
            pattern = " and ".join(WORDS[n] for n in divmod(i, len(WORDS)))
            texts = (f"The image shows {pattern}.", f"It is smooth, with {pattern}.")
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
