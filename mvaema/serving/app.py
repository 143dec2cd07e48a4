"""The addresses that clients call.

What is special about it:
- a reply in pieces begins with its first piece: until then a refusal has its status code. An error
  after that is an event of the stream;
- a client that vanishes is noticed at once, wherever its request is, and nothing more is done
  for it;
- each request has an id of the server's making, in the header `x-request-id` and in the log;
- there is no page with an API description: it would load scripts from elsewhere.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvaema.serving.batching import Answer, Job
from mvaema.serving.keys import Keys
from mvaema.serving.limits import Limits
from mvaema.serving.messages import Conversation
from mvaema.serving.refusals import Refusal, failed, stopping, timed_out
from mvaema.serving.replies import Reply, event, pieces, until_stop
from mvaema.serving.service import Service
from mvaema.serving.uploads import drain, read_body

logger = logging.getLogger(__name__)

ADDRESSES = ("/v1/chat/completions", "/v1/models", "/health", "/ready")
# In the log, as other servers write it: the client closed the request.
VANISHED = 499


def make_app(service: Service, keys: Keys) -> FastAPI:
    """The application; its lifespan does not start the service."""
    app = FastAPI(title="MVaEMa", openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """The student is loaded and another request would be taken."""
        status = "full" if service.full else "ready" if service.loaded else "loading"
        facts = {"in_progress": service.in_progress, "queue": service.waiting}
        facts["working"] = service.working
        return JSONResponse({"status": status, **facts}, 200 if status == "ready" else 503)

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        if name != service.name:
            message = f"this server has one model, {service.name!r}."
            raise Refusal(404, "model_not_found", message, "model")
        return _model(service)

    # A class, and not a function, is called with the connection itself.
    app.router.routes.append(
        Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"])
    )

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return _refused(request.scope, error)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = (
            f"there is nothing here that takes this request. Addresses: {', '.join(ADDRESSES)}."
        )
        headers = dict(error.headers or {})
        return _refused(request.scope, Refusal(error.status_code, code, message, headers=headers))

    app.add_middleware(Frame, keys=keys, limits=service.limits)
    return app


def _model(service: Service) -> dict:
    made = {"created": service.created, "owned_by": "mvaema"}
    return {"id": service.name, "object": "model", **made}


def _refused(scope: Scope, refusal: Refusal) -> JSONResponse:
    scope["facts"]["code"] = refusal.code
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


class Frame:
    """What all requests have: an id, a key that is checked, and a line in the log."""

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits):
        self.app, self.keys, self.limits = app, keys, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.monotonic()
        known = scope["path"] if scope["path"] in ADDRESSES else "other"
        facts = {"id": f"req-{secrets.token_hex(8)}", "method": scope["method"], "path": known}
        scope["facts"] = facts
        status, arrived = None, False

        async def received() -> Message:
            nonlocal arrived
            message = await receive()
            arrived |= not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and not arrived:
                    await drain(received, scope, self.limits)
                own = [(b"x-request-id", facts["id"].encode())]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            try:
                if scope["path"].startswith("/v1/"):
                    self.keys.check(_header(scope, b"authorization"))
                await self.app(scope, received, sent)
            except Refusal as refusal:
                await _refused(scope, refusal)(scope, received, sent)
            except (ClientDisconnect, OSError):
                facts["code"], status = "vanished", VANISHED
            except asyncio.CancelledError:  # the deadline of a server that was told to stop
                facts["code"], arrived = "stopping", True
                if status is None:
                    await _refused(scope, stopping())(scope, receive, sent)
            except Exception:
                logger.exception("a request failed", extra={"facts": {"id": facts["id"]}})
                facts["code"] = "internal_error"
                if status is None:
                    await _refused(scope, failed())(scope, received, sent)
        finally:
            quiet = known in ("/health", "/ready")
            facts |= {"status": status, "seconds": round(time.monotonic() - began, 4)}
            logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"facts": facts})


def _header(scope: Scope, name: bytes) -> str | None:
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), None)


class ChatCompletions:
    """POST /v1/chat/completions, from the first byte of the body to the last of the answer."""

    def __init__(self, service: Service):
        self.service, self.limits = service, service.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, facts = self.service, scope["facts"]
        deadline = asyncio.get_running_loop().time() + self.limits.timeout_seconds
        with service.admitted():
            async with contextlib.AsyncExitStack() as stack:
                async with _in_time(deadline, self.limits):
                    await service.uploads.acquire()
                try:
                    body = await read_body(Request(scope, receive), self.limits)
                    gone = await stack.enter_async_context(_watch(receive))
                    facts["body_bytes"] = len(body)
                    began = time.monotonic()
                    future = asyncio.wrap_future(service.prepare(body))
                    del body
                    conversation, prompt = await self._first(future, gone, deadline)
                finally:
                    service.uploads.release()
                reply = Reply(service.name, len(prompt.input_ids))
                facts |= {
                    "prepare_seconds": round(time.monotonic() - began, 4),
                    "pixels": list(prompt.size),
                    "stream": conversation.stream,
                    "decoding": dict(prompt.options)["decoding"],
                    "prompt_tokens": reply.prompt_tokens,
                }
                in_pieces = conversation.stream and not conversation.stop
                job = stack.enter_context(service.asked(prompt, in_pieces))
                events = self._events(job, gone, deadline)
                first = await anext(events)
                if not conversation.stream:
                    text = until_stop(first.text, conversation.stop)
                    await JSONResponse(reply.whole(first, text))(scope, receive, send)
                else:
                    await _stream(send, reply, conversation, first, events, facts)
                facts |= {
                    "queue_seconds": round(job.waited, 4),
                    "model_seconds": round(job.worked, 4),
                    "batch": job.batch,
                }

    async def _events(
        self, job: Job, gone: asyncio.Task, deadline: float
    ) -> AsyncIterator[str | Answer]:
        """What happens to a job, to its answer.

        Raises:
            ClientDisconnect: nobody listens any more.
            Refusal: there is no answer, or not in time.
        """
        found = None
        while not isinstance(found, Answer):
            found = await self._first(asyncio.ensure_future(job.events.get()), gone, deadline)
            if isinstance(found, Refusal):
                raise found
            yield found

    async def _first(self, wanted: asyncio.Future, gone: asyncio.Task, deadline: float):
        """The result of `wanted`, unless the client vanishes or its time is over before."""
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({wanted, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        wanted.cancel()
        if gone.done():
            raise ClientDisconnect
        raise timed_out(self.limits.timeout_seconds)


@contextlib.asynccontextmanager
async def _in_time(deadline: float, limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise timed_out(limits.timeout_seconds) from None


@contextlib.asynccontextmanager
async def _watch(receive: Receive) -> AsyncIterator[asyncio.Task]:
    """A task that ends when the client has closed the connection."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(wait())
    try:
        yield task
    finally:
        task.cancel()


async def _stream(
    send: Send,
    reply: Reply,
    conversation: Conversation,
    first: str | Answer,
    events: AsyncIterator[str | Answer],
    facts: dict,
) -> None:
    """Send an answer as server-sent events; what is known at once, word by word."""

    async def write(*parts: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": b"".join(parts), "more_body": more})

    headers = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",  # asks nginx to pass pieces on as they come
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": encoded})
    await write(reply.begin())
    told, found = "", first
    try:
        while isinstance(found, str):
            told += found
            await write(reply.piece(found))
            found = await anext(events)
        text = until_stop(found.text, conversation.stop)
        for piece in pieces(text[len(told) :]):
            await write(reply.piece(piece))
        await write(*reply.end(found, text, conversation.include_usage), more=False)
    except Refusal as refusal:
        facts["code"] = refusal.code
        await write(event(refusal.body), more=False)
