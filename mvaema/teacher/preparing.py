"""From a micrograph to the bytes that leave the lab, and nothing else.

What is special about it:
- the image is re-encoded from pixels alone: no EXIF, TIFF tag, comment or file name goes with it;
- files are stored under the hash of their pixels, and the journal knows sources by hashes only;
- a source that was prepared before is not read again, so a rerun over a million images starts at
  once.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.files import write_bytes
from mvaema.micrographs.build import ReadMicrograph, ReadOptions, read_entry
from mvaema.micrographs.sources import DatasetSource, Entry, FolderSource, Problem, TableSource
from mvaema.teacher.journal import Journal, JournalError, PreparedImage

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
LOSSY_QUALITY = 90
TABLES = (".csv", ".jsonl", ".json", ".parquet")
# A folder that holds one of these is a dataset, not a folder of microscope files.
DATASET_FILES = (
    "state.json",
    "dataset_dict.json",
    "metadata.*",
    "*/metadata.*",
    "*.parquet",
    "*/*.parquet",
)


@dataclass(frozen=True)
class Preparation:
    """What is done to a micrograph before it is sent.

    Attributes:
        max_side: longer side at most, in pixels.
        image_format: `png` (lossless), `jpeg` or `webp`.
        crop_info_bar: cut the burnt-in info bar off.

    Raises:
        ValueError: a value is not permitted.
    """

    max_side: int = 1024
    image_format: str = "png"
    crop_info_bar: bool = False

    def __post_init__(self):
        if self.image_format not in FORMATS:
            raise ValueError(
                f"--image_format must be one of {', '.join(FORMATS)}, not {self.image_format!r}."
            )
        if self.max_side < 32:
            raise ValueError(f"--max_side must be at least 32 pixels, not {self.max_side}.")

    def read(self, entry: Entry) -> ReadMicrograph | tuple[str, str]:
        """The prepared pixels of an entry as a bare PNG, or (reason, message) why not."""
        content = entry.content if isinstance(entry.content, Path) else entry.content()
        options = ReadOptions(crop_info_bar=self.crop_info_bar, max_side=self.max_side)
        return read_entry(content, entry.suffix, entry.fields.get("pixel_size_nm"), options)

    def encode(self, png: bytes) -> tuple[bytes, tuple[int, int]]:
        """The bytes to send for a bare PNG, and (width, height) in pixels."""
        image = Image.open(io.BytesIO(png))
        if self.image_format == "png":
            return png, image.size
        buffer = io.BytesIO()
        image.save(buffer, format=self.image_format, quality=LOSSY_QUALITY)
        return buffer.getvalue(), image.size


def open_source(images: str, split: str = "train") -> FolderSource | TableSource | DatasetSource:
    """What `--images` names: a folder of microscope files, a table of files, or a dataset.

    Raises:
        OSError, ValueError: it cannot be read; the message says why.
    """
    path = Path(images)
    if path.is_file() and path.suffix.lower() in TABLES:
        return TableSource(path)
    if path.is_dir():
        is_dataset = any(next(path.glob(pattern), None) for pattern in DATASET_FILES)
        return DatasetSource(images, split) if is_dataset else FolderSource(path)
    raise FileNotFoundError(
        f"--images {images} is not a folder of micrographs, a table ({', '.join(TABLES)}) or the "
        "folder of a dataset."
    )


def shard_of(content: bytes, shards: int) -> int:
    """The shard (from 0) that an image belongs to. Its bytes decide, so each job of an array finds
    its own part without decoding the images of the others."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % shards


class Preparer:
    """Prepares the micrographs of a source into an output folder, one at a time.

    Args:
        journal: keeps which source became which image.
        preparation: what to do to each.
        shard, shards: take only the images of this part (from 0).
        writes: False to prepare the images without writing them, for an estimate.

    Attributes:
        problems: reason -> number of sources that could not be read. The next run tries them again.
        duplicates: number of sources with the pixels of an earlier one, whose labels are kept.
    """

    def __init__(
        self,
        journal: Journal,
        preparation: Preparation,
        shard: int = 0,
        shards: int = 1,
        *,
        writes: bool = True,
    ):
        self.journal, self.preparation, self.writes = journal, preparation, writes
        self.shard, self.shards = shard, shards
        self.problems: Counter[str] = Counter()
        self.duplicates = 0

    def __call__(self, entries: Iterable[Entry | Problem]) -> Iterator[PreparedImage | None]:
        """One item per entry: its image, or None where it is unreadable, belongs to another shard,
        or equals an earlier image.

        Raises:
            JournalError: an image cannot be written.
        """
        self.journal.forget_seen()
        for entry in entries:
            if isinstance(entry, Problem):
                self._problem(entry.name, entry.reason, entry.message)
                yield None
                continue
            image_id = self._image_id(entry)
            if image_id is None:
                yield None
            elif self.journal.first_sight(image_id):
                yield self.journal.image(image_id)
            else:
                self.duplicates += 1
                yield None

    def _image_id(self, entry: Entry) -> str | None:
        source = source_key(entry)
        known = self.journal.known_source(source)
        if known is not None:
            return known["image_id"]
        if self.shards > 1:
            try:
                content = entry.content
                data = content.read_bytes() if isinstance(content, Path) else content()
            except OSError as error:
                return self._problem(entry.name, "unreadable", str(error))
            if shard_of(data, self.shards) != self.shard:
                self.journal.add_source(source, None)
                return None
        reading = self.preparation.read(entry)
        if not isinstance(reading, ReadMicrograph):
            return self._problem(entry.name, *reading)
        self.journal.add_source(source, self._store(reading, entry))
        return reading.image_id

    def _problem(self, name: str, reason: str, message: str) -> None:
        self.problems[reason] += 1
        tqdm.write(f"skipped ({reason}): {message if name in message else f'{name}: {message}'}")

    def _store(self, reading: ReadMicrograph, entry: Entry) -> PreparedImage:
        data, (width, height) = self.preparation.encode(reading.png)
        suffix = FORMATS[self.preparation.image_format]
        file = Path("images") / reading.image_id[:2] / f"{reading.image_id}{suffix}"
        try:
            path = self.journal.folder / file
            if self.writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, data)  # before the journal knows it
        except OSError as error:
            raise JournalError(
                f"{self.journal.folder / file}: cannot be written ({error.strerror}). All replies "
                "received so far are in the journal. Free some space, then rerun the same command "
                "to resume."
            ) from error
        category = entry.fields.get("category")
        return PreparedImage(
            image_id=reading.image_id,
            file=file.as_posix(),
            sha256=hashlib.sha256(data).hexdigest(),
            width=width,
            height=height,
            category=category,
            caption=entry.fields.get("caption", CATEGORY_CAPTIONS.get(category)),
            pixel_size_nm=reading.pixel_size_nm,
            scale_bar=entry.fields.get("scale_bar"),
            group=entry.fields.get("group", reading.image_id),
            source=entry.fields.get("source"),
            licence=entry.fields.get("licence"),
        )


def source_key(entry: Entry) -> str:
    """A hash that changes with the entry's name, content or labels, and reveals none of them."""
    labels = sorted((name, repr(value)) for name, value in entry.fields.items())
    return hashlib.sha256(repr([entry.name, entry.version, labels]).encode()).hexdigest()[:32]
