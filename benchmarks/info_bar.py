"""python benchmarks/info_bar.py /work/shared/micrographs

Precision and recall of `mvaema.info_bar.find_info_bar` on real micrographs labelled by eye.

`info_bar_labels.json` maps image_id to the (left, upper, right, lower) box of its info bar or to
null, for 160 micrographs drawn with `random.Random(0).sample(sorted(image_ids), 160)` and labelled
before the detector was written. A bar is a strip across the full width that holds print (settings,
a scale, a caption) and no picture; print or a box on the picture itself is none. Edges were read
off fourfold enlargements, to about a pixel. Even positions in the file were used to choose the
thresholds, odd positions only to report.
"""

import json
import sys
from pathlib import Path

from PIL import Image

from mvaema.info_bar import Box, find_info_bar

LABELS = Path(__file__).with_name("info_bar_labels.json")


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def main(folder: str) -> None:
    paths = {path.stem: path for path in Path(folder).glob("*/images/*")}
    rows = []
    for image_id, label in json.loads(LABELS.read_text()).items():
        with Image.open(paths[image_id]) as image:
            rows.append((image_id, label, find_info_bar(image)))
    print("| half | images | with bar | precision | recall | mean IoU | edges within 2 px |")
    print("|---|---|---|---|---|---|---|")
    for name, half in (("tuning", rows[::2]), ("held out", rows[1::2]), ("both", rows)):
        hits = [(label, box) for _, label, box in half if label and box]
        found = sum(box is not None for *_, box in half)
        true = sum(label is not None for _, label, _ in half)
        close = sum(max(abs(a - b) for a, b in zip(*hit, strict=True)) <= 2 for hit in hits)
        iou = sum(overlap(*hit) for hit in hits) / max(1, len(hits))
        print(
            f"| {name} | {len(half)} | {true} | {len(hits)}/{found} | {len(hits)}/{true} "
            f"| {iou:.3f} | {close}/{len(hits)} |"
        )
    for image_id, label, box in rows:
        if (label is None) != (box is None) or (label and overlap(label, box) < 0.8):
            print(f"{image_id}: labelled {label}, found {box}")


if __name__ == "__main__":
    main(*sys.argv[1:])
