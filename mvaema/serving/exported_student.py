"""A student that `mvaema export` wrote, as it is served: ONNX Runtime and no torch.

What is special about it: its tokenizer is never changed and its graphs may run in several threads,
so it is its own twin.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mvaema.serving.student import Found, Listener, Read
from mvaema.students.exported import load_exported
from onnx_mvaema import OnnxStudent
from pixels_mvaema import to_8bit
from prompt_mvaema import prompt


class ExportedStudent:
    """See `mvaema.serving.student.Student`."""

    model = None

    def __init__(self, student: OnnxStudent):
        self.student = student
        self.questions, self.longest = student.questions, student.longest
        self.default_decoding = student.default_decoding
        self.ends = {student.config["eos_token_id"]}

    def twin(self) -> "ExportedStudent":
        return self

    def check_decoding(self, decoding: str | None = None, **_) -> object:
        return self.student.check_decoding(decoding)

    def read(
        self,
        image: Image.Image,
        question: str,
        caption: str | None = None,
        pixel_size_nm: float | None = None,
        scale_bar: str | None = None,
    ) -> Read:
        width_nm = None if pixel_size_nm is None else pixel_size_nm * image.width
        text = prompt(question, caption, width_nm, scale_bar)
        (ids,), (cut,) = self.student.prompt_ids([text])
        return Read(self.student.pixel_values([to_8bit(image)]), ids, cut)

    def answer(
        self,
        pixel_values: np.ndarray,
        input_ids: Sequence[np.ndarray],
        options: Mapping,
        listener: Listener,
    ) -> list[str]:
        def on_step(rows: np.ndarray, tokens: np.ndarray) -> bool:
            listener.wrote(rows.tolist(), tokens.tolist())
            return not listener.given_up()

        return self.student.answer_prompts(pixel_values, input_ids, on_step=on_step, **options)

    def text(self, tokens: Sequence[int]) -> str:
        return self.student.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def count_tokens(self, text: str) -> int:
        return len(self.student.tokenizer.encode(text, add_special_tokens=False))

    def rank(self, image: Image.Image) -> dict[str, float]:
        if not self.student.methods:
            return {}
        ranked = self.student.classify(image, by=self.student.methods[-1].lower())
        return {name: share / sum(ranked.values()) for name, share in ranked.items()}


def find_exported(folder: str) -> Found:
    """The student in a folder that `mvaema export` wrote."""
    name = Path(folder).resolve().name or "student"
    return Found(folder, name, lambda: ExportedStudent(load_exported(folder)))
