"""The provider's side of a batch: `/files` and `/batches`, as OpenAI defines them.

Every call is repeated while the server is down or busy. A call that cannot succeed raises
`BatchStopped`, with the reason.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import openai
from openai.types import Batch as ProviderBatch

from mvaema.teacher.endpoint import Endpoint
from mvaema.teacher.limits import backoff
from mvaema.teacher.replies import judge

Result = TypeVar("Result")

ATTEMPTS = 8


class BatchStopped(RuntimeError):
    """The run cannot continue; the message says why and what to do, as sentences."""


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
        """Upload an input file. Returns its id."""

        def call() -> str:
            with path.open("rb") as file:
                return self._client.files.create(file=(path.name, file), purpose="batch").id

        return self._repeat(call)

    def submit(self, file_id: str, name: str) -> str:
        """Submit an input file, unless a process that died has done so. Returns the batch's id."""

        def call() -> str:
            for batch in self._client.batches.list():
                if batch.input_file_id == file_id:
                    return batch.id
            return self._client.batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"name": name},
            ).id

        return self._repeat(call)

    def retrieve(self, batch_id: str) -> ProviderBatch:
        """The batch as it is now."""
        return self._repeat(lambda: self._client.batches.retrieve(batch_id))

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

    def delete(self, file_id: str):
        """Delete a file. When that fails, the provider keeps it until it expires."""
        with contextlib.suppress(openai.APIError):
            self._client.files.delete(file_id)

    def _repeat(self, call: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except openai.APIStatusError as error:
                body = self.endpoint.redact(error.response.content)
                verdict = judge(error.status_code, body, None)
                if verdict.stop:
                    raise BatchStopped(verdict.stop) from None
                if verdict.settled:
                    raise BatchStopped(f"{verdict.detail}.") from None
                failure = verdict.detail
            except openai.APIConnectionError as error:
                failure = str(error).rstrip(".")
            if attempt < ATTEMPTS:
                self.sleep(backoff(attempt))
        raise BatchStopped(
            f"The server failed {ATTEMPTS} times, the last time: {failure}. Submitted batches "
            "continue at the provider."
        )
