"""Checkpoints from which a killed run resumes.

What is special about it:
- a checkpoint is there whole or not at all: it is written into a folder of another name, brought to
  the disk and renamed;
- the last complete one is removed only when its successor is there. A checkpoint that cannot be
  written (a full disk) is reported, and training continues;
- accelerate writes what it knows of (weights, optimizer, random states of every process, sharded
  or not). Where the run stands is a JSON file beside it. Loading runs no code from either.
"""

import json
import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from mvaema.files import move_folder

STATE = "state.json"
# It warns at each checkpoint that tied weights are written once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run, `FOLDER/step-00000500` and so on.

    Args:
        keep: how many are kept, the newest ones.
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
            what went wrong, or `None`; every process learns of a failure.
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
                saved = {"processes": self.accelerator.num_processes, "state": state}
                (writing / STATE).write_text(json.dumps(saved), encoding="utf-8")
        except Exception as error:  # torch and safetensors have their own for a full disk
            failure = f"{type(error).__name__}: {error}"
        if self._any(failure is not None):
            failure = failure or "another process could not write its part"
        elif self.accelerator.is_main_process:
            try:
                move_folder(writing, final)
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
        """Load the newest checkpoint into what accelerate has prepared.

        Returns:
            its `state`; None if there is no checkpoint.

        Raises:
            ValueError: it was written by another number of processes.
        """
        found = self.complete()
        if not found:
            return None
        saved = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
        if saved["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{found[-1]} was written by {saved['processes']} process(es); this run has "
                f"{self.accelerator.num_processes}. Launch it with the same number."
            )
        self.accelerator.load_state(str(found[-1]))
        return saved["state"]

    def _any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return self.accelerator.reduce(flags, "sum").item() > 0
