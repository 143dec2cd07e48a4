"""The teacher's command in a process of its own, to be killed or interrupted."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Children are forked from a process that has everything imported, which takes seconds.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["mvaema.commands.teach"])


def options(images, output, url, *more) -> list[str]:
    return [
        *("--images", str(images), "--output_dir", str(output), "--teacher_model", "teacher"),
        *("--endpoint", url, *more),
    ]


class TeacherProcess:
    """`mvaema teach`, running. What it prints is in `text()`."""

    def __init__(self, log: Path, argv: list[str]):
        self.log = log
        self.process = SPAWN.Process(target=_child, args=(str(log), argv))
        self.process.start()

    def end(self) -> int:
        """Wait for the process. Returns its exit status, or minus the signal that killed it."""
        self.process.join(60)
        return self.process.exitcode

    def signal(self, number: int):
        os.kill(self.process.pid, number)

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60):
        """Until the condition holds; the process must live so long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the run does not get there"
            assert self.process.is_alive(), self.text()
            time.sleep(0.001)


def _child(log: str, argv: list[str]):
    from mvaema.commands.teach import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(argv))
