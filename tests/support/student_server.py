"""A student's server on loopback, in a thread of the test, and what clients send to it."""

import base64
import io
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
from openai import OpenAI
from PIL import Image

from mvaema.serving.exported_student import ExportedStudent
from mvaema.serving.keys import Keys
from mvaema.serving.limits import Limits
from mvaema.serving.running import listen, make_server
from mvaema.serving.service import Service
from mvaema.serving.torch_student import TorchStudent
from onnx_mvaema import OnnxStudent

NAME = "tiny"
# Seconds to wait for what happens at once on a machine that has time for it.
PATIENCE = 900

# For what OpenAI's client does not send.
http = httpx.Client(timeout=PATIENCE, trust_env=False)


class StudentServer:
    """The server. Use as a context manager; `url` is the base URL of a client.

    Args:
        model: the student, with torch or exported, which is loaded at once.
        keys: that clients must have.
        decoding: the server's own.
        limits: those that differ.

    Attributes:
        gate: while it is closed (`gate.clear()`), the model waits before it begins a batch.
        entered: how many batches it has begun.
    """

    def __init__(self, model, keys=(), decoding=None, **limits):
        self.model, self.gate, self.entered = model, threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self._client: OpenAI | None = None
        kind = ExportedStudent if isinstance(model, OnnxStudent) else TorchStudent
        self.service = Service(
            lambda: kind(model), NAME, Limits(**{"timeout_seconds": PATIENCE, **limits}), decoding
        )
        self.server = make_server(self.service, Keys(keys))

    def __enter__(self):
        self._answer = self.model.answer_prompts

        def when_open(*args, **kwargs):
            self.entered.release()
            self.gate.wait(PATIENCE)
            return self._answer(*args, **kwargs)

        self.model.answer_prompts = when_open
        self._socket = listen("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        loading = self.service.start()
        if loading.ident:
            loading.join()
        assert self.service.failure is None, self.service.failure
        self._thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        if self._client is not None:
            self._client.close()
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        self.service.close()
        del self.model.answer_prompts
        assert not self._thread.is_alive()

    def client(self, key: str = "none", **options) -> OpenAI:
        """A client that does not try again; clients of one server share their connections."""
        options = {"max_retries": 0, "timeout": PATIENCE, **options}
        if self._client is None:
            self._client = OpenAI(base_url=self.url, api_key=key, **options)
        return self._client.with_options(api_key=key, **options)

    @contextmanager
    def closed_gate(self):
        """The model waits in this block."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def raw(self, body: bytes, *headers: str, path: str = "/v1/chat/completions") -> socket.socket:
        """A connection on which a request was sent, for what no decent client does."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
        if not any(line.lower().startswith("content-type") for line in headers):
            lines.append("Content-Type: application/json")
        if not any(line.lower().startswith("content-length") for line in headers):
            lines.append(f"Content-Length: {len(body)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return connection


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8)
    return Image.fromarray(pixels)


def data_uri(image, kind: str = "image/png") -> str:
    """The data URI of a picture, of bytes, or of a file's content."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = buffer.getvalue()
    if isinstance(image, Path):
        image = image.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def message(question: str | None, *images, role: str = "user") -> dict:
    """A message with text and images."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    if question is not None:
        parts.append({"type": "text", "text": question})
    return {"role": role, "content": parts}


def request(question: str | None, *images, **fields) -> dict:
    """The body of a request."""
    return {"model": NAME, "messages": [message(question, *images)], **fields}
