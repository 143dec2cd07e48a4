"""What clients of OpenAI's API get: the student's own answers, whole or in pieces."""

import json
import threading

import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image
from support.microscope_files import write_dm3, write_olympus
from support.student_server import (
    NAME,
    PATIENCE,
    StudentServer,
    data_uri,
    http,
    message,
    picture,
    request,
)
from support.tiny_student import save_tiny_student

from mvaema.students.loading import load_student

QUESTION = "How large are the grains?"
EXTENSIONS = ("pixel_size_nm", "scale_bar", "caption", "decoding")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = load_student(save_tiny_student(tmp_path_factory.mktemp("student"))).eval()
    model.generation_config.max_new_tokens = 12
    return model


@pytest.fixture(scope="module")
def server(model):
    with StudentServer(model) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def asked(client, *args, **fields) -> str:
    extra = {n: fields.pop(n) for n in list(fields) if n in EXTENSIONS}
    reply = client.chat.completions.create(**request(*args, **fields), extra_body=extra)
    return reply.choices[0].message.content


def streamed(client, *args, **fields) -> tuple[str, list]:
    extra = {n: fields.pop(n) for n in list(fields) if n in EXTENSIONS}
    body = request(*args, **fields, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**body, extra_body=extra))
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


@pytest.mark.parametrize("decoding", ["greedy", "beam", "consensus", "contrast", "rerank"])
def test_answers_are_the_students_own_whole_and_in_pieces(client, model, decoding):
    image = picture()
    expected = model.answer(image, QUESTION, decoding=decoding)
    assert len(expected) > 5
    assert asked(client, QUESTION, image, decoding=decoding) == expected
    text, chunks = streamed(client, QUESTION, image, decoding=decoding)
    assert text == expected and len(chunks) > 3


def test_without_a_wish_the_decoding_is_the_students_own(client, model):
    image = picture(1)
    expected = model.answer(image, QUESTION)
    assert model.default_decoding == "consensus"
    assert expected != model.answer(image, QUESTION, decoding="greedy")
    for wish in ({}, {"temperature": 1, "top_p": 1}, {"temperature": None}, {"seed": 0}):
        assert asked(client, QUESTION, image, **wish) == expected
    assert streamed(client, QUESTION, image)[0] == expected


def test_temperature_zero_is_greedy_and_others_draw(client, model):
    image = picture(1)
    greedy = model.answer(image, QUESTION, decoding="greedy")
    assert asked(client, QUESTION, image, temperature=0) == greedy
    assert asked(client, QUESTION, image, top_p=0) == greedy
    options = {"decoding": "sample", "temperature": 1.5, "top_p": 1.0, "seed": 7}
    drawn = model.answer(image, QUESTION, **options)
    assert asked(client, QUESTION, image, temperature=1.5, seed=7) == drawn != greedy
    several = {asked(client, QUESTION, image, temperature=1.9) for _ in range(5)}
    assert len(several) > 1  # no seed, another draw each time


def test_usage_and_the_reason_to_finish(client, model):
    image = picture(2)
    inputs = model.processor(images=[image], text=[QUESTION])
    ids = model.generate(**inputs, do_sample=False)[0].tolist()[1:]
    ended = model.config.eos_token_id in ids
    reply = client.chat.completions.create(**request(QUESTION, image, temperature=0))
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert reply.usage.completion_tokens == len(ids)
    assert reply.choices[0].finish_reason == ("stop" if ended else "length")
    short = client.chat.completions.create(**request(QUESTION, image, temperature=0, max_tokens=3))
    text = model.answer(image, QUESTION, decoding="greedy", max_new_tokens=3)
    assert short.choices[0].message.content == text
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    # More than the student's own limit changes nothing.
    assert asked(client, QUESTION, image, temperature=0, max_completion_tokens=4096) == (
        reply.choices[0].message.content
    )
    _, chunks = streamed(client, QUESTION, image, temperature=0, max_tokens=3)
    assert chunks[-1].usage == short.usage and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == "length"
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1


def test_an_answer_ends_before_a_stop(client, model):
    image = picture(3)
    whole = model.answer(image, QUESTION)
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    assert asked(client, QUESTION, image, stop=[stop, "never there"]) == expected
    assert streamed(client, QUESTION, image, stop=stop)[0] == expected


def test_words_come_before_the_answer_is_complete(server, model):
    """The model stands still after a few words, and the client has read the first."""
    image, steps, go_on = picture(4), [], threading.Event()
    expected = model.answer(image, QUESTION, decoding="greedy")

    def halt(*_):
        steps.append(None)
        if len(steps) == 10:
            go_on.wait(PATIENCE)

    hook = model.register_forward_pre_hook(halt)
    body = request(QUESTION, image, temperature=0, stream=True)
    try:
        stream = iter(server.client().chat.completions.create(**body))
        next(stream)  # the role
        first = next(stream).choices[0].delta.content
        assert first and expected.startswith(first) and len(steps) <= 10
        assert server.service.working == 1
        go_on.set()
        assert first + "".join(c.choices[0].delta.content or "" for c in stream) == expected
    finally:
        go_on.set()
        hook.remove()


def test_the_scale_goes_into_the_prompt(client, model, tmp_path):
    pixels = np.random.default_rng(5).integers(0, 255, (48, 64), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    write_olympus(tmp_path / "wafer.tif", pixels, 2.5e-9, 40_000)
    known = model.answer(plain, QUESTION, pixel_size_nm=2.5)
    assert known != model.answer(plain, QUESTION)
    assert asked(client, QUESTION, tmp_path / "wafer.tif") == known
    assert asked(client, QUESTION, plain, pixel_size_nm=2.5) == known
    other = model.answer(plain, QUESTION, pixel_size_nm=900)
    assert asked(client, QUESTION, tmp_path / "wafer.tif", pixel_size_nm=900) == other != known
    bar = model.answer(plain, QUESTION, scale_bars="300 nm", captions="A tip.")
    assert asked(client, QUESTION, plain, scale_bar="300 nm", caption="A tip.") == bar


def test_instruments_own_formats(client, model, tmp_path):
    deep = np.random.default_rng(6).integers(0, 40_000, (48, 64), dtype=np.uint16)
    write_dm3(tmp_path / "tem.dm3", deep, [(0.5, "nm"), (0.5, "nm")], 200_000.0)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert asked(client, QUESTION, tmp_path / "deep.tif") == model.answer(deep, QUESTION)
    assert asked(client, QUESTION, tmp_path / "tem.dm3") == (
        model.answer(deep, QUESTION, pixel_size_nm=0.5)
    )


def test_the_last_question_is_answered_about_the_last_image(client, model):
    first, second = picture(7), picture(8)
    turns = [
        {"role": "system", "content": "You are a pirate."},
        message("What is it?", first),
        {"role": "assistant", "content": "A tip."},
        message("And this?", second),
        {"role": "assistant", "content": [{"type": "text", "text": "A film."}]},
        {"role": "user", "content": QUESTION},
    ]
    reply = client.chat.completions.create(model=NAME, messages=turns)
    assert reply.choices[0].message.content == model.answer(second, QUESTION)
    reply = client.chat.completions.create(model=NAME, messages=turns[:2])
    assert reply.choices[0].message.content == model.answer(first, "What is it?")


def test_models(client):
    assert [found.id for found in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "mvaema"
    with pytest.raises(openai.NotFoundError, match="one model, 'tiny'"):
        client.models.retrieve("other")


def test_what_front_ends_send(server, model):
    """Shapes as Open WebUI and LibreChat send them, field by field."""
    image = picture(9)
    url = data_uri(image, "image/jpeg")  # front ends guess
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
    ]
    bodies = {
        "Open WebUI": {
            "stream": True,
            "model": NAME,
            "messages": [
                {"role": "system", "content": "Today is Thursday."},
                {"role": "user", "content": parts},
            ],
            "stream_options": {"include_usage": True},
            "metadata": {"chat_id": "1"},
            "features": {"web_search": False},
        },
        "LibreChat": {
            "model": NAME,
            "user": "6650",
            "stream": True,
            "temperature": 1,
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "messages": [{"role": "user", "content": parts}],
        },
    }
    expected = model.answer(image, QUESTION)
    for body in bodies.values():
        reply = http.post(f"{server.url}/chat/completions", json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, end, rest = reply.text.split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        chunks = [httpx.Response(200, text=e.removeprefix("data: ")).json() for e in events]
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content", "") for delta in deltas) == expected
        assert ("usage" in chunks[-1]) == ("stream_options" in body)
    # A title for the chat: a task without an image.
    title = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat."
    body = {"model": NAME, "messages": [{"role": "user", "content": title}], "stream": False}
    reply = http.post(f"{server.url}/chat/completions", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "image_required"


def test_what_would_change_the_meaning_is_refused(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for name, value in {
        "tools": [tool],
        "n": 2,
        "logprobs": True,
        "response_format": {"type": "json_object"},
        "logit_bias": {"5": 10},
        "frequency_penalty": 0.5,
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**request(QUESTION, picture(), **{name: value}))
        assert caught.value.code == "unsupported_parameter" and caught.value.param == name
    for extra in ({"decoding": "best"}, {"pixel_size_nm": -1}, {"pixel_size_nm": "5"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(extra))):
            client.chat.completions.create(**request(QUESTION, picture()), extra_body=extra)
    # What changes nothing is not.
    harmless = {"user": "me", "n": 1, "store": False, "response_format": {"type": "text"}}
    assert asked(client, QUESTION, picture(), **harmless)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "invalid_request"),
        ("hello", "invalid_request"),
        ([{"role": "user"}], "invalid_request"),
        ([{"role": "king", "content": "hello"}], "invalid_request"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "invalid_request"),
        ([message(None, picture())], "invalid_request"),
        ([message("  ", picture())], "invalid_request"),
        ([message("What?", picture()), {"role": "assistant", "content": "A"}], "invalid_request"),
        ([message("What? \ud800", picture())], "invalid_request"),
        ([{"role": "user", "content": "What is it?"}], "image_required"),
        ([message("What?", picture(1), picture(2))], "too_many_images"),
        ([message("What?" * 200, picture())], "context_length_exceeded"),
    ],
)
def test_malformed_conversations(server, messages, code):
    body = json.dumps({"model": NAME, "messages": messages})
    headers = {"Content-Type": "application/json"}
    reply = http.post(f"{server.url}/chat/completions", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code), reply.text


def test_other_requests(server):
    root = server.url.removesuffix("/v1")
    assert http.get(f"{root}/health").json() == {"status": "alive"}
    ready = http.get(f"{root}/ready")
    assert ready.status_code == 200 and ready.json()["status"] == "ready"
    for path in ("/", "/docs", "/openapi.json", "/v1/completions"):
        reply = http.get(root + path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = http.get(f"{root}/v1/chat/completions")
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}"):
        reply = http.post(
            f"{server.url}/chat/completions",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
    body = request(QUESTION, picture()) | {"model": "gpt-4o"}
    reply = http.post(f"{server.url}/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert reply.headers["x-request-id"].startswith("req-")
