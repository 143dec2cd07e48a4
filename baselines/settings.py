"""What all rows of a folder share, and what one run of a row is given.

What is special about it: rows can be compared only if they saw the same micrographs for as long. So
folds, image size, epochs and budget belong to the folder, and a row decides its learning rate only.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from mvaema.training.recipe import Recipe

if TYPE_CHECKING:
    from baselines.data import FoldData

# They decide where the data lies and how fast it is read, not what is computed.
FREE = {"dataset", "train_also", "workers"}


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's where it names a value.

    Attributes:
        dataset: micrograph dataset, a folder or Hub id.
        split: of the dataset, which is divided into `folds`.
        folds: number of folds.
        test_split: split to test on. None for cross-validation: fold k tests, k + 1 validates.
        train_also: further datasets, in training only.
        mix: how often an epoch shows each micrograph of each dataset, as in "3:0.5".
        balance: of categories in training, 0 (as in the data) to 1 (equally frequent).
        epochs, batch_size, patience, stop_after: as of `mvaema train`.
        image_size: height and width in pixels.
        budget: minutes a row may train, of the processor's time on a CPU; None for no limit.
        workers: processes that prepare batches.
        questions: ids of the questions that rows which answer are tested on; () for all.

    Raises:
        ValueError: a value cannot be used.
    """

    dataset: str
    split: str = "train"
    folds: int = 10
    test_split: str | None = None
    train_also: tuple[str, ...] = ()
    mix: str | None = None
    balance: float = 0.0
    epochs: int = 50
    batch_size: int = 48
    image_size: int = 224
    budget: float | None = None
    patience: int = 5
    stop_after: int = 15
    workers: int = 0
    questions: tuple[str, ...] = ()

    def __post_init__(self):
        least = {"epochs": 1, "batch_size": 2, "image_size": 32, "patience": 1, "stop_after": 1}
        for name, low in (least | {"workers": 0}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}; got {getattr(self, name)}.")
        if self.budget is not None and self.budget <= 0:
            raise ValueError(f"budget must be more than 0 minutes; got {self.budget}.")
        if self.test_split == self.split:
            raise ValueError(f"test_split must be another than split, {self.split}.")
        if self.test_split is None and self.folds < 3:
            raise ValueError(
                f"folds must be at least 3, to train, validate and test; got {self.folds}. Name "
                "a --test_split to test on that instead."
            )
        self.recipe()

    def recipe(self) -> Recipe:
        """What `mvaema train` calls the same data.

        Raises:
            ValueError: a value cannot be used.
        """
        return Recipe(
            self.dataset,
            output_dir="",
            split=self.split,
            folds=self.folds,
            train_also=list(self.train_also) or None,
            mix=self.mix,
            balance=self.balance,
            workers=self.workers,
        )

    def compared(self) -> dict:
        """What two rows of one folder must agree in, for JSON."""
        return {n: v for n, v in dataclasses.asdict(self).items() if n not in FREE}


@dataclass(frozen=True)
class Run:
    """One row, one fold, one seed.

    Attributes:
        settings: of all rows.
        data: the fold's micrographs.
        seed: of weights, order and all draws.
        folder: where the run may keep files; `runs.py` writes its result there.
        accelerator: knows the device.
    """

    settings: Settings
    data: "FoldData"
    seed: int
    folder: Path
    accelerator: Accelerator
