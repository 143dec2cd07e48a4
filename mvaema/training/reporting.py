"""What a run says, logs and shows: the console, the .jsonl files, the trackers, sample answers.

Every process calls a reporter; only that of the main process does anything. Nothing that it does
changes the run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from datasets import Dataset
from tqdm import tqdm

from mvaema.files import write_json
from mvaema.training.batch_losses import BatchLosses
from mvaema.training.recipe import Recipe
from mvaema.training.run_folder import RunFolder
from mvaema.training.samples import format_samples, sample_answers
from mvaema.training.state import TrainingState
from mvaema.training.streaming import ParquetRows


class Reporter:
    """The reporter of one run.

    Args:
        validation: the rows that sample answers are about.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        accelerator: Accelerator,
        validation: Dataset | ParquetRows,
    ):
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.validation = validation
        self.is_main = accelerator.is_main_process

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar."""
        if self.is_main:
            tqdm.write(text)

    def started(self, facts: dict) -> None:
        """The run's size, and what was left out of it (`facts` of run.json)."""
        if self.recipe.report_to:
            self.accelerator.init_trackers("mvaema")
        self.say(
            f"{facts['train_micrographs']:,} micrographs to train on, "
            f"{facts['validation_micrographs']:,} to validate; {facts['parameters']:,} parameters, "
            f"{facts['trainable_parameters']:,} trained; {facts['device']}, "
            f"{facts['processes']} process(es)."
        )
        if skipped := facts["skipped_micrographs"]:
            more = ", ..." if len(skipped) > 10 else ""
            self.say(
                f"{len(skipped)} unreadable image(s) left out: {', '.join(skipped[:10])}{more}"
            )

    def resumed(self, state: TrainingState) -> None:
        self.say(f"Resuming in epoch {state.epoch + 1}, after step {state.step:,}.")

    @contextmanager
    def progress_bar(self, steps: int, done: int) -> Iterator[None]:
        """Show the steps of the run, of which `done` are done, and the epoch's mean losses."""
        with tqdm(total=steps, initial=done, unit="step", disable=not self.is_main) as self._bar:
            yield

    def step(self, state: TrainingState, losses: BatchLosses, learning_rate: float) -> None:
        """Optimizer step number `state.step` is done; its losses go to steps.jsonl at times."""
        self._bar.set_description(f"epoch {state.epoch + 1}/{self.recipe.epochs}", refresh=False)
        self._bar.set_postfix({n: f"{v:.3f}" for n, v in state.losses.means().items()})
        self._bar.update()
        if state.step % self.recipe.logging_steps:
            return
        if self.is_main:
            record = {"step": state.step, "learning_rate": learning_rate, **losses.values}
            self.folder.append("steps", record)
        shown = {f"train/{name}": value for name, value in losses.values.items()}
        self.accelerator.log({**shown, "learning_rate": learning_rate}, step=state.step)

    def skipped(self, step: int, image_ids: Sequence[str]) -> None:
        """Images of a step could not be read; they go to skipped.jsonl."""
        if self.is_main:
            self.folder.append("skipped", *({"step": step, "image_id": i} for i in image_ids))

    def epoch(self, state: TrainingState, record: dict) -> None:
        """An epoch is over; its record goes to training_log.jsonl."""
        if self.is_main:
            self.folder.append("training_log", record)
        train, validation = record["train"], record["validation"]
        self.accelerator.log(
            {f"validation/{name}": value for name, value in validation.items()}, step=state.step
        )
        parts = [
            f"epoch {record['epoch']:3d}",
            *(f"{name} {train[name]:.3f}/{validation[name]:.3f}" for name in train),
            f"{record['seconds']:.0f} s",
        ]
        if "truncated" in record:
            parts.append(f"{record['truncated']} answers cut")
        if "skipped" in record:
            parts.append(f"{record['skipped']} images skipped")
        if state.improved:
            parts.append("saved")
        self.say("  ".join(parts))

    def samples(self, state: TrainingState, model: torch.nn.Module) -> None:
        """Answers about a few validation micrographs; they go to samples.jsonl.

        Args:
            model: as accelerate has prepared it. A sharded one cannot answer on one process.
        """
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if not self.recipe.sample_micrographs or sharded or not self.is_main:
            return
        student = self.accelerator.unwrap_model(model)
        samples = sample_answers(student, self.validation, self.recipe.sample_micrographs)
        self.folder.append("samples", *({"epoch": state.epoch, **s} for s in samples))
        text = format_samples(samples)
        self.say(text)
        self.accelerator.log({"samples": text}, step=state.step)

    def failed_batch(
        self, state: TrainingState, losses: BatchLosses, usual: float, image_ids: Sequence[str]
    ) -> Path:
        """The file that names the micrographs of a batch whose loss is useless."""
        file = self.folder.path / "failed_batch.json"
        if self.is_main:
            failure = {
                "epoch": state.epoch + 1,
                "step": state.step + 1,
                "losses": {name: str(value) for name, value in losses.values.items()},
                "median_loss": str(usual),
                "image_ids": list(image_ids),
            }
            write_json(file, failure)
        return file

    def close(self) -> None:
        # Not `end_training`, which ends the processes' group: another fold may follow.
        for tracker in self.accelerator.trackers:
            tracker.finish()
