"""Every limit hit on purpose, and what the client sees: status, code, and whether to try again."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from support.student_server import PATIENCE, StudentServer, http, message, picture, request
from support.tiny_student import save_tiny_student

from mvaema.serving.limits import Limits
from mvaema.students.loading import load_student

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_student(save_tiny_student(tmp_path_factory.mktemp("student"))).eval()
    model.generation_config.max_new_tokens = 12
    return model


def ask(server, *images, **options):
    return server.client(**options).chat.completions.create(**request(QUESTION, *images))


def response(connection: socket.socket) -> tuple[int, str]:
    """The status and the code of what comes back on a connection."""
    connection.settimeout(PATIENCE)
    received = b""
    while part := connection.recv(65536):
        received += part
        head, _, body = received.partition(b"\r\n\r\n")
        if body.endswith(b"}}"):
            break
    connection.close()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_body_that_is_too_large(model):
    noise = picture(0, (400, 400))
    with StudentServer(model, max_body_mb=0.1) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server, noise)
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        assert "0.1 MB" in caught.value.message
        # One that does not say how large it is, and one whose sender waits for leave to send.
        body = json.dumps(request(QUESTION, noise)).encode()
        chunked = http.post(
            f"{server.url}/chat/completions",
            content=iter([body[:90_000], body[90_000:]]),
            headers={"Content-Type": "application/json"},
        )
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")
        waiting = server.raw(b"", "Expect: 100-continue", "Content-Length: 99999999999")
        assert response(waiting) == (413, "request_too_large")
        assert ask(server, picture()).choices[0].message.content


def test_too_many_pixels(model):
    with StudentServer(model, max_megapixels=0.01) as server:
        assert ask(server, picture(0, (100, 100)))
        with pytest.raises(openai.APIStatusError, match=r"0\.01 million pixels") as caught:
            ask(server, picture(0, (101, 100)))
        assert (caught.value.status_code, caught.value.code) == (413, "image_too_large")
        with pytest.raises(openai.BadRequestError) as caught:
            ask(server, picture(0, (15, 100)))
        assert caught.value.code == "image_too_small"


def test_too_many_images(model):
    turns = [message(QUESTION, picture(n)) for n in range(3)]
    with StudentServer(model, max_images=2) as server:
        client = server.client()
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=turns)
        assert caught.value.code == "too_many_images"
        reply = client.chat.completions.create(model="tiny", messages=turns[1:])
        assert reply.choices[0].message.content == model.answer(picture(2), QUESTION)


def test_an_upload_that_is_too_slow(model):
    with StudentServer(model, upload_seconds=0.3) as server:
        assert response(server.raw(b'{"model"', "Content-Length: 5000")) == (408, "upload_timeout")
        assert ask(server, picture())


def test_an_answer_that_takes_too_long(model):
    with StudentServer(model, timeout_seconds=0.5) as server:
        with server.closed_gate():
            with pytest.raises(openai.APIStatusError) as caught:
                ask(server, picture(), max_retries=3)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
            # The client that would retry three times was told not to.
            assert caught.value.response.headers["x-should-retry"] == "false"
            with pytest.raises(openai.APIStatusError) as caught:
                stream = request(QUESTION, picture(), stream=True)
                list(server.client().chat.completions.create(**stream))
            assert caught.value.status_code == 504
            assert server.service.in_progress == server.service.waiting == 0


def test_a_queue_that_is_full(model):
    with StudentServer(model, max_queue=2) as server, ThreadPoolExecutor(3) as clients:
        with server.closed_gate():
            taken = [clients.submit(ask, server, picture(n)) for n in range(2)]
            server.entered.acquire()
            while server.service.in_progress < 2:
                time.sleep(0.01)
            ready = http.get(f"http://127.0.0.1:{server.port}/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "full")
            assert http.get(f"http://127.0.0.1:{server.port}/health").status_code == 200
            with pytest.raises(openai.RateLimitError) as caught:
                ask(server, picture())
            assert caught.value.code == "queue_full"
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            # A client that tries again, as OpenAI's does by itself, gets its answer.
            patient = clients.submit(ask, server, picture(), max_retries=5)
            time.sleep(0.3)
        expected = [model.answer(picture(n), QUESTION) for n in range(2)]
        assert [t.result(PATIENCE).choices[0].message.content for t in taken] == expected
        assert patient.result(PATIENCE).choices[0].message.content == expected[0]


def test_few_uploads_at_a_time_are_enough_for_many_clients(model):
    with StudentServer(model, max_uploads=1) as server, ThreadPoolExecutor(6) as clients:
        found = [clients.submit(ask, server, picture(n)) for n in range(6)]
        texts = [f.result(PATIENCE).choices[0].message.content for f in found]
        assert texts == [model.answer(picture(n), QUESTION) for n in range(6)]
    with StudentServer(model, max_uploads=1, timeout_seconds=0.5) as server:
        slow = server.raw(b"{", "Content-Length: 5000")
        while server.service.in_progress < 1:
            time.sleep(0.01)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server, picture())
        assert caught.value.status_code == 504
        slow.close()


def test_a_body_of_another_type(model):
    with StudentServer(model) as server:
        body = json.dumps(request(QUESTION, picture()))
        reply = http.post(
            f"{server.url}/chat/completions", content=body, headers={"Content-Type": "text/plain"}
        )
        assert reply.status_code == 415
        assert reply.json()["error"]["code"] == "unsupported_media_type"


def test_a_server_that_has_no_student_yet(model):
    server, loaded = StudentServer(model), threading.Event()
    load = server.service._load
    server.service._load = lambda: (loaded.wait(PATIENCE), load())[1]
    start = server.service.start
    server.service.start = lambda: (start(), threading.Thread())[1]  # nothing to join
    with server:
        ready = http.get(f"http://127.0.0.1:{server.port}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        assert http.get(f"http://127.0.0.1:{server.port}/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, picture())
        assert (caught.value.status_code, caught.value.code) == (503, "not_ready")
        assert caught.value.response.headers["retry-after"] == "2"
        loaded.set()
        assert ask(server, picture(), max_retries=5).choices[0].message.content


def test_impossible_limits():
    with pytest.raises(ValueError, match="--max_queue must be greater than 0"):
        Limits(max_queue=0)
    assert Limits(batch_wait_ms=0).batch_wait_ms == 0
