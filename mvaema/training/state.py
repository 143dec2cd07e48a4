"""Where a run stands: all that a checkpoint holds beside weights, optimizer and random states."""

import dataclasses
import statistics
from dataclasses import dataclass, field

from mvaema.training.batch_losses import BatchLosses, MeanLosses

RECENT = 100  # losses that tell what is usual; fewer than 20 tell nothing


@dataclass
class TrainingState:
    """Where a run stands. `step`, `epoch` and `log` count from its start, the rest is explained.

    Attributes:
        epoch: epochs done.
        batch: batches done of the next epoch.
        step: optimizer steps done.
        best, best_epoch: lowest validation loss, and the epoch (from 1) that had it.
        losses: of the epoch so far.
        truncated, skipped: answers cut and unreadable images met in this epoch.
        seconds: spent on this epoch.
        recent: the last `RECENT` losses.
        log: a record per epoch, as in `training_log.jsonl`.
        scheduler: state of the learning rate's scheduler.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0
    losses: MeanLosses = field(default_factory=MeanLosses)
    truncated: int = 0
    skipped: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    log: list[dict] = field(default_factory=list)
    scheduler: dict = field(default_factory=dict)

    @classmethod
    def from_dict(cls, state: dict) -> "TrainingState":
        """The state that `to_dict` gave, after a way through JSON."""
        return cls(**{**state, "losses": MeanLosses(**state["losses"])})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def usual_loss(self) -> float:
        """The median of the recent losses; infinity at the start of a run."""
        return statistics.median(self.recent) if len(self.recent) >= 20 else float("inf")

    def add(self, losses: BatchLosses) -> None:
        """Count a batch that was trained on."""
        self.losses.add(losses)
        self.truncated += losses.truncated
        self.skipped += losses.skipped
        self.recent = [*self.recent[1 - RECENT :], losses.values["loss"]]

    def end_epoch(
        self, learning_rate: float, validation: dict[str, float], keep_by: str = "loss"
    ) -> dict:
        """Begin the next epoch.

        Args:
            learning_rate: of the epoch that ends.
            validation: mean losses over the validation micrographs.
            keep_by: the one of them that says which epoch is the best.

        Returns:
            the record of the epoch that ends, which is also the last of `log`.
        """
        self.epoch += 1
        if validation[keep_by] < self.best:
            self.best, self.best_epoch = validation[keep_by], self.epoch
        record = {
            "epoch": self.epoch,
            "learning_rate": learning_rate,
            "seconds": round(self.seconds, 2),
            "train": self.losses.means(),
            "validation": validation,
        }
        counts = {"truncated": self.truncated, "skipped": self.skipped}
        record |= {name: count for name, count in counts.items() if count}
        self.log.append(record)
        self.batch = self.truncated = self.skipped = 0
        self.seconds, self.losses = 0.0, MeanLosses()
        return record

    @property
    def improved(self) -> bool:
        """Whether the last epoch was the best so far."""
        return self.epoch == self.best_epoch
