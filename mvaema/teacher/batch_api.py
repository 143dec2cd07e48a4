"""The provider's side of a batch: `/files` and `/batches`, as OpenAI defines them.

Every call is repeated while the server is down or busy, drops the connection, or says something
that cannot be read. A call that cannot succeed raises `BatchStopped`, with the reason; where the
server refused it, and would refuse it again, `Refused`.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx2
import openai

from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.limits import backoff
from mvaema.teacher.replies import clean, judge

Result = TypeVar("Result")

ATTEMPTS = 8
# No connection, or a response that cannot be used. The client raises the last two where a page of a
# list is none.
FAILURES = (openai.APIError, httpx2.HTTPError, ValueError, AttributeError, TypeError)


class BatchStopped(RuntimeError):
    """The run cannot continue; the message says why and what to do, as sentences."""


class Refused(BatchStopped):
    """The server understood a call and refuses it. `gone`: what was asked for is not there."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.gone = status in (404, 405, 410)


class UnusableResponse(ValueError):
    """A response with status 200 that lacks what it is for."""


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the provider describes it: its state, result files, and errors (code, message)."""

    status: str
    result_files: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)


class BatchApi:
    """The Batch API of an endpoint.

    Args:
        endpoint: whose API it is.
        timeout: seconds that one call may take.
        sleep: waits so many seconds.

    Every method that talks to the server raises `BatchStopped` when it cannot succeed.
    """

    def __init__(
        self, endpoint: Endpoint, timeout: float, sleep: Callable[[float], None] = time.sleep
    ):
        self.endpoint, self.sleep = endpoint, sleep
        self._client = endpoint.client(timeout)

    def close(self):
        self._client.close()

    def upload(self, path: Path) -> str:
        """Upload an input file, unless a process that died has done so. Returns its id."""

        def call() -> str:
            for uploaded in self._files():
                if getattr(uploaded, "filename", None) == path.name:
                    return _stated(uploaded, "id")
            with path.open("rb") as file:
                created = self._client.files.create(file=(path.name, file), purpose="batch")
            return _stated(created, "id")

        return self._repeat(call)

    def _files(self) -> list:
        """The input files at the provider; none where it does not list them."""
        try:
            return list(self._client.files.list(purpose="batch"))
        except openai.APIStatusError:
            return []

    def submit(self, file_id: str, name: str) -> str:
        """Submit an input file, unless a process that died has done so. Returns the batch's id."""

        def call() -> str:
            for batch in self._client.batches.list():
                if getattr(batch, "input_file_id", None) == file_id:
                    return _stated(batch, "id")
            created = self._client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"name": name},
            )
            return _stated(created, "id")

        return self._repeat(call)

    def retrieve(self, batch_id: str) -> RemoteBatch:
        """The batch as it is now."""

        def call() -> RemoteBatch:
            batch = self._client.batches.retrieve(batch_id)
            files = [getattr(batch, name, None) for name in ("output_file_id", "error_file_id")]
            errors = getattr(getattr(batch, "errors", None), "data", None)
            return RemoteBatch(
                _stated(batch, "status"),
                [file for file in files if isinstance(file, str) and file],
                [
                    tuple(clean(getattr(error, name, None)) or "?" for name in ("code", "message"))
                    for error in (errors if isinstance(errors, list) else [])
                ],
            )

        return self._repeat(call)

    def download(self, file_id: str, path: Path):
        """Write a result file to `path`, on the disk when this returns."""

        def call():
            with (
                self._client.files.with_streaming_response.content(file_id) as response,
                path.open("wb") as file,
            ):
                for part in response.iter_bytes():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())

        self._repeat(call)

    def delete(self, file_id: str) -> str | None:
        """Delete a file, if it is there. Tries once; returns why it may still be there."""
        try:
            self._client.files.delete(file_id)
        except openai.NotFoundError:
            return None
        except openai.APIStatusError as error:
            return judge(error.status_code, self._body(error), None).detail
        except FAILURES as error:
            return str(error).rstrip(".")
        return None

    def _body(self, error: openai.APIStatusError) -> bytes:
        """What a refusal says, without the key."""
        try:
            return self.endpoint.redact(error.response.read())
        except (httpx2.HTTPError, httpx2.StreamError):
            return b""

    def _repeat(self, call: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except openai.APIStatusError as error:
                verdict = judge(error.status_code, self._body(error), None)
                if verdict.stop or verdict.settled:
                    reason = verdict.stop or f"{verdict.detail}."
                    raise Refused(reason, error.status_code) from None
                failure = verdict.detail
            except FAILURES as error:
                failure = str(error).rstrip(".")
            if attempt < ATTEMPTS:
                self.sleep(backoff(attempt))
        raise BatchStopped(
            f"The server failed {ATTEMPTS} times, the last time: {failure}. Submitted batches "
            "continue at the provider."
        )


def _stated(response, name: str) -> str:
    value = getattr(response, name, None)
    if not isinstance(value, str) or not value:
        raise UnusableResponse(f"a response of the Batch API states no {name}")
    return value
