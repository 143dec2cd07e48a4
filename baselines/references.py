"""Rows that do not look: what any other row must beat."""

from dataclasses import dataclass

import numpy as np

from baselines.outcome import Outcome
from baselines.rows import TableRow
from baselines.scoring import of_probabilities
from baselines.settings import Run
from mvaema.evaluation.categories import chance_probabilities


@dataclass(frozen=True)
class MostFrequent(TableRow):
    """The most frequent category of training, whatever the micrograph shows."""

    def train_and_score(self, run: Run) -> Outcome:
        micrographs = run.data.micrographs(run.settings.image_size)
        # Of the dataset itself: simulated micrographs are as frequent as one likes.
        own = run.data.rows.train["category"][: run.data.own]
        guess = chance_probabilities(own, micrographs.categories)
        row = np.array([guess[name] for name in micrographs.categories])
        probabilities = np.tile(row, (len(micrographs.test.labels), 1))
        return Outcome(of_probabilities(probabilities, micrographs))


ROWS = [
    MostFrequent(
        "most-frequent",
        "Most frequent category",
        None,
        "References",
        "mvaema",
        note="does not look at the micrograph",
    )
]
