"""Building a micrograph dataset: Parquet shards that `datasets.load_dataset(folder)` reads back.

    python -m mvaema.micrographs.build folder ~/micrographs data/sem
    python -m mvaema.micrographs.build table files.csv data/sem --columns path=file category=label
    python -m mvaema.micrographs.build dataset owner/name data/sem --split train
    python -m mvaema.micrographs.build aversa ~/aversa data/aversa --download

Each subcommand's `--help` is its documentation. What is special about it:
- rows come one by one and are never all in memory: at most one row group is;
- a shard gets its name (`train-00000.parquet`) only when it is complete and on the disk, so a run
  that is killed leaves complete shards, and the next run of the same command goes on from there;
- a rebuild reads new and changed files only;
- images are embedded as PNG made from bare pixels: no metadata, no file name enters the dataset.
  The names stay in a private folder beside it.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.micrographs.aversa import AversaSource, fetch_archives
from mvaema.micrographs.ledger import Ledger
from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph
from mvaema.micrographs.schema import FEATURES, pixel_hash
from mvaema.micrographs.shards import (
    SHARD_BYTES,
    SPLITS,
    ShardFile,
    clean_png,
    shard_paths,
    write_shards,
)
from mvaema.micrographs.sources import (
    GROUPINGS,
    STEM_PATTERN,
    DatasetSource,
    Entry,
    FolderSource,
    Labelling,
    Problem,
    TableSource,
)


@dataclass(frozen=True)
class Reading:
    """What is kept of one file that was read."""

    image_id: str
    png: bytes
    pixel_size_nm: float | None


@dataclass(frozen=True)
class ReadOptions:
    """How files become images.

    Attributes:
        crop_info_bar: cut off a burnt-in info bar (it names operators and lots).
        max_side: longest side in pixels; larger images are scaled down.
    """

    crop_info_bar: bool = False
    max_side: int | None = None


@dataclass
class BuildReport:
    """What a build came to, in files (`rows`: in rows).

    Attributes:
        rows: rows that the split holds now.
        read: files read in this run, whatever came of it.
        unchanged: files whose row was there already.
        duplicates: files whose pixels another file's row holds.
        missing: files that gave a row once and are not in the source any more.
        failed: reason -> files that could not be read.
        ignored: suffix -> files that are no micrographs by their name.
        table: the private table of every file and what became of it.
    """

    rows: int
    read: int
    unchanged: int
    duplicates: int
    missing: int
    failed: Counter
    ignored: Counter
    table: Path

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows; {self.read:,} files read, {self.unchanged:,} unchanged."]
        if self.duplicates:
            lines.append(f"{self.duplicates:,} files have the pixels of another: one row for all.")
        if self.missing:
            lines.append(f"{self.missing:,} files are gone; their rows stay unless pruned.")
        for title, counts in (("not read", self.failed), ("no micrograph", self.ignored)):
            if counts:
                reasons = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
                lines.append(f"{counts.total():,} files {title}: {reasons}.")
        lines.append(f"File by file, for you only: {self.table}")
        return "\n".join(lines)


def read_entry(
    content: Path | bytes, suffix: str, pixel_size_nm: float | None, options: ReadOptions
) -> Reading | tuple[str, str]:
    """Read one micrograph, or tell (reason, message) why not. Runs in a worker process.

    `pixel_size_nm`, where stated, is that of the file as it is and overrides the instrument's.
    """
    try:
        if isinstance(content, bytes):
            with tempfile.NamedTemporaryFile(suffix=suffix) as file:
                file.write(content)
                file.flush()
                micrograph = read_micrograph(file.name)
        else:
            micrograph = read_micrograph(content)
        if pixel_size_nm is not None:
            micrograph = replace(micrograph, pixel_size_nm=pixel_size_nm)
        if options.crop_info_bar:
            micrograph = micrograph.crop_info_bar()
        if options.max_side is not None:
            micrograph = micrograph.resize(options.max_side)
        image = micrograph.image
        return Reading(pixel_hash(image), clean_png(image), micrograph.pixel_size_nm)
    except UnreadableMicrograph as error:
        return error.reason, str(error).removeprefix(f"{error.path}: ")
    except Exception as error:  # a parser may fail in any way; one file must not stop a million
        return _failure(error)


def _failure(error: Exception) -> tuple[str, str]:
    return "unreadable", f"{type(error).__name__}: {error}"


def _done(result) -> Future:
    future = Future()
    future.set_result(result)
    return future


def build(
    source: Iterable[Entry | Problem],
    folder: str | Path,
    split: str = "train",
    *,
    options: ReadOptions | None = None,
    num_proc: int = 1,
    prune: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> BuildReport:
    """Bring one split of a dataset up to date with a source.

    Only new and changed files are read. A file that fails is recorded with its reason, tried
    again next time, and leaves a row it gave before as it was. Files with the same pixels give
    one row, the first one's. A changed category, group or scale is rewritten without reading the
    file again.

    Beside `folder`, in `{folder}.private`, the owner finds `{split}.csv`: every file, the
    image id it became or the reason why not. It holds file names: it is not part of the dataset.

    Args:
        source: one of `mvaema.micrographs.sources`, or any iterable of entries.
        folder: of the dataset.
        split: `train`, `validation` or `test`.
        options: how files become images.
        num_proc: processes that read files.
        prune: drop the rows of files that the source does not have any more (not in a run that
            could not look everywhere).
        shard_bytes: size at which a shard is closed.

    Raises:
        RuntimeError: another build of this split is running, or a reading process died.
        ValueError: the folder holds shards that were not built by this function.
    """
    folder = Path(folder).absolute()
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    options = options or ReadOptions()
    private = folder.with_name(folder.name + ".private")
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    shards = {path.name for path in shard_paths(folder, split)}
    ledger = Ledger(private / f"{split}.sqlite", shards)
    try:
        run = _Build(ledger, options, num_proc)
        total = len(source) if hasattr(source, "__len__") else None
        with tqdm(source, total=total, unit=" files", desc=f"{folder.name}/{split}") as bar:
            write_shards(
                run.new_rows(bar),
                folder,
                split,
                shard_bytes=shard_bytes,
                progress=False,
                before_rename=run.record_shard,
            )
        ledger.close_run(prune and not run.hidden)
        for shard in tqdm(ledger.stale_shards(), unit=" shards", desc="updating", leave=False):
            _rewrite_shard(folder / shard, ledger)
        table = private / f"{split}.csv"
        ledger.write_csv(table)
        statuses = Counter()
        failed = Counter()
        for _, status, _, _, reason, _ in ledger.statuses():
            statuses[status] += 1
            if status == "failed":
                failed[reason] += 1
        return BuildReport(
            rows=ledger.count_rows(),
            read=run.read,
            unchanged=run.unchanged,
            duplicates=statuses["duplicate"],
            missing=statuses["missing"],
            failed=failed,
            ignored=Counter(getattr(source, "ignored", {})),
            table=table,
        )
    finally:
        ledger.close()


class _Build:
    """One pass over a source: what is new comes out as rows, the rest goes to the ledger."""

    def __init__(self, ledger: Ledger, options: ReadOptions, num_proc: int):
        self.ledger, self.options, self.num_proc = ledger, options, num_proc
        self.read = self.unchanged = 0
        self.hidden = False  # something could not be listed: what it holds is not gone
        self._unpublished = {}  # image id -> columns, of rows that no named shard holds yet

    def new_rows(self, entries: Iterable[Entry | Problem]) -> Iterator[dict]:
        """The rows that the dataset has not; everything else is recorded."""
        for (entry, version, position), reading in self._readings(self._to_read(entries)):
            self.read += 1
            if not isinstance(reading, Reading):
                self.ledger.record_failed(entry.name, position, *reading)
                continue
            image_id = reading.image_id
            columns = _columns(entry, image_id, reading.pixel_size_nm)
            text = json.dumps(columns, ensure_ascii=False)
            self.ledger.record_read(
                entry.name, version, position, image_id, reading.pixel_size_nm, text
            )
            if image_id not in self._unpublished and not self.ledger.has_row(image_id):
                self._unpublished[image_id] = text
                yield {"image": {"bytes": reading.png}, "image_id": image_id, **columns}

    def record_shard(self, path: Path, image_ids: list[str]):
        """Called when a shard is complete, before it has its name."""
        self.ledger.record_shard(path.name, {i: self._unpublished.pop(i) for i in image_ids})

    def _to_read(self, entries: Iterable[Entry | Problem]) -> Iterator[tuple[Entry, str, int]]:
        for position, entry in enumerate(entries):
            if isinstance(entry, Problem):
                self.hidden |= entry.hides_more
                self.ledger.record_failed(entry.name, position, entry.reason, entry.message)
                continue
            # What the image was made with is part of what it is.
            stated = entry.fields.get("pixel_size_nm")
            version = f"{entry.version} {self.options} {stated}"
            known = self.ledger.unchanged(entry.name, version)
            if known is None:
                yield entry, version, position
                continue
            self.unchanged += 1
            columns = json.dumps(_columns(entry, *known), ensure_ascii=False)
            self.ledger.record_read(entry.name, version, position, *known, columns)

    def _readings(self, tasks: Iterable[tuple[Entry, str, int]]) -> Iterator[tuple]:
        """(task, what reading it gave), in order; few files at a time are in memory."""

        def submitted(entry: Entry, submit: Callable) -> Future:
            try:
                content = entry.content if isinstance(entry.content, Path) else entry.content()
            except Exception as error:  # of an archive that is damaged just there
                return _done(_failure(error))
            return submit(
                read_entry, content, entry.suffix, entry.fields.get("pixel_size_nm"), self.options
            )

        if self.num_proc == 1:
            for task in tasks:
                yield task, submitted(task[0], lambda f, *args: _done(f(*args))).result()
            return
        pool = ProcessPoolExecutor(self.num_proc, multiprocessing.get_context("spawn"))
        try:
            waiting = deque()
            for task in tasks:
                waiting.append((task, submitted(task[0], pool.submit)))
                if len(waiting) == 4 * self.num_proc:
                    task, future = waiting.popleft()
                    yield task, future.result()
            for task, future in waiting:
                yield task, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a process that read files died, at {task[0].name} or shortly after; complete "
                "shards are kept. Run again, with num_proc=1 to see which file it is."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _columns(entry: Entry, image_id: str, pixel_size_nm: float | None) -> dict:
    """The row of an entry without its image."""
    columns = {"qa": [], **entry.fields, "pixel_size_nm": pixel_size_nm}
    if "caption" not in columns and columns.get("category") in CATEGORY_CAPTIONS:
        columns["caption"] = CATEGORY_CAPTIONS[columns["category"]]
    columns.setdefault("group", image_id)
    return columns


def _rewrite_shard(path: Path, ledger: Ledger):
    """Give a shard's rows the columns that the ledger wants, and drop those it does not."""
    wanted = ledger.wanted(path.name)
    if not wanted:
        path.unlink()
    else:
        with pq.ParquetFile(path) as old, ShardFile(path) as new:
            for batch in old.iter_batches(batch_size=100, columns=["image", "image_id"]):
                for row in batch.to_pylist():
                    if row["image_id"] in wanted:
                        new.write(row | json.loads(wanted[row["image_id"]]))
            new.close()
            new.publish()
    ledger.replace_shard(path.name, wanted)


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("input", help="what to build from: see above")
    add("output", type=Path, help="folder of the dataset; a private folder is kept beside it")
    add("--output_split", choices=SPLITS, default="train", help="split to build (train)")
    add("--crop_info_bar", action="store_true", help="cut off burnt-in info bars")
    add("--max_side", type=int, help="scale larger images down to this many pixels")
    add("--num_proc", type=int, default=1, help="processes that read files (1)")
    add("--prune", action="store_true", help="drop the rows of files that are gone")
    add(
        "--group_by",
        choices=GROUPINGS,
        default="image",
        help="what belongs to one specimen where no column says so: each image by itself "
        "(default), the files of one folder, or those whose names share a stem; only a pseudonym "
        "of the name enters the dataset",
    )
    add(
        "--group_pattern",
        default=STEM_PATTERN,
        metavar="REGEX",
        help="for --group_by stem: matches a whole stem, its first group names the specimen "
        "(default: all but the number at the end)",
    )
    labels = argparse.ArgumentParser(add_help=False)
    add = labels.add_argument
    add(
        "--synonyms",
        type=_pair,
        nargs="+",
        default=[],
        metavar="NAME=CATEGORY",
        help="other names of categories, as in wires=Nanowires",
    )
    add("--category", help="of micrographs for which nothing else says it")
    add("--source", help="origin, of micrographs for which nothing else says it")
    add("--licence", help="licence, of micrographs for which nothing else says it")
    columns = argparse.ArgumentParser(add_help=False)
    columns.add_argument(
        "--columns",
        type=_pair,
        nargs="+",
        default=[],
        metavar="COLUMN=THEIRS",
        help="columns that have another name there, as in category=label",
    )

    parser = argparse.ArgumentParser(
        prog="python -m mvaema.micrographs.build",
        description="Build a micrograph dataset, or bring one up to date.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "folder",
        parents=[common, labels],
        help="a folder of files",
        description="INPUT is a folder; all micrographs below it are read. Folders named like a "
        "category, or like a synonym of one, label what they hold.",
    )
    table = commands.add_parser(
        "table",
        parents=[common, labels, columns],
        help="a CSV, JSONL or Parquet table of files",
        description=f"INPUT is a table with the columns {', '.join(TableSource.COLUMNS)}, of "
        "which only path (or file_name) must be there.",
    )
    table.add_argument("--ignore", nargs="+", default=[], help="columns of the table to leave out")
    dataset = commands.add_parser(
        "dataset",
        parents=[common, labels, columns],
        help="a Hugging Face dataset, local or on the Hub",
        description="INPUT is a Hub id or the folder of a dataset. Columns named as in the schema "
        f"({', '.join(FEATURES)}) are taken over, others left out.",
    )
    dataset.add_argument("--split", default="train", help="split to read (train)")
    dataset.add_argument("--config", help="configuration of the dataset, where it has several")
    aversa = commands.add_parser(
        "aversa",
        parents=[common],
        help="the public SEM dataset of Aversa et al. 2018",
        description="INPUT is a folder with its archives (Biological.tar, ...).",
    )
    aversa.add_argument(
        "--download", action="store_true", help="first fetch the archives that are not there"
    )
    return parser


def _source(args: argparse.Namespace) -> FolderSource | TableSource | DatasetSource | AversaSource:
    grouping = {"group_by": args.group_by, "group_pattern": args.group_pattern}
    if args.command == "aversa":
        if args.download:
            fetch_archives(args.input)
        return AversaSource(args.input, Labelling(**grouping))
    stated = {name: getattr(args, name) for name in ("category", "source", "licence")}
    defaults = {name: value for name, value in stated.items() if value is not None}
    labelling = Labelling(dict(args.synonyms), defaults=defaults, **grouping)
    if args.command == "folder":
        return FolderSource(args.input, labelling)
    if args.command == "table":
        return TableSource(args.input, labelling, dict(args.columns), tuple(args.ignore))
    source = DatasetSource(args.input, args.split, labelling, dict(args.columns), args.config)
    if source.left_out:
        print(f"Columns left out: {', '.join(source.left_out)}")
    return source


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit status: 1 when there is no row in the end."""
    args = _parser().parse_args(argv)
    try:
        report = build(
            _source(args),
            args.output,
            args.output_split,
            options=ReadOptions(args.crop_info_bar, args.max_side),
            num_proc=args.num_proc,
            prune=args.prune,
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Complete shards are kept; the same command goes on.", file=sys.stderr)
        return 130
    print(report)
    return 0 if report.rows else 1


if __name__ == "__main__":
    sys.exit(main())
