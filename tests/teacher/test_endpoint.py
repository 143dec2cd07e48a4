"""Which endpoints and keys are accepted, and what of the environment reaches them."""

import asyncio
import contextlib
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import openai
import pytest
from support.teacher_helpers import SteppingClock, arguments, ask, make_images, outcomes, replies
from support.teacher_server import FakeTeacher

from mvaema.teacher.endpoint import Endpoint, EndpointError, is_private
from mvaema.teacher.run import TeacherRun

KEY = "sk-verysecret-0123456789abcdef"


@pytest.mark.parametrize("key", [f"{KEY}\u2026", f"{KEY}\nX-Header: 1", "two words"])
def test_key_that_cannot_be_sent_is_refused_without_showing_it(key, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(EndpointError) as raised:
        Endpoint("http://127.0.0.1:1/v1", "TEACHER_KEY")
    assert key not in str(raised.value) and KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("https://8.8.8.8/v1", "--allow_external"),
        ("https://[2001:4860:4860::8888]/v1", "--allow_external"),
        ("http://100.64.0.1/v1", "--allow_external"),  # a provider's network, not yours
        ("http://user:secret@127.0.0.1/v1", "no user, password or query"),
        ("http://127.0.0.1/v1?key=secret", "no user, password or query"),
        ("localhost:8000", "must be a URL"),
        ("ftp://127.0.0.1/", "must be a URL"),
        ("http://no-such-host.invalid/v1", "does not resolve"),
    ],
)
def test_endpoints_that_are_refused(url, advice):
    with pytest.raises(EndpointError, match=advice) as raised:
        Endpoint(url)
    assert "secret" not in str(raised.value)


def test_external_endpoint_needs_https_and_a_key(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="https"):
        Endpoint("http://8.8.8.8/v1", "TEACHER_KEY", allow_external=True)
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        Endpoint("https://8.8.8.8/v1", allow_external=True)
    with pytest.raises(EndpointError, match="--api_key_env"):
        Endpoint("https://8.8.8.8/v1", "TEACHER_KEY", allow_external=True)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    assert Endpoint("https://8.8.8.8/v1", "TEACHER_KEY", allow_external=True).external


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.9", "[fd00::1]"])
def test_private_endpoints_need_no_permission(host):
    assert not Endpoint(f"http://{host}:8000/v1").external


def test_mapped_addresses_are_seen_through():
    assert not is_private("::ffff:8.8.8.8")
    assert is_private("::ffff:10.0.0.1")


@pytest.mark.parametrize("url", ["https://8.8.8.8/v1", "http://127.0.0.1:1/v1"])
def test_a_key_instead_of_the_name_of_a_variable_is_not_shown(url):
    with pytest.raises(EndpointError, match="name of a variable, not a key") as raised:
        Endpoint(url, KEY, allow_external=True)
    assert KEY not in str(raised.value)


def variables_of_openai() -> list[str]:
    """Every environment variable that the installed openai library names in its source."""
    source = "".join(path.read_text() for path in Path(openai.__file__).parent.rglob("*.py"))
    return sorted(set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source)))


@pytest.mark.parametrize("batch", [False, True])
def test_nothing_of_the_environment_reaches_an_endpoint(batch, server, tmp_path, monkeypatch):
    """Neither headers, nor a body, nor the journal of a server that echoes them."""
    names = variables_of_openai()
    assert {"OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS"} < {
        *names
    }
    for name in names:
        monkeypatch.setenv(name, "canary" if "PYDANTIC" not in name else "true")
    custom = ("Authorization", "OpenAI-Organization", "Host", "Content-Type", "User-Agent", "X-Ä")
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "\n".join(f"{header}: Bearer canary" for header in custom)
    )
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.fail("echo key", times=1000)
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    options = {"api_key_env": "TEACHER_KEY", "batch": batch, "batch_poll": 0.01}
    assert ask(images, output, server.url, **options).stopped is None
    assert outcomes(output) == {"ok": 10}
    assert server.headers
    for headers in server.headers:
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert "canary" not in str(headers)
        assert not [name for name in headers if "openai" in name.lower()], "nor an empty one"
    assert not any(b"canary" in exchange.body for exchange in server.exchanges)
    assert not any(b"canary" in row["raw"] for row in replies(output))


class RefusingProxy:
    """Keeps what it is asked, and refuses it."""

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.heard = b""
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._socket.close()

    def _listen(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += connection.recv(4096)
                    self.heard += request
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_external_endpoint_is_reached_through_the_proxy_of_the_environment(
    variable, tmp_path, monkeypatch
):
    """The way out of many labs. The proxy learns the host, and nothing of what is sent."""
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    args = arguments(
        images,
        output,
        "https://192.88.99.1/v1",
        allow_external=True,
        api_key_env="TEACHER_KEY",
        concurrency=1,
    )
    clock = SteppingClock()
    with RefusingProxy() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        tally = TeacherRun(args, clock=clock, sleep=clock.sleep).ask().tally
    assert "unreachable" in tally.stopped
    assert proxy.heard.startswith(b"CONNECT 192.88.99.1:443 ")
    assert KEY.encode() not in proxy.heard and b"uthorization" not in proxy.heard
    assert {row["problem"] for row in replies(output)} == {"unreachable"}, "so nothing is charged"


def test_certificates_of_a_lab_are_read_from_the_environment(tmp_path, monkeypatch):
    """SSL_CERT_FILE, for a private endpoint too."""
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "certificate.pem"),
        ],
        cwd=tmp_path,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")

    async def names(url: str) -> list[str]:
        async with Endpoint(url).async_client(1) as client:
            return [model.id async for model in client.models.list()]

    with FakeTeacher(ssl_context=context) as server:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(openai.APIConnectionError):
            asyncio.run(names(server.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert asyncio.run(names(server.url)) == ["teacher"]
