"""Many micrographs, as files or in archives, to one table."""

import gradio as gr

from mvaema.page import drawing
from mvaema.page.batches import COLUMNS, as_csv, rows_of
from mvaema.page.bench import FORMATS, HIDDEN
from mvaema.page.parts import Workers, html, plainly
from mvaema.page.uploads import count_files
from mvaema.serving.refusals import bad_request

SHOWN = 50  # rows of the table on the page
SHOWN_COLUMNS = ("file", "status", "category", "pixel_size_nm", "question", "answer", "measured")


class BatchTab:
    """The tab. Made inside the page's block."""

    def __init__(self, workers: Workers):
        self._workers, self._questions = workers, workers.asker.questions
        limits = workers.limits
        with gr.Row():
            self.upload, self.folder = (
                gr.File(label=label, file_count=kind, type="filepath", height=140)
                for label, kind in (
                    ("Micrographs, or zip archives", "multiple"),
                    ("Or a folder", "directory"),
                )
            )
        html(
            f'<p class="mv-hint">{FORMATS}, or zip archives of these. At most {limits.max_files} '
            f"files of {limits.serving.max_body_mb:g} MB each. File names stand in your table and "
            "nowhere else.</p>"
        )
        self.questions = gr.CheckboxGroup(
            [(name.replace("_", " "), name) for name in self._questions],
            value=["basics"] if "basics" in self._questions else [],
            label="Questions",
        )
        self.sizes = gr.Checkbox(label="Measure sizes too (some seconds a file)", value=False)
        run = gr.Button("Run", variant="primary")
        self.progress = html("", elem_classes="mv-progress-block")
        self.table = html("", elem_classes="mv-table-block")
        run.click(
            self._run,
            [self.upload, self.folder, self.questions, self.sizes],
            [self.upload, self.folder, self.progress, self.table],
            **HIDDEN,
        )

    @plainly
    async def _run(
        self,
        files: list[str] | None,
        of_folder: list[str] | None,
        names: list[str],
        with_sizes: bool,
    ):
        paths = [*(files or ()), *(of_folder or ())]
        if not paths:
            raise bad_request("add files or an archive first.")
        total = count_files(paths, self._workers.limits)
        questions = [self._questions[name] for name in names]
        rows, done = [], 0
        yield gr.skip(), gr.skip(), _progress(0, total), ""
        async for found in rows_of(self._workers, paths, questions, with_sizes):
            rows += found
            done += 1
            yield gr.skip(), gr.skip(), _progress(done, total), _table(rows)
        link = drawing.download("micrographs.csv", as_csv(rows), "text/csv", "Table (CSV)")
        yield None, None, _progress(done, total, link), _table(rows)


def _progress(done: int, total: int, link: str = "") -> str:
    """A bar, and at its end the link to the table."""
    bar = f'<progress max="{max(total, 1)}" value="{done}" aria-label="Files done"></progress>'
    links = f'<p class="mv-downloads">{link}</p>' if link else ""
    return f'<p role="status">{bar} {done} of {total} files</p>{links}'


def _table(rows: list[dict]) -> str:
    """The latest rows, those columns that a page has room for."""
    escape = drawing.escape
    head = "".join(
        f'<th scope="col">{escape(name.replace("_", " "))}</th>'
        for name in COLUMNS
        if name in SHOWN_COLUMNS
    )
    body = []
    for row in rows[-SHOWN:]:
        cells = (row.get(name) for name in COLUMNS if name in SHOWN_COLUMNS)
        cells = ("" if c is None else f"{c:.4g}" if isinstance(c, float) else c for c in cells)
        body.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>")
    more = f"<p>The last {SHOWN} rows; the file has all.</p>" if len(rows) > SHOWN else ""
    return (
        '<div class="mv-scroll" tabindex="0" role="region" aria-label="Table of results"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{more}"
    )
