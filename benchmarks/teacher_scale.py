"""The tables of docs/scale.md: 1,000,000 micrographs x 10 questions in tokens, dollars and days.

    python benchmarks/teacher_scale.py --native data/native

Token counts follow the rules in mvaema/teacher/money.py, prices are those of prices.yaml. With
--native, a folder of microscope files, the size of prepared images is measured too.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.reading import ReadMicrograph
from mvaema.micrographs.sources import FolderSource, Problem
from mvaema.teacher.money import (
    ASSUMED_OUTPUT_TOKENS,
    CHARACTERS_PER_TOKEN,
    DEFAULT_IMAGE_RULE,
    count_image_tokens,
    load_price,
)
from mvaema.teacher.preparing import FORMATS, Preparation
from mvaema.teacher.prompt import Prompt

SIZE = (1024, 768)
IMAGES, QUESTIONS = 1_000_000, 10
REQUESTS = IMAGES * QUESTIONS
MODELS = ("gpt-4.1-mini", "gpt-4.1", "gpt-5.4-mini", "gpt-5.4")
BATCH_FILE = 190e6


def table(title: list[str], rows: list[list[str]]):
    print(f"\n| {' | '.join(title)} |\n|{'---|' * len(title)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", type=Path, help="folder of microscope files")
    args = parser.parse_args()

    prompt, caption = Prompt.load(), CATEGORY_CAPTIONS["Nanowires"]
    texts = [prompt.render(name, SIZE, caption=caption) for name in prompt.questions]
    text = sum(map(len, texts)) / len(texts) / CHARACTERS_PER_TOKEN
    image = count_image_tokens(SIZE, DEFAULT_IMAGE_RULE)
    output = ASSUMED_OUTPUT_TOKENS
    print(
        f"Per request: image {image} tokens (28-pixel patches), text {text:.0f}, output {output}."
    )
    prompts, outputs = REQUESTS * (image + text) / 1e9, REQUESTS * output / 1e9
    print(f"In total: {prompts:.1f} G tokens in, {outputs:.1f} G out.")

    rows = []
    for model in MODELS:
        price = load_price(model)
        tokens = count_image_tokens(SIZE, price.image or DEFAULT_IMAGE_RULE)
        prompt_tokens = tokens + text

        def cost(cached, batch, price=price, prompt_tokens=prompt_tokens):
            return REQUESTS * price.cost(prompt_tokens, cached, output, batch=batch)

        # Nine of an image's ten questions find the image in the cache.
        cached = 0.9 * tokens
        rows.append(
            [
                f"`{model}` ({price.as_of})",
                f"{tokens:,}" + ("" if price.image else "*"),
                f"${cost(0, False):,.0f}",
                f"${cost(cached, False):,.0f}" if price.cached_input < price.input else "–",
                f"${cost(0, True):,.0f}",
                f"${REQUESTS * price.cost(prompt_tokens, 0, 3500, batch=False):,.0f}",
            ]
        )
    title = ["model", "image tokens", "live", "live, image cached", "batch", "live, all 3,500 out"]
    table(title, rows)

    per_request = image + text + output
    rows = [
        [f"{limit / 1e6:g} M", f"{REQUESTS * per_request / limit / 1440:,.1f}"]
        for limit in (2e6, 10e6, 30e6, 150e6)
    ]
    table(["tokens per minute", "days"], rows)

    rows = [
        [f"{speed:,}"]
        + [f"{REQUESTS * output / (speed * replicas) / 86400:,.1f}" for replicas in (1, 8, 32, 128)]
        for speed in (500, 1000, 2500, 5000)
    ]
    table(["output tokens/s of one replica", "1 replica", "8", "32", "128"], rows)

    if args.native:
        rows = []
        for name in FORMATS:
            preparation, sizes = Preparation(image_format=name), []
            for entry in FolderSource(args.native):
                reading = None if isinstance(entry, Problem) else preparation.read(entry)
                if isinstance(reading, ReadMicrograph):
                    sizes.append(len(preparation.encode(reading.png)[0]))
            size = median(sizes)
            line = size * 4 / 3 + 1200
            rows.append(
                [
                    f"`{name}` ({len(sizes)} files)",
                    f"{size / 1e3:,.0f} kB",
                    f"{IMAGES * size / 1e12:,.2f} TB",
                    f"{REQUESTS * line / 1e12:,.1f} TB",
                    f"{REQUESTS * line / BATCH_FILE:,.0f}",
                ]
            )
        table(["format", "median image", "on disk", "uploaded", "batch files"], rows)


if __name__ == "__main__":
    main()
