"""python benchmarks/info_bar.py data

Precision, recall and speed of `mvaema.micrographs.info_bar.find_info_bar` on real micrographs
labelled by eye. The argument is the folder that holds `micrographs/` and `unlabelled/`.

`info_bar_labels.json` maps image_id to the (left, upper, right, lower) box of its info bar, or to
null. It holds three samples drawn with `random.Random(seed).sample(sorted(image_ids), n)` and
labelled without looking at what the detector finds:
- 160 of `micrographs` (seed 0), labelled before the detector was written, to choose its thresholds;
- 120 of `unlabelled` (seed 1), held out (5 of 5 found were right, 5 of 8 were found) until one of
  its misses led to the second share in `MIN_BARE`;
- 120 of the rest of `unlabelled` (seed 2), held out.
While thresholds were chosen, every detection in both folders was inspected too. Three of them cut
picture; two rules prevent that.

A bar is a strip across the full width that holds print (settings, a scale, a caption) and no
picture. Print or a box on the picture itself is not a bar. Edges were read off enlargements, to
about a pixel.
"""

import argparse
import json
import time
from pathlib import Path

from PIL import Image

from mvaema.micrographs.info_bar import Box, find_info_bar

LABELS = json.loads(Path(__file__).with_name("info_bar_labels.json").read_text())


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def main(folder: str) -> None:
    lines, remarks, seconds = [], [], 0.0
    for name, labels in LABELS.items():
        paths = {
            path.stem: path for path in Path(folder, name.partition(",")[0]).glob("**/images/*")
        }
        hits, found = [], 0
        for image_id, label in labels.items():
            with Image.open(paths[image_id]) as image:
                image.load()
                start = time.perf_counter()
                box = find_info_bar(image)
                seconds += time.perf_counter() - start
            found += box is not None
            if label and box:
                hits.append((label, box))
            if (label is None) != (box is None) or (label and overlap(label, box) < 0.8):
                remarks.append(f"{image_id}: labelled {label}, found {box}")
        true = sum(label is not None for label in labels.values())
        iou = sum(overlap(*hit) for hit in hits) / len(hits)
        close = sum(max(abs(a - b) for a, b in zip(*hit, strict=True)) <= 2 for hit in hits)
        lines.append(
            f"| {name} | {len(labels)} | {true} | {len(hits)}/{found} "
            f"| {len(hits)}/{true} | {iou:.3f} | {close}/{len(hits)} |"
        )
    print("| sample | images | with bar | precision | recall | mean IoU | edges within 2 px |")
    print("|---|---|---|---|---|---|---|")
    print(*lines, *remarks, sep="\n")
    count = sum(map(len, LABELS.values()))
    print(f"{1000 * seconds / count:.1f} ms per image, {count} images of at most 512 pixels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder that holds micrographs/ and unlabelled/")
    main(parser.parse_args().folder)
