"""Which endpoints and keys are accepted."""

import pytest

from mvaema.teacher.endpoint import Endpoint, EndpointError, is_private

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
    with pytest.raises(EndpointError, match="TEACHER_KEY"):
        Endpoint("https://8.8.8.8/v1", "TEACHER_KEY", allow_external=True)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    assert Endpoint("https://8.8.8.8/v1", "TEACHER_KEY", allow_external=True).external


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.9", "[fd00::1]"])
def test_private_endpoints_need_no_permission(host):
    assert not Endpoint(f"http://{host}:8000/v1").external


def test_mapped_addresses_are_seen_through():
    assert not is_private("::ffff:8.8.8.8")
    assert is_private("::ffff:10.0.0.1")
