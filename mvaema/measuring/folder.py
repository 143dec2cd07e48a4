"""Measures a file, or all micrographs of a folder, into tables and pictures; resumes after a stop.

What is special about it:
- each finished file is a line of `measured.jsonl`; a run that was killed goes on after the last;
- a file that changed is measured again, one that could not be read is tried again;
- other settings in the same folder are refused: a table never mixes two ways of measuring;
- the tables are written anew from all lines, whole or not at all.
"""

import csv
import io
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from mvaema.files import JsonLines, write_bytes, write_json, write_text
from mvaema.measuring.measure import measure
from mvaema.measuring.overlay import draw_overlay, histogram_png
from mvaema.micrographs.microscope import SUFFIXES, read_micrograph
from mvaema.micrographs.refusals import UnreadableMicrograph

# Raise it when the same file and settings come to give other numbers: then an old folder is
# refused rather than mixed with new numbers.
MEASURING = 2
COLUMNS = (
    *("file", "status", "kind", "chosen_by", "quantity", "unit", "count", "seen"),
    *("partial", "mean", "median", "std", "p5", "p25", "p75", "p95", "coverage"),
    *("pixel_size_nm", "scale_source", "reasons", "notes"),
)


@dataclass(frozen=True)
class Settings:
    """How files are measured; see `mvaema.measuring.measure.measure`."""

    kind: str | None = None
    category: str | None = None
    pixel_size_nm: float | None = None
    region: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        entries: one dictionary per file, as in `images.json`.
        measured: files that this run measured; the others were there already.
    """

    entries: list[dict]
    measured: int

    @property
    def statuses(self) -> Counter:
        return Counter(entry["status"] for entry in self.entries)

    def __str__(self) -> str:
        s = self.statuses
        kept = len(self.entries) - self.measured
        return (
            f"{s['measured']} measured, {s['abstained']} without numbers that can be trusted, "
            f"{s['unreadable']} could not be read ({kept} kept from an earlier run)."
        )


def find_files(source: Path) -> dict[str, Path]:
    """Names of results to files, in order: a file itself, or the micrographs of a folder.

    Raises:
        ValueError: there is no such file, or no micrograph in the folder.
    """
    if source.is_file():
        return {_stem(source.name): source}
    if not source.is_dir():
        raise ValueError(f"{source}: there is no such file or folder; check the path.")
    paths = sorted(
        path
        for path in source.rglob("*")
        if path.name.lower().endswith(SUFFIXES)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    if not paths:
        raise ValueError(
            f"{source}: no micrograph in this folder; expected files that end in "
            f"{', '.join(SUFFIXES)}."
        )
    relative = ["__".join(path.relative_to(source).parts) for path in paths]
    stems = Counter(_stem(name) for name in relative)
    names = [name if stems[_stem(name)] > 1 else _stem(name) for name in relative]
    return dict(zip(names, paths, strict=True))


def _stem(name: str) -> str:
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


def measure_folder(
    source: Path,
    output_dir: Path,
    settings: Settings,
    workers: int = 1,
    show: Callable[[str], None] = tqdm.write,
) -> Report:
    """Measure a file or a folder into `output_dir`; resumes what is there.

    Args:
        show: takes one line per file, with its result.

    Raises:
        ValueError: nothing to measure, or `output_dir` holds results of other settings.
    """
    files = find_files(source)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("overlays", "histograms"):
        (output_dir / name).mkdir(exist_ok=True)
    journal = JsonLines(output_dir / "measured.jsonl")
    _check_settings(journal, settings, output_dir)
    done = {row["file"]: row for row in journal.rows[1:]}
    kept = {name: row for name, row in done.items() if _is_current(row, files.get(name))}
    todo = [(name, path) for name, path in files.items() if name not in kept]
    jobs = [(name, path, output_dir, settings) for name, path in todo]
    with tqdm(total=len(files), initial=len(kept), unit=" files", desc="measuring") as bar:
        for row in _results(jobs, workers):
            journal.append([row])
            kept[row["file"]] = row
            show(f"{row['file']}: {row['sentence']}")
            bar.update()
    rows = [kept[name] for name in files]
    _write_tables(output_dir, rows, settings)
    return Report(rows, len(todo))


def _check_settings(journal: JsonLines, settings: Settings, output_dir: Path) -> None:
    wanted = {"settings": _plain(settings), "measuring": MEASURING}
    if not journal.rows:
        journal.append([wanted])
        return
    found = journal.rows[0]
    if found != wanted:
        before, now = found.get("settings", {}), wanted["settings"]
        changed = [
            f"{k}: {before.get(k)} before, {v} now" for k, v in now.items() if before.get(k) != v
        ]
        what = "; ".join(changed) or "an earlier version measured"
        raise ValueError(
            f"{output_dir} holds results of other settings ({what}): give another --output_dir, "
            "or remove this folder to measure all files again."
        )


def _plain(settings: Settings) -> dict:
    values = asdict(settings)
    return values | {"region": settings.region and [int(side) for side in settings.region]}


def _is_current(row: dict, path: Path | None) -> bool:
    """Whether a line of the journal is still true of its file."""
    return path is not None and row["status"] != "unreadable" and row["stamp"] == _stamp(path)


def _stamp(path: Path) -> list[int]:
    try:
        info = path.stat()
    except OSError:
        return []
    return [info.st_size, info.st_mtime_ns]


def _results(jobs: list[tuple], workers: int) -> Iterator[dict]:
    if workers <= 1 or len(jobs) < 2:
        yield from (_measure_file(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_measure_file, *zip(*jobs, strict=True))


def _measure_file(name: str, path: Path, output_dir: Path, settings: Settings) -> dict:
    """The journal's line of one file, whose pictures it writes first."""
    row = {"file": name, "stamp": _stamp(path)}
    try:
        micrograph = read_micrograph(path)
    except UnreadableMicrograph as error:
        why = str(error).removeprefix(f"{error.path}: ")
        return row | {"status": "unreadable", "reasons": [why], "sentence": f"Not read: {why}"}
    result = measure(
        micrograph.image,
        kind=settings.kind,
        category=settings.category,
        pixel_size_nm=settings.pixel_size_nm,
        recorded_nm=micrograph.pixel_size_nm,
        region=settings.region,
        info_bar=micrograph.info_bar,
    )
    stream = io.BytesIO()
    draw_overlay(micrograph.image, result).save(stream, "PNG")
    write_bytes(output_dir / "overlays" / f"{name}.png", stream.getvalue())
    histogram = output_dir / "histograms" / f"{name}.png"
    if result.trusted and result.kind not in ("films", "pattern"):
        write_bytes(histogram, histogram_png([result], name))
    else:
        histogram.unlink(missing_ok=True)
    return row | {"status": "measured" if result.trusted else "abstained"} | result.as_json()


def _write_tables(output_dir: Path, rows: list[dict], settings: Settings) -> None:
    """The tables per image and per object, and the methods, from all lines of the journal."""
    images, objects = [], []
    for row in rows:
        statistics = row.get("statistics") or {}
        entry = {name: row.get(name, statistics.get(name)) for name in COLUMNS}
        images.append(entry | row.get("facts", {}))
        objects += [{"file": row["file"], "kind": row["kind"], **o} for o in row.get("objects", ())]
    write_json(
        output_dir / "images.json",
        {
            "settings": _plain(settings),
            "images": [
                {k: v for k, v in row.items() if k not in ("objects", "stamp")} for row in rows
            ],
        },
    )
    write_json(output_dir / "objects.json", {"objects": objects})
    joined = {"reasons": "; ", "notes": "; "}
    for entry in images:
        for name, between in joined.items():
            entry[name] = between.join(entry[name] or ())
    write_text(output_dir / "images.csv", _csv(images))
    write_text(output_dir / "objects.csv", _csv(objects))
    lines = [f"{row['file']}: {row.get('methods', row['sentence'])}" for row in rows]
    write_text(output_dir / "methods.txt", "\n".join(lines) + "\n")


def _csv(rows: list[dict]) -> str:
    """Rows as CSV with all their columns; the unit is in a column's name or in `unit`."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns or ["file"])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
