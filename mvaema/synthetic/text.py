"""Text printed into an image, with the letter µ that Pillow's own font lacks."""

import numpy as np


def text_width(draw, text: str, font) -> int:
    """Width in pixels."""
    return int(np.ceil(draw.textlength(text.replace("µ", "u"), font=font)))


def write(draw, at, text: str, font, ink: int) -> None:
    """Print `text` with its upper left corner at `at`; µ is a u with a tail."""
    draw.text(at, text.replace("µ", "u"), font=font, fill=ink)
    if "µ" in text:
        before = text[: text.index("µ")]
        x = at[0] + draw.textlength(before, font=font)
        _, top, right, bottom = draw.textbbox((x, at[1]), "u", font=font)
        tail = max(2, (bottom - top) // 3)
        stem = round(x + (right - x) * 0.12)
        draw.line((stem, bottom - 1, stem, bottom + tail - 1), fill=ink)
