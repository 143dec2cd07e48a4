"""The folder of a training run: whose it is, how far the run came, what it has recorded.

    recipe.yaml          runs it again
    run.json             versions, commit, fingerprint of the data, counts; whether it is finished
    training_log.jsonl   a line per epoch: learning rate, seconds, losses
    steps.jsonl          a line every few steps: learning rate, losses
    samples.jsonl        answers about the same validation micrographs, epoch after epoch
    skipped.jsonl        micrographs that could not be read, if there were any
    failed_batch.json    the batch at which the loss became useless, if it did
    losses.png           loss curves
    checkpoints/         to resume from
    vision_features/     features of a frozen vision model
    ...                  the model repository, as of the best epoch

What is special about it: a folder is used again only by the same recipe on the same data. No other
run overwrites anything in it.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from mvaema.files import JsonLines, write_json, write_text
from mvaema.students.places import hub_ids
from mvaema.training.provenance import provenance
from mvaema.training.recipe import Recipe, write_recipe

# Settings that may change when a run is resumed: they decide how long, how fast and what is shown,
# not what is computed. (The dataset may move; its content is compared.)
FREE = {
    *("dataset", "output_dir", "resume", "epochs", "stop_after", "max_minutes"),
    *("workers", "strict", "merge", "checkpoint_steps", "report_to"),
    *("push_to_hub", "public", "vision_cache", "vision_cache_gb"),
}


class RunFolder:
    """The folder `recipe.output_dir`, if it is this recipe's or nobody's.

    Attributes:
        path: the folder.
        run: the content of run.json.
        finished: whether the run in it is, with the epochs that the recipe asks for.

    Raises:
        FileExistsError: it holds something else; the message says what differs.
        FileNotFoundError: `recipe.resume`, and there is no run.
    """

    def __init__(self, recipe: Recipe):
        self.path = Path(recipe.output_dir)
        self.recipe = recipe
        self.run: dict = {}
        self.finished = False
        self._lines: dict[str, JsonLines] = {}
        if (self.path / "recipe.yaml").is_file():
            self._read()
        elif self.path.exists() and any(f.name[0] != "." for f in self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} is not empty and holds no training run (no recipe.yaml). Choose "
                "another --output_dir."
            )
        elif recipe.resume:
            raise FileNotFoundError(f"{self.path} holds no run to resume (no recipe.yaml).")

    def _read(self) -> None:
        earlier = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        now = dataclasses.asdict(self.recipe)
        differing = [n for n in now if n not in FREE and now[n] != earlier.get(n)]
        if differing:
            changes = ", ".join(f"{n} was {earlier.get(n)!r}, is {now[n]!r}" for n in differing)
            raise FileExistsError(
                f"{self.path} holds another run ({changes}). Choose another --output_dir, or "
                "resume that run with --resume."
            )
        file = self.path / "run.json"
        if file.is_file():
            self.run = json.loads(file.read_text(encoding="utf-8"))
        # A finished run continues when it is given more epochs or minutes.
        ends = ("epochs", "stop_after", "max_minutes")
        longer = [n for n in ends if now[n] != earlier.get(n)]
        self.finished = bool(self.run.get("finished")) and not longer

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Reserve the folder for this process.

        Raises:
            FileExistsError: another one is training in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(
                f"another process is training in {self.path}. Wait for it, or choose another "
                "--output_dir."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def claim(self, fingerprint: str, facts: dict) -> None:
        """Make it this run's.

        Args:
            fingerprint: of the data (`dataset_fingerprint`).
            facts: of the run, for run.json.

        Raises:
            ValueError: the run to resume was started on other data.
        """
        known = self.run.get("dataset_fingerprint", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"{self.recipe.dataset} is not what the run in {self.path} was started on: its "
                "micrographs or answers have changed. Choose another --output_dir."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        # First: without it, a folder that holds anything is refused.
        write_recipe(self.recipe, self.path / "recipe.yaml")
        facts = facts | {"hub_ids": hub_ids(dataclasses.asdict(self.recipe)), "finished": False}
        self.note(dataset_fingerprint=fingerprint, **provenance(), **facts)

    def note(self, **facts) -> None:
        """Add to run.json."""
        self.run |= facts
        write_json(self.path / "run.json", self.run)

    def append(self, name: str, *records: dict) -> None:
        """Add records to `name`.jsonl."""
        if name not in self._lines:
            self._lines[name] = JsonLines(self.path / f"{name}.jsonl")
        self._lines[name].append(records)

    def rewind(self, epoch: int, step: int) -> None:
        """Drop the records that were written after a checkpoint, and an incomplete line."""
        for name, key, last in (
            *(("training_log", "epoch", epoch), ("samples", "epoch", epoch)),
            *(("steps", "step", step), ("skipped", "step", step)),
        ):
            file = self.path / f"{name}.jsonl"
            if file.is_file():
                kept = [record for record in JsonLines(file).rows if record[key] <= last]
                write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
        self._lines.clear()
