"""The model against itself by other routes, its ablations, and what it refuses.

Losses: test_losses.py. Against a naive model: test_reference.py.
"""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from configuration_mvaema import PRESETS, MVaEMaConfig


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-5)


# ---- the decoder -----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_future_word_changes_no_earlier_logits(make_model, batch, attention):
    model = make_model(attn_implementation=attention)
    assert model.config._attn_implementation == attention
    ids = torch.randint(5, 100, (8, 9))
    ids[:, 0] = model.config.dec_token_id
    changed = ids.clone()
    changed[:, 5:] = torch.randint(100, 200, (8, 4))
    inputs = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    a = model(decoder_input_ids=ids, **inputs).logits
    b = model(decoder_input_ids=changed, **inputs).logits
    close(a[:, :5], b[:, :5], atol=1e-6)
    assert (a[:, 5:] - b[:, 5:]).abs().max() > 1e-2


def test_without_causal_mask_the_future_leaks(make_model, batch):
    """The ablation really is one."""
    model = make_model(use_causal_mask=False)
    assert model.generation_config.use_cache is False
    ids = torch.full((8, 4), 9)
    changed = ids.clone()
    changed[:, 3] = 100
    inputs = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    a = model(decoder_input_ids=ids, **inputs).logits
    b = model(decoder_input_ids=changed, **inputs).logits
    assert (a[:, :3] - b[:, :3]).abs().max() > 1e-3
    assert len(model.generate(**inputs, max_new_tokens=3)) == 8


def test_a_padded_statement_embeds_as_it_does_alone(model, processor):
    texts = ["a film", "a much longer statement about pores and wires"]
    together = processor(statements=texts)
    features = model.get_text_features(
        together["statement_ids"], together["statement_mask"]
    ).pooler_output
    for i, text in enumerate(texts):
        alone = processor(statements=text)
        close(features[i], model.get_text_features(*alone.values()).pooler_output[0])


def test_eager_equals_sdpa(make_model, batch):
    outputs = [make_model(attn_implementation=a)(**batch) for a in ("eager", "sdpa")]
    for name in ("itc_loss", "itm_loss", "lm_loss", "logits", "image_embeds", "text_embeds"):
        close(outputs[0][name], outputs[1][name])


def test_bfloat16_stays_near_float32(make_model, batch):
    model = make_model(initializer_range=0.02)
    with torch.no_grad():
        expected = model(**batch)
        output = model.to(torch.bfloat16)(**batch)
    assert output.logits.dtype == torch.bfloat16
    for name in ("itc_loss", "itm_loss", "lm_loss"):
        assert float(output[name]) == pytest.approx(float(expected[name]), rel=0.03)
    generated = model.generate(
        **{k: batch[k] for k in ("pixel_values", "input_ids")}, max_new_tokens=3
    )
    assert generated.shape == (8, 4)


@pytest.mark.slow
def test_forward_compiles_without_graph_breaks(make_model, batch):
    model = make_model().train()
    expected = model(**batch)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(**batch)
    close(output.loss, expected.loss)
    output.loss.backward()
    assert model.lm_head.weight.grad is not None


def test_one_image_may_have_many_questions(model, processor, batch, images):
    """Consecutive prompts share an image; the result is that of repeated images."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
    shared = model(pixel_values=batch["pixel_values"], **inputs).logits
    repeated = model(pixel_values=batch["pixel_values"].repeat_interleave(2, 0), **inputs).logits
    close(shared, repeated)


def test_the_answer_depends_on_image_and_question(model, batch):
    base = model(**batch).logits
    other_image = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    other_question = {**batch, "input_ids": batch["input_ids"].flip(0)}
    assert (model(**other_image).logits - base).abs().max() > 1e-2
    assert (model(**other_question).logits - base).abs().max() > 1e-2


# ---- the image encoder -----------------------------------------------------------------------


def test_other_resolutions_are_interpolated(model):
    assert model.image_encoder(torch.randn(1, 3, 64, 48)).shape == (1, 1 + 8 * 6, 32)


def test_instruction_aware_images_know_the_question(make_model, batch):
    model = make_model(instruction_aware=True)
    memory = model.encode_prompt(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    length = batch["input_ids"].shape[1]
    image_states = memory.last_hidden_state[:, :-length]
    assert image_states.shape[1] == 1 + 16 + 1
    assert (image_states[0] - image_states[1]).abs().max() > 1e-3  # one image, two questions
    model(**batch).loss.backward()
    assert model.image_encoder.instruction_proj.weight.grad.abs().sum() > 0


# ---- ablations -------------------------------------------------------------------------------


def test_without_self_attention_the_words_do_not_mix(make_model, processor):
    model = make_model(use_self_attention=False)
    text = processor(statements=["wires of gold", "wires of iron"])
    states, texts = model.text_stack(text["statement_ids"])
    states = texts.unpack(states)
    changed = text["statement_ids"][0] != text["statement_ids"][1]
    assert changed.any() and not changed[1]
    close(states[0, 1], states[1, 1])
    features = model.get_text_features(text["statement_ids"]).pooler_output
    assert (features[0] - features[1]).abs().max() > 1e-3  # the mean still sees the text


def test_without_cross_attention_matching_is_blind(make_model, batch):
    model = make_model(use_cross_attention=False)
    states = model.image_encoder(batch["pixel_values"])
    ids = batch["statement_ids"]
    close(model.match(states, ids), model.match(states.flip(0), ids))
    assert not any("cross_attn" in name for name, _ in model.named_parameters())


# ---- learning --------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_samples_are_overfitted_to_exact_answers(make_model, processor):
    """Catches a shift too many or too few, a leak, and a decoder deaf to image or question."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(5)]
    questions = ["What is it?", "How large is it?"]
    answers = [
        text
        for i in range(5)
        for text in (
            f"These are wires, batch {i}.",
            f"About {i}5 ± {i} µm across, 10⁻{i} Pa.",
        )
    ]
    inputs = processor(images=pictures, text=[questions] * 5, answers=answers)
    model = make_model(hidden_size=64, initializer_range=0.02).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    model.eval()
    got = [answer for row in model.answer(pictures, questions) for answer in row]
    assert got == answers
    assert [a for row in model.answer(pictures, questions, num_beams=2) for a in row] == answers


# ---- configuration and errors ----------------------------------------------------------------


def test_presets_have_the_designed_shapes():
    paper, small, lite, base = (MVaEMaConfig.from_preset(name) for name in PRESETS)
    assert (paper.hidden_size, paper.head_dim, paper.num_patches) == (64, 16, 49)
    assert (small.hidden_size, small.head_dim, small.num_patches) == (384, 32, 196)
    assert (small.num_image_layers, small.num_text_layers) == (12, 6)
    assert (lite.vision_config.model_type, lite.vision_config.hidden_act) == (
        "efficientnet",
        "relu6",
    )
    assert (base.hidden_size, base.head_dim, base.num_text_layers) == (768, 64, 12)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 65}, ["hidden_size", "num_attention_heads"]),
        ({"patch_size": 30}, ["image_size", "patch_size"]),
        ({"num_text_layers": 0}, ["num_text_layers"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob"]),
        ({"itc_weight": -1.0}, ["itc_weight"]),
        ({"itc_weight": 0, "itm_weight": 0, "lm_weight": 0}, ["itc_weight", "lm_weight"]),
        ({"enc_token_id": 3}, ["enc_token_id", "dec_token_id"]),
        ({"vocab_size": 3}, ["vocab_size"]),
        ({"hidden_size": "64"}, ["hidden_size", "int"]),
    ],
)
def test_contradictions_are_refused_by_name(fields, named):
    with pytest.raises(StrictDataclassError) as error:
        MVaEMaConfig(**fields)
    assert all(name in str(error.value) for name in named)


def test_unknown_preset():
    with pytest.raises(ValueError, match="paper, small, lite, base"):
        MVaEMaConfig.from_preset("large")


def test_inputs_that_do_not_fit_are_refused(model, batch, images):
    with pytest.raises(ValueError, match=r"7 texts .* 4 images"):
        model.encode_prompt(batch["pixel_values"], batch["input_ids"][:7])
    with pytest.raises(ValueError, match=r"3 statements .* 2 images"):
        model(pixel_values=batch["pixel_values"][:2], statement_ids=batch["statement_ids"][:3])
    with pytest.raises(ValueError, match="pixel_values are missing"):
        model.generate(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="pixel_values must be"):
        model.image_encoder(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="patch_size"):
        model.image_encoder(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model.get_text_features(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="itc, itm, lm"):
        model.classify(images[0], by="vote")
    with pytest.raises(ValueError, match="categories is empty"):
        model.classify(images[0], {})


# ---- one stack, three modes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("mlp.fc1.weight", {"text_embeds", "itm_loss", "logits"}),
        ("cross_attn.q_proj.weight", {"itm_loss", "logits"}),
        ("self_attn.q_proj.weight", {"text_embeds", "itm_loss", "logits"}),
        ("causal_attn.q_proj.weight", {"logits"}),
    ],
)
def test_what_one_mode_learns_the_others_have(make_model, batch, part, changed):
    """A layer's weights serve every mode that the part belongs to, and no other."""
    model = make_model()
    before = model(**batch)
    with torch.no_grad():
        model.get_parameter(f"text_stack.layers.0.{part}").add_(0.1)
    after = model(**batch)
    for name in ("image_embeds", "text_embeds", "logits"):
        assert torch.equal(before[name], after[name]) == (name not in changed)
    if changed == {"logits"}:
        close(before.itm_loss, after.itm_loss, atol=1e-7)
    else:
        assert not torch.equal(before.itm_loss, after.itm_loss)
