"""Texts scored together are what the model says of each by itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_student import save_tiny_student
from transformers import AutoModel

from modeling_mvaema import MVaEMaModel
from mvaema.evaluation.likelihoods import Scorer, eager_attention, image_grid

PROMPTS = ["What is it?", "The scale bar marks 1 µm. How large are the structures?"]
# More than one pass, and of many lengths.
ANSWERS = [(i % 2, f"It shows {'very ' * (i % 7)}small wires {i}.") for i in range(40)]
VARIANTS = [{}, {"instruction_aware": True}, {"use_cross_attention": False}]
VARIANTS += [{"use_causal_mask": False}, {"use_self_attention": False}]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def scorer(student, request) -> Scorer:
    usual = AutoModel.from_pretrained(student, trust_remote_code=True)
    config = type(usual.config).from_dict(usual.config.to_dict() | request.param)
    torch.manual_seed(0)
    model = MVaEMaModel(config).eval()
    model.processor = usual.processor
    return Scorer(model)


@torch.no_grad()
def test_losses_are_those_of_each_answer_by_itself(scorer, image):
    found = scorer.losses(scorer.see(image), PROMPTS, ANSWERS)
    for (prompt, answer), (loss, tokens) in zip(ANSWERS, found, strict=True):
        inputs = scorer.processor(images=[image], text=[PROMPTS[prompt]], answers=[answer])
        assert tokens == (inputs["labels"] != -100).sum()
        assert loss == pytest.approx(float(scorer.model(**inputs).lm_loss) * tokens, abs=1e-3)


@torch.no_grad()
def test_matches_and_similarities_are_those_of_each_statement_by_itself(scorer, image):
    texts = [answer for _, answer in ANSWERS]
    seen = scorer.see(image)
    matches, similarities = scorer.matches(seen, texts), scorer.similarities(seen, texts)
    for text, match, similarity in zip(texts, matches, similarities, strict=True):
        inputs = scorer.processor(images=[image], statements=[text])
        by_itself = scorer.model(**inputs, return_loss=False).logits_per_image
        assert similarity == pytest.approx(float(by_itself), abs=1e-3)
        states = scorer.model.image_encoder(inputs["pixel_values"])
        logit = scorer.model.match(states, inputs["statement_ids"], inputs["statement_mask"])
        assert match == pytest.approx(float(logit), abs=1e-3)
    assert scorer.similarities(seen, texts) == similarities  # texts are embedded once


@torch.no_grad()
@pytest.mark.parametrize("overrides", VARIANTS[:2], ids=str)
def test_attention_is_averaged_over_words_heads_and_layers(student, image, overrides):
    model = AutoModel.from_pretrained(student, trust_remote_code=True)
    if overrides:
        config = type(model.config).from_dict(model.config.to_dict() | overrides)
        model, processor = MVaEMaModel(config).eval(), model.processor
        model.processor = processor
    scorer, usual = Scorer(model), model.config._attn_implementation
    answers = ["Small wires.", "Large particles on a substrate."]
    with eager_attention(model):
        maps = scorer.attention_maps(scorer.see(image), PROMPTS, answers)
        for prompt, answer, found in zip(PROMPTS, answers, maps, strict=True):
            inputs = scorer.processor(images=[image], text=[prompt], answers=[answer])
            attentions = model(**inputs, output_attentions=True).cross_attentions
            total = np.zeros((4, 4))  # 32 pixels in patches of 8
            for layer in attentions:
                for head in layer[0]:
                    for word in head[:-1]:  # [EOS] is no word
                        total += word[1:17].view(4, 4).numpy()  # after [CLS]
            assert found == pytest.approx(255 * total / total.max(), abs=0.6)
    assert model.config._attn_implementation == usual != "eager"


@torch.no_grad()
def test_each_word_has_the_attention_of_its_own_tokens(student, image):
    model = AutoModel.from_pretrained(student, trust_remote_code=True)
    scorer, answer = Scorer(model), "Particles, unbelievably small."
    with eager_attention(model):
        found = scorer.word_maps(scorer.see(image), PROMPTS[0], answer)
        inputs = scorer.processor(images=[image], text=PROMPTS[:1], answers=[answer])
        attentions = model(**inputs, output_attentions=True).cross_attentions
    assert [word for word, _ in found] == answer.split()
    tokens = [inputs["labels"][0, : t + 1] for t in range(inputs["labels"].shape[1] - 1)]
    written = [scorer.processor.tokenizer.decode(ids) for ids in tokens]
    assert written[-1] == answer and len(written) > 3  # words have several tokens
    totals = [np.zeros((4, 4)) for _ in found]
    for token, text in enumerate(written):
        # A space is no word; another token belongs to the last word of what is written with it.
        for layer in () if text.endswith(" ") else attentions:
            totals[len(text.split()) - 1] += layer[0, :, token, 1:17].sum(0).view(4, 4).numpy()
    for (_, found_map), total in zip(found, totals, strict=True):
        assert found_map == pytest.approx(255 * total / total.max(), abs=0.6)


def test_the_grid_is_the_largest_square_at_the_end():
    for tokens, first in ((50, 1), (49, 0), (197, 1), (261, 5), (1 + 4, 1), (2, 1)):
        assert image_grid(tokens) == slice(first, tokens)


def test_large_maps_are_made_smaller(tmp_path, image):
    model = AutoModel.from_pretrained(save_tiny_student(tmp_path / "s"), trust_remote_code=True)
    config = type(model.config).from_dict(model.config.to_dict() | {"patch_size": 1})
    large, scorer = MVaEMaModel(config).eval(), None
    large.processor = model.processor
    scorer = Scorer(large)
    with eager_attention(large):
        (found,) = scorer.attention_maps(scorer.see(image), PROMPTS[:1], ["Small wires."])
    assert found.shape == (16, 16) and found.max() == 255
