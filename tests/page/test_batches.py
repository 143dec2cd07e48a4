"""A batch's table, and the workers behind it, without a browser."""

import asyncio
import csv
import io

import pytest
from PIL import Image
from support.page_visitor import noise
from support.tiny_student import save_tiny_student

pytest.importorskip("gradio", reason="the page needs the extra `demo`")

from mvaema.page.asking import AT_ONCE, BEST_OF_NINE
from mvaema.page.batches import COLUMNS, as_csv, rows_of
from mvaema.page.limits import PageLimits
from mvaema.page.parts import WENT_WRONG, Workers, plainly
from mvaema.page.subject import Subject
from mvaema.serving.limits import Limits
from mvaema.serving.refusals import Refusal
from mvaema.serving.service import Service
from mvaema.serving.torch_student import TorchStudent
from mvaema.students.loading import load_student


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_student(save_tiny_student(tmp_path_factory.mktemp("s") / "student")).eval()


@pytest.fixture
def workers(model):
    limits = PageLimits(serving=Limits(max_batch=10, max_body_mb=0.1))
    service = Service(lambda: TorchStudent(model), "tiny", limits.serving)
    service.start().join()
    workers = Workers(service, limits)
    yield workers
    workers.close()
    service.close()


def written(path, seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(seed=seed)).save(stream, "PNG")
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


def test_a_row_a_question_and_one_for_what_is_not_read(workers, model, tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    written(folder / "a.png")
    (folder / "large.png").write_bytes(bytes(200_000))
    (folder / "text.tif").write_text("no image")
    questions = ["What is it?", "How large is it?"]
    paths = [str(folder / name) for name in ("a.png", "large.png", "text.tif")]

    async def run():
        return [rows async for rows in rows_of(workers, paths, questions, True)]

    good, large, text = asyncio.run(run())
    assert not folder.exists()
    expected = model.answer(Image.fromarray(noise()), questions, decoding="greedy")
    assert [row["answer"] for row in good] == expected
    assert all(row["status"] == "ok" and row["measured"] for row in good)
    assert "larger than 0.1 MB" in large[0]["status"] and "no format" in text[0]["status"]


@pytest.mark.parametrize("decoding", [AT_ONCE, BEST_OF_NINE])
def test_ten_questions_are_answered_as_in_python(workers, model, tmp_path, decoding):
    async def run() -> tuple[Subject, list[str]]:
        subject = await workers.opener.open(written(tmp_path / "a.png"))
        asked = list(model.config.questions.values())
        return subject, await workers.asker.whole(subject, asked, decoding)

    subject, answers = asyncio.run(run())
    assert answers == list(model.answer(subject.image, decoding=decoding).values())


def test_who_does_not_wait_withdraws_the_question(workers, tmp_path):
    async def run():
        subject = await workers.opener.open(written(tmp_path / "a.png"))
        answers = workers.asker.stream(subject, "What is it?", AT_ONCE)
        async for _ in answers:
            break
        await answers.aclose()
        return workers.service.in_progress

    assert asyncio.run(run()) == 0


def test_a_blank_question_is_refused(workers, tmp_path):
    async def run():
        subject = await workers.opener.open(written(tmp_path / "a.png"))
        return [text async for text in workers.asker.stream(subject, "  ", AT_ONCE)]

    with pytest.raises(Refusal, match="type a question first"):
        asyncio.run(run())


def test_a_table_is_no_program():
    rows = [{"file": "=cmd|' /C calc'!A0", "answer": "-1 µm", "pixel_size_nm": -1.0}]
    (row,) = csv.DictReader(io.StringIO(as_csv(rows).decode("utf-8-sig")))
    assert list(row) == list(COLUMNS)
    assert row["file"].startswith("'=") and row["answer"] == "'-1 µm"
    assert row["pixel_size_nm"] == "-1.0"


def test_a_visitor_never_reads_a_stack_trace(caplog):
    @plainly
    async def fails():
        raise KeyError("/secret/path")

    @plainly
    async def refuses():
        yield 1
        raise Refusal(400, "code", "the image is odd.")

    import gradio as gr

    async def told(handler):
        try:
            if hasattr(handler, "__anext__"):
                return [piece async for piece in handler]
            await handler
        except gr.Error as error:
            return error.message

    assert asyncio.run(told(fails())) == WENT_WRONG
    assert asyncio.run(told(refuses())) == "The image is odd."
    assert "a handler failed" in caplog.text
