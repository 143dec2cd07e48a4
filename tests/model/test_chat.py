"""Chat messages with images, as the chat template, pipelines and clients write them."""

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

LENGTH = {"max_new_tokens": 5, "min_new_tokens": 5}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def folder(images, tmp_path):
    images[0].save(tmp_path / "8bit.png")
    deep = np.asarray(images[1]).astype(np.uint16) * 100 + 9000
    Image.fromarray(deep).save(tmp_path / "16bit.png")
    return tmp_path


@pytest.fixture
def url(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def encoded(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


BLOCKS = {
    "PIL": lambda path, url: {"type": "image", "image": Image.open(path)},
    "path": lambda path, url: {"type": "image", "path": str(path)},
    "URL": lambda path, url: {"type": "image", "url": url},
    "base64": lambda path, url: {"type": "image", "base64": encoded(path)},
    "data URI": lambda path, url: {
        "type": "image",
        "image": "data:image/png;base64," + encoded(path),
    },
    "OpenAI, URL": lambda path, url: {"type": "image_url", "image_url": {"url": url}},
    "OpenAI, data URI": lambda path, url: {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + encoded(path)},
    },
}


@pytest.mark.parametrize("name", [pytest.param("8bit.png", marks=pytest.mark.slow), "16bit.png"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_any_way_to_name_an_image_gives_its_pixels(processor, folder, url, kind, name):
    block = BLOCKS[kind](folder / name, f"{url}/{name}")
    message = {"role": "user", "content": [block, {"type": "text", "text": "What is it?"}]}
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True)
    expected = processor(images=folder / name, text="What is it?")
    assert set(inputs) == set(expected)
    for key in expected:
        assert torch.equal(inputs[key], expected[key])


def test_a_pipeline_answers_a_chat(model, folder):
    pipe = pipeline(
        "image-text-to-text",
        model=model,
        tokenizer=model.processor.tokenizer,
        image_processor=model.processor.image_processor,
        processor=model.processor,
    )
    for kind in ("PIL", "base64", "OpenAI, data URI"):
        block = BLOCKS[kind](folder / "16bit.png", None)
        message = {"role": "user", "content": [block, {"type": "text", "text": "What is it?"}]}
        (output,) = pipe(text=[message], return_full_text=False, generate_kwargs=LENGTH)
        expected = model.answer(folder / "16bit.png", "What is it?", **LENGTH)
        assert output["generated_text"] == expected


@pytest.mark.parametrize(
    "image, message",
    [
        ("x" * 5000, "begins with 'xxxxx"),
        ("data:image/png;base64,AAAA", "begins with 'data:image/png"),
        ("/nowhere/micrograph.png", "/nowhere/micrograph.png cannot be read"),
    ],
)
def test_what_is_no_image_is_named_briefly(processor, image, message):
    with pytest.raises(ValueError, match=message) as error:
        processor(images=image)
    assert len(str(error.value)) < 200


def test_a_broken_image_in_base64_is_not_printed(processor, folder):
    with pytest.raises(ValueError, match="begins with") as error:
        processor(images=encoded(folder / "8bit.png")[:400])
    assert len(str(error.value)) < 200


def test_a_missing_image_at_a_url_is_named(processor, url):
    with pytest.raises(ValueError, match=r"missing\.png cannot be read .*404"):
        processor(images=f"{url}/missing.png")


def test_offline_nothing_is_downloaded(processor):
    with pytest.raises(ValueError, match="offline mode is enabled"):
        processor(images="http://127.0.0.1:9/micrograph.png")
