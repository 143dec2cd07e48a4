"""Where requests may go, and the key that goes with them.

What is special about it:
- an endpoint that resolves to any address outside the private ranges needs `--allow_external`;
- a private endpoint is reached directly, without the environment's proxy and without redirects,
  so that no micrograph takes another way;
- the key comes from one environment variable and is never shown. It is removed from what servers
  echo back before that is written anywhere;
- nothing else that the openai library finds in the environment (OPENAI_CUSTOM_HEADERS,
  OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_BASE_URL, ...) reaches any endpoint.

Of the environment, the transport reads SSL_CERT_FILE and SSL_CERT_DIR (a lab's own certificates),
and HTTPS_PROXY, ALL_PROXY and NO_PROXY for external endpoints only.
"""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import httpx2
from openai import AsyncOpenAI, OpenAI

CONNECT_TIMEOUT = 10.0
# Sent as the key to a server without accounts.
NO_KEY = "none"


class EndpointError(ValueError):
    """The endpoint or the key cannot be used; the message says why and what to do."""


class _OwnHeaders:
    """A client that sends its key and these headers. The library would add its platform and
    whatever OPENAI_CUSTOM_HEADERS, OPENAI_ORG_ID and OPENAI_PROJECT_ID hold."""

    @property
    def default_headers(self) -> dict[str, str]:
        return {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "mvaema",
        }


class _AsyncClient(_OwnHeaders, AsyncOpenAI):
    pass


class _Client(_OwnHeaders, OpenAI):
    pass


class Endpoint:
    """A checked endpoint.

    Args:
        url: base URL of the API, ending in /v1 for most servers.
        key_variable: environment variable that holds the key. By default OPENAI_API_KEY for an
            external endpoint and none for a private one, so that a server in the lab does not get
            a key that was meant for a provider.
        allow_external: whether addresses outside the private ranges are permitted.

    Raises:
        EndpointError: the URL is malformed, holds credentials, does not resolve, or is external
            without permission or key; or the variable does not hold a key.
    """

    def __init__(self, url: str, key_variable: str | None = None, allow_external: bool = False):
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise EndpointError(f"--endpoint: {error}.") from None
        if parts.scheme not in ("http", "https") or not host:
            raise EndpointError(
                "--endpoint must be a URL with scheme and host, as in http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise EndpointError(
                f"--endpoint ({host}) must hold no user, password or query. Put the key into the "
                "environment variable that --api_key_env names."
            )
        self.url = url.rstrip("/")
        self.external = any(not is_private(address) for address in _resolve(host, port))
        if self.external and not allow_external:
            raise EndpointError(
                f"{host} is outside the private address ranges: micrographs would leave your "
                "network. Pass --allow_external if that is permitted."
            )
        if self.external and parts.scheme == "http":
            raise EndpointError(f"{host} is external: use https instead of http.")
        self._key = _read_key(key_variable, needed=self.external)

    def redact(self, data: bytes | str | None) -> bytes | str | None:
        """`data` without the key."""
        if not data or not self._key:
            return data
        if isinstance(data, bytes):
            return data.replace(self._key.encode(), b"[key removed]")
        return data.replace(self._key, "[key removed]")

    def async_client(self, connections: int) -> AsyncOpenAI:
        """A client that tries once and leaves the timeout to its caller."""
        return _AsyncClient(
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
        return _Client(
            http_client=httpx2.Client(**self._transport(), timeout=timeouts), **self._options()
        )

    def _transport(self) -> dict:
        return {
            "trust_env": self.external,  # proxies
            "verify": httpx2.create_ssl_context(),
            "follow_redirects": False,
        }

    def _options(self) -> dict:
        return {"base_url": self.url, "api_key": self._key or NO_KEY, "max_retries": 0}


def _read_key(variable: str | None, needed: bool) -> str:
    """The key in an environment variable; by default in OPENAI_API_KEY where one is needed. What
    the user has named is not repeated in errors: it may be the key itself."""
    if variable:
        named = "that --api_key_env names"
        hint = " The flag takes the name of a variable, not a key."
    elif needed:
        variable = named = "OPENAI_API_KEY"
        hint = ""
    else:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(
            f"The environment variable {named} is not set. Set it to your key.{hint}"
        )
    # Checked here, because HTTP libraries quote the headers that they cannot send.
    if not all(33 <= ord(character) <= 126 for character in key):
        raise EndpointError(
            f"The key in the environment variable {named} has characters that keys do not have "
            "(spaces, line ends or non-ASCII letters). Copy it again."
        )
    return key


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
