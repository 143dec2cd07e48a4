"""A server that speaks Chat Completions and the Batch API on loopback, with faults on demand.

It runs in a thread of the test, or by itself:

    python tests/support/teacher_server.py --port 8001

What it delivered is logged when the last byte of a response was written, so that a test can compare
it with what a client kept.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import itertools
import json
import re
import ssl
import threading
import time
from dataclasses import dataclass, field

from aiohttp import web
from PIL import Image

ALLOWED_BYTES = 256 * 2**20


@dataclass
class Exchange:
    """One request as the server saw it."""

    question: str  # hash of image and text: the same question, the same name
    text: str
    body: bytes
    time: float
    fault: str | None
    delivered: bool = False


@dataclass
class Fault:
    """The next `times` requests whose text contains `match` go wrong in this way."""

    kind: str
    times: int = 1
    match: str = ""
    headers: dict = field(default_factory=dict)
    body: bytes = b""  # of the kind `raw`


def error(status: int, code: str, message: str = "no", **headers) -> web.Response:
    body = {"error": {"message": message, "type": code, "code": code}}
    return web.json_response(body, status=status, headers=headers)


class Refusal(web.HTTPError):
    """An error response of the Batch API."""

    def __init__(self, status: int, code: str):
        self.status_code = status
        body = {"error": {"message": "no", "code": code}}
        super().__init__(text=json.dumps(body), content_type="application/json")


class Page(web.HTTPException):
    """What a proxy sends instead of an answer."""

    status_code = 200


class FakeTeacher:
    """The server. Use as a context manager; `url` is the base URL.

    Args:
        delay: seconds an answer takes.
        keep_bodies: keep the requests' bodies (in `exchanges`) and headers.
        ssl_context: speak HTTPS.
    """

    def __init__(
        self,
        delay: float = 0.0,
        keep_bodies: bool = True,
        host: str = "127.0.0.1",
        ssl_context: ssl.SSLContext | None = None,
    ):
        self.delay, self.keep_bodies, self.host = delay, keep_bodies, host
        self.ssl_context = ssl_context
        self.exchanges: list[Exchange] = []
        self.faults: list[Fault] = []
        self.in_flight = self.most_in_flight = 0
        self.faulty_image = None  # from an image's (width, height) to a kind of fault, or None
        self.capacity = None  # requests at a time before 429
        # From a request's body to prompt tokens, or None for no usage; 1,000 by default.
        self.count_tokens = None
        self.files: dict[str, bytes] = {}
        self.uploads: list[dict] = []
        self.batches: dict[str, dict] = {}
        self._batch_numbers = itertools.count()
        self.batch_fault = None  # called with a batch dict before it completes
        self.headers: list[dict] = []
        # A step of the Batch API (list, upload, uploaded, batches, create, created, retrieve,
        # content, output, errors, delete) that never ends, or is refused with a status and a code.
        self.hang_at = self.refuse_at = None
        self.refusal = 401, "invalid_api_key"
        # How often the connection is dropped at a step, or a web page comes instead of JSON.
        self.drops: dict[str, int] = {}
        self.pages: dict[str, int] = {}
        self.hung = threading.Event()

    # --- running

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def _serve(self, started: threading.Event):
        asyncio.set_event_loop(self._loop)

        async def main():
            self._end = asyncio.Event()
            runner = web.AppRunner(self.app(), handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            self._runner = runner
            await self._listen(0)
            scheme = "https" if self.ssl_context else "http"
            self.port = runner.addresses[0][1]
            self.url = f"{scheme}://{self.host}:{self.port}/v1"
            started.set()
            await self._end.wait()
            await runner.cleanup()

        self._loop.run_until_complete(main())

    async def _listen(self, port: int):
        site = web.TCPSite(
            self._runner, self.host, port, ssl_context=self.ssl_context, reuse_address=True
        )
        await site.start()
        self._site = site

    def stop_listening(self):
        """Refuse new connections and end those that are open, as a server that was stopped."""

        async def stop():
            await self._site.stop()
            for connection in list(self._runner.server.connections):
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)

    def listen_again(self):
        """Be there again, at the same address."""
        asyncio.run_coroutine_threadsafe(self._listen(self.port), self._loop).result(10)

    def app(self) -> web.Application:
        @web.middleware
        async def keep_headers(request: web.Request, handler):
            if self.keep_bodies:
                self.headers.append(dict(request.headers))
            return await handler(request)

        app = web.Application(client_max_size=ALLOWED_BYTES, middlewares=[keep_headers])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/files", self.upload)
        app.router.add_get("/v1/files", self.list_files)
        app.router.add_get("/v1/files/{id}/content", self.content)
        app.router.add_delete("/v1/files/{id}", self.delete)
        app.router.add_post("/v1/batches", self.create_batch)
        app.router.add_get("/v1/batches", self.list_batches)
        app.router.add_get("/v1/batches/{id}", self.get_batch)
        return app

    # --- what a test asks

    def delivered(self) -> list[str]:
        """Questions whose good answer left the server, in order."""
        return [e.question for e in self.exchanges if e.delivered and e.fault is None]

    def fail(self, kind: str, times: int = 1, match: str = "", **headers):
        self.faults.append(Fault(kind, times, match, headers))

    def send(self, body: bytes, match: str = ""):
        """Answer the next request like that, with status 200."""
        self.faults.append(Fault("raw", match=match, body=body))

    # --- Chat Completions

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        text = body["messages"][0]["content"][1]["text"]
        fault = next((f for f in self.faults if f.times and f.match in text), None)
        if fault:
            fault.times -= 1
        elif self.faulty_image and (kind := self.faulty_image(size_of(body))):
            fault = Fault(kind)
        exchange = Exchange(
            question=name_of(body),
            text=text,
            body=raw if self.keep_bodies else b"",
            time=time.monotonic(),
            fault=fault and fault.kind,
        )
        self.exchanges.append(exchange)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.capacity is not None and self.in_flight > self.capacity:
                exchange.fault = "429"
                response = error(429, "rate_limit_exceeded")
            elif fault:
                response = await self.fault(fault, request, body)
            else:
                if self.delay:
                    await asyncio.sleep(self.delay)
                response = web.json_response(self.completion(body))
            if not response.prepared:
                response.headers["x-request-id"] = f"req-{len(self.exchanges)}"
                await response.prepare(request)
            await response.write_eof()
            exchange.delivered = True
            return response
        finally:
            self.in_flight -= 1

    def completion(self, body: dict) -> dict:
        good = completion(body)
        if self.count_tokens is not None:
            tokens = self.count_tokens(body)
            good["usage"] = tokens and {"prompt_tokens": tokens, "completion_tokens": 100}
        return good

    async def fault(self, fault: Fault, request: web.Request, body: dict) -> web.StreamResponse:
        good = self.completion(body)
        choice, message = good["choices"][0], good["choices"][0]["message"]
        match fault.kind:
            case "429":
                return error(429, "rate_limit_exceeded", **fault.headers)
            case "500" | "503":
                return web.Response(status=int(fault.kind), text="oops", headers=fault.headers)
            case "400":
                return error(400, "invalid_request_error", "the image is no good")
            case "413":  # by a proxy in front of the server
                return web.Response(status=413, text="<html>too large", content_type="text/html")
            case "unsupported":
                return error(400, "unsupported_parameter", "'max_tokens' is not supported")
            case "401":
                # Some servers repeat the key.
                return error(401, "invalid_api_key", f"wrong: {request.headers['Authorization']}")
            case "404":
                return error(404, "model_not_found", f"The model {body['model']} does not exist")
            case "insufficient_quota":
                return error(429, "insufficient_quota", **{"Retry-After": "1"})
            case "redirect":
                return web.Response(status=307, headers={"Location": "http://192.0.2.1/v1"})
            case "timeout":  # the answer exists, and is never sent
                await asyncio.sleep(3600)
            case "drop":
                request.transport.close()
                raise ConnectionResetError
            case "drop midway":
                response = web.StreamResponse(headers={"Content-Length": "5000"})
                await response.prepare(request)
                await response.write(b'{"choices": [')
                request.transport.close()
                raise ConnectionResetError
            case "html":
                return web.Response(
                    text="<html><body>Please log in</body></html>", content_type="text/html"
                )
            case "malformed":
                return web.Response(text='{"choices": [{"message"', content_type="application/json")
            case "raw":
                return web.Response(body=fault.body, content_type="application/json")
            case "no choices":
                good["choices"] = []
            case "error inside":
                good = {"error": {"message": "upstream failed", "code": 502}}
            case "truncated":
                choice["finish_reason"] = "length"
                message["content"] = "I look at the image and see"
            case "content filter":
                choice["finish_reason"] = "content_filter"
                message["content"] = None
            case "refusal":
                message["content"] = "I'm sorry, but I can't assist with that request."
            case "refusal field":
                message["content"], message["refusal"] = None, "I can't do that."
            case "empty":
                message["content"] = ""
            case "no usage":
                del good["usage"]
            case "echo key":
                message["content"] = f"<answer>{request.headers['Authorization']}</answer>"
            case "other model":
                good["model"] = "something-else"
            case _:
                raise ValueError(fault.kind)
        return web.json_response(good)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "teacher"}]})

    # --- Files and Batches

    async def step(self, name: str, request: web.Request):
        """A moment of the Batch API at which a test may interfere."""
        if name == self.refuse_at:
            raise Refusal(*self.refusal)
        if self.drops.get(name):
            self.drops[name] -= 1
            request.transport.close()
            raise ConnectionResetError
        if self.pages.get(name):
            self.pages[name] -= 1
            raise Page(text="<html>Please log in</html>", content_type="text/html")
        if name == self.hang_at:
            self.hung.set()
            await asyncio.sleep(3600)

    async def upload(self, request: web.Request) -> web.Response:
        await self.step("upload", request)
        form = await request.post()
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = form["file"].file.read()
        self.uploads.append(
            {
                "id": file_id,
                "object": "file",
                "bytes": len(self.files[file_id]),
                "created_at": 0,
                "filename": form["file"].filename,
                "purpose": form["purpose"],
                "status": "processed",
            }
        )
        await self.step("uploaded", request)
        return web.json_response(self.uploads[-1])

    async def list_files(self, request: web.Request) -> web.Response:
        await self.step("list", request)
        data = [] if request.query.get("after") else self.uploads
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def content(self, request: web.Request) -> web.StreamResponse:
        await self.step("content", request)
        file_id = request.match_info["id"]
        if file_id not in self.files:
            raise Refusal(404, "not_found")
        content = self.files[file_id]
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[:100])
        errors = [batch.get("error_file_id") for batch in self.batches.values()]
        await self.step("errors" if file_id in errors else "output", request)
        await response.write(content[100:])
        return response

    async def delete(self, request: web.Request) -> web.Response:
        await self.step("delete", request)
        self.files[request.match_info["id"]] = b"deleted"
        return web.json_response(
            {"id": request.match_info["id"], "object": "file", "deleted": True}
        )

    async def create_batch(self, request: web.Request) -> web.Response:
        await self.step("create", request)
        body = await request.json()
        batch = {
            "id": f"batch-{next(self._batch_numbers)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "input_file_id": body["input_file_id"],
            "created_at": 0,
            "status": "validating",
        }
        self.batches[batch["id"]] = batch
        await self.step("created", request)
        return web.json_response(batch)

    async def list_batches(self, request: web.Request) -> web.Response:
        await self.step("batches", request)
        data = [] if request.query.get("after") else list(self.batches.values())
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def get_batch(self, request: web.Request) -> web.Response:
        await self.step("retrieve", request)
        if request.match_info["id"] not in self.batches:
            raise Refusal(404, "not_found")
        batch = self.batches[request.match_info["id"]]
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress":
            self.complete(batch)
        return web.json_response(batch)

    def complete(self, batch: dict):
        """Answer the requests of a batch; `batch_fault(batch, lines)` may change the results."""
        lines = [json.loads(x) for x in self.files[batch["input_file_id"]].splitlines()]
        results = [
            {
                "id": f"r-{i}",
                "custom_id": line["custom_id"],
                "response": {
                    "status_code": 200,
                    "request_id": f"req-{i}",
                    "body": self.completion(line["body"]),
                },
                "error": None,
            }
            for i, line in enumerate(lines)
        ]
        errors = []
        batch["status"] = "completed"
        if self.batch_fault:
            results, errors = self.batch_fault(batch, results)
        for name, rows in (("output_file_id", results), ("error_file_id", errors)):
            if rows:
                batch[name] = f"file-{len(self.files)}"
                lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
                self.files[batch[name]] = "\n".join(lines).encode()
        for result in results:
            name = result.get("custom_id") if isinstance(result, dict) else None
            self.exchanges.append(Exchange(name, "", b"", time.monotonic(), None, delivered=True))


def name_of(body: dict) -> str:
    """The same for the same question about the same image, whoever asks."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:16]


def image_of(body: dict) -> bytes:
    """The image of a request, as the server received it."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.partition(",")[2])


def size_of(body: dict) -> tuple[int, int]:
    """(width, height) of the image of a request, in pixels."""
    return Image.open(io.BytesIO(image_of(body))).size


def completion(body: dict) -> dict:
    """A good answer that names its question."""
    text = body["messages"][0]["content"][1]["text"]
    question = re.search(r"Question: (.*)", text)
    name = name_of(body)
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": f"I look closely.\n<answer>Answer {name} to "
                    f"{question[1] if question else text[:40]}</answer>",
                },
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per answer")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        server = FakeTeacher(args.delay, keep_bodies=False)
        web.run_app(server.app(), host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
