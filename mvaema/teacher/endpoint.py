"""Where requests may go, and the key that goes with them.

What is special about it:
- an endpoint that resolves to anything but private addresses needs an explicit yes;
- a private endpoint is talked to directly (no proxy of the environment, no redirects), so that
  no micrograph takes a way nobody chose;
- the key comes from an environment variable, is never shown, and is cut out of what servers
  echo back before it is written anywhere.
"""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import httpx2
from openai import AsyncOpenAI, OpenAI

CONNECT_TIMEOUT = 10.0
# What a server without accounts gets.
NO_KEY = "none"


class EndpointError(ValueError):
    """The endpoint or the key cannot be used; the message says what to do."""


class Endpoint:
    """A checked endpoint.

    Args:
        url: base URL of the API, ending in /v1 for most servers.
        key_variable: environment variable that holds the key. By default OPENAI_API_KEY for an
            external endpoint, and none for a private one: a server in the lab must not get a key
            that was meant for somebody else.
        allow_external: whether addresses outside private ranges are permitted.

    Raises:
        EndpointError: the URL is none, holds credentials, does not resolve, or is external
            without permission or key; or the key cannot be a key.
    """

    def __init__(self, url: str, key_variable: str | None = None, allow_external: bool = False):
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise EndpointError(f"--endpoint: {error}.") from None
        if parts.scheme not in ("http", "https") or not host:
            raise EndpointError(
                "--endpoint must be a URL such as http://localhost:8000/v1 (no scheme or host "
                "found)."
            )
        if parts.username or parts.password or parts.query:
            raise EndpointError(
                f"--endpoint ({host}) must hold no user, password or query: keys come from the "
                "environment variable that --api-key-env names."
            )
        self.url = url.rstrip("/")
        self.external = any(not is_private(address) for address in _resolve(host, port))
        if self.external and not allow_external:
            raise EndpointError(
                f"{host} is outside the private address ranges: micrographs would leave your "
                "network. Pass --allow-external if that is permitted."
            )
        if self.external and parts.scheme == "http":
            raise EndpointError(f"{host} is external: use https, not http.")
        if key_variable is None and self.external:
            key_variable = "OPENAI_API_KEY"
        self._key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if key_variable and not self._key:
            raise EndpointError(f"Set the environment variable {key_variable} to your key.")
        # Checked here, because HTTP libraries quote a header they cannot send in their errors.
        if not all(33 <= ord(character) <= 126 for character in self._key):
            raise EndpointError(
                f"The key in {key_variable} has characters that no key has (spaces, line ends or "
                "non-ASCII letters); copy it again."
            )

    def redact(self, data: bytes | str | None) -> bytes | str | None:
        """`data` without the key."""
        if not data or not self._key:
            return data
        if isinstance(data, bytes):
            return data.replace(self._key.encode(), b"[key removed]")
        return data.replace(self._key, "[key removed]")

    def async_client(self, connections: int) -> AsyncOpenAI:
        """A client that tries once and waits as long as its caller does."""
        return AsyncOpenAI(
            http_client=httpx2.AsyncClient(
                **self._transport(),
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
                limits=httpx2.Limits(
                    max_connections=connections, max_keepalive_connections=connections
                ),
            ),
            **self._options(),
        )

    def client(self, timeout: float) -> OpenAI:
        """A client that tries once, for the Batch and Files APIs."""
        timeouts = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT)
        return OpenAI(
            http_client=httpx2.Client(**self._transport(), timeout=timeouts), **self._options()
        )

    def _transport(self) -> dict:
        return {"trust_env": self.external, "follow_redirects": False}

    def _options(self) -> dict:
        return {"base_url": self.url, "api_key": self._key or NO_KEY, "max_retries": 0}


def _resolve(host: str, port: int | None) -> list[str]:
    try:
        return [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise EndpointError(f"--endpoint: {host} does not resolve ({error}).") from None


def is_private(address: str) -> bool:
    """Whether an IP address belongs to a private, loopback or link-local range."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_private or ip.is_loopback or ip.is_link_local
