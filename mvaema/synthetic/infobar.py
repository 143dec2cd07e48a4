"""The info bar that instruments burn into their images: settings, and a scale bar that is true."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Strips take rows away from the specimen, an overlay is printed over it.
STYLES = {"black strip": 0.27, "white strip": 0.2, "overlay": 0.18}

# A printed micrograph, to which instruments refer their magnification, is 127 mm wide.
_PRINT_NM = 127e6


def length_text(nanometres: float) -> str:
    """A length as instruments print it: 500 nm, 2 µm, 1 mm."""
    for unit, size in (("mm", 1e6), ("µm", 1e3)):
        if nanometres >= size:
            return f"{nanometres / size:g} {unit}"
    return f"{nanometres:g} nm"


@dataclass
class InfoBar:
    """Where the bar goes and what is printed in it."""

    style: str
    height: int  # rows of the strip; 0 for an overlay
    font_size: int
    settings: bool  # whether voltage, magnification ... are printed

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "InfoBar | None":
        """A bar for an image `size` pixels wide, or None: a third of the images have none."""
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

    def burn(self, grey: np.ndarray, pixel_nm: float, length_nm: float, settings: list[str]):
        """The image (rows, columns; uint8), which ends above the strip, with the bar added, and
        those of the settings that found room."""
        height, width = grey.shape
        ink, paper = (0, 255) if self.style == "white strip" else (255, 0)
        image = Image.new("L", (width, height + self.height), paper)
        image.paste(Image.fromarray(grey))
        font = ImageFont.load_default(self.font_size)
        draw = ImageDraw.Draw(image)
        label = length_text(length_nm)
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
    """What instruments print, the most telling first."""
    magnification = float(f"{_PRINT_NM / field_of_view_nm:.3g}")
    times = f"x{magnification / 1000:g}k" if magnification >= 1000 else f"x{magnification:g}"
    return [f"{kilovolts:g} kV", times, detector, f"WD {distance_mm:g} mm"]


def _text_width(draw, text: str, font) -> int:
    return int(np.ceil(draw.textlength(text.replace("µ", "u"), font=font)))


def _text(draw, at, text: str, font, ink: int) -> None:
    """Text with a µ, which Pillow's own font lacks: a u with a tail."""
    draw.text(at, text.replace("µ", "u"), font=font, fill=ink)
    if "µ" in text:
        before = text[: text.index("µ")]
        x = at[0] + draw.textlength(before, font=font)
        _, top, right, bottom = draw.textbbox((x, at[1]), "u", font=font)
        tail = max(2, (bottom - top) // 3)
        stem = round(x + (right - x) * 0.12)
        draw.line((stem, bottom - 1, stem, bottom + tail - 1), fill=ink)
