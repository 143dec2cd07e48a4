"""The teacher as a process: killed, interrupted, on a full disk."""

import os
import pty
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import load_dataset
from support import ROOT
from support.teacher_helpers import (
    QUESTIONS,
    make_images,
    no_answer_lost_or_repeated,
    outcomes,
    replies,
)
from support.teacher_process import TeacherProcess, options
from support.teacher_server import FakeTeacher, Fault

from mvaema.teacher.export import export
from mvaema.teacher.journal import JournalError

CONCURRENCY = 8
CONCURRENT = ("--concurrency", str(CONCURRENCY))


def journalled(output: Path) -> set[str]:
    """Questions whose answer is in the journal, as the server names them."""
    raws = [bytes(row["raw"] or b"") for row in replies(output)]
    return {match[1].decode() for raw in raws for match in re.finditer(rb"chatcmpl-(\w+)", raw)}


def kill_and_resume(
    tmp_path, images_count: int, kills: int, seed: int, more=(), trouble: Sequence[str] = ()
):
    """Kill a run at random moments, resume it each time, and compare with the server's log.

    Args:
        more: further arguments of the command.
        trouble: kinds of faults of the server, three of one kind in each run.
    """
    rng = random.Random(seed)
    images, output = make_images(tmp_path / "images", images_count), tmp_path / "out"
    total = images_count * QUESTIONS
    with FakeTeacher(delay=0.01, keep_bodies=False) as server:
        argv, log = options(images, output, server.url, *CONCURRENT, *more), tmp_path / "log"
        for _ in range(kills):
            server.faults = [
                Fault(kind, times=3) for kind in rng.sample(trouble, min(1, len(trouble)))
            ]
            before, kept_before = len(server.exchanges), journalled(output)
            delivered_before = len(server.delivered())
            # Anything from the first request to a share of the rest of the run.
            share = max(1, (total - len(set(server.delivered()))) // 8)
            target = before + rng.randrange(1, share + 1)
            run = TeacherProcess(log, argv)
            run.wait_for(lambda goal=target: len(server.exchanges) >= goal)
            time.sleep(rng.random() * 0.02)
            run.signal(signal.SIGKILL)
            assert run.end() == -signal.SIGKILL
            time.sleep(0.05)  # the server notices
            kept, delivered = journalled(output), server.delivered()[delivered_before:]
            assert kept >= kept_before, "what is in the journal stays there"
            # Of what this run was sent, only what was on its way when it died.
            lost = [name for name in delivered if name not in kept]
            assert set(lost) <= set(delivered[-CONCURRENCY:])
        server.faults = []
        last = TeacherProcess(log, argv)
        assert last.end() == 0, last.text()
        times_delivered = Counter(server.delivered())
        repeats = sum(times_delivered.values()) - len(times_delivered)
        assert len(times_delivered) == total
        assert repeats <= kills * CONCURRENCY

    rows = load_dataset(str(output / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    answers = [qa["answer"] for row in rows for qa in row["qa"] if qa["outcome"] == "ok"]
    names = [re.match(r"Answer (\w+) to", answer)[1] for answer in answers]
    assert sorted(names) == sorted(times_delivered), "every answer exactly once"
    return repeats


@pytest.mark.slow
def test_killed_run_is_resumed(tmp_path):
    kill_and_resume(tmp_path, images_count=8, kills=2, seed=0)


@pytest.mark.slow
def test_killed_amid_failures_and_under_a_limit(tmp_path):
    """Questions that were put aside, reservations and all: nothing is lost or paid for twice."""
    trouble = ["500", "503", "drop", "429"]
    kill_and_resume(tmp_path, 20, kills=8, seed=2, more=limited(tmp_path, 1000), trouble=trouble)


@pytest.mark.slow
def test_limit_holds_across_kills(tmp_path):
    """But for what was in flight when the process died, of which it could not keep an account."""
    images, output = make_images(tmp_path / "images", 20), tmp_path / "out"
    limit, price, kills = 1.0, (1000 * 10 + 100) / 1e6, 3
    with FakeTeacher(delay=0.02, keep_bodies=False) as server:
        more = limited(tmp_path, limit)
        argv = options(images, output, server.url, *CONCURRENT, *more, "--no_export")
        for i in range(kills):
            run, log = TeacherProcess(tmp_path / "log", argv), tmp_path / "log"
            run.wait_for(lambda goal=20 * (i + 1): len(server.exchanges) >= goal)
            run.signal(signal.SIGKILL)
            run.end()
        run = TeacherProcess(log, argv)
        assert run.end() == 1 and "--max_cost" in run.text()
        kept = len(journalled(output))
        assert 0.8 * limit < kept * price <= limit
        assert len(server.delivered()) <= kept + kills * CONCURRENCY


def limited(folder: Path, dollars: float) -> list[str]:
    prices = folder / "prices.yaml"
    prices.write_text("models: {teacher: {input: 10, output: 1, as_of: today}}")
    return ["--prices", str(prices), "--max_cost", str(dollars)]


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    """500 answers, kill -9 twenty times."""
    repeats = kill_and_resume(tmp_path, images_count=50, kills=20, seed=1)
    print(f"{repeats} answers of 500 were in flight at one of 20 kills and asked for again")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "deleted",
        "emptied",
        "without its log",
        "all deleted",
    ],
)
def test_killed_run_whose_journal_was_damaged_pays_nothing_again(loss, tmp_path):
    """It is refused, nothing is sent, and the dataset stays; put back, it is resumed."""
    images, output = make_images(tmp_path / "images", 4), tmp_path / "out"
    with FakeTeacher(delay=0.01) as server:
        log = tmp_path / "log"
        argv = options(images, output, server.url, *CONCURRENT)
        assert TeacherProcess(log, [*argv, "--pilot", "1"]).end() == 0
        run = TeacherProcess(log, argv)
        run.wait_for(lambda: len(server.delivered()) >= 25)
        run.signal(signal.SIGKILL)
        assert run.end() == -signal.SIGKILL
        files = [path for path in output.glob("journal-*") if path.suffix != ".ballast"]
        kept = {path: path.read_bytes() for path in files}
        [journal] = output.glob("journal-*.sqlite")
        wal = journal.with_name(f"{journal.name}-wal")
        assert kept[wal], "replies are in the log only"
        match loss:
            case "deleted":
                journal.unlink()
            case "emptied":
                journal.write_bytes(b"")
            case "without its log":
                wal.unlink()
            case "all deleted":
                for path in files:
                    path.unlink()
        asked = len(server.exchanges)
        again = TeacherProcess(log, argv)
        assert again.end() == 1
        assert "error: " in again.text() and "paid for again" in again.text()
        assert len(server.exchanges) == asked
        with pytest.raises(JournalError):
            export(output)
        assert len(load_dataset(str(output / "dataset"), cache_dir=str(tmp_path / "c"))) == 1
        for path, content in kept.items():
            path.write_bytes(content)
        answered = journalled(output)
        assert TeacherProcess(log, argv).end() == 0
        times = Counter(server.delivered())
        assert len(answered) > 10 and all(times[name] == 1 for name in answered)
    assert outcomes(output) == {"ok": 40}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_interrupt_finishes_what_is_in_flight(number, tmp_path):
    images, output = make_images(tmp_path / "images", 4), tmp_path / "out"
    with FakeTeacher(delay=0.4) as server:
        argv, log = options(images, output, server.url, *CONCURRENT), tmp_path / "log"
        run = TeacherProcess(log, argv)
        run.wait_for(lambda: server.in_flight >= 4)
        run.signal(number)
        assert run.end() == 130
        assert "Rerun the same command to resume" in run.text()
        assert 4 <= len(replies(output)) == len(server.exchanges) < 40
        server.delay = 0.0
        assert TeacherProcess(log, argv).end() == 0
        no_answer_lost_or_repeated(server, output)
    assert outcomes(output) == {"ok": 40}


@pytest.mark.slow
def test_closed_terminal_finishes_what_is_in_flight(tmp_path):
    """The terminal is gone for good: nothing can be shown any more, and nothing is lost."""
    images, output = make_images(tmp_path / "images", 4), tmp_path / "out"
    with FakeTeacher(delay=0.4) as server:
        argv = options(images, output, server.url, *CONCURRENT)
        child, terminal = pty.fork()
        if child == 0:
            script = str(ROOT / "generate_teacher_data.py")
            os.execve(sys.executable, [sys.executable, script, *argv], os.environ)
        deadline = time.monotonic() + 60
        while server.in_flight < 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.close(terminal)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 130
        assert 4 <= len(replies(output)) == len(server.exchanges) < 40
        server.delay = 0.0
        assert TeacherProcess(tmp_path / "log", argv).end() == 0
        no_answer_lost_or_repeated(server, output)
    assert outcomes(output) == {"ok": 40}


@pytest.mark.slow
def test_a_run_that_ignores_the_hangup_goes_on(tmp_path):
    """`nohup`, whose point it is."""
    images, output = make_images(tmp_path / "images", 2), tmp_path / "out"
    with FakeTeacher(delay=0.1) as server:
        script = str(ROOT / "generate_teacher_data.py")
        argv = [sys.executable, script, *options(images, output, server.url, *CONCURRENT)]
        run = subprocess.Popen(
            ["nohup", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not server.in_flight:
            assert run.poll() is None
            time.sleep(0.001)
        run.send_signal(signal.SIGHUP)
        assert run.wait(60) == 0
    assert outcomes(output) == {"ok": 20}


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_interrupted_batch_run_says_how_to_resume(number, tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    batched = ("--batch", "True", "--batch_poll", "0.01")
    with FakeTeacher() as server:
        server.hang_at = "retrieve"
        argv, log = options(images, output, server.url, *batched), tmp_path / "log"
        run = TeacherProcess(log, argv)
        run.wait_for(server.hung.is_set)
        run.signal(number)
        assert run.end() == 130
        assert "Rerun the same command to resume" in run.text()
        server.hang_at = None
        assert TeacherProcess(log, argv).end() == 0
        assert len(server.batches) == 1
    assert outcomes(output) == {"ok": QUESTIONS}


@pytest.mark.slow
def test_second_interrupt_does_not_wait(tmp_path):
    images, output = make_images(tmp_path / "images", 1), tmp_path / "out"
    with FakeTeacher(delay=30.0) as server:
        run = TeacherProcess(tmp_path / "log", options(images, output, server.url, *CONCURRENT))
        run.wait_for(lambda: server.in_flight >= 4)
        run.signal(signal.SIGINT)
        run.wait_for(lambda: "Stopping" in run.text())
        run.signal(signal.SIGINT)
        assert run.end() == 130
    assert replies(output) == []


@pytest.mark.slow
def test_export_while_answers_arrive(tmp_path):
    """Each export is a consistent snapshot, and the run is not disturbed."""
    images, output = make_images(tmp_path / "images", 10), tmp_path / "out"
    seen = []
    with FakeTeacher(delay=0.02) as server:
        run = TeacherProcess(tmp_path / "log", options(images, output, server.url, "--no_export"))
        while run.process.is_alive():
            try:
                dataset, summary = export(output)
            except JournalError:
                continue  # there is no reply yet
            seen.append(summary.outcomes["ok"])
            rows = load_dataset(str(dataset), split="train", cache_dir=str(tmp_path / "cache"))
            assert len(rows) == summary.images
        assert run.end() == 0, run.text()
        no_answer_lost_or_repeated(server, output)
    assert seen == sorted(seen) and len(set(seen)) > 1
    assert export(output)[1].outcomes == {"ok": 10 * QUESTIONS}


def in_own_mount(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a shell script where it may mount: nothing of it is seen outside."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("needs unprivileged mount namespaces (unshare -rm)")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_full_disk_loses_no_answer(tmp_path):
    """The disk fills up while answers come in: all of them are kept, the run says what to do."""
    images, output = make_images(tmp_path / "images", 20), tmp_path / "small"
    kept = tmp_path / "kept"
    output.mkdir()
    with FakeTeacher(delay=0.5) as server:
        # The run is given 20 MiB; once it has asked, something else takes what is left.
        done = in_own_mount(
            """
            set -e
            output=$1 kept=$2; shift 2
            mount -t tmpfs -o size=20m none "$output"
            "$@" & run=$!
            while ! ls "$output"/images/*/* >/dev/null 2>&1; do sleep 0.1; done
            dd if=/dev/zero of="$output/filler" bs=64k 2>/dev/null || true
            status=0; wait $run || status=$?
            rm "$output/filler"; cp -r "$output" "$kept"
            exit $status
            """,
            *(str(output), str(kept)),
            *(sys.executable, str(ROOT / "generate_teacher_data.py")),
            *options(images, output, server.url, *CONCURRENT),
        )
        assert done.returncode == 1, done
        assert "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert "disk is full" in done.stderr or "No space left" in done.stderr, done.stderr
        assert not list(kept.glob("*.ballast")), "its room was needed"
        assert len(server.exchanges) < 20 * QUESTIONS, "the disk never was full"
        no_answer_lost_or_repeated(server, kept)
        for journal in kept.glob("*.sqlite"):
            assert sqlite3.connect(journal).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        server.delay = 0.0
        again = TeacherProcess(tmp_path / "log", options(images, kept, server.url, *CONCURRENT))
        assert again.end() == 0, again.text()
        no_answer_lost_or_repeated(server, kept)
    assert outcomes(kept) == {"ok": 20 * QUESTIONS}
