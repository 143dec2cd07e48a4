"""The info bar that an instrument adds below its images: settings, and a true scale bar."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lengths_mvaema import format_length
from mvaema.synthetic.text import text_width, write

# Instruments state the magnification of a print that is 127 mm wide.
_PRINT_NM = 127e6
# What else instruments print, too small to read: dates, names of files and images.
_SMALL_PRINT = (
    "Date :12 Mar 2019",
    "Time :14:07:33",
    "File Name = 0042.tif",
    "Signal A = 1",
    "mag",
)


def choose_length(rng: np.random.Generator, field_of_view_nm: float) -> float:
    """A round length (nm) between an eighth and a third of the field of view."""
    decade = 10.0 ** np.arange(-1, 7)
    lengths = np.sort(np.outer(decade, [1, 2, 3, 5]).ravel())
    fits = (lengths > 0.12 * field_of_view_nm) & (lengths < 0.34 * field_of_view_nm)
    return float(rng.choice(lengths[fits]))


@dataclass
class InfoBar:
    """Where the bar goes and what is printed in it."""

    style: str  # "black strip" or "white strip"
    layout: str  # "line": a bar; "ticks": a bar with upright ends; "small print": rows of text
    height: int  # rows of the strip
    font_size: int
    settings: bool  # whether voltage, magnification ... are printed

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "InfoBar":
        """A bar for an image `size` pixels wide."""
        font_size = max(8, round(size * rng.uniform(0.043, 0.056)))
        layout = str(rng.choice(["line", "ticks", "small print"], p=[0.4, 0.25, 0.35]))
        rows = font_size * (rng.uniform(1.5, 1.9) if layout != "small print" else 2.1)
        return cls(
            style=str(rng.choice(["black strip", "white strip"])),
            layout=layout,
            height=round(rows),
            font_size=font_size,
            settings=bool(rng.random() < 0.75),
        )

    def burn(
        self, picture: Image.Image, pixel_nm: float, length_nm: float, settings: list[str]
    ) -> tuple[Image.Image, list[str]]:
        """Add the bar below a picture.

        Returns:
            The image with the bar, and those of the settings that fit into it.
        """
        width, height = picture.size
        ink, paper = (0, 255) if self.style == "white strip" else (255, 0)
        image = Image.new("L", (width, height + self.height), paper)
        image.paste(picture)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(self.font_size)
        label = format_length(length_nm)
        bar, thick = round(length_nm / pixel_nm), max(2, self.font_size // 5)
        words_width, pad = text_width(draw, label, font), max(3, self.font_size // 3)
        middle = height + self.height // 2
        x, row = width - pad - bar, middle - thick // 2
        draw.rectangle((x, row, x + bar - 1, row + thick - 1), fill=ink)
        if self.layout == "ticks":
            reach = self.font_size // 2
            for column in (x, x + bar - 1):
                draw.line((column, middle - reach, column, middle + reach), fill=ink)
        top = middle - self.font_size / 2 - 1
        write(draw, (x - pad - words_width, top), label, font, ink)
        room = x - 3 * pad - words_width
        if self.layout == "small print":
            small, top = ImageFont.load_default(max(5, self.height // 4)), height + 1
            text = "   ".join(_SMALL_PRINT)
            while text_width(draw, text, small) > room:
                text = text[:-4]
            for line in (height + 1, height + self.height - small.size - 2):
                write(draw, (pad, line), text, small, ink)
            return image, []
        words = list(settings) if self.settings else []
        while words and text_width(draw, "  ".join(words), font) > room:
            words.pop()
        write(draw, (pad, top), "  ".join(words), font, ink)
        return image, words


def settings(kilovolts: float, field_of_view_nm: float, detector: str) -> list[str]:
    """The settings that instruments print, the most important first."""
    magnification = float(f"{_PRINT_NM / field_of_view_nm:.3g}")
    times = f"x{magnification / 1000:g}k" if magnification >= 1000 else f"x{magnification:g}"
    return [f"{kilovolts:g} kV", times, detector]
