"""python -m benchmarks.scale_bars DATA --output OUT

Accuracy and speed of `mvaema.measuring.scale.read_scale_bar`. DATA is the folder that holds
`micrographs/` and `native/`; a part whose folder is missing is left out.

- text: rows of `micrographs` whose `scale_bar` is known. Right is a reading of the same length in
  nm; a reading of another length, or of a row without a bar, is wrong. The labels are a teacher's
  reading of the images. Rules and thresholds were chosen on `train`; `validation` is held out.
- native: files whose instrument recorded the pixel size and whose picture contains a bar (`BARS`,
  seen by eye). The relative error of the pixel size that is read.
- simulated: micrographs of the synthetic microscope with bars of every style; the same, and the
  text. A bar with ticks is measured from middle to middle of the ticks, as instruments mean it; the
  renderer draws it that long from outer edge to outer edge, which is one pixel more.
- drawn: the styles of instruments that the synthetic microscope does not have, on its pictures.

OUT gets one JSON line per image.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawn_bars import STYLES, drawn
from lengths_mvaema import normal_text
from mvaema.files import read_json_lines
from mvaema.measuring.lengths import is_reciprocal, printed_length
from mvaema.measuring.scale import read_scale_bar
from mvaema.micrographs.info_bar import find_info_bar
from mvaema.micrographs.microscope import read_micrograph
from mvaema.synthetic.scenes import render

PARTS = ("train", "validation", "native", "simulated", "drawn")

# Native files that record their pixel size and show a bar.
BARS = (
    "analysis32_cu_au.tif",
    "fei_porous_sample1.tif",
    "fei_rgba_nanowires.tif",
    "rsciio_fei_FEI-Helios-Ebeam-8bits.tif",
    "rsciio_fei_FEI-Helios-Ebeam-16bits.tif",
    "rsciio_zeiss_test_tiff_Zeiss_SEM_1k.tif",
    "rsciio_zeiss_test_tiff_Zeiss_SEM_512pix.tif",
    "zeiss_composite_5LGr.tif",
    "zeiss_fibres_sample01.tif",
)


def stated_nm(scale_bar: str | None) -> float | None:
    """The length that a label states, in nm; None for a reciprocal length or no bar."""
    text = normal_text(scale_bar or "")
    length = None if is_reciprocal(text) else printed_length(text)
    return length and length.nm


def labelled(folder: Path, split: str) -> Iterator[tuple[str, str, Image.Image, float | None]]:
    """(id, style, image, true length in nm) of the rows of a split."""
    for row in read_json_lines(folder / split / "metadata.jsonl"):
        with Image.open(folder / split / row["file_name"]) as image:
            image.load()
        style = "strip" if find_info_bar(image) else "overlay"
        yield row["image_id"], style, image, stated_nm(row["scale_bar"])


def outcome(true_nm: float | None, read_nm: float | None) -> str:
    """`right`, `wrong`, `missed`, `false` (a reading without a bar) or `none`."""
    if true_nm is None:
        return "none" if read_nm is None else "false"
    if read_nm is None:
        return "missed"
    return "right" if abs(read_nm - true_nm) <= 1e-6 * true_nm else "wrong"


def measured(name: str, style: str, image: Image.Image, true_nm, pixel_nm=None) -> dict:
    """One reading beside the truth."""
    start = time.perf_counter()
    reading = read_scale_bar(image)
    seconds = time.perf_counter() - start
    read = reading.pixel_size_nm
    return {
        "id": name,
        "style": style,
        "outcome": outcome(true_nm, None if read is None else reading.length_nm),
        "error": read / pixel_nm - 1 if read and pixel_nm else None,
        "true_nm": true_nm,
        "read_nm": reading.length_nm,
        "text": reading.text,
        "bar_pixels": reading.bar_pixels,
        "confidence": reading.confidence,
        "reason": reading.reason,
        "seconds": seconds,
    }


def native(folder: Path) -> Iterator[dict]:
    """Readings of the native files with a bar."""
    for name in BARS:
        micrograph = read_micrograph(folder / name)
        known = micrograph.pixel_size_nm
        # The length that is printed is in the picture alone: what it should be is not known here.
        found = measured(name, "native", micrograph.image, None, known)
        found["outcome"] = "missed" if found["error"] is None else "right"
        yield found


def simulated(count: int) -> Iterator[dict]:
    """Readings of micrographs of the synthetic microscope, a quarter of them without a bar."""
    for seed in range(count):
        rng = np.random.default_rng([16, seed])
        size, difficulty = int(rng.choice([224, 384, 512])), float(rng.uniform(0, 1))
        scene = render(seed, difficulty=difficulty, size=size)
        yield measured(
            f"simulated {seed}",
            f"{scene.facts.bar or 'none'}",
            scene.image,
            stated_nm(scene.scale_bar),
            scene.pixel_size_nm,
        )


def drawn_bars(count: int) -> Iterator[dict]:
    """Readings of bars of each further style, drawn over simulated pictures."""
    for seed in range(count):
        style = STYLES[seed % len(STYLES)]
        image, length_nm, pixel_nm = drawn(style, seed)
        yield measured(f"drawn {seed}", style, image, length_nm, pixel_nm)


def summary(found: list[dict]) -> list[str]:
    """A table of readings by style."""
    styles = defaultdict(list)
    for row in found:
        styles[row["style"]].append(row)
    lines = [
        "| style | images | with bar | right | wrong | false | precision | recall | "
        "error, median | 95 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for style, rows in [*sorted(styles.items()), ("all", found)]:
        counts = Counter(row["outcome"] for row in rows)
        read = counts["right"] + counts["wrong"] + counts["false"]
        barred = counts["right"] + counts["wrong"] + counts["missed"]
        errors = [abs(row["error"]) for row in rows if row["error"] is not None]
        figures = [f"{np.percentile(errors, q):.2%}" if errors else "–" for q in (50, 95)]
        lines.append(
            f"| {style} | {len(rows)} | {barred} | {counts['right']} | {counts['wrong']} "
            f"| {counts['false']} | {_share(counts['right'], read)} "
            f"| {_share(counts['right'], barred)} | {figures[0]} | {figures[1]} |"
        )
    seconds = sum(row["seconds"] for row in found)
    return [*lines, f"{len(found) / seconds:.2f} micrographs per second"]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("folder", type=Path, help="folder that holds micrographs/ and native/")
    parser.add_argument("--output", type=Path, required=True, help="file of readings, JSON lines")
    parser.add_argument("--simulated", type=int, default=1000, help="simulated micrographs (1000)")
    parser.add_argument("--drawn", type=int, default=200, help="bars of further styles (200)")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="some (all)")
    args = parser.parse_args(argv)
    parts = {
        "simulated": lambda: simulated(args.simulated),
        "drawn": lambda: drawn_bars(args.drawn),
    }
    for split in ("train", "validation"):
        if (args.folder / "micrographs" / split).is_dir():
            rows = labelled(args.folder / "micrographs", split)
            parts[split] = lambda rows=rows: (measured(*row) for row in rows)
    if (args.folder / "native").is_dir():
        parts["native"] = lambda: native(args.folder / "native")
    with args.output.open("a", encoding="utf-8") as output:
        for part in args.parts:
            if part not in parts:
                continue
            found = []
            for row in parts[part]():
                found.append(row)
                output.write(json.dumps({"part": part, **row}, ensure_ascii=False) + "\n")
                output.flush()
            print(f"\n{part}\n", *summary(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
