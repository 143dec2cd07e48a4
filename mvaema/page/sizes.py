"""The sizes in what is shown of a subject.

What is special about it: the scale is the subject's, so a scale bar is read once, and what the
visitor typed counts.
"""

from mvaema.measuring.measure import measure
from mvaema.measuring.results import Measurement
from mvaema.page.subject import Subject
from mvaema.page.waiting import Worker


async def measure_sizes(measurer: Worker, subject: Subject, kind: str | None) -> Measurement:
    """Measure, and keep the result in the subject.

    Args:
        kind: one of `KINDS`; None goes by the category.

    Raises:
        Refusal: it took too long.
    """
    region = subject.region
    result = await measurer(
        measure,
        subject.image,
        kind=kind,
        category=next(iter(subject.ranked), None),
        region=region,
        scale=subject.scale,
        info_bar=subject.micrograph.info_bar,
    )
    subject.measurement, subject.measured_region = result, region
    return result
