"""The page for an exported student, in a process that cannot import torch."""

import pytest
from PIL import Image
from support.page_visitor import Server

from mvaema.students.loading import load_student

pytestmark = pytest.mark.slow
QUESTION = "What is bright here?"


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs the extra `demo`")
    refused = tmp_path_factory.mktemp("refused")
    for name in ("torch", "transformers"):
        (refused / name).mkdir()
        (refused / name / "__init__.py").write_text("raise ImportError('not here')")
    server = Server(exported, tmp_path_factory.mktemp("disk"), path=(refused,))
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_it_answers_and_speaks_of_no_maps(visit, micrograph, tiny_student):
    visitor = visit()
    visitor.drop_and_wait(micrograph)
    model, image = load_student(tiny_student).eval(), Image.open(micrograph)
    expected = model.answer(image, QUESTION, decoding="greedy")
    assert visitor.ask(QUESTION).split() == expected.split()
    ranked = model.classify(image, by="itc+itm")
    rows = visitor.page.locator(".mv-bars tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == [name.replace("_", " ") for name in ranked]
    text = visitor.page.locator("body").inner_text()
    assert "Where its words looked is not shown" in text
    assert "see where the student looked" not in text and "Choose a word" not in text
    assert not visitor.page.locator(".mv-word").count()
