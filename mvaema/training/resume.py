"""Checkpoints to resume a killed run from.

What is special about it:
- a checkpoint is there whole or not at all: it is written into a folder of another name, brought to
  the disk and renamed;
- the last good one goes only when its successor is there. A checkpoint that cannot be written (a
  full disk) is reported, and training goes on with the one before it;
- accelerate writes what it knows of (weights, optimizer, random states of every process, also
  sharded); where the run stands is a JSON file beside it. Nothing in it runs code when loaded.
"""

import json
import logging
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

STATE = "state.json"
# It warns at each checkpoint that tied weights are written once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run, `FOLDER/step-00000500` and so on.

    Args:
        keep: the newest so many are kept.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int = 2):
        self.folder, self.accelerator, self.keep = folder, accelerator, keep

    def complete(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, state: dict) -> str | None:
        """Write a checkpoint; every process calls this.

        Args:
            step: optimizer steps done.
            state: where the run stands, for JSON.

        Returns:
            what went wrong, or `None`; the same on every process.
        """
        final = self.folder / f"step-{step:08d}"
        writing = self.folder / f".writing-{final.name}"
        if self.accelerator.is_main_process:
            shutil.rmtree(writing, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        failure = None
        try:
            writing.mkdir(parents=True, exist_ok=True)
            self.accelerator.save_state(str(writing))
            if self.accelerator.is_main_process:
                state = {**state, "processes": self.accelerator.num_processes}
                (writing / STATE).write_text(json.dumps(state))
        except Exception as error:  # torch and safetensors have their own for a full disk
            failure = f"{type(error).__name__}: {error}"
        if self._any(failure is not None):
            failure = failure or "another process could not write its part"
        elif self.accelerator.is_main_process:
            try:
                _sync(writing)
                shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed before it
                writing.rename(final)
                _sync_folder(self.folder)
                for old in self.complete()[: -self.keep]:
                    shutil.rmtree(old)
            except OSError as error:
                failure = f"{type(error).__name__}: {error}"
        if self._any(failure is not None):
            failure = failure or "the main process could not finish it"
            if self.accelerator.is_main_process:
                shutil.rmtree(writing, ignore_errors=True)
        return failure

    def restore(self) -> dict | None:
        """Load the newest checkpoint into what accelerate has prepared; its state, if any.

        Raises:
            ValueError: it was written by another number of processes.
        """
        found = self.complete()
        if not found:
            return None
        state = json.loads((found[-1] / STATE).read_text())
        if state["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{found[-1]} was written by {state['processes']} process(es) and this run has "
                f"{self.accelerator.num_processes}: launch it with as many."
            )
        self.accelerator.load_state(str(found[-1]))
        return state

    def _any(self, flag: bool) -> bool:
        """Whether any process says so."""
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return self.accelerator.reduce(flags, "sum").item() > 0


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
