"""An exported student behind the API: the answers of the model, and plain words about the rest."""

import json

import openai
import pytest
from support.student_server import StudentServer, message, picture, request

from mvaema.serving.student import find_student
from mvaema.students.loading import load_student
from onnx_mvaema import OnnxStudent

# Slow: the student is exported first.
pytestmark = pytest.mark.slow

QUESTION = "How large are the grains?"


@pytest.fixture(scope="module")
def model(tiny_student):
    return load_student(tiny_student).eval()


@pytest.fixture(scope="module")
def server(exported):
    with StudentServer(OnnxStudent(exported, threads=1)) as server:
        yield server


def ask(server, *given, decoding=None, **fields):
    extra = {} if decoding is None else {"decoding": decoding}
    body = request(QUESTION, picture(3), **fields)
    return server.client().chat.completions.create(**body, extra_body=extra)


@pytest.mark.parametrize("decoding", ["greedy", "consensus", "rerank"])
def test_answers_are_the_model_s_whole_and_in_pieces(server, model, decoding):
    expected = model.answer(picture(3), QUESTION, decoding=decoding)
    assert ask(server, decoding=decoding).choices[0].message.content == expected
    chunks = list(ask(server, decoding=decoding, stream=True))
    pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "".join(pieces) == expected and len([piece for piece in pieces if piece]) > 2


def test_draws_and_usage_are_the_model_s(server, model):
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    expected = model.answer(picture(3), QUESTION, decoding="sample", **options)
    reply = ask(server, **options)
    assert reply.choices[0].message.content == expected
    inputs = model.processor(images=[picture(3)], text=[QUESTION])
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=3)[0].tolist()[1:]
    reply = ask(server, temperature=0, max_tokens=3)
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert reply.usage.completion_tokens == len(ids) == 3
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("decoding", ["beam", "contrast"])
def test_a_decoding_that_needs_torch_is_refused(server, decoding):
    with pytest.raises(openai.BadRequestError, match="without torch") as caught:
        ask(server, decoding=decoding)
    assert caught.value.param == "decoding"


def test_a_question_that_is_too_long(server, model):
    long = ("What? " * 200).strip()
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**request(long, picture()))
    assert caught.value.code == "context_length_exceeded"
    inputs = model.processor(images=[picture()], text=[long])
    (cut,), read = inputs.truncated["text"], inputs["input_ids"].shape[1]
    assert f"has {read + cut} tokens and this model reads {read}" in str(caught.value)


def test_what_nobody_waits_for_is_given_up(server):
    """The first step of the decoder ends the batch of a client that has vanished."""
    steps = []
    real = server.model._generate

    def counted(*given):
        *before, on_step = given

        def step(rows, tokens):
            steps.append(on_step(rows, tokens))
            return steps[-1]

        return real(*before, step)

    server.model._generate = counted
    try:
        with server.closed_gate():
            body = {"model": "tiny", "messages": [message(QUESTION, picture())]}
            connection = server.raw(json.dumps(body).encode())
            server.entered.acquire()
            while not server.service.working:
                pass
            connection.close()
            while server.service.in_progress:
                pass
        assert ask(server, temperature=0).choices[0].message.content
    finally:
        server.model._generate = real
    assert steps[0] is False and all(steps[1:])


def test_the_folder_decides(exported, tiny_student, tmp_path):
    for folder, with_torch in ((exported, False), (tiny_student, True)):
        found = find_student(str(folder))
        assert found.name == folder.name
        assert (found.load().model is not None) == with_torch
