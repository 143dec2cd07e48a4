"""Which categories a micrograph resembles, and where each word of an answer looks.

What is special about it:
- attention weights need another implementation of attention than answers do, so this is a twin of
  the student that answers;
- a student without torch does not show its attention. Its answers have no maps, and the page does
  not speak of any.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mvaema.page.waiting import Worker
from mvaema.serving.student import Student

if TYPE_CHECKING:
    from modeling_mvaema import MVaEMaModel

Word = tuple[str, np.ndarray]


class Looker:
    """Looks for a student that answers in another thread.

    Args:
        student: that answers.
        seconds: longest time that anybody waits.

    Attributes:
        shows_attention: whether `words` finds any.
    """

    def __init__(self, student: Student, seconds: float):
        self._student = student.twin()
        self.shows_attention = self._student.model is not None
        self._word_maps = _word_maps(self._student.model) if self.shows_attention else None
        self._worker = Worker("looking", seconds)

    async def rank(self, image: Image.Image) -> dict[str, float]:
        """Category to probability, best first; nothing where the student cannot classify."""
        return await self._worker(self._student.rank, image)

    async def words(
        self, image: Image.Image, question: str, pixel_size_nm: float | None, answer: str
    ) -> list[Word]:
        """Each word of an answer, and where it looked: (side, side), uint8; nothing where the
        student does not show that.

        Args:
            image, question, pixel_size_nm: as they were asked.
        """
        if self._word_maps is None:
            return []
        return await self._worker(self._word_maps, image, question, pixel_size_nm, answer)

    def close(self) -> None:
        self._worker.close()


def _word_maps(model: "MVaEMaModel") -> Callable[..., list[Word]]:
    """What makes the maps of a student with torch, whose attention it changes."""
    from mvaema.evaluation.likelihoods import Scorer
    from prompt_mvaema import prompt

    model.set_attn_implementation("eager")
    scorer = Scorer(model)

    def word_maps(image, question, pixel_size_nm, answer) -> list[Word]:
        width_nm = None if pixel_size_nm is None else pixel_size_nm * image.width
        return scorer.word_maps(scorer.see(image), prompt(question, None, width_nm), answer)

    return word_maps
