"""The teacher against a real server, end to end: `transformers serve` with a tiny vision-language
model built here."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from datasets import load_dataset
from support.teacher_helpers import arguments, make_images, replies

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.commands.teach import ask_command
from mvaema.teacher.prompt import Prompt

pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn")

LIMIT = 40  # output tokens
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def build_model(folder):
    """A LLaVA of two tiny layers with random weights, and its processor."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    model = LlavaForConditionalGeneration(config)
    # A model of random weights never says </s>; a part of the alphabet ends its answers.
    model.generation_config.eos_token_id = [1, *range(3, 23)]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(URL, model name) of a running `transformers serve`."""
    folder = tmp_path_factory.mktemp("tiny-llava")
    build_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)),
                *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_end_to_end(image_format, served, tmp_path):
    url, model = served
    images, output = make_images(tmp_path / "images", 2, size=(48, 64)), tmp_path / "out"
    args = arguments(
        images,
        output,
        url,
        teacher_model=model,
        max_tokens=LIMIT,
        concurrency=2,
        image_format=image_format,
        timeout=120.0,
    )
    assert ask_command(args) == 0
    rows = replies(output)
    assert len(rows) == 20
    prompt = Prompt.load()
    for row in rows:
        assert row["status"] == 200
        text = prompt.render(row["question_id"], (64, 48), caption=CATEGORY_CAPTIONS["Nanowires"])
        # One token per byte here, and four for the image: all of the request arrived.
        assert row["prompt_tokens"] == len("user: ") + 4 + len(text) + 1 + len("assistant: ")
        truncated = row["completion_tokens"] == LIMIT
        assert row["finish_reason"] == ("length" if truncated else "stop")
        assert row["outcome"] in (["truncated"] if truncated else ["ok", "empty"])
    assert {row["outcome"] for row in rows} >= {"ok"}
    data = load_dataset(str(output / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [len(row["qa"]) for row in data] == [10, 10]
    assert ask_command(args) == 0
    assert len(replies(output)) == 20, "a rerun asks nothing"


@pytest.mark.slow
def test_wrong_model_name(served, tmp_path, capsys):
    """This server says 400: nothing is answered, and the run tells what it said."""
    url, _ = served
    images = make_images(tmp_path / "images", 1)
    args = arguments(images, tmp_path / "out", url, teacher_model="no/such-model", timeout=60.0)
    assert ask_command(args) == 1
    message = capsys.readouterr().err
    assert "None of 10 questions was answered" in message and "status 400" in message
    assert "no/such-model" in message and "Check --teacher_model" in message
    assert len(replies(tmp_path / "out")) == 10
