"""The body of a request as JSON, no larger and no slower than allowed.

What is special about it:
- a body that is too large is refused as soon as that is known, and never in memory whole. What
  still comes is read and thrown away, for a while, so that its sender sees the refusal;
- only `application/json` is taken. A web page of another site cannot send that without the
  browser asking this server first, which does not agree.
"""

import asyncio
import contextlib
import json

from starlette.requests import Request
from starlette.types import Receive, Scope

from mvaema.serving.limits import Limits
from mvaema.serving.refusals import Refusal, bad_request

# How many times the largest body is thrown away of a refused one.
DRAINED = 4


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is too large (413), too slow (408) or not JSON by its type (415).
        starlette.requests.ClientDisconnect: the client vanished.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415,
            "unsupported_media_type",
            "the body must be JSON; send the header `Content-Type: application/json`.",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limits.max_body_bytes):
        raise _too_large(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refusal(
            408,
            "upload_timeout",
            f"the request did not arrive within {limits.upload_seconds:g} s. Send a smaller image.",
            headers={"Connection": "close", "x-should-retry": "false"},
        ) from None
    return b"".join(parts)


async def drain(receive: Receive, scope: Scope, limits: Limits) -> None:
    """Read what still comes of a refused request, and throw it away.

    A client that is sending would otherwise see its connection break, and not the refusal. It is
    read for `upload_seconds` at most, and not where the client waits to be told to send.
    """
    if any(name == b"expect" for name, _ in scope["headers"]):
        return
    left = DRAINED * limits.max_body_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.upload_seconds):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def parsed(body: bytes) -> dict:
    """The JSON object in a body.

    Raises:
        Refusal: there is none (400).
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not JSON.") from None
    if not isinstance(found, dict):
        raise bad_request("the body must be a JSON object with `model` and `messages`.")
    return found


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413,
        "request_too_large",
        f"the request is larger than {limits.max_body_mb:g} MB. Send fewer or smaller images.",
        headers={"Connection": "close"},
    )
