"""Uploaded files and archives to bytes, and off the disk.

What is special about it:
- a file is removed from the disk as soon as it is in memory, before anybody looks at it;
- of a name only its last part is kept, for the table that goes back to whoever sent the file;
- an archive is unpacked in memory, one file at a time. What it says about sizes is not believed,
  and archives in archives are not opened.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mvaema.page.limits import PageLimits
from mvaema.serving.refusals import Refusal, bad_request

# Names that archives hold beside files.
LITTER = ("__MACOSX/",)


def taken(path: str) -> bytes:
    """The content of an uploaded file, which is removed.

    Raises:
        Refusal: it is gone already.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
        file.unlink()
    except FileNotFoundError:
        raise bad_request("the upload is gone already. Drop the file again.") from None
    try:
        file.parent.rmdir()  # one that was made for it
    except OSError:  # another upload of this name is in it
        pass
    return content


def last_part(name: str) -> str:
    """A file's name without folders, whichever system wrote them, and without control codes."""
    name = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[:120] or "unnamed"


def count_files(paths: Sequence[str], limits: PageLimits) -> int:
    """How many micrographs uploads may hold, those in archives included; nothing is unpacked.

    Raises:
        Refusal: more than allowed.
    """
    count = 0
    for path in paths:
        count += len(_entries(path)) if zipfile.is_zipfile(path) else 1
        if count > limits.max_files:
            raise bad_request(f"these are more than {limits.max_files} files. Send fewer.")
    return count


def files_in(paths: Sequence[str], limits: PageLimits) -> Iterator[tuple[str, bytes | Refusal]]:
    """Names and contents of uploads, those in archives included; a `Refusal` in place of what is
    not read. One file at a time is in memory, and the archive that it is in.

    Raises:
        Refusal: an archive unpacks to more than allowed.
    """
    for path in paths:
        name = last_part(path)
        try:
            content = taken(path)
        except Refusal as refusal:
            yield name, refusal
            continue
        if zipfile.is_zipfile(io.BytesIO(content)):
            yield from _unpacked(name, content, limits)
        else:
            yield name, content


def _entries(archive: str | io.BytesIO) -> list[zipfile.ZipInfo]:
    """The files of an archive, without what systems put beside them; none if it is damaged."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return [
                entry
                for entry in opened.infolist()
                if not entry.is_dir()
                and not entry.filename.startswith(LITTER)
                and not last_part(entry.filename).startswith(".")
            ]
    except zipfile.BadZipFile:
        return []


def _unpacked(
    name: str, content: bytes, limits: PageLimits
) -> Iterator[tuple[str, bytes | Refusal]]:
    left = int(limits.max_unpacked_mb * 1e6)
    most = limits.serving.max_body_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in _entries(io.BytesIO(content)):
                inner = last_part(entry.filename)
                try:
                    with archive.open(entry) as file:
                        data = file.read(min(left, most) + 1)
                except (RuntimeError, NotImplementedError):
                    yield inner, bad_request("the file is encrypted or packed in an unknown way.")
                    continue
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    yield inner, bad_request("the file is damaged in its archive.")
                    continue
                if len(data) > left:
                    raise bad_request(
                        f"the archive {name} unpacks to more than {limits.max_unpacked_mb:g} MB. "
                        "Send it in parts."
                    )
                left -= len(data)
                if len(data) > most:
                    data = bad_request(
                        f"the file is larger than {limits.serving.max_body_mb:g} MB."
                    )
                yield inner, data
    except zipfile.BadZipFile:
        yield name, bad_request("the archive is damaged; pack it again.")
