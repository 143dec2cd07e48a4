"""Scale bars as instruments and journals draw them, of known length, for `scale_bars.py` and tests.

Each is drawn on whole pixels over a picture of the synthetic microscope. Then the image may be
scaled and go through JPEG, as in a publication: the length is then known to a fraction of a pixel.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lengths_mvaema import format_length
from mvaema.synthetic.infobar import choose_length
from mvaema.synthetic.scenes import render
from mvaema.synthetic.text import text_width, write

STYLES = (
    *("white line", "black line", "coloured line", "outlined line", "line on a patch"),
    *("green ticks on a strip", "row of ticks", "text in the line", "bar left of the text"),
    *("dashed line", "two panels"),
)
WIDTH, HEIGHT = 512, 384


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A simulated micrograph without any print, mode "RGB"."""
    clean = render(seed, difficulty=0.5, size=224).clean
    image = Image.fromarray(np.clip(clean, 0, 255).astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")


def drawn(style: str, seed: int, published: bool | None = None) -> tuple[Image.Image, float, float]:
    """An image with a bar, the length in nm that it states, and the length of one pixel in nm.

    Args:
        style: one of `STYLES`.
        seed: selects the picture, the length and the size of the print.
        published: whether the image is scaled and compressed; drawn from the seed if not given.
    """
    rng = np.random.default_rng([7, seed])
    field = float(10 ** rng.uniform(1.5, 6))
    length = choose_length(rng, field)
    bar = round(length / field * WIDTH)
    font = ImageFont.load_default(int(rng.integers(13, 24)))
    image = _DRAW.get(style, _line)(style, picture(seed), bar, format_length(length), font, rng)
    pixel_nm = length / bar
    if rng.random() < 0.5 if published is None else published:
        factor = float(rng.uniform(0.65, 1.0))
        size = round(image.width * factor), round(image.height * factor)
        pixel_nm *= image.width / size[0]
        data = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(data, "JPEG", quality=85)
        image = Image.open(data)
        image.load()
    return image, length, pixel_nm


def _line(style, image, bar, label, font, rng):
    """A bar over the picture, with its text above or below."""
    draw = ImageDraw.Draw(image)
    colours = {"black line": (0, 0, 0), "coloured line": (255, 220, 0)}
    ink = colours.get(style, (255, 255, 255))
    thick = int(rng.integers(3, 8))
    words, below = text_width(draw, label, font), bool(rng.random() < 0.4)
    wide = max(bar, words)
    x = int(rng.integers(12, WIDTH - wide - 12))
    y = HEIGHT - 2 * font.size - thick - 16
    row = y if below else y + font.size + 8
    left = x + (wide - bar) // 2
    if style == "line on a patch":
        box = (x - 8, y - 6, x + wide + 8, y + font.size + thick + 18)
        draw.rectangle(box, fill=(0, 0, 0))
    elif style == "black line":
        draw.rectangle((x - 8, y - 6, x + wide + 8, y + 2 * font.size + thick), fill=(200,) * 3)
    if style == "outlined line":
        draw.rectangle((left - 1, row - 1, left + bar, row + thick), fill=(0, 0, 0))
    draw.rectangle((left, row, left + bar - 1, row + thick - 1), fill=ink)
    at = (x + (wide - words) / 2, row + thick + 3 if below else y)
    _write(image, at, label, font, ink)
    return image


def _strip(image, paper):
    """The picture above an empty strip, and the first row of the strip."""
    strip = Image.new("RGB", (WIDTH, HEIGHT + 44), paper)
    strip.paste(image)
    return strip, HEIGHT


def _green_ticks(style, image, bar, label, font, rng):
    """As Zeiss prints it: |---| in a white strip, its text above."""
    image, top = _strip(image, (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    _write(image, (14, top + 2), label, font, (0, 0, 0))
    green, row = (0, 255, 0), top + 31
    draw.line((14, row, 14 + bar, row), fill=green)
    for column in (14, 14 + bar):
        draw.line((column, row - 8, column, row + 8), fill=green)
    _write(image, (300, top + 14), "EHT = 5.00 kV", font, (0, 0, 0))
    return image


def _ticks(style, image, bar, label, font, rng):
    """As Hitachi prints it: eleven ticks over the picture, the text below their end."""
    draw = ImageDraw.Draw(image)
    left, row = WIDTH - bar - 20, HEIGHT - font.size - 24
    for tick, column in enumerate(np.round(np.linspace(left, left + bar, 11)).astype(int)):
        high = 8 if tick in (0, 5, 10) else 6
        draw.rectangle((column, row, column + 1, row + high), fill=(255, 255, 255))
    at = (WIDTH - 20 - text_width(draw, label, font), row + 12)
    _write(image, at, label, font, (255, 255, 255))
    return image


def _broken(style, image, bar, label, font, rng):
    """As FEI prints it: a line with small ticks, broken by its text, in a black strip."""
    image, top = _strip(image, (0, 0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    words = text_width(draw, label, font)
    bar_left, row, white = WIDTH - bar - 30, top + 16, (255, 255, 255)
    middle = bar_left + bar // 2
    draw.line((bar_left, row, bar_left + bar, row), fill=white, width=2)
    for column in (bar_left, bar_left + bar):
        draw.line((column, row - 4, column, row + 4), fill=white)
    draw.rectangle((middle - words // 2 - 5, top + 4, middle + words // 2 + 5, top + 28), fill=0)
    _write(image, (middle - words / 2, top + 7), label, font, white)
    return image


def _left_of_text(style, image, bar, label, font, rng):
    """As JEOL prints it: a block, and its text to the right, in a black strip."""
    image, top = _strip(image, (0, 0, 0))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.rectangle((120, top + 8, 120 + bar - 1, top + 14), fill=(255, 255, 255))
    _write(image, (120 + bar + 16, top + 3), label, font, (255, 255, 255))
    _write(image, (10, top + 22), "x30,000   5.0kV   SEM", font, (255, 255, 255))
    return image


def _dashed(style, image, bar, label, font, rng):
    """Dashes and gaps of one length."""
    draw = ImageDraw.Draw(image)
    row = HEIGHT - 20
    edges = np.round(np.linspace(20, 20 + bar, 12)).astype(int)
    for left, right in zip(edges[:-1:2], edges[1::2], strict=True):
        draw.rectangle((left, row, right - 1, row + 2), fill=(255, 255, 255))
    _write(image, (20, row - font.size - 8), label, font, (255, 255, 255))
    return image


def _panels(style, image, bar, label, font, rng):
    """Two panels side by side, each with its bar; they agree."""
    panel = _line("line on a patch", image.copy(), bar, label, font, rng)
    both = Image.new("RGB", (2 * WIDTH + 6, HEIGHT), (255, 255, 255))
    both.paste(panel)
    both.paste(_line("line on a patch", image, bar, label, font, rng), (WIDTH + 6, 0))
    return both


def _write(image, at, label, font, ink):
    """The text in a colour; `write` knows grey levels only, so it draws a mask."""
    mask = Image.new("L", image.size)
    write(ImageDraw.Draw(mask), at, label, font, 255)
    image.paste(ink, mask=mask)


_DRAW = {
    "green ticks on a strip": _green_ticks,
    "row of ticks": _ticks,
    "text in the line": _broken,
    "bar left of the text": _left_of_text,
    "dashed line": _dashed,
    "two panels": _panels,
}
