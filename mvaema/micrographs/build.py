"""Builds a micrograph dataset: Parquet shards that `datasets.load_dataset(folder)` reads back.

What is special about it:
- rows are written one by one, and at most one row group is in memory;
- a shard gets its name (`train-00000.parquet`) only when it is complete and on the disk. Rerun a
  killed build to resume it;
- a rebuild reads new and changed files only, and does not try again what cannot be read;
- files with the same pixels give one row, which knows what any of them states;
- images are embedded as PNG made from bare pixels, without metadata and file names. The names
  stay in a private folder beside the dataset.
"""

import json
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from mvaema.files import replacing
from mvaema.micrographs.ledger import FileVersion, Ledger, to_json, usable
from mvaema.micrographs.reading import (
    PASSING,
    READING,
    REFUSED,
    ReadMicrograph,
    ReadOptions,
    failure,
    read_entry,
    reader_version,
)
from mvaema.micrographs.rows import FileColumns, merge
from mvaema.micrographs.schema import FEATURES
from mvaema.micrographs.shards import (
    SHARD_BYTES,
    SPLITS,
    ShardWriter,
    shard_paths,
    write_shards,
)
from mvaema.micrographs.sources import LINK, Entry, Problem


@dataclass
class BuildReport:
    """The result of a build, in numbers of files unless they are called rows.

    Attributes:
        rows: rows in the split now.
        with_pixel_size: of these, rows whose pixel size is known.
        scales_read: of these, rows whose pixel size was read off the scale bar.
        scales_contrary: rows whose scale bar contradicts the pixel size that is recorded or typed.
        bars_cut, bars_left: of these, rows whose info bar was cut off, or is in the image.
        read: files read in this run, with or without success.
        unchanged: files whose row was there already.
        duplicates: files with the pixels of an earlier file.
        missing: files that gave a row in an earlier run and are not in the source any more.
        links: links to what the source holds itself.
        failed: reason -> files that cannot be read.
        not_tried: of these, files that did not change since they failed and were not read again.
        contradictions: column -> rows that leave it out because their files contradict each other.
        sidecars: files of settings that were read beside micrographs.
        ignored: suffix -> other files that are not micrographs by their suffix.
        table: the private table that lists every file with its status.
    """

    rows: int
    with_pixel_size: int
    scales_read: int
    scales_contrary: int
    bars_cut: int
    bars_left: int
    read: int
    unchanged: int
    duplicates: int
    missing: int
    links: int
    failed: Counter
    not_tried: int
    contradictions: Counter
    sidecars: int
    ignored: Counter
    table: Path

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows; {self.read:,} files read, {self.unchanged:,} unchanged.",
            f"{self.with_pixel_size:,} rows have a pixel size. {self.bars_cut:,} had an info bar, "
            "which was cut off.",
        ]
        if self.scales_read:
            lines.append(f"{self.scales_read:,} pixel sizes were read off scale bars.")
        if self.scales_contrary:
            lines.append(
                f"{self.scales_contrary:,} scale bars contradict the recorded pixel size, which "
                "was kept; the table below names their files."
            )
        if self.bars_left:
            lines.append(f"{self.bars_left:,} have an info bar; --crop_info_bar cuts it off.")
        if self.duplicates:
            lines.append(f"{self.duplicates:,} files have the pixels of another file and no row.")
        for column, count in self.contradictions.items():
            lines.append(
                f"{count:,} rows have no {column} because files with the same pixels contradict "
                "each other; the table below names them."
            )
        if self.links:
            lines.append(f"{self.links:,} links lead to files that are read at their own place.")
        if self.missing:
            lines.append(f"{self.missing:,} files are gone; their rows are kept without --prune.")
        if self.failed:
            lines.append(f"{self.failed.total():,} files cannot be read: {_listed(self.failed)}.")
        if self.not_tried:
            lines.append(
                f"{self.not_tried:,} of these have not changed since an earlier build and were "
                "not read again; --retry_failed reads them."
            )
        if self.sidecars:
            lines.append(f"{self.sidecars:,} sidecars were read with their micrographs.")
        if self.ignored:
            lines.append(f"{self.ignored.total():,} files were ignored: {_listed(self.ignored)}.")
        lines.append(f"All files with their status (private): {self.table}")
        return "\n".join(lines)


def _listed(counts: Counter) -> str:
    return ", ".join(
        f"{count:,} {what or 'without suffix'}" for what, count in counts.most_common()
    )


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
    retry_failed: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> BuildReport:
    """Bring one split of a dataset up to date with a source.

    Only new and changed files are read. If only a category, group or scale changed, the row is
    rewritten and the file is not read again. Files with the same pixels give one row, which has
    each column from the first of them that states it (`mvaema.micrographs.rows`).

    A file that cannot be read is recorded with its reason, and a row that it gave before is kept
    unless the file holds no micrograph at all. If the reason lies in its content, the file is read
    again only when it or the reader changes. Images of one grey level are such failures: all black
    frames have the same pixels, and would be one row for several specimens.

    Shards of an earlier version, which lack columns, get them before anything is added.

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
        retry_failed: read also files that could not be read before and have not changed.
        shard_bytes: size at which a shard is closed.

    Raises:
        RuntimeError: another build of this split is running, or a worker process died.
        OSError: the dataset or its private folder cannot be written.
        ValueError: the split is none of the three, or the folder holds shards that were not built
            by this function.
    """
    folder = Path(folder).absolute()
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    private = folder.with_name(folder.name + ".private")
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = private / f"{split}.sqlite"
    shards = {path.name for path in shard_paths(folder, split)}
    with usable(path), closing(Ledger(path, shards)) as ledger:
        run = _Build(ledger, options or ReadOptions(), workers, retry_failed)
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
        ledger.settle(prune and not run.hidden)
        for shard in tqdm(ledger.stale_shards(), unit=" shards", desc="updating", leave=False):
            _rewrite_shard(folder / shard, ledger)
        table = private / f"{split}.csv"
        ledger.write_csv(table)
        return _report(run, Counter(getattr(source, "ignored", {})), table)


def _report(run: "_Build", ignored: Counter, table: Path) -> BuildReport:
    ledger, statuses, failed = run.ledger, Counter(), Counter()
    for _, status, _, _, reason, _ in ledger.statuses():
        statuses[status] += 1
        if status == "failed":
            failed[reason] += 1
    sidecars, bars = ledger.count_sidecars(), ledger.count_facts("info_bar")
    return BuildReport(
        rows=ledger.count_rows(),
        with_pixel_size=ledger.count_rows("pixel_size_nm"),
        scales_read=ledger.count_facts("pixel_size_source")["read"],
        scales_contrary=ledger.count_facts("scale_bar_check")["contradicts"],
        bars_cut=bars["cut"],
        bars_left=bars["left"],
        read=run.read,
        unchanged=run.unchanged,
        duplicates=statuses["duplicate"],
        missing=statuses["missing"],
        links=statuses["link"],
        failed=failed,
        not_tried=run.not_tried,
        contradictions=ledger.count_contradictions(),
        sidecars=sidecars.total(),
        ignored=ignored - sidecars,
        table=table,
    )


class _Build:
    """One pass over a source: yields the new rows and records everything in the ledger."""

    def __init__(self, ledger: Ledger, options: ReadOptions, workers: int, retry_failed: bool):
        self.ledger, self.options, self.workers = ledger, options, workers
        self.retry_failed = retry_failed
        self.read = self.unchanged = self.not_tried = 0
        self.hidden = False  # part of the source could not be listed: its files are not gone
        self._unpublished = {}  # image id -> columns, of rows in a shard without a name yet

    def new_rows(self, entries: Iterable[Entry | Problem]) -> Iterator[dict]:
        """The rows that the dataset does not have yet."""
        for (entry, version, position), result in self._results(self._to_read(entries)):
            self.read += 1
            if not isinstance(result, ReadMicrograph):
                reason, message = result
                remembered = None if reason in PASSING else version
                self.ledger.record_failed(
                    entry.name, position, reason, message, remembered, reason in REFUSED
                )
                continue
            image_id = result.image_id
            columns = self._record(entry, version, position, image_id, result.facts)
            if image_id not in self._unpublished and not self.ledger.has_row(image_id):
                row, _ = merge(image_id, [FileColumns(columns)])
                self._unpublished[image_id] = to_json(row)
                yield {"image": {"bytes": result.png}, "image_id": image_id, **row}

    def _record(
        self, entry: Entry, version: FileVersion, position: int, image_id: str, facts: dict
    ) -> dict:
        """Record a file that was read, now or before. Returns the columns that it states."""
        columns = {name: facts[name] for name in FEATURES if name in facts}
        # The pixel size in `facts` follows from the stated one, for the image as it became.
        columns |= {name: v for name, v in entry.fields.items() if name != "pixel_size_nm"}
        self.ledger.record_read(entry.name, version, position, image_id, facts, columns)
        return columns

    def record_shard(self, path: Path, image_ids: list[str]):
        """Called when a shard is complete, before it gets its name."""
        self.ledger.record_shard(path.name, {i: self._unpublished.pop(i) for i in image_ids})

    def _to_read(
        self, entries: Iterable[Entry | Problem]
    ) -> Iterator[tuple[Entry, FileVersion, int]]:
        for position, entry in enumerate(entries):
            if isinstance(entry, Problem):
                self._record_problem(entry, position)
                continue
            version = self._version(entry)
            known = self.ledger.unchanged(entry.name, version)
            failure = None if self.retry_failed else self.ledger.failed_before(entry.name, version)
            if known is not None:
                self.unchanged += 1
                self._record(entry, version, position, *known)
            elif failure is not None:
                self.not_tried += 1
                self.ledger.record_failed(entry.name, position, *failure, version)
            else:
                yield entry, version, position

    def _record_problem(self, problem: Problem, position: int):
        self.hidden |= problem.hides_more
        if problem.reason == LINK:
            self.ledger.record_link(problem.name, position, problem.message)
        else:
            self.ledger.record_failed(problem.name, position, problem.reason, problem.message)

    def _version(self, entry: Entry) -> FileVersion:
        # Other options or another stated pixel size make another row.
        reading = f"{READING} {self.options.version} {entry.fields.get('pixel_size_nm')}"
        failing = f"{reading} {reader_version()} {Image.MAX_IMAGE_PIXELS}"
        return FileVersion(entry.version, reading, failing)

    def _results(self, tasks: Iterable[tuple[Entry, FileVersion, int]]) -> Iterator[tuple]:
        """(task, result of `read_entry`), in order; few files at a time are in memory."""

        def submitted(entry: Entry, submit: Callable) -> Future:
            try:
                content = entry.content if isinstance(entry.content, Path) else entry.content()
            except Exception as error:  # the entry's part of an archive is damaged
                return _done(failure(error))
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
