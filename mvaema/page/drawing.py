"""A subject in HTML: its picture, facts, categories and answers.

What is special about it:
- pictures are part of the HTML. Nothing is written to the disk of the server to be shown;
- what a student or a file says is escaped, all of it;
- what a picture shows is said in words too, for those who do not see it. The words of an answer
  are one stop for the tab key; the arrow keys go from word to word (`words.js`).
"""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from lengths_mvaema import format_length
from mvaema.measuring.methods import facts, methods
from mvaema.measuring.overlay import draw_overlay, histogram_png
from mvaema.measuring.results import Measurement
from mvaema.page.subject import Subject

SIDE = 1024  # longest side of a picture on the page, in pixels
CATEGORIES = 5  # how many are shown
NO_HISTOGRAM = ("films", "pattern")
SOURCES = {
    "typed": "as you typed it",
    "recorded": "recorded by the instrument",
    "read": "read from the scale bar",
}
INSTRUMENT = {
    "technique": ("Technique", "{}"),
    "accelerating_voltage_kv": ("Accelerating voltage", "{:g} kV"),
    "working_distance_mm": ("Working distance", "{:g} mm"),
    "detector": ("Detector", "{}"),
}
PLACES = (("upper left", "top", "upper right"), ("left", "middle", "right"))
PLACES = (*PLACES, ("lower left", "bottom", "lower right"))


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no server."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """An image without metadata, no larger than `side`."""
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def picture(subject: Subject | None, about: str = "The micrograph") -> str:
    """The micrograph with the region that is chosen; `picture.js` draws on it."""
    if subject is None:
        return '<p class="mv-none">No micrograph yet.</p>'
    width, height = subject.image.size
    box = ""
    if subject.region:
        left, upper, right, lower = subject.region
        x, y = 100 / width, 100 / height
        box = (
            f"left:{left * x:.3f}%;top:{upper * y:.3f}%;"
            f"width:{(right - left) * x:.3f}%;height:{(lower - upper) * y:.3f}%"
        )
    uri = data_uri(jpeg(subject.image), "image/jpeg")
    alt = f"{about}, {width} by {height} pixels"
    return (
        f'<div class="mv-stage" data-width="{width}" data-height="{height}">'
        f'<img src="{uri}" alt="{escape(alt)}" draggable="false">'
        '<canvas class="mv-map" aria-hidden="true"></canvas>'
        f'<div class="mv-region" aria-hidden="true" style="{box}"{"" if box else " hidden"}></div>'
        "</div>"
    )


def scale_text(subject: Subject) -> str:
    """The pixel size that counts, and who says so."""
    scale = subject.scale
    if scale.pixel_size_nm is not None:
        return f"{format_length(scale.pixel_size_nm)} per pixel, {SOURCES[scale.source]}"
    if subject.found is None:
        return "being looked for in the picture"
    return f"unknown: {scale.reading.reason}" if scale.reading else "unknown"


def fact_rows(subject: Subject) -> list[tuple[str, str]]:
    """What is known of a micrograph: names and values in words."""
    width, height = subject.image.size
    rows = [("Size", f"{width} × {height} pixels"), ("Scale", scale_text(subject))]
    scale = subject.scale
    if scale.pixel_size_nm is not None:
        across = format_length(width * scale.pixel_size_nm)
        rows.append(("Field of view", f"{across} wide"))
    if scale.contradiction:
        rows.append(("Warning", scale.contradiction))
    for name, value in subject.instrument.items():
        label, form = INSTRUMENT[name]
        rows.append((label, form.format(value)))
    return rows


def fact_list(subject: Subject | None) -> str:
    """`fact_rows` as a list."""
    if subject is None:
        return ""
    rows = (f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in fact_rows(subject))
    return f'<dl class="mv-facts">{"".join(rows)}</dl>'


def category_name(name: str) -> str:
    return name.replace("_", " ")


def bars(ranked: dict[str, float]) -> str:
    """The best categories, with bars."""
    if not ranked:
        return ""
    rows = []
    for name, share in list(ranked.items())[:CATEGORIES]:
        percent = f"{100 * share:.0f} %"
        rows.append(
            f'<tr><th scope="row">{escape(category_name(name))}</th>'
            f'<td class="mv-bar"><span style="width:{100 * share:.1f}%"></span></td>'
            f"<td>{percent}</td></tr>"
        )
    return (
        '<table class="mv-bars"><caption>What it looks like to the student (shares of ten, not '
        f"chances of being right)</caption><tbody>{''.join(rows)}</tbody></table>"
    )


def where(weights: np.ndarray) -> str:
    """Where a map has its most, in words: the place, and how many times the mean it is."""
    row, column = np.unravel_index(int(weights.argmax()), weights.shape)
    side = len(weights)
    place = PLACES[min(2, 3 * row // side)][min(2, 3 * column // side)]
    mean = float(weights.mean())
    times = float(weights.max()) / mean if mean else 1.0
    return f"most at the {place}, {times:.1f} times the mean"


def answer(
    question: str,
    text: str,
    words: list[tuple[str, np.ndarray]] | None = None,
    about_region: bool = False,
    notes: tuple[str, ...] = (),
) -> str:
    """A question and its answer; with `words`, each of these can be chosen.

    Args:
        words: what `Looker.words` returned, once the answer is complete.
        notes: sentences beside it, such as a measurement.
    """
    part = "the region" if about_region else "the micrograph"
    head = f'<h3 class="mv-question">{escape(question)} <small>(about {part})</small></h3>'
    if words is None:
        body = f'<p class="mv-text">{escape(text)}<span class="mv-caret">▍</span></p>'
        return f'<div class="mv-answer" aria-busy="true">{head}{body}</div>'
    if not words:
        body = f'<p class="mv-text">{escape(text) or "(no answer)"}</p>'
    else:
        buttons = []
        for number, (word, weights) in enumerate(words):
            encoded = base64.b64encode(weights.tobytes()).decode()
            buttons.append(
                f'<button type="button" class="mv-word" tabindex="{0 if number == 0 else -1}" '
                f'aria-pressed="false" data-map="{encoded}" data-side="{len(weights)}" '
                f'data-where="{escape(where(weights))}">{escape(word)}</button>'
            )
        rest = " ".join(text.split()[len(words) :])  # beyond the longest text that is scored
        body = (
            '<div class="mv-text"><span class="mv-words" role="toolbar" aria-label="Words of the '
            f'answer: choose one to see where it looked">{" ".join(buttons)}</span> '
            f"{escape(rest)}</div>"
            '<p class="mv-where" role="status">Choose a word to see where it looked.</p>'
        )
    beside = "".join(f'<p class="mv-note">{escape(note)}</p>' for note in notes)
    spoken = f'<p class="mv-spoken" role="status">Answer: {escape(text)}</p>'
    return f'<div class="mv-answer">{head}{body}{beside}{spoken}</div>'


def answers(pairs: list[tuple[str, str]], busy: bool = False) -> str:
    """Several questions with their answers."""
    if not pairs:
        return ""
    rows = (
        f"<dt>{escape(question)}</dt><dd>{escape(text) or '…'}</dd>" for question, text in pairs
    )
    return f'<dl class="mv-answers" aria-busy="{str(busy).lower()}">{"".join(rows)}</dl>'


def measurement(image: Image.Image, result: Measurement) -> str:
    """A measurement: its sentence, the overlay, the histogram and the methods."""
    said = facts(result)
    stream = io.BytesIO()
    overlay = draw_overlay(image, result)
    overlay.thumbnail((SIDE, SIDE))
    overlay.save(stream, "PNG")
    uri = data_uri(stream.getvalue(), "image/png")
    parts = [
        f'<p class="mv-said"><strong>{escape(said)}</strong></p>',
        f'<img class="mv-overlay" src="{uri}" alt="The micrograph with what was measured: '
        f'{escape(said)}">',
    ]
    if has_histogram(result):
        uri = data_uri(histogram_png([result], ""), "image/png")
        parts.append(
            f'<img class="mv-histogram" src="{uri}" alt="Histogram of {escape(result.quantity)} '
            f'in {result.unit}">'
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    chosen = f"Kind: {result.kind or 'none'}, {result.chosen_by}." if result.chosen_by else ""
    parts.append(f"<p>{escape(chosen)} {escape(methods(result))}</p><ul>{notes}</ul>")
    return f'<div class="mv-measured">{"".join(parts)}</div>'


def has_histogram(result: Measurement) -> bool:
    """Whether its values are many of a kind."""
    return result.trusted and result.kind not in NO_HISTOGRAM


def download(name: str, content: bytes, kind: str, label: str) -> str:
    """A link that holds its file."""
    return (
        f'<a class="mv-download" download="{escape(name)}" href="{data_uri(content, kind)}">'
        f"{escape(label)}</a>"
    )
