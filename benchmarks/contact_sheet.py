"""Synthetic micrographs of all ten categories beside real ones, to look at.

    MVAEMA_SHARED=data python benchmarks/contact_sheet.py sheet.png --columns 8

One row for each category: simulated images, with difficulty rising from left to right. If
`MVAEMA_SHARED` names a folder with `micrographs/`, as many real SEM images follow after a white
bar, first those whose category is the source's own label.
"""

import argparse
import json
import os
import random
from pathlib import Path

from PIL import Image

from mvaema.synthetic.scenes import CATEGORIES, render


def real_micrographs(folder: Path, category: str, count: int, rng: random.Random) -> list:
    """Square real SEM images of a category, first those labelled at the source."""
    found = []
    for split in ("train", "validation"):
        for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["category"] == category and row["modality"] == "SEM":
                key = (row["category_source"] != "label", rng.random())
                found.append((key, folder / split / row["file_name"]))
    images = []
    for _, path in sorted(found)[:count]:
        image = Image.open(path).convert("L")
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        images.append(image.crop((x, y, x + side, y + side)))
    return images


def main():
    parser = argparse.ArgumentParser(description="A contact sheet of synthetic micrographs.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--columns", type=int, default=8, help="images of each kind in a row (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    args = parser.parse_args()
    shared = os.environ.get("MVAEMA_SHARED")
    size, gap = 224, 4
    sheets = 2 if shared else 1
    width = sheets * args.columns * (size + gap) + (sheets - 1) * gap
    sheet = Image.new("L", (width, len(args.categories) * (size + gap)), 255)
    rng = random.Random(args.seed)
    for row, category in enumerate(args.categories):
        for column in range(args.columns):
            difficulty = 0.9 * column / max(1, args.columns - 1)
            scene = render(1000 * args.seed + 37 * column + row, category, difficulty)
            sheet.paste(scene.image, (column * (size + gap), row * (size + gap)))
            facts = scene.facts
            print(f"{category} {column}: {facts.kind}, {facts.count}, {facts.size_mean_nm:.0f} nm")
        if shared:
            real = real_micrographs(Path(shared) / "micrographs", category, args.columns, rng)
            for column, image in enumerate(real):
                x = (args.columns + column) * (size + gap) + gap
                sheet.paste(image.resize((size, size), Image.LANCZOS), (x, row * (size + gap)))
    sheet.save(args.output)


if __name__ == "__main__":
    main()
