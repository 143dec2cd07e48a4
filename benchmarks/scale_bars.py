"""python -m benchmarks.scale_bars DATA --output OUT

Accuracy and speed of `mvaema.measuring.scale.read_scale_bar`. DATA is the folder that holds
`micrographs/`, `unlabelled/` and `native/`; a part whose folder is missing is left out.

- text: rows of `micrographs` whose `scale_bar` is known. Right is a reading of the same length in
  nm; a reading of another length, or of a row without a bar, is wrong. The labels are a teacher's
  reading of the images. Rules and thresholds were chosen on `train`;
  three rules came of `validation`.
- native: files whose instrument recorded the pixel size and whose picture contains a bar (`BARS`,
  seen by eye). The relative error of the pixel size that is read.
- simulated: micrographs of the synthetic microscope with bars of every style; the same, and the
  text. A bar with ticks is measured from middle to middle of the ticks, as instruments mean it; the
  renderer draws it that long from outer edge to outer edge, which is one pixel more.
- drawn: the styles of instruments that the synthetic microscope does not have, on its pictures.
- held_out: 120 images of `unlabelled` whose groups are not in `micrographs`, with the text of the
  bar as it was read by eye before the reader ran (`scale_bar_labels.json`). No rule came of them.

OUT gets one JSON line per image. Images that are in it are not read again, so a run that was
stopped goes on; `--shard 0/2` and `--shard 1/2` share the work between two processes, each with an
OUT of its own. `--summary --output OUT …` prints the tables of such files without reading anything.
"""

import argparse
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
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

PARTS = ("train", "validation", "held_out", "native", "simulated", "drawn")
LABELS = Path(__file__).with_name("scale_bar_labels.json")

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


Job = tuple[str, Callable[[], dict]]


def opened(path: Path) -> Image.Image:
    """A picture, read whole."""
    with Image.open(path) as image:
        image.load()
    return image


def labelled(folder: Path) -> Iterator[Job]:
    """The rows of a split, by strip or overlay; the truth is a teacher's label."""
    for row in read_json_lines(folder / "metadata.jsonl"):

        def job(row: dict = row) -> dict:
            image = opened(folder / row["file_name"])
            style = "strip" if find_info_bar(image) else "overlay"
            return measured(row["image_id"], style, image, stated_nm(row["scale_bar"]))

        yield row["image_id"], job


def held_out(folder: Path) -> Iterator[Job]:
    """The images whose bars were read by eye, by style."""
    for image_id, label in json.loads(LABELS.read_text("utf-8")).items():

        def job(image_id: str = image_id, label: dict = label) -> dict:
            image = opened(folder / "images" / f"{image_id}.jpg")
            return measured(image_id, label["style"], image, stated_nm(label["scale_bar"]))

        yield image_id, job


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


def native(folder: Path) -> Iterator[Job]:
    """The native files with a bar."""
    for name in BARS:

        def job(name: str = name) -> dict:
            micrograph = read_micrograph(folder / name)
            found = measured(name, "native", micrograph.image, None, micrograph.pixel_size_nm)
            # The length that is printed is in the picture alone: what it should be is not known.
            return found | {"outcome": "missed" if found["error"] is None else "right"}

        yield name, job


def simulated(count: int) -> Iterator[Job]:
    """Micrographs of the synthetic microscope, a quarter of them without a bar."""
    for seed in range(count):
        name = f"simulated {seed}"

        def job(seed: int = seed, name: str = name) -> dict:
            rng = np.random.default_rng([16, seed])
            size, difficulty = int(rng.choice([224, 384, 512])), float(rng.uniform(0, 1))
            scene = render(seed, difficulty=difficulty, size=size)
            true_nm, style = stated_nm(scene.scale_bar), f"{scene.facts.bar or 'none'}"
            return measured(name, style, scene.image, true_nm, scene.pixel_size_nm)

        yield name, job


def drawn_bars(count: int) -> Iterator[Job]:
    """Bars of each further style, drawn over simulated pictures."""
    for seed in range(count):
        name = f"drawn {seed}"

        def job(seed: int = seed, name: str = name) -> dict:
            style = STYLES[seed % len(STYLES)]
            return measured(name, style, *drawn(style, seed))

        yield name, job


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


def parts_of(folder: Path, simulated_count: int, drawn_count: int) -> dict[str, Iterator[Job]]:
    """The jobs of each part whose images are there."""
    found = {"simulated": simulated(simulated_count), "drawn": drawn_bars(drawn_count)}
    for split in ("train", "validation"):
        if (folder / "micrographs" / split).is_dir():
            found[split] = labelled(folder / "micrographs" / split)
    if (folder / "unlabelled").is_dir():
        found["held_out"] = held_out(folder / "unlabelled")
    if (folder / "native").is_dir():
        found["native"] = native(folder / "native")
    return found


def show(rows: list[dict]) -> None:
    """Print the table of each part."""
    for part in PARTS:
        found = [row for row in rows if row["part"] == part]
        if found:
            print(f"\n{part}\n", *summary(found), sep="\n", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("folder", type=Path, help="folder of micrographs/, native/ and unlabelled/")
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, help="file of readings, JSON lines"
    )
    parser.add_argument("--simulated", type=int, default=1000, help="simulated micrographs (1000)")
    parser.add_argument("--drawn", type=int, default=200, help="bars of further styles (200)")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="some (all)")
    parser.add_argument("--shard", default="0/1", help="which of how many shares of the work (0/1)")
    parser.add_argument("--summary", action="store_true", help="only print what OUT … hold")
    args = parser.parse_args(argv)
    rows = [row for path in args.output if path.exists() for row in read_json_lines(path)]
    if not args.summary:
        if len(args.output) > 1:
            parser.error("--output takes several files with --summary only")
        done = {(row["part"], row["id"]) for row in rows}
        shard, shards = map(int, args.shard.split("/"))
        parts = parts_of(args.folder, args.simulated, args.drawn)
        with args.output[0].open("a", encoding="utf-8") as output:
            for part in args.parts:
                for name, job in itertools.islice(parts.get(part, ()), shard, None, shards):
                    if (part, name) not in done:
                        rows.append({"part": part, **job()})
                        output.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
                        output.flush()
    show(rows)


if __name__ == "__main__":
    main()
