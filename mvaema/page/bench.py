"""Where a micrograph lies on the page: it is dropped here, and its picture and facts are shown.

What is special about it:
- a file's field is empty again once the file is read: the file is gone, and the next may come;
- the picture is shown before its scale and its categories are known.
"""

import gradio as gr

from mvaema.page import drawing
from mvaema.page.parts import Workers, html, plainly
from mvaema.page.subject import Subject
from mvaema.page.uploads import taken
from mvaema.serving.refusals import Refusal, bad_request

FORMATS = "PNG, JPEG, WebP, BMP, TIFF, DM3, DM4, EMD, SER, MRC"
# No api: the page is for people, and `mvaema serve` for programs.
HIDDEN = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
LONGEST_PIXEL_NM = 1e6


class Bench:
    """The components of one micrograph; made where the page has its place for them.

    Args:
        workers: who work on it.
        name: what the micrograph is called on the page.
    """

    def __init__(self, workers: Workers, name: str = "Micrograph"):
        self._workers, self._name = workers, name
        idle = workers.limits.idle_seconds
        self.subject = gr.State(None, time_to_live=idle)
        self.upload = gr.File(
            label=name,
            file_count="single",
            type="filepath",
            height=130,
            elem_classes="mv-upload",
        )
        html(f'<p class="mv-hint">{FORMATS}; at most {_most(workers)}.</p>')
        self.picture = html(drawing.picture(None), script="picture.js", elem_classes="mv-picture")
        self.facts = html(elem_classes="mv-facts-block")

    def details(self) -> None:
        """Make what may stand elsewhere: the categories, and the scale to type."""
        self.bars = html(elem_classes="mv-bars-block")
        self.typed = gr.Number(
            label="Length of a pixel in nm, if the scale is missing or wrong",
            value=None,
            minimum=0,
        )

    def wire(self, emptied: list[gr.HTML]) -> gr.events.Dependency:
        """Connect the components.

        Args:
            emptied: what an earlier micrograph has left elsewhere.

        Returns:
            the event of a micrograph that was read, for what follows.
        """
        shown = [self.picture, self.facts, self.bars]
        opened = self.upload.upload(
            self._open,
            [self.upload],
            [self.upload, self.subject, self.typed, *shown, *emptied],
            **{**HIDDEN, "show_progress": "minimal"},
            show_progress_on=self.picture,
        )
        opened.success(
            self._complete,
            [self.subject],
            [self.facts, self.bars],
            **{**HIDDEN, "show_progress": "minimal"},
            show_progress_on=self.facts,
        )
        gr.on(
            [self.typed.submit, self.typed.blur],
            self._type,
            [self.subject, self.typed],
            [self.facts],
            **HIDDEN,
        )
        self._emptied = len(emptied)
        return opened

    async def open(self, path: str) -> Subject:
        """The micrograph in an upload."""
        content = taken(path)
        return await self._workers.opener.open(content)

    @plainly
    async def _open(self, path: str | None):
        """The new subject; the old one is shown no more, even if this one cannot be read."""
        nothing = [""] * self._emptied
        if path is None:
            raise bad_request("no file has arrived; drop one, or choose one.")
        try:
            subject = await self.open(path)
        except Refusal as refusal:
            gr.Warning(str(refusal)[:1].upper() + str(refusal)[1:], title="Not read", duration=15)
            return [None, None, None, self._refused(refusal), "", "", *nothing]
        picture = drawing.picture(subject, self._name)
        return [None, subject, None, picture, drawing.fact_list(subject), "", *nothing]

    def _refused(self, refusal: Refusal) -> str:
        return f'<p class="mv-none" role="alert">Not read: {drawing.escape(str(refusal))}</p>'

    @plainly
    async def _complete(self, subject: Subject | None):
        if subject is None:
            return "", ""
        await self._workers.opener.complete(subject)
        return drawing.fact_list(subject), drawing.bars(subject.ranked)

    @plainly
    async def _type(self, subject: Subject | None, typed: float | None):
        if subject is None:
            return ""
        known = typed if typed and 0 < typed < LONGEST_PIXEL_NM else None
        if known != subject.typed_nm:
            subject.typed_nm, subject.measurement = known, None
        return drawing.fact_list(subject)


def _most(workers: Workers) -> str:
    limits = workers.limits.serving
    return f"{limits.max_body_mb:g} MB and {limits.max_megapixels:g} million pixels"


def needed(subject: Subject | None) -> Subject:
    """The micrograph that is asked about.

    Raises:
        Refusal: there is none.
    """
    if subject is None:
        raise bad_request("drop a micrograph first.")
    return subject
