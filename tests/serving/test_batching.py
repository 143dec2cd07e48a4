"""Many clients at once: each gets its own answer, equal images are encoded once, and what nobody
waits for is not worked on."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from support.student_server import PATIENCE, StudentServer, picture, request
from support.tiny_student import save_tiny_student

from mvaema.students.loading import load_student

QUESTIONS = ("What is it?", "How large are the grains, and how many are there?", "Is it rough?")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_student(save_tiny_student(tmp_path_factory.mktemp("student"))).eval()
    model.generation_config.max_new_tokens = 12
    return model


def until(holds) -> None:
    """Wait for what other threads bring about."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def ask(server, body: dict) -> str:
    reply = server.client().chat.completions.create(**body)
    if body.get("stream"):
        return "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    return reply.choices[0].message.content


def in_queue(server, count: int) -> None:
    until(lambda: server.service.waiting + server.service.working == count)


def test_many_clients_at_once_get_the_answers_of_one_by_one(model):
    """Images, questions, decodings, lengths and streams are mixed."""
    wishes = [{}, {"temperature": 0}, {"temperature": 0, "stream": True}, {"max_tokens": 5}]
    bodies, expected = [], []
    for number in range(24):
        image, question = picture(number % 5), QUESTIONS[number % 3]
        wish = wishes[number % 4]
        bodies.append(request(question, image, **wish))
        options = {"decoding": "greedy"} if "temperature" in wish else {}
        options |= {"max_new_tokens": 5} if "max_tokens" in wish else {}
        expected.append(model.answer(image, question, **options))
    assert len(set(expected)) > 15
    with StudentServer(model) as server, ThreadPoolExecutor(24) as clients:
        with server.closed_gate():
            replies = [clients.submit(ask, server, body) for body in bodies]
            in_queue(server, 24)
        assert [reply.result(PATIENCE) for reply in replies] == expected
        until(lambda: server.service.in_progress == server.service.waiting == 0)


def test_equal_images_are_encoded_once_per_batch(model):
    encoded = []
    hook = model.image_encoder.register_forward_pre_hook(lambda _, args: encoded.append(args[0]))
    shown = [picture(1), picture(2), picture(1), picture(1), picture(3)]
    asked = [*QUESTIONS[:2], *QUESTIONS[1:], QUESTIONS[0]]
    expected = [model.answer(i, q, decoding="greedy") for i, q in zip(shown, asked, strict=True)]
    encoded.clear()
    try:
        with StudentServer(model, max_batch=8) as server, ThreadPoolExecutor(6) as clients:
            with server.closed_gate():
                first = clients.submit(ask, server, request(QUESTIONS[0], picture(9)))
                server.entered.acquire()
                replies = [
                    clients.submit(ask, server, request(q, i, temperature=0))
                    for i, q in zip(shown, asked, strict=True)
                ]
                until(lambda: server.service.waiting == 5)
            assert [reply.result(PATIENCE) for reply in replies] == expected and first.result(
                PATIENCE
            )
    finally:
        hook.remove()
    # The first request; then the image asked about three times, and the two others together.
    assert sorted(len(pixels) for pixels in encoded) == [1, 1, 2]


def test_a_vanished_client_leaves_the_queue_before_any_work_is_spent(model):
    with StudentServer(model) as server, ThreadPoolExecutor(2) as clients:
        with server.closed_gate():
            first = clients.submit(ask, server, request(QUESTIONS[0], picture()))
            server.entered.acquire()
            gone = [
                server.raw(json.dumps(request("Is it?", picture(), stream=stream)).encode())
                for stream in (False, True, False)
            ]
            last = clients.submit(ask, server, request(QUESTIONS[1], picture()))
            until(lambda: server.service.waiting == 4)
            for connection in gone:
                connection.close()
            until(lambda: server.service.waiting == 1)
        assert first.result(PATIENCE) == model.answer(picture(), QUESTIONS[0])
        assert last.result(PATIENCE) == model.answer(picture(), QUESTIONS[1])
        assert server.entered.acquire(blocking=False)
        assert not server.entered.acquire(blocking=False)  # no third batch
        until(lambda: server.service.in_progress == 0)


def test_decoding_is_given_up_when_all_clients_of_a_batch_vanished(model):
    steps, halted, go_on = [], threading.Event(), threading.Event()

    def halt(*_):
        steps.append(None)
        if len(steps) == 3:
            halted.set()
            go_on.wait(PATIENCE)

    hook = model.register_forward_pre_hook(halt)
    body = json.dumps(request(QUESTIONS[0], picture(), temperature=0)).encode()
    try:
        with StudentServer(model) as server:
            connection = server.raw(body)
            assert halted.wait(PATIENCE)
            connection.close()
            until(lambda: server.service.in_progress == 0)
            go_on.set()
            until(lambda: server.service.working == 0)
            assert len(steps) == 3  # of twelve
            hook.remove()
            expected = model.answer(picture(), QUESTIONS[0])
            assert ask(server, request(QUESTIONS[0], picture())) == expected
    finally:
        go_on.set()
        hook.remove()


def test_clients_that_vanish_at_any_moment_lose_nothing_of_the_others(model):
    body = json.dumps(request(QUESTIONS[0], picture(), stream=True)).encode()
    expected = [model.answer(picture(n), QUESTIONS[n % 3]) for n in range(6)]
    with StudentServer(model) as server, ThreadPoolExecutor(6) as clients:
        replies = [
            clients.submit(ask, server, request(QUESTIONS[n % 3], picture(n))) for n in range(6)
        ]
        for number in range(30):
            part = body if number % 3 else body[: len(body) // 2]
            connection = server.raw(part, f"Content-Length: {len(body)}")
            time.sleep(0.002 * (number % 5))
            connection.close()
        assert [reply.result(PATIENCE) for reply in replies] == expected
        until(lambda: server.service.in_progress == server.service.waiting == 0)
        assert ask(server, request(QUESTIONS[0], picture())) == expected[0]


def test_a_batch_that_fails_fails_alone(model):
    with StudentServer(model) as server:
        answer = server.model.answer_prompts

        def fail(*args, **kwargs):
            raise torch.OutOfMemoryError("secret words")

        server.model.answer_prompts = fail
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, request(QUESTIONS[0], picture()))
        assert caught.value.status_code == 500 and "secret" not in str(caught.value)
        server.model.answer_prompts = answer
        expected = model.answer(picture(), QUESTIONS[0])
        assert ask(server, request(QUESTIONS[0], picture())) == expected
