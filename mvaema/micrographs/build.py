"""Builds a micrograph dataset: Parquet shards that `datasets.load_dataset(folder)` reads back.

What is special about it:
- rows are written one by one, and at most one row group is in memory;
- a shard gets its name (`train-00000.parquet`) only when it is complete and on the disk. Rerun a
  killed build to resume it;
- a rebuild reads new and changed files only;
- images are embedded as PNG made from bare pixels, without metadata and file names. The names
  stay in a private folder beside the dataset.
"""

import json
import multiprocessing
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.files import replacing
from mvaema.micrographs.ledger import Ledger
from mvaema.micrographs.microscope import UnreadableMicrograph, read_micrograph
from mvaema.micrographs.schema import pixel_hash
from mvaema.micrographs.shards import (
    SHARD_BYTES,
    SPLITS,
    ShardWriter,
    clean_png,
    shard_paths,
    write_shards,
)
from mvaema.micrographs.sources import Entry, Problem


@dataclass(frozen=True)
class ReadMicrograph:
    """What a build keeps of a file that was read."""

    image_id: str
    png: bytes
    pixel_size_nm: float | None


@dataclass(frozen=True)
class ReadOptions:
    """How files become images.

    Attributes:
        crop_info_bar: cut off a burnt-in info bar, which may name operators and lots.
        max_side: longest side in pixels; larger images are scaled down.
    """

    crop_info_bar: bool = False
    max_side: int | None = None


@dataclass
class BuildReport:
    """The result of a build, in numbers of files, except for `rows`.

    Attributes:
        rows: rows in the split now.
        read: files read in this run, with or without success.
        unchanged: files whose row was there already.
        duplicates: files with the pixels of an earlier file.
        missing: files that gave a row in an earlier run and are not in the source any more.
        failed: reason -> files that cannot be read.
        ignored: suffix -> files that are not micrographs by their suffix.
        table: the private table that lists every file with its status.
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
            lines.append(f"{self.duplicates:,} files have the pixels of another file and no row.")
        if self.missing:
            lines.append(f"{self.missing:,} files are gone; their rows are kept without --prune.")
        for title, counts in (("cannot be read", self.failed), ("were ignored", self.ignored)):
            if counts:
                reasons = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
                lines.append(f"{counts.total():,} files {title}: {reasons}.")
        lines.append(f"All files with their status (private): {self.table}")
        return "\n".join(lines)


def read_entry(
    content: Path | bytes, suffix: str, pixel_size_nm: float | None, options: ReadOptions
) -> ReadMicrograph | tuple[str, str]:
    """Read one micrograph, in a worker process. Returns (reason, message) if it cannot be read.

    `pixel_size_nm`, if given, is that of the stored file and replaces the instrument's.
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
        return ReadMicrograph(pixel_hash(image), clean_png(image), micrograph.pixel_size_nm)
    except UnreadableMicrograph as error:
        return error.reason, str(error).removeprefix(f"{error.path}: ")
    except Exception as error:  # one file must not stop a build of a million
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
    workers: int = 1,
    prune: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> BuildReport:
    """Bring one split of a dataset up to date with a source.

    Only new and changed files are read. Files with the same pixels give one row, that of the first
    of them. A file that cannot be read is recorded with its reason and tried again next time; a
    row that it gave before is kept. If only a category, group or scale changed, the row is
    rewritten and the file is not read again.

    The private folder `{folder}.private` holds `{split}.csv`: every file, and its image id or the
    reason why it has none. It contains file names and is not part of the dataset.

    Args:
        source: one of `mvaema.micrographs.sources`, or any iterable of entries.
        folder: of the dataset.
        split: `train`, `validation` or `test`.
        options: how files become images.
        workers: processes that read files; 1 reads in this process.
        prune: drop the rows of files that are not in the source any more. Has no effect in a run
            in which part of the source could not be listed.
        shard_bytes: size at which a shard is closed.

    Raises:
        RuntimeError: another build of this split is running, or a worker process died.
        ValueError: the split is none of the three, or the folder holds shards that were not built
            by this function.
    """
    folder = Path(folder).absolute()
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    private = folder.with_name(folder.name + ".private")
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    shards = {path.name for path in shard_paths(folder, split)}
    with closing(Ledger(private / f"{split}.sqlite", shards)) as ledger:
        run = _Build(ledger, options or ReadOptions(), workers)
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
        return _report(run, Counter(getattr(source, "ignored", {})), table)


def _report(run: "_Build", ignored: Counter, table: Path) -> BuildReport:
    statuses, failed = Counter(), Counter()
    for _, status, _, _, reason, _ in run.ledger.statuses():
        statuses[status] += 1
        if status == "failed":
            failed[reason] += 1
    return BuildReport(
        rows=run.ledger.count_rows(),
        read=run.read,
        unchanged=run.unchanged,
        duplicates=statuses["duplicate"],
        missing=statuses["missing"],
        failed=failed,
        ignored=ignored,
        table=table,
    )


class _Build:
    """One pass over a source: yields the new rows and records everything in the ledger."""

    def __init__(self, ledger: Ledger, options: ReadOptions, workers: int):
        self.ledger, self.options, self.workers = ledger, options, workers
        self.read = self.unchanged = 0
        self.hidden = False  # part of the source could not be listed: its files are not gone
        self._unpublished = {}  # image id -> columns, of rows in a shard without a name yet

    def new_rows(self, entries: Iterable[Entry | Problem]) -> Iterator[dict]:
        """The rows that the dataset does not have yet."""
        for (entry, version, position), result in self._results(self._to_read(entries)):
            self.read += 1
            if not isinstance(result, ReadMicrograph):
                self.ledger.record_failed(entry.name, position, *result)
                continue
            image_id = result.image_id
            columns = _columns(entry, image_id, result.pixel_size_nm)
            text = json.dumps(columns, ensure_ascii=False)
            self.ledger.record_read(
                entry.name, version, position, image_id, result.pixel_size_nm, text
            )
            if image_id not in self._unpublished and not self.ledger.has_row(image_id):
                self._unpublished[image_id] = text
                yield {"image": {"bytes": result.png}, "image_id": image_id, **columns}

    def record_shard(self, path: Path, image_ids: list[str]):
        """Called when a shard is complete, before it gets its name."""
        self.ledger.record_shard(path.name, {i: self._unpublished.pop(i) for i in image_ids})

    def _to_read(self, entries: Iterable[Entry | Problem]) -> Iterator[tuple[Entry, str, int]]:
        for position, entry in enumerate(entries):
            if isinstance(entry, Problem):
                self.hidden |= entry.hides_more
                self.ledger.record_failed(entry.name, position, entry.reason, entry.message)
                continue
            # Other options or another stated pixel size make another row.
            stated = entry.fields.get("pixel_size_nm")
            version = f"{entry.version} {self.options} {stated}"
            known = self.ledger.unchanged(entry.name, version)
            if known is None:
                yield entry, version, position
                continue
            self.unchanged += 1
            columns = json.dumps(_columns(entry, *known), ensure_ascii=False)
            self.ledger.record_read(entry.name, version, position, *known, columns)

    def _results(self, tasks: Iterable[tuple[Entry, str, int]]) -> Iterator[tuple]:
        """(task, result of `read_entry`), in order; few files at a time are in memory."""

        def submitted(entry: Entry, submit: Callable) -> Future:
            try:
                content = entry.content if isinstance(entry.content, Path) else entry.content()
            except Exception as error:  # the entry's part of an archive is damaged
                return _done(_failure(error))
            return submit(
                read_entry, content, entry.suffix, entry.fields.get("pixel_size_nm"), self.options
            )

        if self.workers == 1:
            for task in tasks:
                yield task, submitted(task[0], lambda f, *args: _done(f(*args))).result()
            return
        pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"))
        try:
            waiting = deque()
            for task in tasks:
                waiting.append((task, submitted(task[0], pool.submit)))
                if len(waiting) == 4 * self.workers:
                    task, future = waiting.popleft()
                    yield task, future.result()
            for task, future in waiting:
                yield task, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker process died at {task[0].name} or shortly after it. Complete shards are "
                "kept. Rerun with --workers 1 to see at which file."
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
    """Give a shard's rows the columns that the ledger wants, and drop rows it does not want."""
    wanted = ledger.wanted(path.name)
    if not wanted:
        path.unlink()
    else:
        with pq.ParquetFile(path) as old, replacing(path) as file, ShardWriter(file) as new:
            for batch in old.iter_batches(batch_size=100, columns=["image", "image_id"]):
                for row in batch.to_pylist():
                    if row["image_id"] in wanted:
                        new.write(row | json.loads(wanted[row["image_id"]]))
    ledger.replace_shard(path.name, wanted)
