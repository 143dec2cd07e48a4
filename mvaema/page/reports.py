"""All that is known of a micrograph to keep: JSON for programs, HTML and PDF for people.

What is special about it:
- each is one file that needs no network, and no file name is in it: a micrograph's id is that of
  its pixels;
- all three say which student answered, how answers were decoded, and when not to trust them.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import matplotlib
from PIL import Image as PILImage
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    Flowable,
    Image,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
)

from lengths_mvaema import measured_answers
from mvaema.measuring.methods import facts, methods
from mvaema.measuring.overlay import draw_overlay, histogram_png
from mvaema.page import drawing
from mvaema.page.subject import Subject
from mvaema.page.trust import NO_SUPPORT

TITLE = "What a student says of a micrograph"
CSS = Path(__file__).with_name("page.css")
# matplotlib's font has µ, × and what else answers hold; PDF's own fonts have not.
FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
TEXT_WIDTH = A4[0] - 40 * mm


def answers_of(subject: Subject, questions: Mapping[str, str]) -> list[dict[str, str]]:
    """The answers about all of a micrograph; those about sizes with what was measured beside them.

    Args:
        questions: the student's own, by id.
    """
    ids = {question: name for name, question in questions.items()}
    sizes = dataclasses.replace(subject, region=None).sizes
    said = [text for text, _ in subject.answers.values()]
    texts = measured_answers(said, list(subject.answers), questions, sizes)
    return [
        {
            "question_id": ids.get(question),
            "question": question,
            "answer": text,
            "decoding": decoding,
        }
        for text, (question, (_, decoding)) in zip(texts, subject.answers.items(), strict=True)
    ]


def as_dictionary(subject: Subject, questions: Mapping[str, str], student: str) -> dict:
    """Everything, in types that JSON has.

    Args:
        student: its name; never a path.
    """
    scale = subject.scale
    measured = subject.measurement
    return {
        "image_id": subject.image_id,
        "width": subject.image.width,
        "height": subject.image.height,
        "pixel_size_nm": scale.pixel_size_nm,
        "pixel_size_source": scale.source,
        "scale_contradiction": scale.contradiction,
        "instrument": subject.instrument,
        "student": student,
        "categories": subject.ranked,
        "answers": answers_of(subject, questions),
        "measurement": None if measured is None else measured.as_json(),
        "note": NO_SUPPORT,
    }


def as_json(*given) -> bytes:
    """`as_dictionary` as a file."""
    return json.dumps(as_dictionary(*given), ensure_ascii=False, indent=1).encode()


def as_html(subject: Subject, questions: Mapping[str, str], student: str) -> bytes:
    """A page of its own."""
    told = [(a["question"], a["answer"]) for a in answers_of(subject, questions)]
    measured = ""
    if subject.measurement is not None:
        measured = f"<h2>Measured</h2>{drawing.measurement(subject.image, subject.measurement)}"
    body = (
        f"<h1>{TITLE}</h1><p>{escape(_who(subject, student))}</p>"
        f"<p><strong>{escape(NO_SUPPORT)}</strong></p>"
        f"<figure>{drawing.picture(subject)}</figure>{drawing.fact_list(subject)}"
        f"<h2>Category</h2>{drawing.bars(subject.ranked)}"
        f"<h2>Questions and answers</h2>{drawing.answers(told)}{measured}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{CSS.read_text(encoding='utf-8')}</style></head>"
        f'<body class="mv-report"><main>{body}</main></body></html>'
    ).encode()


def as_pdf(subject: Subject, questions: Mapping[str, str], student: str) -> bytes:
    """A4 pages."""
    for name in (FONT, BOLD):
        pdfmetrics.registerFont(TTFont(name, FONTS / f"{name}.ttf"))
    pdfmetrics.registerFontFamily(FONT, normal=FONT, bold=BOLD, italic=FONT, boldItalic=BOLD)
    plain = ParagraphStyle("plain", fontName=FONT, fontSize=9, leading=12.5, spaceAfter=4)
    bold = ParagraphStyle("bold", plain, fontName=BOLD, spaceBefore=5, spaceAfter=1)
    head = ParagraphStyle("head", bold, fontSize=12, leading=15, spaceBefore=10, spaceAfter=4)
    title = ParagraphStyle("title", head, fontSize=16, leading=20)

    def said(text: str, style: ParagraphStyle = plain) -> Paragraph:
        return Paragraph(escape(text), style)

    parts: list[Flowable] = [
        said(TITLE, title),
        said(_who(subject, student)),
        said(NO_SUPPORT, bold),
        Spacer(0, 4 * mm),
        _image(drawing.jpeg(subject.image), 110 * mm),
        Spacer(0, 3 * mm),
        _table([[said(n, bold), said(v)] for n, v in drawing.fact_rows(subject)], (40 * mm, None)),
    ]
    if subject.ranked:
        ranked = list(subject.ranked.items())[: drawing.CATEGORIES]
        shares = [[said(drawing.category_name(n)), said(f"{100 * p:.0f} %")] for n, p in ranked]
        parts += [said("Category", head), _table(shares, (60 * mm, None))]
    if subject.answers:
        parts.append(said("Questions and answers", head))
    for told in answers_of(subject, questions):
        parts.append(
            KeepTogether([said(told["question"], bold), said(told["answer"] or "(no answer)")])
        )
    if subject.measurement is not None:
        parts += [said("Measured", head), *_measured(subject, said, bold)]
    stream = io.BytesIO()
    document = SimpleDocTemplate(
        stream,
        pagesize=A4,
        title=TITLE,
        lang="en",
        leftMargin=20 * mm,
        rightMargin=20 * mm,
        topMargin=18 * mm,
        bottomMargin=18 * mm,
    )
    document.build(parts)
    return stream.getvalue()


def _measured(subject: Subject, said, bold: ParagraphStyle) -> list[Flowable]:
    result = subject.measurement
    stream = io.BytesIO()
    draw_overlay(subject.image, result).save(stream, "PNG")
    parts = [said(facts(result), bold), _image(stream.getvalue(), 110 * mm)]
    if drawing.has_histogram(result):
        parts.append(_image(histogram_png([result], ""), 90 * mm))
    return [*parts, said(methods(result)), *(said(f"– {note}") for note in result.notes)]


def _image(content: bytes, longest: float) -> Image:
    """A picture whose longer side is `longest`, no wider than the text."""
    with PILImage.open(io.BytesIO(content)) as image:
        width, height = image.size
    scale = min(longest / max(width, height), TEXT_WIDTH / width)
    return Image(io.BytesIO(content), math.floor(width * scale), math.floor(height * scale))


def _table(rows: list[list[Paragraph]], widths: tuple[float | None, ...]) -> Table:
    style = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("LINEBELOW", (0, 0), (-1, -1), 0.3, colors.grey)]
    widths = [w or TEXT_WIDTH - sum(filter(None, widths)) for w in widths]
    return Table(rows, colWidths=widths, style=style, hAlign="LEFT")


def _who(subject: Subject, student: str) -> str:
    ways = sorted({decoding for _, decoding in subject.answers.values()})
    how = f"; answers decoded by {', '.join(ways)}" if ways else ""
    return f"Micrograph {subject.image_id}; student {student}{how}."
