"""From a micrograph to the bytes that leave the lab, and nothing else.

What is special about it:
- the image is re-encoded from pixels alone: no EXIF, TIFF tag, comment or file name goes with it;
- files are stored under the hash of their pixels, and the journal knows sources by hashes only;
- a source that was prepared before is not read again, so a rerun over a million images starts at
  once. What it says about its image (category, scale, group) counts as it is now;
- a prepared file that is missing or damaged is prepared again, and never sent as it is.
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
from mvaema.micrographs.reading import ReadMicrograph, ReadOptions, read_entry
from mvaema.micrographs.sources import (
    LINK,
    DatasetSource,
    Entry,
    FolderSource,
    Problem,
    TableSource,
)
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

    def __call__(
        self, entries: Iterable[Entry | Problem], complete: bool = False
    ) -> Iterator[PreparedImage | None]:
        """One item per entry: its image, or None where it is unreadable, belongs to another shard,
        or equals an earlier image.

        Args:
            entries: of the source.
            complete: these are all entries that there are, so that an image that is not among them
                is there no more.

        Raises:
            JournalError: an image cannot be written.
        """
        self.journal.forget_seen()
        for entry in entries:
            if isinstance(entry, Problem):
                complete = complete and not entry.hides_more
                if entry.reason != LINK:
                    self._problem(entry.name, entry.reason, entry.message)
                yield None
            else:
                self._entry = entry
                yield self._image(entry)
        if complete:
            self.journal.end_pass()

    def is_intact(self, image: PreparedImage) -> bool:
        """Whether the file of the image that was yielded last can be sent. A damaged one is
        prepared again; where that fails, it is a problem."""
        if read_prepared(self.journal.folder, image) is not None:
            return True
        fresh = self._prepare(self._entry)
        if fresh is None or fresh.image_id == image.image_id:
            return fresh is not None
        self.journal.add_source(source_key(self._entry), fresh.image_id, fresh)
        message = "has other pixels than before. The next run asks about these"
        self._problem(self._entry.name, "changed", message)
        return False

    def _image(self, entry: Entry) -> PreparedImage | None:
        """The image of an entry, with the labels of the first entry that has its pixels."""
        source = source_key(entry)
        known = self.journal.known_source(source)
        if known is not None and known["image_id"] is None:
            return None
        if known is None and not self._in_shard(entry):
            return None
        image = self._stored(known["image_id"]) if known is not None else None
        fresh = self._prepare(entry) if image is None else None
        image = image or fresh
        if image is None:
            return None
        if not self.journal.first_sight(image.image_id):
            self.duplicates += 1
            if known is None:
                self.journal.add_source(source, image.image_id)
            return None
        if image.labelled_by != source:
            fresh = image = self._prepare(entry)  # since the pixel size may be in the file only
        if fresh is None:
            return image
        self.journal.add_source(source, fresh.image_id, fresh)
        return self.journal.image(fresh.image_id)

    def _stored(self, image_id: str) -> PreparedImage | None:
        """A prepared image; None where its file is missing or empty."""
        image = self.journal.image(image_id)
        try:
            return image if (self.journal.folder / image.file).stat().st_size else None
        except OSError:
            return None

    def _in_shard(self, entry: Entry) -> bool:
        """Whether a new entry is in this shard. One that is not is recorded as such."""
        if self.shards == 1:
            return True
        try:
            content = entry.content
            data = content.read_bytes() if isinstance(content, Path) else content()
        except OSError as error:
            self._problem(entry.name, "unreadable", str(error))
            return False
        if shard_of(data, self.shards) == self.shard:
            return True
        self.journal.add_source(source_key(entry), None)
        return False

    def _prepare(self, entry: Entry) -> PreparedImage | None:
        """Read an entry and store its file, unless it is there. None where it is unreadable."""
        reading = self.preparation.read(entry)
        if not isinstance(reading, ReadMicrograph):
            self._problem(entry.name, *reading)
            return None
        return self._store(reading, entry)

    def _problem(self, name: str, reason: str, message: str):
        self.problems[reason] += 1
        tqdm.write(f"skipped ({reason}): {message if name in message else f'{name}: {message}'}")

    def _store(self, reading: ReadMicrograph, entry: Entry) -> PreparedImage:
        data, (width, height) = self.preparation.encode(reading.png)
        suffix = FORMATS[self.preparation.image_format]
        file = Path("images") / reading.image_id[:2] / f"{reading.image_id}{suffix}"
        try:
            path = self.journal.folder / file
            if self.writes and not (path.is_file() and path.read_bytes() == data):
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
            labelled_by=source_key(entry),
        )


def read_prepared(folder: Path, image: PreparedImage) -> bytes | None:
    """The bytes of a prepared file in an output folder; None where it is missing or damaged."""
    try:
        data = (folder / image.file).read_bytes()
        if hashlib.sha256(data).hexdigest() == image.sha256:
            return data
        # Prepared again by another version of the encoder.
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return data if picture.size == (image.width, image.height) else None
    except Exception:  # Pillow's decoders raise what they like
        return None


def source_key(entry: Entry) -> str:
    """A hash that changes with the entry's name, content or labels, and reveals none of them."""
    labels = sorted((name, repr(value)) for name, value in entry.fields.items())
    return hashlib.sha256(repr([entry.name, entry.version, labels]).encode()).hexdigest()[:32]
