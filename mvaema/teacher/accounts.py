"""What a run has done and spent: fed by every reply, live or from a batch.

A reply passes through the same steps either way: it is journalled as it came (`Journal.record`),
judged (`Reply.judge`), charged and counted (here).
"""

from collections import Counter
from dataclasses import dataclass, field

from mvaema.teacher.money import Budget, Meter, Request, may_be_charged
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


@dataclass(eq=False)
class Reservation:
    """What one request in flight may cost, as far as that is known."""

    request: Request
    worst: float | None  # US dollars; None when the price is unknown


class Accounts:
    """The tally of a run, and its money.

    Nobody knows beforehand how many tokens a server counts for an image. Where there is a limit,
    one request is therefore in flight until the first reply has shown what it costs. From then on
    each reservation is worth the dearest that is known, also of requests that were sent before.

    Args:
        meter: what requests cost.
        budget: how much they may cost altogether.
    """

    def __init__(self, meter: Meter, budget: Budget):
        self.meter, self.budget = meter, budget
        self.tally = Tally()
        self._open: set[Reservation] = set()
        # Attempts that may have been charged, without a word on how much: number and US dollars.
        self._unstated, self._unstated_cost = 0, 0.0

    @property
    def at_most_one(self) -> bool:
        """Whether there is a limit, and nothing is known yet of what requests cost."""
        return self.budget.limit is not None and not self.meter.known

    def reserve(self, request: Request) -> Reservation | None:
        """Reserve the worst case of a request. None while the limit does not permit it."""
        worst = self.meter.worst_cost(*request)
        if (self.at_most_one and self.budget.open) or not self.budget.reserve(worst):
            return None
        reservation = Reservation(request, worst)
        self._open.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, cost: float | None):
        """A request is over: release what was reserved for it, and book what it cost."""
        self._open.remove(reservation)
        self.budget.settle(reservation.worst, cost)

    def charge(
        self,
        reply: Reply,
        verdict: Verdict,
        unstated: float | None,
        request: Request | None = None,
    ) -> float | None:
        """What an attempt cost. The meter learns from it.

        Args:
            unstated: US dollars to assume where the attempt may have been charged, but the server
                did not state its usage.
            request: what the reply answers.

        Returns:
            US dollars: of the usage that the server stated, else `unstated`, or 0 where it refused
            or never received the request. None when the price is unknown.
        """
        if verdict.usage is not None:
            if self.meter.add(*verdict.usage, request):
                self._revalue()
            return self.meter.cost(*verdict.usage)
        if verdict.is_completion:
            self.meter.known = True  # more than this the server does not say
        if not may_be_charged(reply.status, reply.problem):
            return 0.0
        self._unstated += 1
        self._unstated_cost += unstated or 0.0
        return unstated

    def _revalue(self):
        """Apply what the meter has learned to what was reserved and assumed before."""
        for reservation in self._open:
            worst = self.meter.worst_cost(*reservation.request)
            self.budget.revalue(reservation.worst, worst)
            reservation.worst = worst
        cost = self._unstated * (self.meter.longest_cost() or 0.0)
        if cost > self._unstated_cost:
            self.budget.spent += cost - self._unstated_cost
            self._unstated_cost = cost
