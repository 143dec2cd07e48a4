"""What a measurement came to: one record, one line of the table."""

from dataclasses import asdict, dataclass, field

from benchmarks.speed.measure import Ratio

HEADER = f"{'case':34}{'preset':8}{'unit':16}{'ours':>9}{'peer':>9}  {'ratio (quartiles)':22}{'target':9}"


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
        name = self.case + ("" if self.peer_name == "BLIP" else f" / {self.peer_name}")
        return (
            f"{name:34}{self.preset:8}{self.unit:16}{number(self.ours):>9}{number(self.peer):>9}"
            f"  {ratio:22}{target:9}"
        )


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
