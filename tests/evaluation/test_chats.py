"""What chat models are given: answers behind prompts, and labels on the answers alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_chats import blip2, gemma3
from support.tiny_llava import save_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from mvaema.evaluation.chats import IGNORED, Chats, runs_along

PROMPTS = ["What is it?", "The scale bar marks 1 µm. How large are the structures?"]
ANSWERS = ["Small wires.", "About 20 nm."]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (48, 32), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Chats:
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Chats(model, AutoProcessor.from_pretrained(folder), "llava")


def bare(ids: list[int], tokenizer) -> str:
    """A text without padding."""
    return tokenizer.decode([i for i in ids if i != tokenizer.pad_token_id])


def test_labels_are_those_of_a_naive_mask(images):
    chats = Chats(*gemma3(), "gemma")
    inputs, labels = chats.examples(images, PROMPTS, ANSWERS)
    tokenizer = chats.tokenizer
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        # The whole conversation by itself, and a search for the answer in it.
        text = f"<turn>user\n<boi>{prompt}<end>\n<turn>assistant\n{answer}<end>"
        alone = chats.processor(images=[images[i].convert("RGB")], text=[text])
        expected = alone["input_ids"][0]
        written = tokenizer(f"{answer}<end>")["input_ids"]
        kept = inputs["attention_mask"][i].bool()
        assert inputs["input_ids"][i][kept].tolist() == list(expected)
        naive = [IGNORED] * (len(expected) - len(written)) + written
        assert labels[i][kept].tolist() == naive
        assert (labels[i][~kept] == IGNORED).all()
        types = inputs["token_type_ids"][i][kept].tolist()
        assert types == list(alone["token_type_ids"][0])
    assert inputs["input_ids"].shape == labels.shape == inputs["token_type_ids"].shape


@torch.no_grad()
@pytest.mark.parametrize("make", [gemma3, lambda: blip2(False), lambda: blip2(True)])
def test_the_loss_is_the_models_own(make, images):
    chats = Chats(*make(), "chat")
    inputs, labels = chats.examples(images, PROMPTS, ANSWERS)
    logits, of_answers = chats.logits(dict(inputs), labels)
    assert logits.shape[:2] == of_answers.shape
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), of_answers.flatten())
    assert float(chats.model(**inputs, labels=labels).loss) == pytest.approx(float(loss), abs=1e-4)


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer(images):
    chats = Chats(*blip2(True), "t5")
    inputs, labels = chats.examples(images, PROMPTS, ANSWERS)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        asked = bare(inputs["input_ids"][i].tolist(), chats.tokenizer)
        assert asked == "<image>" * 3 + f"Question: {prompt} Answer:"
        written = [token for token in labels[i].tolist() if token != IGNORED]
        assert chats.tokenizer.decode(written) == f"{answer}</s>"


def test_answers_are_ended_where_the_model_stops(llava):
    tokenizer, end = llava.tokenizer, [llava.stops[0]]
    # Its template does not write answers.
    assert llava.answer_ids("What?", "Wires. ") == tokenizer("Wires.")["input_ids"] + end
    assert llava.answer_ids("What?", "") == end


def test_a_space_may_stand_for_the_end(llava, monkeypatch):
    # As LLaVA's own template has it.
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content[-1].text }} ASSISTANT:"
        "{% else %} {{ m.content[0].text + ' ' }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(llava.processor, "chat_template", template)
    expected = [*llava.tokenizer(" Wires.")["input_ids"], llava.stops[0]]
    assert llava.answer_ids("What?", "Wires.") == expected


def test_the_text_of_a_qformer_is_not_continued():
    prompt = torch.zeros(2, 7, dtype=torch.long)
    assert runs_along("token_type_ids", prompt, prompt)
    assert not runs_along("qformer_input_ids", prompt, prompt)
    assert not runs_along("pixel_values", torch.zeros(2, 3, 7, 7), prompt)


def test_a_model_that_does_not_stop_is_refused(llava):
    model, processor = blip2(False)
    model.generation_config.eos_token_id = None
    processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"chat has no token that ends an answer.*eos_token_id"):
        Chats(model, processor, "chat")
