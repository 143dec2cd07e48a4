"""How much a visitor of the page may send at once, and how long the page works on it.

What is special about it: what holds for a file and for an answer is what holds for `mvaema serve`;
only archives and batches are new.
"""

from dataclasses import dataclass, field

from mvaema.serving.limits import Limits


@dataclass(frozen=True)
class PageLimits:
    """Limits of the page.

    Attributes:
        serving: of a file (`max_body_mb`), an image and an answer. A batch of ten holds all
            questions about a micrograph.
        max_files: most micrographs in one batch, those in archives included.
        max_unpacked_mb: most that the files of one archive may have together, in units of 1,000,000
            bytes, counted while they are unpacked and not as the archive says.
        work_seconds: longest time for reading a scale bar, ranking categories or measuring.
        max_visitors: sessions whose micrographs are in memory; beyond, the oldest is forgotten.
        idle_seconds: after which a session's micrograph is forgotten.
    """

    serving: Limits = field(default_factory=lambda: Limits(max_batch=10))
    max_files: int = 200
    max_unpacked_mb: float = 400.0
    work_seconds: float = 120.0
    max_visitors: int = 32
    idle_seconds: int = 3600
