"""Many files to one table: a row a file, whatever the file is.

What is special about it:
- what cannot be read has a row that says why, and the rest goes on;
- a cell that a spreadsheet would run as a formula is told apart from one by a quote mark. A file's
  name is the visitor's own, and the table goes back to the same visitor only.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence

from mvaema.page.asking import AT_ONCE
from mvaema.page.parts import Workers
from mvaema.page.sizes import measure_sizes
from mvaema.page.uploads import files_in
from mvaema.serving.refusals import Refusal

COLUMNS = (
    *("file", "image_id", "status", "width", "height", "pixel_size_nm", "scale_source"),
    *("technique", "category", "category_share", "question", "answer", "measured"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def rows_of(
    workers: Workers, paths: Sequence[str], questions: Sequence[str], with_sizes: bool
) -> AsyncIterator[list[dict]]:
    """For each file its rows, one a question.

    Raises:
        Refusal: an archive is too large.
    """
    files = files_in(paths, workers.limits)
    while found := await asyncio.wrap_future(workers.service.beside(next, files, None)):
        name, content = found
        try:
            if isinstance(content, Refusal):
                raise content
            yield await _rows(workers, name, content, questions, with_sizes)
        except Refusal as refusal:
            yield [{"file": name, "status": str(refusal)}]


async def _rows(
    workers: Workers, name: str, content: bytes, questions: Sequence[str], with_sizes: bool
) -> list[dict]:
    subject = await workers.opener.open(content)
    await workers.opener.complete(subject)
    answers = await workers.asker.whole(subject, questions, AT_ONCE)
    measured = ""
    if with_sizes:
        measured = (await measure_sizes(workers.measurer, subject, None)).sentence()
    category, share = next(iter(subject.ranked.items()), ("", None))
    common = {
        "file": name,
        "image_id": subject.image_id,
        "status": "ok",
        "width": subject.image.width,
        "height": subject.image.height,
        "pixel_size_nm": subject.scale.pixel_size_nm,
        "scale_source": subject.scale.source,
        "technique": subject.instrument.get("technique"),
        "category": category,
        "category_share": None if share is None else round(share, 3),
        "measured": measured,
    }
    pairs = list(zip(questions, answers, strict=True)) or [("", "")]
    return [{**common, "question": question, "answer": answer} for question, answer in pairs]


def as_csv(rows: Sequence[dict]) -> bytes:
    """Rows as a table; with the mark by which spreadsheets know UTF-8."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows({k: _safe(v) for k, v in row.items()} for row in rows)
    return stream.getvalue().encode("utf-8-sig")


def _safe(value):
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
