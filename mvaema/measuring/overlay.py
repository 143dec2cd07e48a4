"""Pictures of a measurement: what was measured, drawn over the micrograph, and the histogram.

What is special about it:
- everybody can see what the numbers are about: each object's outline, on the micrograph itself;
- objects that the border cuts have another colour, and a result that is not trusted says so in
  the picture.
"""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mvaema.measuring.methods import number, sentence
from mvaema.measuring.results import Measurement

SIZED, CUT, DOUBTED = (0, 220, 90), (255, 150, 0), (150, 150, 255)
BANNER, WIDEST_TEXT = 20, 7


def draw_overlay(image: Image.Image, result: Measurement) -> Image.Image:
    """The micrograph with outlines and the result in one line above it, mode RGB.

    A small micrograph is enlarged as far as it was for measuring.
    """
    picture = image.convert("RGB")
    if result.overlay is not None and result.box is not None:
        left, upper, right, _ = result.box
        zoom = result.overlay.shape[1] / (right - left)
        size = round(picture.width * zoom), round(picture.height * zoom)
        pixels = np.array(picture.resize(size, Image.Resampling.BICUBIC))
        row, column = round(upper * zoom), round(left * zoom)
        labels = result.overlay[: size[1] - row, : size[0] - column]
        part = pixels[row : row + labels.shape[0], column : column + labels.shape[1]]
        edge = (labels > 0) & (labels != ndimage.minimum_filter(labels, 3))
        part[edge] = SIZED if result.trusted else DOUBTED
        if result.trusted and result.kind in ("particles", "pores"):
            rim = np.unique(np.concatenate([labels[:2], labels[-2:]], axis=None))
            sides = np.unique(np.concatenate([labels[:, :2], labels[:, -2:]], axis=None))
            part[edge & np.isin(labels, np.union1d(rim, sides))] = CUT
        picture = Image.fromarray(pixels)
    framed = Image.new("RGB", (picture.width, picture.height + BANNER))
    framed.paste(picture, (0, BANNER))
    text = sentence(result)
    most = max(10, picture.width // WIDEST_TEXT)
    text = text if len(text) <= most else text[: most - 1] + "…"
    ImageDraw.Draw(framed).text((4, 3), text, fill=SIZED if result.trusted else CUT, font=_font())
    return framed


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """A font with µ, – and …, which Pillow's own lacks; matplotlib brings it."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)


def histogram_png(results: list[Measurement], title: str) -> bytes:
    """The histogram of trusted results of one kind and unit, as a PNG.

    Args:
        results: at least one; with several, their bins are drawn one above the other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        edges, counts = result.statistics.histogram
        axes.stairs(counts, edges, fill=len(results) == 1, alpha=0.8)
    first = results[0]
    axes.set_xlabel(f"{first.quantity} ({first.unit})")
    places = "places along fibres" if first.kind == "fibres" else first.noun[0]
    axes.set_ylabel(f"number of {places}")
    if len(results) == 1:
        median = first.statistics.median
        axes.axvline(median, color="black", linestyle="--", linewidth=1)
        counted = "" if first.count is None else f"n = {first.count}, "
        title = f"{title}\n{counted}median {number(median)} {first.unit}"
    axes.set_title(title, fontsize=9)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()
