"""What a run has done and spent: fed by every reply, live or from a batch.

A reply passes through the same steps either way: it is journalled as it came (`Journal.record`),
judged (`Reply.judge`), charged and counted (here).
"""

from collections import Counter
from dataclasses import dataclass, field

from mvaema.teacher.money import Budget, Meter, may_be_charged
from mvaema.teacher.replies import Reply, Verdict


@dataclass
class Tally:
    """What a run has done so far, and why it ended early."""

    outcomes: Counter[str] = field(default_factory=Counter)  # of the questions it settled
    models: Counter[str] = field(default_factory=Counter)  # as the server names them
    last_error: str | None = None
    stopped: str | None = None  # as sentences; None where nothing is left to ask

    @property
    def questions(self) -> int:
        """Questions settled."""
        return self.outcomes.total()

    @property
    def completions(self) -> int:
        """Questions that the model answered, well or badly."""
        return self.outcomes.total() - self.outcomes["error"]

    def count(self, verdict: Verdict):
        """Count a verdict; one that settles nothing leaves its error only."""
        if not verdict.is_completion:
            self.last_error = verdict.detail
        if verdict.settled:
            self.outcomes[verdict.outcome] += 1
        if verdict.returned_model:
            self.models[verdict.returned_model] += 1


class Accounts:
    """The tally of a run, and its money.

    Args:
        meter: what requests cost.
        budget: how much they may cost altogether.
    """

    def __init__(self, meter: Meter, budget: Budget):
        self.meter, self.budget = meter, budget
        self.tally = Tally()

    def charge(self, reply: Reply, verdict: Verdict, unstated: float | None) -> float | None:
        """What an attempt cost. The meter learns from it.

        Args:
            unstated: US dollars to assume where the attempt may have been charged, but the server
                did not state its usage.

        Returns:
            US dollars: of the usage that the server stated, else `unstated`, or 0 where it refused
            or never received the request. None when the price is unknown.
        """
        if verdict.usage is not None:
            self.meter.add(*verdict.usage)
            return self.meter.cost(*verdict.usage)
        return unstated if may_be_charged(reply.status, reply.problem) else 0.0
