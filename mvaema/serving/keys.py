"""Who may ask: whoever sends a key of the server's, where it has any.

What is special about it: keys are kept as digests and compared in constant time; they come from a
file or the environment, never from the command line, which every user of a machine can read.
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from mvaema.serving.refusals import Refusal

VARIABLE = "MVAEMA_API_KEY"


class Keys:
    """The keys of a server; with none, everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def found(cls, file: Path | None) -> "Keys":
        """The keys in a file, one a line, or that of the environment variable `MVAEMA_API_KEY`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no key, or the variable is blank.
        """
        if file is not None:
            keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            keys = [key for key in keys if key and not key.startswith("#")]
            if not keys:
                raise ValueError(f"{file} holds no key; write one into it, one a line.")
            return cls(keys)
        key = os.environ.get(VARIABLE)
        if key is not None and not key.strip():
            raise ValueError(f"{VARIABLE} is blank; set it to a key, or unset it.")
        return cls([] if key is None else [key.strip()])

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """Raises Refusal (401) unless the header `Authorization` holds one of the keys."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # All are compared, so that the time does not tell which came close.
        right = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(right):
            raise Refusal(
                401,
                "invalid_api_key",
                "the API key is missing or wrong. Send it in the header `Authorization: Bearer "
                "KEY`; the server's operator has it.",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
