"""Losses of a chat model: shared or not, batched or not, they are those of each answer alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_chats import blip2, gemma3
from support.tiny_llava import save_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from mvaema.evaluation.chat_likelihoods import ChatScorer
from mvaema.evaluation.chats import Chats

PROMPTS = ["What is it?", "The scale bar marks 1 µm. How large are they?", "What is it?"]
# More than one pass, and of many lengths.
ANSWERS = [(i % 3, f"It shows {'very ' * (i % 4)}small wires {i}.") for i in range(14)]
# What stands around prompt and answer, and whether the prompt is read once.
KINDS = {
    "llava": ("USER: <image>{} ASSISTANT:{}", True),
    "gemma": (
        "<turn>user\n<boi>{}<end>\n<turn>assistant\n{}<end>",
        True,
    ),
    "blip2": ("Question: {} Answer: {}</s>", False),
    "t5": ("Question: {} Answer:", False),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request, tmp_path_factory) -> tuple[str, Chats]:
    if request.param == "llava":
        folder = save_llava(tmp_path_factory.mktemp("llava"))
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        # The text model's default is another of these bytes.
        model.generation_config.eos_token_id = None
        parts = model, AutoProcessor.from_pretrained(folder)
    else:
        made = {"gemma": gemma3, "blip2": lambda: blip2(False), "t5": lambda: blip2(True)}
        parts = made[request.param]()
    return request.param, Chats(*parts, request.param)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60))
    return Image.fromarray(pixels.astype(np.uint8))


class Passes:
    """The images and the answers in each forward pass."""

    def __init__(self, model: torch.nn.Module):
        self.seen: list[bool] = []
        self.hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        self.seen.append(kwargs.get("pixel_values") is not None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


def naive(name: str, chats: Chats, image: Image.Image, prompt: str, answer: str):
    """Loss and tokens of one answer, by the model's own loss of the whole text."""
    end = "</s>" if name in ("llava", "t5") else ""
    text = KINDS[name][0].format(prompt, answer) + (end if name == "llava" else "")
    inputs = chats.processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")
    if name == "t5":
        labels = torch.tensor([chats.tokenizer(answer + end)["input_ids"]])
        tokens = labels.shape[1]
    else:
        empty = KINDS[name][0].format(prompt, "\0").partition("\0")[0].removesuffix(" ")
        before = chats.processor(images=[image.convert("RGB")], text=[empty], return_tensors="pt")
        count = before["input_ids"].shape[1]
        labels = inputs["input_ids"].clone()
        labels[:, :count] = -100
        tokens = labels.shape[1] - count
    with torch.no_grad():
        return float(chats.model(**inputs, labels=labels).loss) * tokens, tokens


def test_losses_are_those_of_each_answer_by_itself(kind, image):
    name, chats = kind
    scorer = ChatScorer(chats, batch_size=4)
    with Passes(chats.model) as passes:
        found = scorer.losses(scorer.see(image), PROMPTS, ANSWERS)
    # Equal prompts are one: 9 answers to it and 5 to the other, 4 at a time.
    assert sum(passes.seen) == (2 if KINDS[name][1] else 5)
    assert len(passes.seen) - sum(passes.seen) == (5 if KINDS[name][1] else 0)
    for (number, answer), (loss, tokens) in zip(ANSWERS, found, strict=True):
        expected, count = naive(name, chats, image, PROMPTS[number], answer)
        assert tokens == count
        assert loss == pytest.approx(expected, abs=2e-3)
    assert len({round(loss, 2) for loss, _ in found}) == len(found)


def test_the_image_matters_and_blanks_do_not_differ(kind, image):
    _, chats = kind
    scorer = ChatScorer(chats, batch_size=4)
    blank = Image.new("L", image.size, 128)
    seen, *blanks = (scorer.losses(i, PROMPTS, ANSWERS) for i in (image, blank, blank.copy()))
    for (loss, _), (first, _), (second, _) in zip(seen, *blanks, strict=True):
        assert abs(loss - first) > 1e-3 and first == pytest.approx(second, abs=1e-3)


def test_a_model_with_other_inputs_reads_each_prompt_again(kind, image, monkeypatch):
    _, chats = kind
    expected = ChatScorer(chats, batch_size=4).losses(image, PROMPTS, ANSWERS)
    monkeypatch.setattr("mvaema.evaluation.chat_likelihoods.OF_PROMPT", set())
    again = ChatScorer(chats, batch_size=4)
    with Passes(chats.model) as passes:
        found = again.losses(image, PROMPTS, ANSWERS)
    assert all(passes.seen) and len(passes.seen) == 5
    for first, second in zip(expected, found, strict=True):
        assert first == pytest.approx(second, abs=2e-3)
