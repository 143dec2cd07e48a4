"""From a micrograph to the bytes that leave the lab, and nothing else.

What is special about it:
- the image is re-encoded from pixels alone: no EXIF, TIFF tag, comment or file name goes with it;
- files are stored under the hash of their pixels, and the journal knows sources by hashes only;
- a source prepared before is not read again, so a rerun over a million images begins at once.
"""

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.building import clean_png
from mvaema.microscope import Micrograph, UnreadableMicrograph, read_micrograph
from mvaema.schema import pixel_hash
from mvaema.sources import DatasetSource, Entry, FolderSource, Problem, TableSource
from mvaema.teacher.journal import Journal, PreparedImage

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
LOSSY_QUALITY = 90
TABLES = (".csv", ".jsonl", ".json", ".parquet")
# What tells a dataset from a folder of microscope files.
DATASET_FILES = ("state.json", "dataset_dict.json", "metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Preparation:
    """What is done to a micrograph before it is sent.

    Attributes:
        max_side: longer side at most, in pixels.
        image_format: `png` (lossless), `jpeg` or `webp`.
        crop_info_bar: cut the burnt-in info bar off.
    """

    max_side: int = 1024
    image_format: str = "png"
    crop_info_bar: bool = False

    def __post_init__(self):
        if self.image_format not in FORMATS:
            raise ValueError(
                f"--image-format must be one of {', '.join(FORMATS)}; got {self.image_format!r}."
            )
        if self.max_side < 32:
            raise ValueError(f"--max-side must be at least 32 pixels; got {self.max_side}.")

    def encode(self, image: Image.Image) -> bytes:
        """The encoded pixels, without any metadata."""
        if self.image_format == "png":
            return clean_png(image)
        bare = Image.frombytes(image.mode, image.size, image.tobytes())
        buffer = io.BytesIO()
        bare.save(buffer, format=self.image_format.upper(), quality=LOSSY_QUALITY)
        return buffer.getvalue()

    def apply(self, micrograph: Micrograph) -> Micrograph:
        if self.crop_info_bar:
            micrograph = micrograph.crop_info_bar()
        return micrograph.resize(self.max_side)


def open_source(images: str, split: str = "train") -> FolderSource | TableSource | DatasetSource:
    """What `--images` names: a folder of microscope files, a table of files, or a dataset.

    Raises:
        FileNotFoundError, ValueError: there is nothing to read there; the message says why.
    """
    path = Path(images)
    if path.is_file() and path.suffix.lower() in TABLES:
        return TableSource(path)
    if path.is_dir():
        is_dataset = any((path / name).exists() for name in DATASET_FILES) or any(
            next(path.glob(pattern), None)
            for pattern in ("*.parquet", "*/*.parquet", "*/metadata.*")
        )
        return DatasetSource(images, split) if is_dataset else FolderSource(path)
    raise FileNotFoundError(
        f"--images {images}: expected a folder of micrographs, a table ({', '.join(TABLES)}) or "
        "the folder of a micrograph dataset."
    )


def read_entry(entry: Entry) -> Micrograph:
    """The micrograph of an entry, with the pixel size its source states, if any.

    Raises:
        UnreadableMicrograph: the file or the bytes are no readable micrograph.
    """
    if isinstance(entry.content, Path):
        micrograph = read_micrograph(entry.content)
    else:
        with tempfile.NamedTemporaryFile(suffix=entry.suffix) as file:
            file.write(entry.content())
            file.flush()
            micrograph = read_micrograph(file.name)
    stated = entry.fields.get("pixel_size_nm")
    return micrograph if stated is None else replace(micrograph, pixel_size_nm=stated)


def content_bytes(entry: Entry) -> bytes:
    """The file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    content = entry.content
    return content.read_bytes() if isinstance(content, Path) else content()


def shard_of(content: bytes, shards: int) -> int:
    """The shard (from 0) an image belongs to: its bytes decide, so every job of an array finds
    its part by itself, without decoding the others' images."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % shards


class Preparer:
    """Prepares the micrographs of a source into an output folder, one at a time.

    Args:
        journal: keeps which source became which image.
        preparation: what to do to each.
        shard, shards: take only the images of this part (from 0).

    After iterating, `problems` counts by reason what could not be read, and `duplicates` how many
    sources had the pixels of an earlier one.
    """

    def __init__(self, journal: Journal, preparation: Preparation, shard: int = 0, shards: int = 1):
        self.journal, self.preparation = journal, preparation
        self.shard, self.shards = shard, shards
        self.problems: dict[str, int] = {}
        self.duplicates = 0

    def __call__(self, entries: Iterable[Entry | Problem]) -> Iterator[PreparedImage | None]:
        """One item per entry: its image; or None for what is unreadable, another shard's, or the
        same as an image before it."""
        seen = _Seen(self.journal)
        for entry in entries:
            if isinstance(entry, Problem):
                self._problem(entry.name, entry.reason, entry.message)
                yield None
                continue
            source = source_key(entry)
            known = self.journal.known_source(source)
            if known is None:
                known = self._prepare(entry, source)
            elif known["problem"]:
                self._problem(entry.name, known["problem"], "could not be read before either")
            image_id = known["image_id"]
            if image_id is None:
                yield None
            elif seen.add(image_id):
                yield self.journal.image(image_id)
            else:
                self.duplicates += 1
                yield None

    def _prepare(self, entry: Entry, source: str) -> dict:
        try:
            if self.shards > 1 and shard_of(content_bytes(entry), self.shards) != self.shard:
                self.journal.add_source(source, None, None)
                return {"image_id": None, "problem": None}
            micrograph = self.preparation.apply(read_entry(entry))
        except UnreadableMicrograph as error:
            return self._unreadable(entry, source, error.reason, str(error))
        except OSError as error:
            return self._unreadable(entry, source, "unreadable", str(error))
        image = self._store(micrograph, entry)
        self.journal.add_source(source, image, None)
        return {"image_id": image.image_id, "problem": None}

    def _unreadable(self, entry: Entry, source: str, reason: str, message: str) -> dict:
        self._problem(entry.name, reason, message)
        self.journal.add_source(source, None, reason)
        return {"image_id": None, "problem": reason}

    def _problem(self, name: str, reason: str, message: str):
        from tqdm import tqdm

        self.problems[reason] = self.problems.get(reason, 0) + 1
        tqdm.write(f"skipped {name}: {message}")

    def _store(self, micrograph: Micrograph, entry: Entry) -> PreparedImage:
        image = micrograph.image
        image_id = pixel_hash(image)
        data = self.preparation.encode(image)
        suffix = FORMATS[self.preparation.image_format]
        file = Path("images") / image_id[:2] / f"{image_id}{suffix}"
        _write_atomically(self.journal.folder / file, data)
        category = entry.fields.get("category")
        return PreparedImage(
            image_id=image_id,
            file=file.as_posix(),
            sha256=hashlib.sha256(data).hexdigest(),
            width=image.width,
            height=image.height,
            category=category,
            caption=entry.fields.get("caption", CATEGORY_CAPTIONS.get(category)),
            pixel_size_nm=micrograph.pixel_size_nm,
            scale_bar=entry.fields.get("scale_bar"),
            group=entry.fields.get("group") or image_id,
            source=entry.fields.get("source"),
            licence=entry.fields.get("licence"),
        )


class _Seen:
    """Image ids met in this run, in a temporary table: memory does not grow with them."""

    def __init__(self, journal: Journal):
        self.journal = journal
        with journal.transaction() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (image_id TEXT PRIMARY KEY)")
            db.execute("DELETE FROM seen")

    def add(self, image_id: str) -> bool:
        with self.journal.transaction() as db:
            return db.execute("INSERT OR IGNORE INTO seen VALUES (?)", [image_id]).rowcount == 1


def source_key(entry: Entry) -> str:
    """A hash that changes with the entry's name, content or labels, and shows none of them."""
    parts = [entry.name, entry.version, sorted((k, repr(v)) for k, v in entry.fields.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _write_atomically(path: Path, data: bytes):
    """A file that is there whole or not at all. Without fsync: a file the power took away is
    written again, because the journal is told of it later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
