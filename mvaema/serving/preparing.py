"""A request's body to what the student reads: pixels at its own size, and the prompt's tokens.

What is special about it:
- the prompt is that of `mvaema ask`: the pixel size that the instrument recorded is in it, unless
  the client states another;
- a prompt that is too long is refused. Cut, it would be another question;
- it runs in one thread beside the model's, with a processor of its own: a fast tokenizer must not
  be used by two.
"""

import copy
import dataclasses
import hashlib
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from modeling_mvaema import MVaEMaModel
from mvaema.serving.images import read_image
from mvaema.serving.limits import Limits
from mvaema.serving.messages import Conversation, read_conversation
from mvaema.serving.options import Options
from mvaema.serving.refusals import bad_request
from mvaema.serving.uploads import parsed
from pixels_mvaema import MIN_SIDE


@dataclass(frozen=True)
class Prompt:
    """One question about one image, ready for the student.

    Attributes:
        pixel_values: (1, channels, height, width).
        image: a hash of them.
        input_ids: (length,).
        options: of `model.answer`, as sorted pairs.
        size: (width, height) of the image as it was sent, in pixels.
    """

    pixel_values: Tensor
    image: bytes
    input_ids: Tensor
    options: tuple[tuple[str, object], ...]
    size: tuple[int, int]


class Preparer:
    """Makes prompts for one student.

    Args:
        model: the student, with its processor.
        name: that it is served under.
        decoding: the server's own, or None for the student's.
        limits: of the server.

    Raises:
        ValueError: the student does not decode like that.
    """

    def __init__(self, model: MVaEMaModel, name: str, decoding: str | None, limits: Limits):
        model.check_decoding(decoding)
        self.model, self.name, self.limits = model, name, limits
        self.decoding = decoding or model.default_decoding
        self.processor = copy.deepcopy(model.processor)
        most = model.config.max_position_embeddings - 1
        self.longest = min(model.generation_config.max_new_tokens or most, most)

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
        options = wished.of_answer(self.decoding, self.longest)
        try:
            self.model.check_decoding(**options)
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
        inputs = self.processor(
            images=[image],
            text=[question],
            captions=[caption],
            pixel_size_nm=[pixel_size_nm],
            scale_bars=[scale_bar],
        )
        if cut := inputs.truncated["text"][0]:
            ids = inputs["input_ids"].shape[1]
            raise bad_request(
                f"the question has {ids + cut} tokens and this model reads {ids}. Ask shorter.",
                "messages",
                "context_length_exceeded",
            )
        pixels = inputs["pixel_values"]
        digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
        options = tuple(sorted(options.items()))
        return Prompt(pixels, digest, inputs["input_ids"][0], options, image.size)


def _check_text(name: str, text: str | None) -> None:
    """Half a character, which JSON can hold, is none that a tokenizer reads."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise bad_request(f"the {name} is not valid text.", "messages") from None
