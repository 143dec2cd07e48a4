"""How much a client may send, and how long it may take.

What is special about it: every limit has one name and one default, here. Each has a status code of
its own; `docs/serving.md` lists them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server; the flags of `mvaema serve` have the same names.

    Attributes:
        max_body_mb: largest request, in units of 1,000,000 bytes. An image in base64 is a third
            larger than its file.
        max_images: most images in a conversation, of which one is looked at.
        max_megapixels: largest image, in millions of pixels, checked before it is decoded.
        max_queue: most requests in progress, from their first byte to their last. It bounds memory
            together with `max_uploads`.
        max_uploads: most requests whose bodies are in memory at a time; others wait to be read.
        upload_seconds: longest time in which a body must have arrived.
        timeout_seconds: longest time from the arrival of a request to its answer.
        max_batch: most questions in a forward pass.
        batch_wait_ms: how long the first question of a batch waits for others while the model is
            idle.
        shutdown_seconds: how long requests in progress may take to finish once the server is told
            to stop.

    Raises:
        ValueError: a limit is not positive; `batch_wait_ms` may be 0.
    """

    max_body_mb: float = 48.0
    max_images: int = 16
    max_megapixels: float = 32.0
    max_queue: int = 128
    max_uploads: int = 8
    upload_seconds: float = 30.0
    timeout_seconds: float = 120.0
    max_batch: int = 8
    batch_wait_ms: float = 5.0
    shutdown_seconds: float = 30.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "batch_wait_ms"):
                raise ValueError(f"--{name} must be greater than 0; got {value}.")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)
