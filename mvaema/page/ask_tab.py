"""One micrograph: ask about all of it or a region, see where words looked, measure, report."""

import dataclasses

import gradio as gr

from lengths_mvaema import asks_for_size, contradicted
from mvaema.measuring.kinds import KINDS
from mvaema.page import drawing, reports
from mvaema.page.asking import AT_ONCE, BEST_OF_NINE
from mvaema.page.bench import HIDDEN, Bench, needed
from mvaema.page.parts import Workers, html, plainly
from mvaema.page.sizes import measure_sizes
from mvaema.page.subject import Subject
from mvaema.page.trust import NO_SUPPORT

BY_CATEGORY = "by the category"
SIDES = ("Left", "Top", "Right", "Bottom")
DECODINGS = [
    ("word by word", AT_ONCE),
    ("the best agreed of nine (slower, a little better)", BEST_OF_NINE),
]


class AskTab:
    """The tab. Made inside the page's block."""

    def __init__(self, workers: Workers):
        self._workers, self._questions = workers, workers.asker.questions
        with gr.Row(elem_classes="mv-bench"):
            with gr.Column(scale=5, min_width=300):
                self.bench = Bench(workers)
                self._region()
            with gr.Column(scale=6, min_width=300):
                self._asking()
                self.bench.details()
        with gr.Accordion("Measure sizes", open=False):
            self._measuring()
        with gr.Accordion("All ten questions, and a report to keep", open=False):
            self._reporting()
        opened = self.bench.wire([self.answer, self.measured, self.told, self.files])
        opened.success(self._whole, [self.bench.subject], [*self.sides], **HIDDEN)

    # ---- its parts -------------------------------------------------------------------------------

    def _region(self) -> None:
        bench = self.bench
        with gr.Accordion("A region to ask about and measure", open=False):
            html(
                "<p>Drag over the micrograph, or give its sides in pixels. Everything is about "
                "the region until you go back to the whole.</p>"
            )
            with gr.Row():
                self.sides = [
                    gr.Number(label=side, precision=0, minimum=0, min_width=70) for side in SIDES
                ]
            whole = gr.Button("Back to the whole micrograph", size="sm")
        bench.picture.select(self._drawn, [bench.subject], [*self.sides, bench.picture], **HIDDEN)
        gr.on(
            [event for side in self.sides for event in (side.submit, side.blur)],
            self._typed_region,
            [bench.subject, *self.sides],
            [bench.picture],
            **HIDDEN,
        )
        whole.click(self._whole, [bench.subject], [*self.sides], **HIDDEN).success(
            self._redraw, [bench.subject], [bench.picture], **HIDDEN
        )

    def _asking(self) -> None:
        bench = self.bench
        self.question = gr.Textbox(
            label="Your question", placeholder="What is bright here?", max_length=1000
        )
        ask = gr.Button("Ask", variant="primary")
        self.decoding = gr.Radio(DECODINGS, value=AT_ONCE, label="How the answer is written")
        html('<p class="mv-hint">Or press one of the ten:</p>')
        with gr.Row(elem_classes="mv-ten-buttons"):
            ten = {
                question: gr.Button(name.replace("_", " ").capitalize(), size="sm", min_width=100)
                for name, question in self._questions.items()
            }
        self.answer = html(
            "",
            script="words.js",
            elem_classes="mv-answer-block",
        )
        html(f'<p class="mv-trust">{NO_SUPPORT} <a href="#trust">What this means</a></p>')
        gr.on(
            [ask.click, self.question.submit],
            self._ask,
            [bench.subject, self.question, self.decoding],
            [self.answer],
            **HIDDEN,
        )
        for question, button in ten.items():
            button.click(
                self._asks(question), [bench.subject, self.decoding], [self.answer], **HIDDEN
            )

    def _measuring(self) -> None:
        with gr.Row():
            self.kind = gr.Dropdown(
                [BY_CATEGORY, *KINDS], value=BY_CATEGORY, label="What to look for"
            )
            measure = gr.Button("Measure", variant="primary")
        self.measured = html("", elem_classes="mv-measured-block")
        measure.click(
            self._measure,
            [self.bench.subject, self.kind],
            [self.measured],
            **{**HIDDEN, "show_progress": "minimal"},
        )

    def _reporting(self) -> None:
        all_ten = gr.Button("Ask all ten", variant="primary")
        self.told = html("", elem_classes="mv-told-block")
        self.files = html("", elem_classes="mv-files-block")
        all_ten.click(
            self._ask_all,
            [self.bench.subject, self.decoding],
            [self.told, self.files],
            **HIDDEN,
        )

    # ---- what they do ----------------------------------------------------------------------------

    @plainly
    async def _drawn(self, subject: Subject | None, event: gr.EventData):
        subject = needed(subject)
        subject.choose(tuple(event.region))
        return [*_sides(subject), drawing.picture(subject)]

    @plainly
    async def _typed_region(self, subject: Subject | None, *sides: float | None):
        if subject is None:
            return drawing.picture(None)
        subject.choose(sides)
        return drawing.picture(subject)

    @plainly
    async def _whole(self, subject: Subject | None):
        if subject is not None:
            subject.region = None
        return _sides(subject)

    @plainly
    async def _redraw(self, subject: Subject | None):
        return drawing.picture(subject)

    @plainly
    async def _ask(self, subject: Subject | None, question: str, decoding: str):
        async for piece in self._answered(needed(subject), question, decoding):
            yield piece

    def _asks(self, question: str):
        @plainly
        async def ask(subject: Subject | None, decoding: str):
            async for piece in self._answered(needed(subject), question, decoding):
                yield piece

        return ask

    async def _answered(self, subject: Subject, question: str, decoding: str):
        """The answer as it comes; at its end, its words with their maps."""
        about_region, text = subject.region is not None, ""
        shown, nm = subject.shown, subject.scale.pixel_size_nm
        async for text in self._workers.asker.stream(subject, question, decoding):
            yield drawing.answer(question, text, about_region=about_region)
        if not about_region:
            subject.answers[question] = text, decoding
        words = await self._workers.looker.words(shown, question, nm, text)
        notes = self._beside(subject, question, text)
        yield drawing.answer(question, text, words, about_region, notes)

    def _beside(self, subject: Subject, question: str, text: str) -> tuple[str, ...]:
        """What is known of sizes, beside an answer about them, and what in it contradicts that."""
        ids, said = {asked: name for name, asked in self._questions.items()}, subject.sizes
        if said is None or not asks_for_size(question, ids.get(question)):
            return ()
        wrong = (f"Contradicts this: “{s}”" for s in contradicted(text, said))
        return (f"Tool: {said}", *wrong)

    @plainly
    async def _measure(self, subject: Subject | None, kind: str):
        subject = needed(subject)
        kind = None if kind == BY_CATEGORY else kind
        result = await measure_sizes(self._workers.measurer, subject, kind)
        return drawing.measurement(subject.image, result)

    @plainly
    async def _ask_all(self, subject: Subject | None, decoding: str):
        subject, asked = needed(subject), list(self._questions.values())
        whole = dataclasses.replace(subject, region=None)
        async for texts in self._workers.asker.stream_all(whole, asked, decoding):
            yield drawing.answers(list(zip(asked, texts, strict=True)), busy=True), ""
        whole.answers |= {q: (text, decoding) for q, text in zip(asked, texts, strict=True)}
        told = {a["question"]: a["answer"] for a in reports.answers_of(whole, self._questions)}
        shown = drawing.answers([(question, told[question]) for question in asked])
        yield shown, "<p>Writing the report …</p>"
        given = (whole, self._questions, self._workers.name)
        yield gr.skip(), await self._workers.measurer(_files, *given)


def _sides(subject: Subject | None) -> tuple[int, ...]:
    """The sides of what is asked about, in pixels."""
    if subject is None:
        return (0,) * 4
    return subject.region or (0, 0, *subject.image.size)


def _files(*given) -> str:
    """The three reports as links."""
    links = (
        drawing.download("report.html", reports.as_html(*given), "text/html", "Report (HTML)"),
        drawing.download("report.pdf", reports.as_pdf(*given), "application/pdf", "Report (PDF)"),
        drawing.download("report.json", reports.as_json(*given), "application/json", "Data (JSON)"),
    )
    return f'<p class="mv-downloads">{"".join(links)}</p>'
