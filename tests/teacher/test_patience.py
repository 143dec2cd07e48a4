"""Outages that are waited out, images that are refused, and endpoints that are wrong."""

import threading
import time

import pytest
from support.teacher_helpers import (
    QUESTIONS,
    SPEED,
    SteppingClock,
    arguments,
    ask,
    make_images,
    no_answer_lost_or_repeated,
    outcomes,
    replies,
)
from support.teacher_server import FakeTeacher

from mvaema.commands.teach import ask_command
from mvaema.teacher.run import TeacherRun

# A look at a server that is down every 15 seconds on average.
LOOKS_PER_MINUTE = 8
BROKEN = 32  # side of the images that the server cannot read; the others are larger


def broken_images(folder, broken: int, good: int):
    """A folder whose first images are those that the server refuses."""
    make_images(folder / "1", broken, size=(BROKEN, BROKEN))
    make_images(folder / "2", good, size=(48, 48))
    return folder


def refuse_broken(server: FakeTeacher, kind: str):
    server.faulty_image = lambda size: kind if size == (BROKEN, BROKEN) else None


@pytest.mark.parametrize(
    "kind",
    [
        *("400", "error inside"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("413", "500", "drop")),
    ],
)
@pytest.mark.parametrize(("broken", "concurrency"), [(1, 1), (8, 16)])
def test_images_that_the_server_cannot_read_do_not_end_the_run(
    kind, broken, concurrency, server, tmp_path, output
):
    """They are recorded in one run, first or not, and everything else is answered."""
    images = broken_images(tmp_path / "images", broken, good=3)
    refuse_broken(server, kind)
    questions = ["basics", "surface", "imaging"]
    tally = ask(images, output, server.url, concurrency=concurrency, questions=questions)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": 9, "error": 3 * broken}
    no_answer_lost_or_repeated(server, output)
    asked = len(server.exchanges)
    assert ask(images, output, server.url, questions=questions).stopped is None
    assert len(server.exchanges) == asked, "a rerun asks nothing"


@pytest.mark.slow
def test_refused_images_in_the_middle_do_not_end_the_run(server, tmp_path, output):
    images = tmp_path / "images"
    make_images(images / "0", 2, size=(48, 40))
    broken_images(images, 30, good=2)
    refuse_broken(server, "400")
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": 4 * QUESTIONS, "error": 30 * QUESTIONS}


def test_request_form_that_is_always_refused_ends_the_run(server, tmp_path, output, capsys):
    images, groups = make_images(tmp_path / "images", 30), ["basics", "surface"]
    server.fail("400", times=10_000)
    args = arguments(images, output, server.url, export=False, questions=groups)
    assert ask_command(args) == 1
    assert "20 images in a row were refused" in capsys.readouterr().err
    assert len(server.exchanges) <= 20 * len(groups) + 4
    server.faults.clear()
    assert ask(images, output, server.url, retry=["error"], questions=groups).stopped is None
    assert outcomes(output) == {"ok": 30 * len(groups)}


def test_run_without_any_answer_is_not_a_success(server, tmp_path, output, capsys):
    images = make_images(tmp_path / "images", 2)
    server.fail("400", times=10_000)
    assert ask_command(arguments(images, output, server.url, export=False)) == 1
    error = capsys.readouterr().err
    assert "None of 20 questions was answered" in error and "the image is no good" in error


class Outage:
    """The server goes away once it has answered some questions, and comes back after so many
    seconds of the run's clock."""

    def __init__(self, server: FakeTeacher, kind: str, after: int, seconds: float):
        self.server, self.kind, self.after, self.seconds = server, kind, after, seconds
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join(30)
        assert not self.thread.is_alive()

    def _run(self):
        while len(self.server.delivered()) < self.after:
            time.sleep(0.001)
        if self.kind == "unreachable":
            self.server.stop_listening()
        else:
            self.server.fail(self.kind, times=10**6)
        time.sleep(self.seconds / SPEED)
        if self.kind == "unreachable":
            self.server.listen_again()
        else:
            self.server.faults.clear()


@pytest.mark.parametrize(
    "kind",
    [
        "drop",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("503", "500", "unreachable")),
    ],
)
@pytest.mark.parametrize(
    ("concurrency", "minutes"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        (64, 2),
        pytest.param(64, 20, marks=pytest.mark.slow),
    ],
)
def test_outage_is_waited_out(kind, concurrency, minutes, server, tmp_path, output, capsys):
    images = make_images(tmp_path / "images", 10)
    server.delay = 0.01
    with Outage(server, kind, after=20, seconds=60 * minutes):
        tally = ask(images, output, server.url, concurrency=concurrency)
    assert tally.stopped is None
    assert outcomes(output) == {"ok": 10 * QUESTIONS}, "no question is blamed for the outage"
    no_answer_lost_or_repeated(server, output)
    told = capsys.readouterr().out
    assert "The server has not answered for" in told and "Waiting for it" in told
    assert "The server answers again, after" in told
    failed = [row for row in replies(output) if not row["settled"]]
    assert len(failed) < concurrency + LOOKS_PER_MINUTE * minutes + 20


@pytest.mark.parametrize(
    "kind",
    [
        "503",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("500", "drop", "unreachable")),
    ],
)
def test_outage_without_end_ends_the_run_and_settles_nothing(kind, server, tmp_path, output):
    images = make_images(tmp_path / "images", 10)

    def go_away(request: dict) -> int:
        if len(server.exchanges) == 20:
            if kind == "unreachable":
                threading.Thread(target=server.stop_listening).start()
            else:
                server.fail(kind, times=10**6)
        return 1000

    server.count_tokens = go_away
    clock = SteppingClock()
    run = TeacherRun(arguments(images, output, server.url), clock=clock, sleep=clock.sleep)
    stopped = run.ask().tally.stopped
    assert "has not answered for 60 minutes" in stopped and kind[:4] in stopped
    assert 3600 < clock.now < 3700
    assert set(outcomes(output)) == {"ok"}
    server.count_tokens = None
    server.faults.clear()
    if kind == "unreachable":
        server.listen_again()
    assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": 10 * QUESTIONS}
    no_answer_lost_or_repeated(server, output)


def test_server_that_starts_later_than_the_run(server, tmp_path, output, capsys):
    """A model is loaded for minutes."""
    images = make_images(tmp_path / "images", 2)
    with Outage(server, "unreachable", after=0, seconds=3 * 60):
        assert ask(images, output, server.url).stopped is None
    assert outcomes(output) == {"ok": 2 * QUESTIONS}
    assert "10 minutes at most" in capsys.readouterr().out


def test_a_long_pause_that_the_server_asks_for_is_told_about(server, tmp_path, output, capsys):
    images = make_images(tmp_path / "images", 2)
    server.fail("429", times=4, **{"Retry-After": "120"})
    server.delay = 0.02
    assert ask(images, output, server.url).stopped is None
    assert capsys.readouterr().out.count("The server asks to wait 2 minutes") == 1
