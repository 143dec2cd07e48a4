"""Info bar."""

from PIL import Image

Box = tuple[int, int, int, int]


def find_info_bar(image: Image.Image) -> Box | None:
    return None
