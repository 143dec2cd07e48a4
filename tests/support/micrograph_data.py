"""Micrograph datasets in miniature, written where a test wants them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS, QUESTIONS

CATEGORIES = ("Nanowires", "Particles")


def write_dataset(
    folder: Path, count: int = 20, split: str = "train", first: int = 0, **column
) -> Path:
    """Stripes and dots: an imagefolder whose answers follow from the image.

    Args:
        first: number of the first micrograph; `image_id` and `group` follow from the numbers.
        column: values for all rows, instead of what would be written.
    """
    (folder / split).mkdir(parents=True)
    rng = np.random.default_rng(first)
    rows = []
    for i in range(first, first + count):
        category = CATEGORIES[i % 2]
        pixels = rng.integers(0, 80, (64, 64))
        if i % 2:
            pixels[rng.integers(0, 64, 60), rng.integers(0, 64, 60)] = 255
        else:
            pixels[:, :: rng.integers(4, 9)] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{i}.png")
        qa = [
            {
                "question_id": name,
                "question": QUESTIONS[name],
                "answer": f"The micrograph shows {category.lower()}, {name}.",
                "outcome": "ok",
            }
            for name in ("basics", "morphology", "surface")
        ]
        qa.append({**qa[0], "answer": "I cannot help with that.", "outcome": "refused"})
        rows.append(
            {
                "file_name": f"{i}.png",
                "image_id": f"image{i}",
                "category": category,
                "caption": CATEGORY_CAPTIONS[category],
                "scale_bar": "1 µm" if i % 3 else None,
                "group": f"specimen{i // 4}",
                "qa": qa,
                **column,
            }
        )
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / split / "metadata.jsonl").write_text(lines)
    return folder
