"""How well near-duplicates are told from other micrographs, and at what cost.

    python benchmarks/near_duplicates.py --micrographs data/micrographs --limit 400
    python benchmarks/near_duplicates.py --synthetic 1000000

The first command copies real micrographs the way copies are usually made. It prints the share of
copies in the cluster of their original (recall), and the clusters across groups (false alarms; look
at them, some are true). The second makes random descriptions with known near-duplicates, to show
time, memory and recall of the search itself at sizes for which there are no images.
"""

import argparse
import io
import resource
import time

import numpy as np
from datasets import Dataset, Image, concatenate_datasets, load_dataset
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageFilter

from mvaema.micrographs import near_duplicates
from mvaema.micrographs.near_duplicates import cluster, near_duplicate_clusters


def compressed(image: PILImage.Image, quality: int) -> PILImage.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PILImage.open(buffer)


def without_bar(image: PILImage.Image, share: float = 0.07) -> PILImage.Image:
    return image.crop((0, 0, image.width, round(image.height * (1 - share))))


def with_bar(image: PILImage.Image, share: float = 0.08) -> PILImage.Image:
    wider = PILImage.new("L", (image.width, round(image.height * (1 + share))), 255)
    wider.paste(image, (0, 0))
    wider.paste(0, (image.width // 20, image.height + 4, image.width // 4, wider.height - 4))
    return wider


def trimmed(image: PILImage.Image, share: float) -> PILImage.Image:
    x, y = image.width * share / 2, image.height * share / 2
    return image.crop(tuple(map(round, (x, y, image.width - x, image.height - y))))


def noisy(image: PILImage.Image) -> PILImage.Image:
    noise = np.random.default_rng(0).normal(0, 20, (image.height, image.width))
    return PILImage.fromarray(np.uint8(np.clip(np.asarray(image) + noise, 0, 255)))


COPIES = {
    "half the size": lambda i: i.resize((i.width // 2, i.height // 2)),
    "a quarter of the size": lambda i: i.resize((i.width // 4, i.height // 4)),
    "JPEG quality 30": lambda i: compressed(i, 30),
    "gamma 0.7": lambda i: i.point(lambda v: 255 * (v / 255) ** 0.7),
    "contrast × 1.3": lambda i: ImageEnhance.Contrast(i).enhance(1.3),
    "blurred by 2 pixels": lambda i: i.filter(ImageFilter.GaussianBlur(2)),
    "noise of 20 grey levels": noisy,
    "7 % cut off below": without_bar,
    "info bar of 8 % added": with_bar,
    "trimmed by 2 %": lambda i: trimmed(i, 0.02),
    "trimmed by 5 %": lambda i: trimmed(i, 0.05),
    "mirrored": lambda i: i.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90°": lambda i: i.transpose(PILImage.Transpose.ROTATE_90),
    "half, gamma 0.7, JPEG 50": lambda i: compressed(
        i.resize((i.width // 2, i.height // 2)).point(lambda v: 255 * (v / 255) ** 0.7), 50
    ),
}


def real(folder: str, limit: int, thresholds: dict):
    splits = load_dataset("imagefolder", data_dir=folder)
    columns = ["image", "image_id", "group"]
    dataset = concatenate_datasets([split.select_columns(columns) for split in splits.values()])
    dataset = dataset.select(range(min(limit, len(dataset))))
    originals = [image.convert("L") for image in dataset["image"]]

    start = time.perf_counter()
    clusters = near_duplicate_clusters(dataset, **thresholds)
    seconds = time.perf_counter() - start
    groups = np.array(dataset["group"])
    sizes = np.bincount(clusters, minlength=len(dataset))
    print(f"{len(dataset)} micrographs in {len(set(groups))} groups, {seconds:.1f} s: ", end="")
    print(f"{(sizes[clusters] > 1).sum()} of them in {(sizes > 1).sum()} clusters of 2 or more")
    for name in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(clusters == name)
        if len(set(groups[rows])) > 1:
            print(f"  across groups: rows {', '.join(map(str, rows))}")

    print(f"\n{'copy':28} recall")
    for name, copy in COPIES.items():
        images = originals + [copy(image) for image in originals]
        ids = list(map(str, range(len(images))))
        pairs = Dataset.from_dict({"image": images, "image_id": ids})
        clusters = near_duplicate_clusters(pairs.cast_column("image", Image()), **thresholds)
        found = clusters[: len(originals)] == clusters[len(originals) :]
        print(f"{name:28} {found.mean():.3f}")


def synthetic(count: int, thresholds: dict):
    """Random descriptions, a tenth of them noisy copies of another one."""
    random = np.random.default_rng(0)
    low, bits = near_duplicates.LOW_SIZE, 8 * near_duplicates.HIGH_SIZE
    rows = np.empty((count, len(near_duplicates.TURNS), near_duplicates.SIZE), np.uint8)
    for start in range(0, count, 100_000):
        block = rows[start : start + 100_000]
        block[:] = random.integers(0, 256, block.shape, dtype=np.uint8)
    copies, originals = np.split(random.permutation(count)[: count // 10 * 2], 2)
    rows[copies] = rows[originals]
    copied = rows[copies, 0, :low].view(np.int8).astype(np.float32)
    spread = copied.std() * random.uniform(0.05, 0.5, (len(copies), 1))  # cosine 0.999 ... 0.89
    noise = random.normal(0, 1, copied.shape) * spread
    rows[copies, 0, :low] = np.clip(copied + noise, -127, 127).astype(np.int8).view(np.uint8)
    flips = np.packbits(random.random((len(copies), bits)) < 0.1, axis=1)
    rows[copies, 0, low:] ^= flips

    start = time.perf_counter()
    clusters = cluster(rows, **thresholds)
    seconds = time.perf_counter() - start
    found = (clusters[copies] == clusters[originals]).mean()
    wrong = count - len(copies) - len(np.unique(clusters)) + round((1 - found) * len(copies))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{count:,} descriptions ({rows.nbytes / 2**30:.2f} GiB): {seconds:.0f} s, ", end="")
    print(f"peak memory {memory:.2f} GiB, recall {found:.4f}, wrong links {wrong}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micrographs", help="image folder with a group column")
    parser.add_argument("--limit", type=int, default=10**9, help="micrographs of it")
    parser.add_argument("--synthetic", type=int, help="number of random descriptions")
    parser.add_argument("--min_cosine", type=float, default=near_duplicates.MIN_COSINE)
    parser.add_argument("--min_agreement", type=float, default=near_duplicates.MIN_AGREEMENT)
    args = parser.parse_args()
    thresholds = {"min_cosine": args.min_cosine, "min_agreement": args.min_agreement}
    if args.micrographs:
        real(args.micrographs, args.limit, thresholds)
    if args.synthetic:
        synthetic(args.synthetic, thresholds)


if __name__ == "__main__":
    main()
