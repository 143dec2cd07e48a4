"""A request's body to what the student reads: pixels at its own size, and the prompt's tokens.

What is special about it:
- the prompt is that of `mvaema ask`: the pixel size that the instrument recorded is in it, unless
  the client states another;
- a prompt that is too long is refused. Cut, it would be another question;
- it runs in one thread beside the model's, with a twin of the student.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mvaema.serving.images import read_image
from mvaema.serving.limits import Limits
from mvaema.serving.messages import Conversation, read_conversation
from mvaema.serving.options import Options
from mvaema.serving.refusals import bad_request
from mvaema.serving.student import Student
from mvaema.serving.uploads import parsed
from pixels_mvaema import MIN_SIDE


@dataclass(frozen=True)
class Prompt:
    """One question about one image, ready for the student.

    Attributes:
        pixel_values: float32 (1, channels, height, width).
        image: a hash of them.
        input_ids: int64 (length,).
        options: of `model.answer`, as sorted pairs.
        size: (width, height) of the image as it was sent, in pixels.
    """

    pixel_values: np.ndarray
    image: bytes
    input_ids: np.ndarray
    options: tuple[tuple[str, object], ...]
    size: tuple[int, int]


class Preparer:
    """Makes prompts for one student.

    Args:
        student: who answers them.
        name: that it is served under.
        decoding: the server's own, or None for the student's.
        limits: of the server.

    Raises:
        ValueError: the student does not decode like that.
    """

    def __init__(self, student: Student, name: str, decoding: str | None, limits: Limits):
        self.decoding = decoding or student.default_decoding
        student.check_decoding(decoding=self.decoding)
        self.student, self.name, self.limits = student.twin(), name, limits

    def __call__(self, body: bytes) -> tuple[Conversation, Prompt]:
        """What the body of a request asks, without the image, and the prompt for it.

        Raises:
            Refusal: it cannot be answered; its status says why.
        """
        asked = read_conversation(parsed(body), self.name, self.limits.max_images)
        options = self.options(asked.options)
        micrograph = read_image(asked.image, self.limits.max_pixels)
        prompt = self.prompt(
            micrograph.image,
            asked.question,
            options,
            pixel_size_nm=asked.pixel_size_nm or micrograph.pixel_size_nm,
            caption=asked.caption,
            scale_bar=asked.scale_bar,
        )
        return dataclasses.replace(asked, image=""), prompt

    def options(self, wished: Options) -> dict:
        """The options of `model.answer` for what a client wishes.

        Raises:
            Refusal: the student does not decode like that.
        """
        options = wished.of_answer(self.decoding, self.student.longest)
        try:
            self.student.check_decoding(**options)
        except ValueError as error:
            raise bad_request(str(error), "decoding") from None
        return options

    def prompt(
        self,
        image: Image.Image,
        question: str,
        options: dict,
        pixel_size_nm: float | None = None,
        caption: str | None = None,
        scale_bar: str | None = None,
    ) -> Prompt:
        """One question about one image, ready for the student.

        Args:
            options: what `options` returns.
            pixel_size_nm, caption, scale_bar: what is known of the image.

        Raises:
            Refusal: the image is too small, or the question too long or no text.
        """
        for name, text in (("question", question), ("caption", caption), ("scale_bar", scale_bar)):
            _check_text(name, text)
        if min(image.size) < MIN_SIDE:
            raise bad_request(
                f"the image is too small: it needs at least {MIN_SIDE} pixels on each side.",
                "messages",
                "image_too_small",
            )
        read = self.student.read(image, question, caption, pixel_size_nm, scale_bar)
        if read.cut:
            most = len(read.input_ids)
            raise bad_request(
                f"the question has {most + read.cut} tokens and this model reads {most}. Ask "
                "shorter.",
                "messages",
                "context_length_exceeded",
            )
        digest = hashlib.blake2b(read.pixel_values.tobytes(), digest_size=16).digest()
        options = tuple(sorted(options.items()))
        return Prompt(read.pixel_values, digest, read.input_ids, options, image.size)


def _check_text(name: str, text: str | None) -> None:
    """Half a character, which JSON can hold, is none that a tokenizer reads."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise bad_request(f"the {name} is not valid text.", "messages") from None
