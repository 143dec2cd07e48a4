"""A student as it is served, with torch or without.

What is special about it:
- the rest of the server works with arrays and with this interface. Which runtime answers is
  decided once, by what lies in the student's folder;
- an exported student (`mvaema export`) brings neither torch nor transformers into the process.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image

from mvaema.students.exported import is_exported

if TYPE_CHECKING:
    from modeling_mvaema import MVaEMaModel


class Read(NamedTuple):
    """One question about one image, as a student reads it.

    Attributes:
        pixel_values: float32 (1, channels, height, width).
        input_ids: int64 (length,).
        cut: how many tokens of the prompt are beyond the longest, and lost.
    """

    pixel_values: np.ndarray
    input_ids: np.ndarray
    cut: int


class Listener(Protocol):
    """Who follows a batch while it is decoded."""

    def wrote(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Some rows have one more token each; at first all have. Rows that ended may come again."""

    def given_up(self) -> bool:
        """Whether nobody wants the answers any more."""


class Student(Protocol):
    """A student that answers batches of prompts. One thread uses it; others use a `twin`.

    Attributes:
        questions: question id to question, those that it was trained on.
        default_decoding: how it answers by itself, one of `DECODINGS`.
        longest: answer that it gives, in tokens.
        ends: the tokens that end an answer.
        model: itself where it runs with torch, for what needs more than this interface; else None.
    """

    questions: Mapping[str, str]
    default_decoding: str
    longest: int
    ends: Collection[int]
    model: "MVaEMaModel | None"

    def twin(self) -> "Student":
        """The same student, with the same weights, for another thread."""

    def check_decoding(self, **options) -> object:
        """Raises ValueError where `answer` could not decode with these options."""

    def read(
        self,
        image: Image.Image,
        question: str,
        caption: str | None = None,
        pixel_size_nm: float | None = None,
        scale_bar: str | None = None,
    ) -> Read:
        """A question about an image, and what is known of it, as `answer` takes them."""

    def answer(
        self,
        pixel_values: np.ndarray,
        input_ids: Sequence[np.ndarray],
        options: Mapping,
        listener: Listener,
    ) -> list[str]:
        """An answer to each prompt, or as far as it is written when the listener gives up.

        Args:
            pixel_values: float32 (images, channels, height, width).
            input_ids: as many for each image, one image's after the other.
            options: `decoding`, `max_new_tokens` and those of the decoding.
            listener: is told of every token. A prompt has as many rows as candidates for its
                answer are decoded. A beam search tells nothing.
        """

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say."""

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has, without its end."""

    def rank(self, image: Image.Image) -> dict[str, float]:
        """Category to probability, best first, by the best way that it was trained for; nothing
        where there is none."""


class Found(NamedTuple):
    """A student that is there to be served.

    Attributes:
        source: its folder or Hub id.
        name: what clients know it by.
        load: loads it, on its device; raises OSError or ValueError.
    """

    source: str
    name: str
    load: Callable[[], Student]


def find_student(source: str | None, root: Path | None = None) -> Found:
    """The student to serve.

    Args:
        source: folder or Hub id of a student or of adapters, or folder of an exported one; None for
            the one that comes with the software.
        root: the folder of that; None for the repository's own.

    Raises:
        OSError, ValueError: there is none.
    """
    if source is not None and is_exported(source):
        from mvaema.serving.exported_student import find_exported

        return find_exported(source)
    from mvaema.serving.torch_student import find_in_torch

    return find_in_torch(source, root)
