"""The info bar that an instrument burns into its images: settings, and a true scale bar."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from processing_mvaema import format_length

# Style -> share of all images. A strip takes rows from the specimen, an overlay lies on it.
STYLES = {"black strip": 0.27, "white strip": 0.2, "overlay": 0.18}

# Instruments state the magnification of a print that is 127 mm wide.
_PRINT_NM = 127e6


@dataclass
class InfoBar:
    """Where the bar goes and what is printed in it."""

    style: str
    height: int  # rows of the strip; 0 for an overlay
    font_size: int
    settings: bool  # whether voltage, magnification ... are printed

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "InfoBar | None":
        """A bar for an image `size` pixels wide; None for a third of the images."""
        style = rng.choice([*STYLES, ""], p=[*STYLES.values(), 1 - sum(STYLES.values())])
        font_size = max(8, round(size * rng.uniform(0.043, 0.056)))
        settings = bool(rng.random() < 0.75)
        rows = 0 if style == "overlay" else round(font_size * rng.uniform(1.5, 1.9))
        return cls(str(style), rows, font_size, settings) if style else None

    def choose_length(self, rng: np.random.Generator, field_of_view_nm: float) -> float:
        """A round length (nm) between an eighth and a third of the field of view."""
        decade = 10.0 ** np.arange(-1, 7)
        lengths = np.sort(np.outer(decade, [1, 2, 3, 5]).ravel())
        fits = (lengths > 0.12 * field_of_view_nm) & (lengths < 0.34 * field_of_view_nm)
        return float(rng.choice(lengths[fits]))

    def burn(
        self, grey: np.ndarray, pixel_nm: float, length_nm: float, settings: list[str]
    ) -> tuple[np.ndarray, list[str]]:
        """Add the bar to an image, uint8 (rows, columns), that ends above the strip.

        Returns:
            The image with the bar, and those of the settings that fit into it.
        """
        height, width = grey.shape
        ink, paper = (0, 255) if self.style == "white strip" else (255, 0)
        image = Image.new("L", (width, height + self.height), paper)
        image.paste(Image.fromarray(grey))
        font = ImageFont.load_default(self.font_size)
        draw = ImageDraw.Draw(image)
        label = format_length(length_nm)
        bar, thick = round(length_nm / pixel_nm), max(2, self.font_size // 5)
        text_width = _text_width(draw, label, font)
        pad = max(3, self.font_size // 3)
        if self.style == "overlay":
            # Over the specimen: the label above its bar at the lower right, on a dark patch.
            right, base = width - 2 * pad, height - pad
            left = right - max(bar, text_width)
            patch = (left - pad, base - self.font_size - thick - 2 * pad, right + pad, base + 1)
            draw.rectangle(patch, fill=paper)
            x = (left + right) // 2
            draw.rectangle(
                (x - bar // 2, base - thick - 1, x - bar // 2 + bar - 1, base - 2), fill=ink
            )
            at = (x - text_width / 2, base - thick - pad - self.font_size)
            _text(draw, at, label, font, ink)
            room = patch[0] - 2 * pad
            at = (pad, height - pad - self.font_size)
        else:
            middle = height + self.height // 2
            x = width - pad - bar
            draw.rectangle(
                (x, middle - thick // 2, x + bar - 1, middle - thick // 2 + thick - 1), fill=ink
            )
            top = middle - self.font_size / 2 - 1
            _text(draw, (x - pad - text_width, top), label, font, ink)
            room = x - 3 * pad - text_width
            at = (pad, top)
        words = list(settings) if self.settings else []
        while words and _text_width(draw, "  ".join(words), font) > room:
            words.pop()
        text = "  ".join(words)
        if self.style == "overlay" and text:
            right, bottom = at[0] + _text_width(draw, text, font) + 2, at[1] + self.font_size + 2
            draw.rectangle((at[0] - 2, at[1] - 1, right, bottom), fill=paper)
        _text(draw, at, text, font, ink)
        return np.asarray(image), words


def settings(kilovolts: float, detector: str, field_of_view_nm: float, distance_mm: float):
    """The settings that instruments print, the most important first."""
    magnification = float(f"{_PRINT_NM / field_of_view_nm:.3g}")
    times = f"x{magnification / 1000:g}k" if magnification >= 1000 else f"x{magnification:g}"
    return [f"{kilovolts:g} kV", times, detector, f"WD {distance_mm:g} mm"]


def _text_width(draw, text: str, font) -> int:
    return int(np.ceil(draw.textlength(text.replace("µ", "u"), font=font)))


def _text(draw, at, text: str, font, ink: int) -> None:
    """Text in which µ, which Pillow's own font lacks, is a u with a tail."""
    draw.text(at, text.replace("µ", "u"), font=font, fill=ink)
    if "µ" in text:
        before = text[: text.index("µ")]
        x = at[0] + draw.textlength(before, font=font)
        _, top, right, bottom = draw.textbbox((x, at[1]), "u", font=font)
        tail = max(2, (bottom - top) // 3)
        stem = round(x + (right - x) * 0.12)
        draw.line((stem, bottom - 1, stem, bottom + tail - 1), fill=ink)
