"""What a measurement came to: one record, one line of the table."""

from dataclasses import asdict, dataclass, field

from benchmarks.speed.measure import Ratio

HEADER = (
    f"{'case':41}{'peer':16}{'preset':8}{'unit':15}{'ours':>7}{'peer':>8}  "
    f"{'ratio (quartiles)':20}target"
)


@dataclass
class Comparison:
    """Ours beside a peer.

    Args:
        ours, peer: medians, in `unit`.
        ratio: what the target is about; ours over the peer's for rates, memory and times alike.
        target: what the ratio must reach; `at_most` turns it round. `None` where there is none.
        details: whatever belongs to it: seconds of each turn, floors, parameters, operators.
    """

    case: str
    preset: str
    unit: str
    ours: float
    peer_name: str
    peer: float
    ratio: Ratio
    target: float | None = None
    at_most: bool = False
    details: dict = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return (
            (self.ratio.median <= self.target)
            if self.at_most
            else (self.ratio.median >= self.target)
        )

    def to_dict(self) -> dict:
        return asdict(self) | {"met": self.met}

    def line(self) -> str:
        target = ""
        if self.target is not None:
            sign = "≤" if self.at_most else "≥"
            target = f"{sign} {self.target:g} {'met' if self.met else 'NOT met'}"
        ratio = f"{self.ratio.median:.2f} ({self.ratio.low:.2f}–{self.ratio.high:.2f})"
        line = (
            f"{self.case:41}{self.peer_name:16}{self.preset:8}{self.unit:15}"
            f"{number(self.ours):>7}{number(self.peer):>8}  {ratio:20}{target}"
        )
        return line.rstrip()


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
