"""Why a file is not one readable micrograph: reasons to count, and messages that say what to do."""

import errno
import os
import stat
from pathlib import Path

from PIL import Image


class UnreadableMicrograph(ValueError):
    """A file that is not one readable micrograph.

    The message names the file, what is wrong and what to do. `reason` is a short slug to count by.
    """

    def __init__(self, path: str | os.PathLike, reason: str, message: str):
        super().__init__(f"{os.fspath(path)}: {message}")
        self.path = path
        self.reason = reason

    def __reduce__(self):  # exceptions travel between worker processes
        message = str(self).removeprefix(f"{os.fspath(self.path)}: ")
        return type(self), (self.path, self.reason, message)


def check_file(path: Path) -> None:
    """Raises UnreadableMicrograph unless `path` is a regular file with content."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableMicrograph(path, "not-a-file", "is not a regular file.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UnreadableMicrograph(path, *why_not_opened(error)) from error
    if info.st_size == 0:
        raise UnreadableMicrograph(path, "empty", "has zero bytes; export or copy it again.")


def why_not_opened(error: OSError) -> tuple[str, str]:
    """The (reason, message) of a file or folder that the system did not open."""
    reason, advice = {
        errno.ENOENT: ("not-found", "check the path"),
        errno.EACCES: ("permission-denied", "give yourself permission to read it"),
        errno.EPERM: ("permission-denied", "give yourself permission to read it"),
        errno.ELOOP: ("symlink-loop", "remove the link that leads to itself"),
    }.get(error.errno, ("unreadable", "check the disk or the network share"))
    return reason, f"cannot be opened ({error.strerror}); {advice}."


def check_size(width: int, height: int) -> None:
    """Pillow's limit on pixels, for what other readers decode.

    Raises:
        PIL.Image.DecompressionBombError: the image has more pixels than twice
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        message = f"{width} x {height} pixels; the limit is {limit} pixels"
        raise Image.DecompressionBombError(message)
