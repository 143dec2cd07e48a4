"""Which categories a micrograph resembles, and where each word of an answer looks.

What is special about it:
- attention weights need another implementation of attention than answers do, and a tokenizer must
  not be used by two threads. So this is a second student, which shares the weights of the first;
- the categories are ranked by the best way that the student was trained for.
"""

import copy

import numpy as np
from PIL import Image

from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.answerers import Student
from mvaema.evaluation.likelihoods import Scorer
from mvaema.page.waiting import Worker
from processing_mvaema import MVaEMaProcessor

Word = tuple[str, np.ndarray]


class Looker:
    """Looks for a student that answers in another thread.

    Args:
        model: the student, with its processor.
        seconds: longest time that anybody waits.
    """

    def __init__(self, model: MVaEMaModel, seconds: float):
        shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
        own = copy.deepcopy(model, shared)
        own.processor = copy.deepcopy(model.processor)
        own.set_attn_implementation("eager")
        self._student, self._scorer = Student(own, "page"), Scorer(own)
        self._worker = Worker("looking", seconds)

    async def rank(self, image: Image.Image) -> dict[str, float]:
        """Category to probability, best first; nothing where the student cannot classify."""
        if not self._student.methods:
            return {}
        (ranked,) = await self._worker(self._student.classify, [image], self._student.methods[-1])
        return ranked

    async def words(
        self, image: Image.Image, question: str, pixel_size_nm: float | None, answer: str
    ) -> list[Word]:
        """Each word of an answer, and where it looked: (side, side), uint8.

        Args:
            image, question, pixel_size_nm: as they were asked.
        """
        return await self._worker(self._words, image, question, pixel_size_nm, answer)

    def _words(self, image, question, pixel_size_nm, answer) -> list[Word]:
        width_nm = None if pixel_size_nm is None else pixel_size_nm * image.width
        prompt = MVaEMaProcessor.prompt(question, None, width_nm)
        return self._scorer.word_maps(self._scorer.see(image), prompt, answer)

    def close(self) -> None:
        self._worker.close()
