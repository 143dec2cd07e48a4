"""An uploaded file to a subject: its pixels first, then its scale and its categories.

What is special about it: the picture is there as soon as it is read. Reading a scale bar takes
seconds, and nobody should look at nothing meanwhile.
"""

import asyncio

from mvaema.measuring.scale import scale_of
from mvaema.page.limits import PageLimits
from mvaema.page.looking import Looker
from mvaema.page.subject import Subject
from mvaema.page.waiting import Worker, within
from mvaema.serving.images import read_content
from mvaema.serving.refusals import Refusal, bad_request
from mvaema.serving.service import Service
from pixels_mvaema import MIN_SIDE


class Opener:
    """Opens files.

    Args:
        service: reads them in its thread for images.
        looker: ranks categories.
        measurer: reads scale bars, and measures.
        limits: of the page.
    """

    def __init__(self, service: Service, looker: Looker, measurer: Worker, limits: PageLimits):
        self._service, self._looker, self._measurer = service, looker, measurer
        self._limits = limits

    async def open(self, content: bytes) -> Subject:
        """The micrograph in a file, without its scale bar and categories.

        Raises:
            Refusal: it cannot be read, or is too large or too small.
        """
        serving = self._limits.serving
        if len(content) > serving.max_body_bytes:
            raise Refusal(
                413, "file_too_large", f"the file is larger than {serving.max_body_mb:g} MB."
            )
        reading = self._service.beside(read_content, content, serving.max_pixels)
        micrograph = await within(self._limits.work_seconds, reading)
        if min(micrograph.image.size) < MIN_SIDE:
            raise bad_request(
                f"the image is too small: it needs at least {MIN_SIDE} pixels on each side."
            )
        return Subject(micrograph)

    async def complete(self, subject: Subject) -> None:
        """Read the scale bar, and rank the categories.

        Raises:
            Refusal: it took too long.
        """
        read = self._measurer(scale_of, subject.image, recorded_nm=subject.micrograph.pixel_size_nm)
        subject.found, subject.ranked = await asyncio.gather(read, self._looker.rank(subject.image))
