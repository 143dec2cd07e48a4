"""Training runs in processes of their own, to which something happens at an exact moment.

    status, said = struck("kill", "open", r"steps\\.jsonl$", 2, recipe, tmp_path / "output.txt")

runs `mvaema train` by this recipe and kills it (SIGKILL) when it is about to open steps.jsonl for
the second time. Moments are Python's audit events, so nothing of the training is replaced.
"""

import multiprocessing
import os
import re
import resource
import signal
import sys
from pathlib import Path

from mvaema.training.recipe import Recipe, write_recipe

# One server imports the training; its children start in no time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["mvaema.commands.train", "mvaema.training.run"])


def fill_disk() -> None:
    """From now on no file can grow beyond 50 kB: logs can be written, weights cannot."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


STROKES = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "fill disk": fill_disk,
}


def struck(
    stroke: str, event: str, path: str, call: int, recipe: Recipe, output: Path
) -> tuple[int, str]:
    """Exit status (negative for a signal) and output of a run.

    Args:
        stroke: of STROKES.
        event, path, call: the moment: the `call`th audit event whose first argument matches `path`.
        output: file for what the process prints.
    """
    file = output.with_suffix(".yaml")
    write_recipe(recipe, file)
    arguments = (stroke, event, path, call, file, output)
    process = PROCESSES.Process(target=_run, args=arguments)
    process.start()
    process.join()
    return process.exitcode, output.read_text(errors="replace")


def _run(stroke: str, event: str, path: str, call: int, recipe: Path, output: Path) -> None:
    from mvaema.commands.train import main

    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    left = [call]

    def strike(name: str, arguments: tuple) -> None:
        if name == event and arguments and re.search(path, str(arguments[0])):
            left[0] -= 1
            if left[0] == 0:
                STROKES[stroke]()

    sys.addaudithook(strike)
    sys.exit(main(["--recipe", str(recipe)]))
