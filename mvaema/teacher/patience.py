"""What failures in a row mean: a question at fault, a server that is down, or a wrong endpoint.

What is special about it:
- an outage is waited out, up to an hour, by sending one request at a time, and told about;
- errors of single requests, however many in a row, are recorded and the run goes on. It ends where
  so many different images are refused that the form of the request must be wrong;
- a question is at fault only if the server answered others between its failures.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mvaema.teacher.journal import Question
from mvaema.teacher.limits import backoff
from mvaema.teacher.replies import Reply, Verdict

# Seconds that a run waits for a server that is down or asks to slow down, since its last answer.
# Before the first answer of the run it may as well be a wrong address.
PATIENCE, PATIENCE_AT_FIRST = 3600.0, 600.0
# Longest pause between two looks at a server that is down, in seconds.
LONGEST_PAUSE = 30.0
# So many failures in a row are an outage.
OUTAGE = 4
# An outage is told about from its n-th pause on: shorter ones are over in seconds.
TOLD_FROM = 3
# After so many failures of one question, it is at fault.
MAX_FAILURES = 8
# So many images in a row whose questions were refused: the form of the request is at fault. The
# second number holds until the first answer of the run.
MAX_REFUSED, MAX_REFUSED_AT_FIRST = 100, 20
# So many replies in a row that no model server sends (pages, timeouts). They may be charged.
MAX_FOREIGN, MAX_FOREIGN_AT_FIRST = 20, 5

RETRY = "`--retry error` asks these questions again."
CHECK_FORM = f"Check --teacher_model, --profile and the endpoint. {RETRY}"


@dataclass
class Turn:
    """A question and what has become of it in this run."""

    question: Question
    throttled: int = 0  # attempts that were answered 429
    failures: int = 0  # attempts that failed in a way that may pass
    blamed: int = 0  # failures for which the question may be at fault
    suspect: bool = False  # others were answered since its first failure
    completions: int = 0  # of the run, at the last failure


class Patience:
    """Told of every reply; says how long to wait, and when to end the run.

    Args:
        clock: monotonic time in seconds.
        tell: shows a line to the user.
    """

    def __init__(self, clock: Callable[[], float], tell: Callable[[str], None]):
        self.clock, self.tell = clock, tell
        self.completions = 0
        self._refused: set[str] = set()  # images, since the last completion
        self._foreign = 0  # replies, since the last completion
        self._throttled_since: float | None = None
        self._told_until = float("-inf")  # of a pause that the server asked for
        self._end_outage()

    def _end_outage(self):
        self._failures, self._failing_since = 0, None  # in a row
        self._suspects: set[str] = set()  # their images
        self._pauses, self._resumed_at = 0, float("-inf")
        self._told: int | None = None  # minutes of waiting

    @property
    def is_outage(self) -> bool:
        """Whether nothing but failures came lately: one request at a time is enough."""
        return self._failures >= OUTAGE

    def suspects(self, image_id: str) -> bool:
        """Whether another image should be tried first: this one failed, and it may be why."""
        return self.is_outage and image_id in self._suspects

    # --- replies that settle a question

    def settled(self, question: Question, reply: Reply, verdict: Verdict) -> str | None:
        """Why the run must end after a question was settled; None to carry on."""
        if verdict.is_completion:
            self.completions += 1
            self._refused.clear()
            self._foreign = 0
            self._answered()
            return None
        if verdict.foreign:
            self._foreign += 1
            if self._foreign < (MAX_FOREIGN if self.completions else MAX_FOREIGN_AT_FIRST):
                return None
            return (
                f"{self._foreign} replies in a row were not completions, the last one: "
                f"{verdict.detail}. Check the endpoint. {RETRY}"
            )
        if reply.status is not None and reply.status < 500:
            self._answered()
        self._refused.add(question.image_id)
        if len(self._refused) < (MAX_REFUSED if self.completions else MAX_REFUSED_AT_FIRST):
            return None
        return (
            f"{len(self._refused)} images in a row were refused, the last time: {verdict.detail}. "
            f"{CHECK_FORM}"
        )

    def _answered(self):
        if self._told is not None:
            waited = self.clock() - self._failing_since
            self.tell(f"The server answers again, after {_duration(waited)}.")
        self._end_outage()
        self._throttled_since = None

    # --- replies that do not

    def throttled(self, turn: Turn, asked: float | None, verdict: Verdict) -> float:
        """The server wants fewer requests (429). Returns the seconds for which nothing should be
        sent.

        Args:
            asked: seconds that the server asked for.

        Raises:
            TimeoutError: that would be too long; the message says why the run must end.
        """
        self._end_outage()  # it is there
        turn.throttled += 1
        if self._throttled_since is None:
            self._throttled_since = self.clock()
        seconds = backoff(turn.throttled) if asked is None else asked
        self._check_asked(seconds, verdict, waited=self.clock() - self._throttled_since)
        return seconds

    def failed(self, turn: Turn, granted: float, asked: float | None, verdict: Verdict) -> float:
        """An attempt failed in a way that may pass, and its question is not at fault yet. Returns
        and raises as `throttled`.

        Args:
            granted: when the attempt was sent. Failures of attempts that were on their way when a
                pause began do not prolong it.
        """
        now = self.clock()
        if self._failing_since is None:
            self._failing_since = now
        if not turn.suspect or verdict.detail == "unreachable":
            self._failures += 1
        self._suspects.add(turn.question.image_id)
        if asked is not None:
            self._check_asked(asked, verdict)
            return asked
        waited = now - self._failing_since
        patience = PATIENCE if self.completions else PATIENCE_AT_FIRST
        if waited > patience:
            raise TimeoutError(
                f"The server has not answered for {_duration(waited)}, the last time: "
                f"{verdict.detail}. Check the server."
            )
        if not self.is_outage or granted < self._resumed_at:
            return 0.0
        self._pauses += 1
        if self._pauses >= TOLD_FROM and int(waited / 60) != self._told:
            self._told = int(waited / 60)
            self.tell(
                f"The server has not answered for {_duration(waited)} ({verdict.detail}). Waiting "
                f"for it, {_duration(patience)} at most."
            )
        seconds = min(backoff(self._pauses), LONGEST_PAUSE)
        self._resumed_at = now + seconds
        return seconds

    def blame(self, turn: Turn, reply: Reply) -> bool:
        """Whether the question of a failed attempt is at fault by now, and not the server."""
        turn.suspect |= turn.failures > 0 and self.completions > turn.completions
        turn.completions = self.completions
        turn.failures += 1
        turn.blamed += reply.problem != "unreachable" and (turn.suspect or turn.failures == 1)
        return turn.blamed >= MAX_FAILURES

    def _check_asked(self, seconds: float, verdict: Verdict, waited: float = 0.0):
        """Refuse too long a pause that the server asks for, and tell about a long one."""
        if max(seconds, waited) > PATIENCE:
            raise TimeoutError(
                f"The server asks to wait longer than {_duration(PATIENCE)} ({verdict.detail}), so "
                "try again later."
            )
        if seconds >= 60 and self.clock() + seconds > self._told_until + 60:
            self._told_until = self.clock() + seconds
            self.tell(f"The server asks to wait {_duration(seconds)} ({verdict.detail}).")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
