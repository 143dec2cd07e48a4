"""What a measurement says: numbers with their unit, or why there are none.

What is special about it:
- a result that is not trusted holds no numbers at all, only reasons: nobody can quote it by
  mistake;
- every length has the unit that its scale allows: nm or µm where the length of a pixel is known,
  pixels otherwise.
"""

from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (5, 25, 75, 95)
# Bins of a histogram: as Freedman and Diaconis choose, but within these bounds.
BINS = (5, 40)
# From this median length on, in nm, lengths are in µm.
MICRONS_FROM_NM = 1000.0


@dataclass(frozen=True)
class Unit:
    """What lengths are given in: `name` and how many of it one pixel of the image is."""

    name: str
    per_pixel: float

    @staticmethod
    def choose(pixel_size_nm: float | None, median_pixels: float) -> "Unit":
        if pixel_size_nm is None:
            return Unit("px", 1.0)
        if median_pixels * pixel_size_nm >= MICRONS_FROM_NM:
            return Unit("µm", pixel_size_nm / 1000)
        return Unit("nm", pixel_size_nm)


@dataclass(frozen=True)
class Statistics:
    """Of one quantity, in its unit: the standard deviation is that of the sample."""

    mean: float
    median: float
    std: float
    percentiles: dict[int, float]
    histogram: tuple[tuple[float, ...], tuple[int, ...]]  # edges of the bins, and counts

    @staticmethod
    def of(values: np.ndarray) -> "Statistics":
        """Of values (n,), n at least 1."""
        bins = 1
        if np.ptp(values) > 0:
            bins = len(np.histogram_bin_edges(values, "fd")) - 1
            bins = int(np.clip(bins, *BINS))
        counts, edges = np.histogram(values, bins)
        return Statistics(
            float(values.mean()),
            float(np.median(values)),
            float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            {p: float(np.percentile(values, p)) for p in PERCENTILES},
            (tuple(edges.tolist()), tuple(counts.tolist())),
        )


@dataclass
class Draft:
    """What one kind of measurement found, in pixels of the image, before it is judged.

    Attributes:
        quantity: what `values` are, such as "equivalent diameter".
        noun: what is counted, in the plural and the singular.
        values: (n,) lengths whose statistics are given.
        count: objects that have a size; None where they cannot be counted.
        seen: all objects, those cut by the border too; None where that does not apply.
        coverage: share of the area, 0 to 1, or None.
        table: columns of the per-object table, (objects,) each.
        lengths, areas: names of columns in pixels and square pixels.
        facts: further numbers that have no length, such as a direction.
        notes: sentences about how it was done.
        doubts: why it cannot be trusted; empty if it can.
        overlay: int (height, width) of the field: objects by number, 0 is none.
        partial: whether only objects that stand out were looked for.
    """

    quantity: str
    noun: tuple[str, str]
    values: np.ndarray
    count: int | None
    seen: int | None = None
    coverage: float | None = None
    table: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()
    facts: dict[str, float | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    overlay: np.ndarray | None = None
    partial: bool = False


@dataclass(frozen=True)
class Measurement:
    """The result of measuring one image.

    Attributes:
        kind: particles, fibres, pores, films or pattern; None if nothing could be looked for.
        chosen_by: how the kind was chosen, in words.
        trusted: whether the numbers can be used; without it there are none.
        reasons: why not, each a sentence without a full stop.
        notes: how it was done, and what does not lie in the numbers.
        quantity: what is measured, such as "equivalent diameter".
        unit: of all lengths: nm, µm or px.
        pixel_size_nm, scale_source: length of a pixel of the image, and where that comes from.
        scale_bar_nm: the length that the scale bar states, where it was read and believed.
        count: objects with a size, None where they cannot be counted.
        seen: all objects, those that the border cuts too.
        statistics: of the quantity in `unit`; None unless trusted.
        coverage: share of the area that objects cover, 0 to 1.
        facts: further numbers without a length, such as a direction in degrees.
        objects: one dictionary per object; names end with the unit in lengths and areas.
        box: (left, upper, right, lower) of what was measured, in pixels of the image.
        overlay: int (height, width) over `box`, finer than it: objects by number; or None.
        partial: whether only the objects that stand out were sized: `count` is then how many of
            them there are, not how many there are in all.
    """

    kind: str | None
    chosen_by: str
    trusted: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    quantity: str | None = None
    noun: tuple[str, str] = ("objects", "object")
    unit: str = "px"
    pixel_size_nm: float | None = None
    scale_source: str | None = None
    scale_bar_nm: float | None = None
    count: int | None = None
    seen: int | None = None
    statistics: Statistics | None = None
    coverage: float | None = None
    facts: dict[str, float | str] = field(default_factory=dict)
    objects: tuple[dict, ...] = ()
    box: tuple[int, int, int, int] | None = None
    overlay: np.ndarray | None = None
    partial: bool = False

    def sentence(self) -> str:
        """The result in one sentence, as a prompt takes it, or why there is none."""
        from mvaema.measuring.methods import sentence

        return sentence(self)

    def methods(self) -> str:
        """How it was measured, in sentences that a report can quote."""
        from mvaema.measuring.methods import methods

        return methods(self)

    def as_json(self) -> dict:
        """All but the overlay, in types that JSON has."""
        statistics = self.statistics and {
            "mean": self.statistics.mean,
            "median": self.statistics.median,
            "std": self.statistics.std,
            **{f"p{p}": value for p, value in self.statistics.percentiles.items()},
            "histogram": {
                "edges": list(self.statistics.histogram[0]),
                "counts": list(self.statistics.histogram[1]),
            },
        }
        return {
            "kind": self.kind,
            "chosen_by": self.chosen_by,
            "trusted": self.trusted,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "quantity": self.quantity,
            "unit": self.unit,
            "pixel_size_nm": self.pixel_size_nm,
            "scale_source": self.scale_source,
            "scale_bar_nm": self.scale_bar_nm,
            "count": self.count,
            "seen": self.seen,
            "partial": self.partial,
            "statistics": statistics,
            "coverage": self.coverage,
            "facts": dict(self.facts),
            "objects": list(self.objects),
            "box": None if self.box is None else list(self.box),
            "sentence": self.sentence(),
            "methods": self.methods(),
        }
