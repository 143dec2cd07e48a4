"""python benchmarks/sizes.py simulated --scenes 40 --workers 2

What `mvaema.measuring.measure` finds, against what is true. Its other parts:

    python benchmarks/sizes.py real data/micrographs/validation     # how often it abstains
    python benchmarks/sizes.py hand data/micrographs                # against lengths read by eye
    python benchmarks/sizes.py speed data/micrographs/validation    # micrographs per second

The simulated scenes come from the synthetic microscope, which knows each object's pixels. A scene's
difficulty is that of its picture and follows from its facts, not from what the tool makes of it:

| | renderer | contrast / noise | touching | covered by fibres | size |
|---|---|---|---|---|---|
| low | 0.1 | at least 6 | at most 15 % of the objects | at most 35 % | at least 8 pixels |
| medium | 0.5 | at least 3 | at most 60 % | at most 70 % | at least 6 pixels |
| high | 0.9 | any | any | any | at least 4 pixels |

"renderer" is the difficulty given to `render` (noise, blur, drift, charging); a scene that misses
a limit of its row is left out. True sizes are of objects that the border does not cut. The kind is
chosen by the category and the pixel size is given, as in use.

`hand` reads `sizes_by_hand.json`: for 76 real micrographs, the kind and lengths in pixels that were
read by eye off enlargements, before the tool's result was looked at. Where there are no lengths, it
cannot be measured by eye either: one or two objects, or none that can be told apart. Sets:
`first` (20 of `train`, used as a check), `choosing` (32 of `train`, on which rules were chosen) and
`check` (24 of `validation`).
"""

import argparse
import collections
import itertools
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from mvaema.measuring.measure import measure
from mvaema.measuring.scale import Scale, read_scale_bar
from mvaema.synthetic.scenes import CATEGORIES, Scene, render
from mvaema.synthetic.specimen import visible

BY_HAND = Path(__file__).with_name("sizes_by_hand.json")
SIDE = 320
# A trusted result that is further off is wrong.
FAR_OFF = 0.2
# kind -> categories, and the specimens of which the renderer knows what the kind measures.
SPECIMENS = {
    "particles": (
        ("Particles", "Powder"),
        (
            *("spheres", "packed_spheres", "crystals", "rods", "dots", "particle_aggregates"),
            *("nanospheres", "nanocrystals", "nanorods", "core_shells", "aggregates"),
            *("faint_dots", "atomised", "fragments", "flakes", "agglomerates", "loose_grains"),
            "fine_powder",
        ),
    ),
    "fibres": (
        ("Fibres", "Nanowires"),
        (
            *("spun", "few_fibres", "bundle", "ribbons", "lying", "mat"),
            *("crossed_wires", "fibrils", "tubes", "coated_wires"),
        ),
    ),
    "pores": (
        ("Porous_Sponge",),
        ("foam", "membrane", "honeycomb", "open_network", "holey_sheet"),
    ),
    "films": (("Films_Coated_Surface",), ("section",)),
    "pattern": (("Patterned_surface",), ("grating", "pillars", "holes", "pits", "small_array")),
}
# The functions of the renderer that make them.
MAKERS = {
    *("particles", "particle_aggregates", "nanoparticles", "powder", "loose_grains"),
    *("fine_powder", "fibres", "nanowires", "thin_wires", "porous", "networks", "films"),
    *("patterned", "small_array"),
}


@dataclass(frozen=True)
class Level:
    """Limits of one difficulty; see the module's docstring."""

    renderer: float
    contrast: float
    touching: float
    covered: float
    pixels: float


LEVELS = {
    "low": Level(0.1, 6, 0.15, 0.35, 8),
    "medium": Level(0.5, 3, 0.6, 0.7, 6),
    "high": Level(0.9, 0, 1, 1, 4),
}


@dataclass(frozen=True)
class Truth:
    """What is true of a scene, lengths in pixels of the image."""

    size: float
    count: int | None


def truth_of(scene: Scene, kind: str) -> Truth | None:
    """What a perfect measurement would find, or None where the scene holds too little."""
    facts, canvas = scene.facts, scene.specimen.canvas
    per_canvas = scene.image.width / canvas.width
    if kind == "pattern":
        if facts.tilt_deg or not facts.spacing_nm:
            return None
        return Truth(facts.spacing_nm / scene.pixel_size_nm, None)
    if kind == "films":
        if not facts.size_mean_nm:
            return None
        return Truth(facts.size_mean_nm / scene.pixel_size_nm, facts.count)
    if kind == "fibres":
        ids = visible(canvas)
        if not len(ids):
            return None
        sizes = np.asarray(canvas.sizes)[ids]
        seen = np.bincount(canvas.owner.ravel(), minlength=len(canvas.sizes))[ids]
        # As the tool does: each fibre counts by the length that is seen.
        return Truth(_weighted_median(sizes, seen / sizes) * per_canvas, len(ids))
    labels = canvas.owner
    if kind == "pores":
        labels, _ = ndimage.label(canvas.owner == 0)
        ids = np.flatnonzero(np.bincount(labels.ravel()) > 12)[1:]
    else:
        ids = visible(canvas)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    whole = np.setdiff1d(ids, rim)
    if len(whole) < 5:
        return None
    areas = np.bincount(labels.ravel(), minlength=int(ids.max()) + 1)[whole]
    return Truth(float(np.median(2 * np.sqrt(areas / np.pi))) * per_canvas, len(whole))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def contrast_of(scene: Scene) -> float:
    """Difference of objects and ground in the picture without noise, over the noise."""
    owner = scene.specimen.canvas.owner > 0
    height, width = scene.clean.shape
    rows = np.arange(height) * owner.shape[0] // height
    columns = np.arange(width) * owner.shape[1] // width
    inside = owner[np.ix_(rows, columns)]
    if inside.all() or not inside.any():
        return 0.0
    difference = scene.clean[inside].mean() - scene.clean[~inside].mean()
    return float(abs(difference) / max(scene.facts.noise_grey, 1.0))


def is_of(scene: Scene, kind: str, level: Level, truth: Truth) -> bool:
    """Whether a scene keeps the limits of a difficulty."""
    facts = scene.facts
    if truth.size < level.pixels:
        return False
    if kind == "films":
        return True
    if contrast_of(scene) < level.contrast:
        return False
    if kind == "particles":
        return (facts.touching or 0) <= level.touching
    return kind != "fibres" or facts.coverage <= level.covered


def one_scene(seed: int, kind: str, name: str) -> dict | None:
    """Errors of one scene, or None if it is not of this kind and difficulty."""
    level = LEVELS[name]
    categories, specimens = SPECIMENS[kind]
    category = categories[seed % len(categories)]
    scene = render(seed, category, level.renderer, SIDE)
    if scene.facts.kind not in specimens:
        return None
    truth = truth_of(scene, kind)
    if truth is None or not is_of(scene, kind, level, truth):
        return None
    scale = Scale(scene.pixel_size_nm, "recorded")
    result = measure(scene.image, category=category, scale=scale)
    row = {"seed": seed, "category": category, "specimen": scene.facts.kind, "level": name}
    row |= {"kind": kind, "true_size": truth.size, "true_count": truth.count}
    row |= {"trusted": result.trusted, "reasons": list(result.reasons)}
    if result.trusted:
        in_nm = {"nm": 1, "µm": 1000, "px": scene.pixel_size_nm}[result.unit]
        statistics = result.statistics
        found = statistics.mean if kind == "films" else statistics.median
        if kind == "pattern":  # the nearest of the lattice's steps
            steps = [entry[f"pitch_{result.unit}"] for entry in result.objects]
            wanted = truth.size * scene.pixel_size_nm / in_nm
            found = min(steps, key=lambda step: abs(step - wanted))
        row["size_error"] = found * in_nm / scene.pixel_size_nm / truth.size - 1
        row["partial"] = result.partial
        if truth.count and result.count is not None and not result.partial:
            row["count_error"] = result.count / truth.count - 1
    return row


def may_be(seed: int, kind: str) -> bool:
    """Whether `render` will draw a maker whose specimens this kind measures: it saves rendering.

    It draws as `render` does; should that change, only time is lost.
    """
    categories, _ = SPECIMENS[kind]
    category = categories[seed % len(categories)]
    rng = np.random.default_rng([seed, 0])
    rng.integers(len(CATEGORIES))
    weights = np.array([weight for *_, weight in CATEGORIES[category]])
    maker = CATEGORIES[category][rng.choice(len(weights), p=weights / weights.sum())][0]
    return maker.__name__ in MAKERS


def simulated(
    scenes: int,
    workers: int,
    kinds: list[str],
    first_seed: int,
    journal: Path | None,
    levels: list[str] | None = None,
) -> list[dict]:
    """Rows of `scenes` scenes per kind and difficulty, also written to `journal` as they come."""
    rows = []
    with ProcessPoolExecutor(workers) as pool:
        for name in levels or LEVELS:
            for kind in kinds:
                found: list[dict] = []
                last = first_seed + 100 * scenes
                seeds = (seed for seed in range(first_seed, last) if may_be(seed, kind))
                job = partial(one_scene, kind=kind, name=name)
                while len(found) < scenes and (some := list(itertools.islice(seeds, workers))):
                    found += [row for row in pool.map(job, some) if row]
                rows += found[:scenes]
                if journal:
                    with journal.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in found[:scenes])
    return rows


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table: one row per kind and difficulty.

    "off by >" is how many of the trusted results have a size, or a count, that is further off than
    `FAR_OFF`. A result that is trusted but gives no count is in neither column of counts, nor is
    one of "stand out", which sizes only some of the objects.
    """
    far = f"{100 * FAR_OFF:.0f} %"
    lines = [
        "| kind | difficulty | scenes | abstains | stand out | size: median error | 90 % below | "
        f"off by > {far} | count: median error | off by > {far} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["kind"], row["level"]].append(row)
    for (kind, level), group in groups.items():
        sizes = np.abs([row["size_error"] for row in group if "size_error" in row])
        counts = np.abs([row["count_error"] for row in group if "count_error" in row])
        abstained = sum(not row["trusted"] for row in group)
        lines.append(
            f"| {kind} | {level} | {len(group)} | {abstained} "
            f"| {sum(row.get('partial', False) for row in group)} "
            f"| {_percent(sizes, 50)} | {_percent(sizes, 90)} | {_far_off(sizes)} "
            f"| {_percent(counts, 50)} | {_far_off(counts)} |"
        )
    return lines


def _far_off(errors: np.ndarray) -> str:
    return f"{int((errors > FAR_OFF).sum())} of {errors.size}" if errors.size else "–"


def _percent(errors: np.ndarray, percentile: int) -> str:
    return f"{100 * np.percentile(errors, percentile):.1f} %" if errors.size else "–"


def micrographs(folder: Path) -> list[dict]:
    """Rows of a dataset folder, with the path of each image."""
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    return [{**row, "path": folder / row["file_name"]} for row in map(json.loads, lines)]


def real_one(row: dict) -> dict:
    with Image.open(row["path"]) as image:
        image.load()
        # Whether it abstains does not depend on the scale, so the bar is not read.
        result = measure(image, category=row["category"], scale=Scale(None, None))
    return {"category": row["category"], "kind": result.kind, "trusted": result.trusted} | {
        "reasons": list(result.reasons),
        "unit": result.unit,
        "image_id": row["image_id"],
    }


def real(folder: Path, workers: int) -> list[str]:
    """Lines of a table: how often it abstains on real micrographs, by category."""
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(real_one, micrographs(folder)))
    lines = ["| category | micrographs | abstains | most frequent reason |", "|---|---|---|---|"]
    for category in sorted({row["category"] for row in rows}):
        group = [row for row in rows if row["category"] == category]
        refused = [row for row in group if not row["trusted"]]
        reasons = collections.Counter(reason for row in refused for reason in row["reasons"][:1])
        common = reasons.most_common(1)[0][0] if reasons else "–"
        lines.append(
            f"| {category} | {len(group)} | {100 * len(refused) / len(group):.0f} % | {common} |"
        )
    return lines


def hand_one(entry: tuple[str, dict, Path]) -> dict:
    image_id, by_eye, path = entry
    with Image.open(path) as image:
        image.load()
        result = measure(image, kind=by_eye["kind"], scale=Scale(None, None))
    median = result.statistics.median if result.trusted else None
    return {"image_id": image_id, **by_eye, "median": median, "partial": result.partial}


def hand(folder: Path, workers: int) -> list[str]:
    """Lines of a table: the tool against lengths read by eye, in pixels."""
    paths = {path.stem: path for path in folder.glob("**/images/*")}
    entries = [(k, v, paths[k]) for k, v in json.loads(BY_HAND.read_text("utf-8")).items()]
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(hand_one, entries))
    lines = ["| image | set | kind | by eye | tool | error |", "|---|---|---|---|---|---|"]
    for row in rows:
        eye = f"{np.median(row['lengths_px']):.1f}" if row["lengths_px"] else "not measurable"
        tool, error = "abstains", "–"
        if row["median"] is not None:
            tool = f"{row['median']:.1f}" + (" (stand out)" if row["partial"] else "")
            if row["lengths_px"]:
                error = f"{100 * (row['median'] / np.median(row['lengths_px']) - 1):+.0f} %"
        lines.append(
            f"| {row['image_id']} | {row['set']} | {row['kind']} | {eye} | {tool} | {error} |"
        )
    lines += [
        "",
        "| set | measurable | measured | within 10 % | within 25 % | not measurable | measured |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        able = [row for row in rows if row["set"] == name and row["lengths_px"]]
        unable = [row for row in rows if row["set"] == name and not row["lengths_px"]]
        errors = np.abs(
            [row["median"] / np.median(row["lengths_px"]) - 1 for row in able if row["median"]]
        )
        lines.append(
            f"| {name} | {len(able)} | {len(errors)} | {int((errors <= 0.1).sum())} "
            f"| {int((errors <= 0.25).sum())} | {len(unable)} "
            f"| {sum(row['median'] is not None for row in unable)} |"
        )
    return lines


def read_one(row: dict) -> None:
    with Image.open(row["path"]) as image:
        image.load()
        read_scale_bar(image)


def speed(folder: Path, count: int) -> list[str]:
    """Micrographs per second, measured one after the other and by two processes.

    The bar is read in one part and the sizes are measured, without reading it, in the other.
    """
    rows = micrographs(folder)[:count]
    lines = ["| | 1 process | 2 processes |", "|---|---|---|"]
    for name, one in (("reading the scale bar", read_one), ("measuring", real_one)):
        rates = []
        for workers in (1, 2):
            with ProcessPoolExecutor(workers) as pool:
                list(pool.map(one, rows[: 2 * workers]))  # models are loaded once
                start = time.perf_counter()
                list(pool.map(one, rows))
                rates.append(f"{len(rows) / (time.perf_counter() - start):.2f} per s")
        lines.append(f"| {name} | {' | '.join(rates)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measured sizes against what is true.")
    parser.add_argument("part", choices=("simulated", "real", "hand", "speed"))
    parser.add_argument("folder", nargs="?", type=Path, help="of real micrographs")
    parser.add_argument(
        "--scenes",
        type=int,
        default=40,
        help="scenes per kind and difficulty, or micrographs of `speed` (40)",
    )
    parser.add_argument("--kinds", nargs="+", default=list(SPECIMENS), choices=list(SPECIMENS))
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--first_seed", type=int, default=1000, help="of the scenes (1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--rows", type=Path, help="append one JSON line per scene here")
    args = parser.parse_args()
    if args.part == "simulated":
        rows = simulated(
            args.scenes, args.workers, args.kinds, args.first_seed, args.rows, args.levels
        )
        print(*table(rows), sep="\n")
        return
    if args.folder is None:
        parser.error(f"{args.part} needs the folder of real micrographs")
    parts = {
        "real": partial(real, workers=args.workers),
        "hand": partial(hand, workers=args.workers),
    }
    parts["speed"] = partial(speed, count=args.scenes)
    print(*parts[args.part](args.folder), sep="\n")


if __name__ == "__main__":
    main()
