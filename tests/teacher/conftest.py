"""A teacher on loopback, with faults on demand."""

import os
from functools import cache

import httpx2
import pytest
from support.teacher_server import FakeTeacher


@cache
def certificates_of(bundle: str | None, create=httpx2.create_ssl_context):
    return create()


@pytest.fixture(autouse=True)
def light_runs(monkeypatch):
    """Hundreds of runs in this process need neither 16 MiB each on the disk nor the machine's
    certificates read again. Runs in processes of their own are as they are."""
    monkeypatch.setattr("mvaema.teacher.durable.BALLAST_BYTES", 2**16)
    monkeypatch.setattr(
        httpx2, "create_ssl_context", lambda: certificates_of(os.getenv("SSL_CERT_FILE"))
    )


@pytest.fixture
def server():
    with FakeTeacher() as server:
        yield server


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"
