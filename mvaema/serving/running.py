"""The process: its start, and its graceful end.

What is special about it: told to stop (SIGTERM, SIGINT), it takes no more connections, finishes the
requests in progress within a deadline, and exits with status 0.
"""

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn

from mvaema.serving.app import make_app
from mvaema.serving.keys import Keys
from mvaema.serving.service import Service

logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 for any that is free.

    Raises:
        OSError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def make_server(service: Service, keys: Keys) -> uvicorn.Server:
    """A server that has not started."""
    config = uvicorn.Config(
        make_app(service, keys),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(service.limits.shutdown_seconds)),
    )
    return uvicorn.Server(config)


def serve(service: Service, keys: Keys, at: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until told to stop.

    Args:
        announce: called once connections are taken.

    Raises:
        Exception: what loading the student raised.
    """
    server = make_server(service, keys)
    # uvicorn raises the signal again when it is done, for the handler that was there before.
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        service.start(when_failed=lambda: setattr(server, "should_exit", True))
        announce()
        server.run(sockets=[at])
    finally:
        service.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.failure is not None:
        raise service.failure
    logger.info("stopped")
