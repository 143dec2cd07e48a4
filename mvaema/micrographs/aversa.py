"""The public SEM dataset of Aversa et al. 2018: ten archives, one per category, CC-BY-4.0.

R. Aversa, M. H. Modarres, S. Cozzini, R. Ciancio, A. Chiusole, "The first annotated set of
scanning electron microscopy images for nanoscience", Scientific Data 5, 180172 (2018);
data: https://doi.org/10.23728/b2share.80df8606fcdb4b2bae1656f0dc6db8ba.

What is special about it:
- only `fetch_archives` uses the network;
- an interrupted download is resumed, and an archive gets its name only when its size and checksum
  are those that the publisher states. `SHA256SUMS` beside the archives records their checksums
  (`sha256sum -c SHA256SUMS` checks them again);
- images are read from the archives, which are never unpacked.
"""

import hashlib
import http.client
import json
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from tqdm.auto import tqdm

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.files import write_text
from mvaema.micrographs.labelling import Labelling
from mvaema.micrographs.microscope import SUFFIXES
from mvaema.micrographs.sources import Entry, Problem, printable

RECORD_URL = "https://b2share.eudat.eu/api/records/80df8606fcdb4b2bae1656f0dc6db8ba"
SOURCE = "Aversa et al. 2018"
LICENCE = "CC-BY-4.0"

CHUNK = 2**20
ATTEMPTS = 5  # in a row that bring no byte, before a download is given up
TIMEOUT = 60  # seconds to wait for an answer


class AversaSource:
    """The micrographs in the category archives of a folder, in the order of the categories.

    Args:
        folder: holds `Biological.tar`, `Fibres.tar`, ... or some of the ten.
        labelling: for `group_by` and `group_pattern`; the archive gives the category.

    Raises:
        FileNotFoundError: the folder holds none of the ten archives.
    """

    def __init__(self, folder: str | Path, labelling: Labelling | None = None):
        self.labelling = labelling or Labelling()
        self.ignored = Counter()
        paths = {category: Path(folder) / f"{category}.tar" for category in CATEGORY_CAPTIONS}
        self.archives = {category: path for category, path in paths.items() if path.is_file()}
        if not self.archives:
            raise FileNotFoundError(
                f"{folder} holds none of the ten archives ({', '.join(CATEGORY_CAPTIONS)}, each "
                ".tar); check the path, or fetch them with --download."
            )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Entry | Problem]:
        self.ignored.clear()
        for category, path in self.archives.items():
            try:
                yield from self._members(category, path)
            except (tarfile.TarError, OSError, EOFError) as error:
                message = f"{error}; files before the damage are kept. Fetch the archive again."
                yield Problem(printable(path), "damaged-archive", message, hides_more=True)

    def _members(self, category: str, path: Path) -> Iterator[Entry]:
        info = path.stat()
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                if not member.name.lower().endswith(SUFFIXES):
                    self.ignored[name.suffix.lower()] += 1
                    continue
                fields = self.labelling.from_path(name)
                fields |= {"category": category, "source": SOURCE, "licence": LICENCE}
                yield Entry(
                    name=f"{printable(path)}/{printable(member.name)}",
                    version=f"{info.st_size} {info.st_mtime_ns} {member.offset_data}",
                    content=lambda member=member: archive.extractfile(member).read(),
                    suffix=name.suffix.lower(),
                    fields=fields,
                )


def fetch_archives(folder: str | Path, record_url: str = RECORD_URL) -> list[Path]:
    """Download those of the ten archives that are not in the folder yet.

    Returns:
        The paths of all ten.

    Raises:
        OSError: there is no connection, or it broke again and again. Downloaded bytes are kept,
            and the next call resumes.
        ValueError: the record does not list the ten archives, or an archive does not have the
            size or checksum that the publisher states (a downloaded one is removed).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sums = folder / "SHA256SUMS"
    known = {}
    if sums.is_file():
        lines = sums.read_text(encoding="utf-8").splitlines()
        known = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    paths = []
    for published in _published_archives(record_url):
        name = published["key"]
        path = folder / name
        paths.append(path)
        if path.is_file() and name in known and path.stat().st_size == published["size"]:
            continue
        if not path.is_file():
            _download(published["url"], folder / f"{name}.part", published["size"])
            known[name] = _verified(folder / f"{name}.part", published)
            (folder / f"{name}.part").replace(path)
        else:  # someone put it there
            known[name] = _verified(path, published)
        write_text(sums, "".join(f"{d}  {n}\n" for n, d in sorted(known.items())))
    return paths


def _published_archives(record_url: str) -> list[dict]:
    """The archives of the B2SHARE record: key, size, checksum ("md5:...") and url of each."""
    record = _get_json(record_url)
    listing = _get_json(record["links"]["files"])
    # `entries` and `content` since B2SHARE 3, `contents` and `self` before.
    files = {file["key"]: file for file in listing.get("entries") or listing.get("contents") or ()}
    missing = [
        f"{category}.tar" for category in CATEGORY_CAPTIONS if f"{category}.tar" not in files
    ]
    if missing:
        raise ValueError(
            f"{record_url} does not list {', '.join(missing)}; it lists {', '.join(files)}."
        )
    return [
        {
            "key": file["key"],
            "size": file["size"],
            "checksum": file["checksum"],
            "url": file["links"].get("content") or file["links"]["self"],
        }
        for file in (files[f"{category}.tar"] for category in CATEGORY_CAPTIONS)
    ]


def _get_json(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return json.load(response)


def _download(url: str, part: Path, size: int):
    """Fetch the bytes that `part` lacks of `size`, again and again if the connection breaks."""
    failures = 0
    with tqdm(total=size, unit="B", unit_scale=True, desc=part.stem) as bar:
        while True:
            have = part.stat().st_size if part.is_file() else 0
            bar.n = have
            bar.refresh()
            if have >= size:
                return
            try:
                _append(url, part, have, bar)
                error = ConnectionError(f"it ended after {part.stat().st_size} of {size} bytes")
            except urllib.error.HTTPError as problem:
                if problem.code < 500 and problem.code != 429:
                    raise
                error = problem
            except (OSError, http.client.HTTPException) as problem:
                error = problem
            came = (part.stat().st_size if part.is_file() else 0) > have
            failures = 0 if came else failures + 1
            if failures == ATTEMPTS:
                raise OSError(
                    f"{url} cannot be downloaded: {error}. {have} of {size} bytes are kept; rerun "
                    "the same command to resume."
                ) from error
            time.sleep(0 if came else 2**failures / 4)


def _append(url: str, part: Path, have: int, bar: tqdm):
    """One request for the bytes from `have` on, appended to `part` as they arrive."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        # With 200 instead of 206 the server cannot resume and sends everything.
        resumed = response.status == 206
        bar.n = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _verified(path: Path, published: dict) -> str:
    """The SHA-256 of an archive that has the published size and checksum.

    Raises:
        ValueError: it does not have them; a partial download (`.part`) is removed.
    """
    kind, _, expected = published["checksum"].rpartition(":")
    theirs, ours = hashlib.new(kind or "md5", usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            theirs.update(chunk)
            ours.update(chunk)
    size = path.stat().st_size
    if size != published["size"] or theirs.hexdigest() != expected:
        if path.suffix == ".part":
            path.unlink()
        raise ValueError(
            f"{path} has {size} bytes and {kind} {theirs.hexdigest()}; the publisher states "
            f"{published['size']} bytes and {expected}. Fetch it again."
        )
    return ours.hexdigest()
