"""Under which conditions a model is asked: what it is shown, and what it is told.

Beside the student itself these are its twins: the same weights, but shown nothing, or a micrograph
that the question is not about. What a twin can do too, the student does not owe to its eyes.
"""

from collections.abc import Mapping

from PIL import Image

from decoding_mvaema import BLANK_GREY
from mvaema.evaluation.questions import Questions
from mvaema.micrographs.dataset import decode_image

# What a model is given beside the question and the scale, where that is known.
PLAIN, CAPTION, BLANK, OTHER = CONDITIONS = (
    "image",
    "image and caption",
    "blank image",
    "another micrograph",
)


def blank_image(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("L", size, BLANK_GREY)


def shown_image(
    questions: Questions, partners: Mapping[str, str], image_id: str, condition: str
) -> Image.Image:
    """The image shown with the questions about a micrograph.

    Args:
        partners: whose micrograph is shown under `OTHER`.
    """
    shown = partners[image_id] if condition == OTHER else image_id
    image = decode_image(questions.micrographs.row(shown))
    return blank_image(image.size) if condition == BLANK else image


def field_of_view_nm(questions: Questions, image_id: str) -> float | None:
    """The width of a micrograph in nanometres, where its scale is known."""
    row = questions.micrographs.row(image_id)
    if row["pixel_size_nm"] is None:
        return None
    return row["pixel_size_nm"] * decode_image(row).width
