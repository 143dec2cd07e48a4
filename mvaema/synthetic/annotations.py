"""What journals print over micrographs: a scale bar in any corner, panel letters, arrows, boxes.

What is special about it: nothing printed is untrue or names a material, and the scale bar keeps its
exact length. Everything printed is a fact of the scene.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lengths_mvaema import format_length
from mvaema.synthetic.text import text_width, write

_CAPTIONS = ("pH 5", "24 h", "10 min", "sample 2", "as prepared", "after", "before", "run 3", "45°")


@dataclass
class ScaleBar:
    """A scale bar printed over the specimen."""

    right: bool  # at the right border, else at the left
    top: bool  # at the top, else at the bottom
    ink: int  # grey level of bar and text
    patch: bool  # on a plain patch of the opposite colour
    thick: int  # height of the bar in pixels
    ticks: bool  # with upright ends
    below: bool  # text below the bar, else above
    font_size: int

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "ScaleBar":
        """A bar for an image `size` pixels wide."""
        scale = size / 224
        return cls(
            right=bool(rng.random() < 0.66),
            top=bool(rng.random() < 0.1),
            ink=int(rng.choice([255, 255, 0])),
            patch=bool(rng.random() < 0.4),
            thick=max(1, round(scale * rng.choice([1, 2, 2, 3, 4, 6]))),
            ticks=bool(rng.random() < 0.12),
            below=bool(rng.random() < 0.25),
            font_size=max(8, round(scale * rng.uniform(8, 17))),
        )

    def burn(self, image: Image.Image, pixel_nm: float, length_nm: float) -> tuple[int, int]:
        """Print the bar; returns the columns that it takes, for other prints to avoid."""
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(self.font_size)
        label = format_length(length_nm)
        bar, words = round(length_nm / pixel_nm), text_width(draw, label, font)
        pad = max(3, self.font_size // 3)
        wide, high = max(bar, words), self.font_size + 3 + self.thick + 2
        x = image.width - 2 * pad - wide if self.right else 2 * pad
        y = 2 * pad if self.top else image.height - 2 * pad - high
        if self.patch:
            draw.rectangle((x - pad, y - pad, x + wide + pad, y + high + pad), fill=255 - self.ink)
        row = y if self.below else y + self.font_size + 3
        left = x + (wide - bar) // 2
        draw.rectangle((left, row, left + bar - 1, row + self.thick - 1), fill=self.ink)
        if self.ticks:
            middle, reach = row + self.thick // 2, self.thick + 2
            for column in (left, left + bar - 1):
                draw.line((column, middle - reach, column, middle + reach), fill=self.ink)
        at = (x + (wide - words) / 2, row + self.thick + 1 if self.below else y)
        write(draw, at, label, font, self.ink)
        return x - 2 * pad, x + wide + 2 * pad


def letter_panel(rng: np.random.Generator, image: Image.Image) -> str:
    """Print a panel letter, or a short caption, into an upper corner; returns what it is."""
    caption = rng.random() < 0.2
    letter = chr(int(rng.integers(ord("a"), ord("j"))))
    letter = letter.upper() if rng.random() < 0.35 else letter
    form = str(rng.choice(["{}", "({})", "{})"]))
    text = str(rng.choice(_CAPTIONS)) if caption else form.format(letter)
    size = max(9, round(image.width / 224 * rng.uniform(11, 26)))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size if not caption else max(9, round(0.6 * size)))
    wide = text_width(draw, text, font)
    pad = int(rng.integers(1, 5))
    x = pad if rng.random() < 0.85 else image.width - pad - wide
    ink = int(rng.choice([255, 255, 0]))
    if rng.random() < 0.45:
        draw.rectangle((x - pad, 0, x + wide + pad, font.size + 2 * pad), fill=255 - ink)
    write(draw, (x, pad), text, font, ink)
    return "a caption" if caption else "a panel letter"


def _arrow(rng: np.random.Generator, image: Image.Image) -> str:
    draw = ImageDraw.Draw(image)
    ink = int(rng.choice([255, 0]))
    length, thick = image.width * rng.uniform(0.07, 0.16), int(rng.integers(1, 4))
    x, y = rng.uniform(0.25, 0.75, 2) * image.size
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    side = np.array([-along[1], along[0]])
    start = np.array([x, y]) - length * along
    head = length * 0.35
    base = np.array([x, y]) - head * along
    draw.line((*start, *base), fill=ink, width=thick)
    corners = ((x, y), tuple(base + 0.5 * head * side), tuple(base - 0.5 * head * side))
    draw.polygon(corners, fill=ink)
    return "an arrow"


def _box(rng: np.random.Generator, image: Image.Image) -> str:
    wide, high = rng.uniform(0.12, 0.4, 2) * image.size
    x, y = rng.uniform(0.1, 0.55, 2) * image.size
    frame = (x, y, x + wide, y + high)
    ImageDraw.Draw(image).rectangle(frame, outline=int(rng.choice([255, 0])), width=1)
    return "a box"


def mark(rng: np.random.Generator, image: Image.Image) -> list[str]:
    """Print what a figure of a journal has besides a scale bar; returns names of what it is."""
    marks = []
    if rng.random() < 0.4:
        marks.append(letter_panel(rng, image))
    if rng.random() < 0.09:
        marks.append((_arrow if rng.random() < 0.5 else _box)(rng, image))
    return marks
