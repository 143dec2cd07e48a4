"""A teacher on loopback, with faults on demand."""

import pytest
from support.teacher_server import FakeTeacher


@pytest.fixture
def server():
    with FakeTeacher() as server:
        yield server


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"
