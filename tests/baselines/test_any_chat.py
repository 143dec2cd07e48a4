"""Chat models whose processors need torchvision, which is in this environment only."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_chats import qwen3_vl

from baselines.answering import ROWS
from baselines.answers import answer_loss
from baselines.registry import with_weights
from mvaema.evaluation.chat_likelihoods import ChatScorer
from mvaema.evaluation.chats import IGNORED, Chats

pytest.importorskip("torchvision", reason="Qwen3-VL's processor needs torchvision (make baselines)")

PROMPTS = ["What is it?", "The scale bar marks 1 µm. How large are they?"]
ANSWERS = [(i % 2, f"It shows {'very ' * (i % 4)}small wires {i}.") for i in range(10)]
ASKED = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
ASKED += "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60))
    return Image.fromarray(pixels.astype(np.uint8))


@torch.no_grad()
def test_losses_with_positions_of_three_axes(image):
    model, processor = qwen3_vl()
    scorer = ChatScorer(Chats(model, processor, "qwen"), batch_size=4)
    found = scorer.losses(scorer.see(image), PROMPTS, ANSWERS)
    for (number, answer), (loss, tokens) in zip(ANSWERS, found, strict=True):
        asked = ASKED.format(PROMPTS[number])
        parts = [
            processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")
            for text in (asked, f"{asked}{answer}<|im_end|>")
        ]
        labels = parts[1]["input_ids"].clone()
        labels[:, : parts[0]["input_ids"].shape[1]] = IGNORED
        assert tokens == int((labels != IGNORED).sum())
        expected = float(model(**parts[1], labels=labels).loss) * tokens
        assert loss == pytest.approx(expected, abs=2e-3)


def test_images_of_two_sizes_are_trained_on_together(image, tmp_path):
    for part in qwen3_vl():
        part.save_pretrained(tmp_path / "qwen")
    (row,) = [row for row in ROWS if row.name == "chat-lora"]
    model, processor = with_weights(row, str(tmp_path / "qwen")).make([], 96)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    chats = Chats(model, processor, "qwen")
    images = [image, image.resize((30, 30))]
    inputs, labels = chats.examples(images, PROMPTS, ["Wires.", "About 20 nm."])
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    losses = []
    for _ in range(5):
        loss = answer_loss(chats, {"labels": labels, **inputs})
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
