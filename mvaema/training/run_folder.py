"""The folder of a training run: whose it is, how far it came, what it has written down.

    recipe.yaml          runs it again
    run.json             versions, commit, fingerprint of the data, counts; whether it is finished
    training_log.jsonl   a line per epoch: learning rate, seconds, losses
    steps.jsonl          a line every few steps: learning rate, losses
    samples.jsonl        answers about the same validation micrographs, epoch after epoch
    skipped.jsonl        micrographs that could not be read, where there were any
    failed_batch.json    the batch at which the loss became useless, if it did
    losses.png           loss curves
    checkpoints/         to resume from
    ...                  the model repository, as of the best epoch

What is special about it: a folder is gone on with only by the same recipe on the same data; nothing
in it is overwritten by another run.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from mvaema.files import write_json, write_text
from mvaema.students.card import hub_ids
from mvaema.training.recipe import Recipe, provenance, write_recipe

# Settings that may change when a run is gone on with: they decide how long, how fast and what is
# shown, not what is computed. (The dataset may move; its content is compared.)
FREE = {
    *("dataset", "output_dir", "resume", "epochs", "stop_after", "workers", "strict", "merge"),
    *("checkpoint_steps", "report_to", "push_to_hub", "hub_model_id", "hub_public"),
}


class RunFolder:
    """The folder `recipe.output_dir`, if it is this recipe's or nobody's.

    Raises:
        FileExistsError: it holds something else; the message says what differs.
        FileNotFoundError: `recipe.resume`, and there is no run.
    """

    def __init__(self, recipe: Recipe):
        self.path = Path(recipe.output_dir)
        self.recipe = recipe
        self.run: dict = {}
        file = self.path / "recipe.yaml"
        if not file.is_file():
            if self.path.exists() and any(f.name[0] != "." for f in self.path.iterdir()):
                raise FileExistsError(
                    f"{self.path} is not empty and holds no training run (no recipe.yaml); choose "
                    "another --output_dir."
                )
            if recipe.resume:
                raise FileNotFoundError(f"{self.path} holds no run to resume (no recipe.yaml).")
            return
        earlier = yaml.safe_load(file.read_text(encoding="utf-8"))
        now = dataclasses.asdict(recipe)
        differing = [n for n in now if n not in FREE and now[n] != earlier.get(n)]
        if differing:
            changes = ", ".join(f"{n} was {earlier.get(n)!r}, is {now[n]!r}" for n in differing)
            raise FileExistsError(
                f"{self.path} holds another run ({changes}); choose another --output_dir, or go on "
                "with it by --resume."
            )
        self.run = _read_json(self.path / "run.json")
        # A finished run goes on when it is given more epochs.
        longer = [n for n in ("epochs", "stop_after") if now[n] != earlier.get(n)]
        self.finished = bool(self.run.get("finished")) and not longer

    finished = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder for this process meanwhile.

        Raises:
            FileExistsError: another one is training in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(
                f"another process is training in {self.path}; wait for it, or choose another "
                "--output_dir."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def claim(self, fingerprint: str, **facts) -> None:
        """Make it this run's; `facts` go into run.json.

        Raises:
            ValueError: the run that is gone on with had other data.
        """
        known = self.run.get("dataset_fingerprint", fingerprint)
        if known != fingerprint:
            raise ValueError(
                f"{self.recipe.dataset} is not what the run in {self.path} was started on (its "
                "micrographs or answers have changed): choose another --output_dir."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        facts |= {"hub_ids": hub_ids(self.recipe), "finished": False}
        self.note(dataset_fingerprint=fingerprint, **provenance(), **facts)
        write_recipe(self.recipe, self.path / "recipe.yaml")

    def note(self, **facts) -> None:
        """Add to run.json."""
        self.run |= facts
        write_json(self.path / "run.json", self.run)

    def append(self, name: str, *records: dict) -> None:
        """Add records to `name`.jsonl."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def rewind(self, epoch: int, step: int) -> None:
        """Drop what was written after a checkpoint, and the line that a kill has torn."""
        for name, key, last in (
            *(("training_log", "epoch", epoch), ("samples", "epoch", epoch)),
            *(("steps", "step", step), ("skipped", "step", step)),
        ):
            file = self.path / f"{name}.jsonl"
            if file.is_file():
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [s for s in lines if s.endswith("\n") and json.loads(s)[key] <= last]
                write_text(file, "".join(kept))


def _read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
