"""Two micrographs side by side: the same question to both."""

import asyncio

import gradio as gr

from mvaema.page import drawing
from mvaema.page.asking import AT_ONCE
from mvaema.page.bench import HIDDEN, Bench, needed
from mvaema.page.parts import Workers, html, plainly
from mvaema.page.subject import Subject
from mvaema.serving.refusals import bad_request

FREE = "my own question"


class PairTab:
    """The tab. Made inside the page's block."""

    def __init__(self, workers: Workers):
        self._workers = workers
        names = {n.replace("_", " "): q for n, q in workers.asker.questions.items()}
        self._questions = names
        with gr.Row():
            self.chosen = gr.Dropdown(
                [*names, FREE], value=next(iter(names)), label="Question for both"
            )
            self.question = gr.Textbox(label="My own question", max_length=1000)
            ask = gr.Button("Ask both", variant="primary")
        self.benches, self.answers = [], []
        with gr.Row():
            for side in ("Left micrograph", "Right micrograph"):
                with gr.Column(min_width=300, elem_classes="mv-bench"):
                    bench = Bench(workers, side)
                    answer = html(
                        "",
                        script="words.js",
                        elem_classes="mv-answer-block",
                    )
                    bench.details()
                    bench.wire([answer])
                    self.benches.append(bench)
                    self.answers.append(answer)
        gr.on(
            [ask.click, self.question.submit],
            self._ask,
            [*(bench.subject for bench in self.benches), self.chosen, self.question],
            self.answers,
            **HIDDEN,
        )

    @plainly
    async def _ask(self, left: Subject | None, right: Subject | None, chosen: str, own: str):
        if left is None or right is None:
            raise bad_request("drop two micrographs first, one on each side.")
        question = own if chosen == FREE else self._questions[chosen]
        told = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._one(number, needed(subject), question, told))
            for number, subject in enumerate((left, right))
        ]
        shown, left_to_do = ["", ""], len(tasks)
        try:
            while left_to_do:
                number, text = await told.get()
                if text is None:
                    left_to_do -= 1
                    await tasks[number]  # raises what it raised
                    continue
                shown[number] = text
                yield tuple(shown)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, number: int, subject: Subject, question: str, told: asyncio.Queue) -> None:
        """Put the answer about one micrograph into a queue as it comes, and None at its end."""
        try:
            text = ""
            async for text in self._workers.asker.stream(subject, question, AT_ONCE):
                told.put_nowait((number, drawing.answer(question, text)))
            nm = subject.scale.pixel_size_nm
            words = await self._workers.looker.words(subject.image, question, nm, text)
            told.put_nowait((number, drawing.answer(question, text, words)))
        finally:
            told.put_nowait((number, None))
