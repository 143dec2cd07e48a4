"""What `forward`, the feature methods and `generate` return: fields, order, attention, states."""

import pytest
import torch

PROMPT = ("pixel_values", "input_ids", "attention_mask")
IMAGE_TOKENS = 17


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture
def eager(make_model):
    model = make_model()
    model.set_attn_implementation("eager")
    return model


def test_fields_come_in_declared_order_the_loss_first(model, batch):
    output = model(**batch)
    declared = list(type(output).__dataclass_fields__)
    assert list(output) == sorted(output, key=declared.index)
    values = model(**batch, return_dict=False)
    assert values[0] == output[0] == output.loss
    assert len(values) == len(output)
    model.config.return_dict = False
    assert model(**batch)[0] == output.loss


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_graph_takes_any_batch_and_keeps_the_order(model, batch, strict):
    inputs = {name: batch[name][:4] for name in PROMPT}
    inputs["decoder_input_ids"] = batch["labels"][:4].clamp(min=0)
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {name: {0: rows} for name in inputs}
    graph = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=strict).module()
    more = {name: torch.cat([value, value.flip(0)[:3]]) for name, value in inputs.items()}
    got, expected = graph(**more), model(**more)
    assert list(got) == list(expected)
    for name in expected:
        close(got[name], expected[name])


def test_attention_and_states_of_the_prompt_and_the_answer(eager, batch):
    wanted = {"output_attentions": True, "output_hidden_states": True}
    output, plain = eager(**batch, **wanted), eager(**batch)
    (rows, length), words = batch["input_ids"].shape, batch["labels"].shape[1]
    for states, tokens in (
        (output.encoder_hidden_states, length),
        (output.decoder_hidden_states, words),
    ):
        assert [tuple(x.shape) for x in states] == [(rows, tokens, 32)] * 3
    # The last states are those that logits and memory are made of.
    close(eager.lm_head(output.decoder_hidden_states[-1]), plain.logits)
    close(output.encoder_hidden_states[-1], plain.encoder_last_hidden_state[:, IMAGE_TOKENS:])
    for weights, shape in (
        (output.encoder_attentions, (rows, 4, length, length)),
        (output.decoder_attentions, (rows, 4, words, words)),
        (output.cross_attentions, (rows, 4, words, IMAGE_TOKENS + length)),
    ):
        assert [tuple(x.shape) for x in weights] == [shape] * 2
        close(weights[0].sum(-1), torch.ones(shape[:-1]))
    # Nothing looks ahead, and nothing looks at padding.
    assert (output.decoder_attentions[0].triu(1) == 0).all()
    padding = (batch["attention_mask"] == 0)[:, None, None]
    assert (output.encoder_attentions[0] * padding == 0).all()
    assert (output.cross_attentions[0][..., IMAGE_TOKENS:] * padding == 0).all()
    close(output.loss, plain.loss)


def test_cross_attention_is_the_softmax_of_queries_and_keys(eager, batch):
    """The last layer's, by hand from what its projections return."""
    attention, seen = eager.text_stack.layers[-1].cross_attn, {"q": [], "k": []}
    attention.q_proj.register_forward_hook(lambda m, args, out: seen["q"].append(out))
    attention.k_proj.register_forward_hook(lambda m, args, out: seen["k"].append(out))
    inputs = {name: batch[name][:4] for name in (*PROMPT, "labels")}  # a question about each image
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    output = eager(**inputs, output_attentions=True)
    keys = torch.cat(seen["k"], dim=1)  # of the image, then of the question
    assert keys.shape[:2] == (4, IMAGE_TOKENS + inputs["input_ids"].shape[1])
    query = seen["q"][-1].view(4, -1, 4, 8).transpose(1, 2)
    scores = query @ keys.view(4, -1, 4, 8).permute(0, 2, 3, 1) / 8**0.5
    close(output.cross_attentions[-1], scores.softmax(-1))


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_returns_what_forward_returns(eager, batch, use_cache):
    inputs = {name: batch[name] for name in PROMPT}
    wanted = {"output_attentions": True, "output_hidden_states": True}
    length = {"max_new_tokens": 4, "min_new_tokens": 4}
    generated = eager.generate(
        **inputs, **wanted, **length, use_cache=use_cache, return_dict_in_generate=True
    )
    whole = eager(**inputs, **wanted, decoder_input_ids=generated.sequences[:, :-1])
    for name in ("encoder_attentions", "encoder_hidden_states"):
        for got, expected in zip(generated[name], whole[name], strict=True):
            close(got, expected)
    for step in range(4):
        for name in ("cross_attentions", "decoder_hidden_states"):
            for got, expected in zip(generated[name][step], whole[name], strict=True):
                dim = 2 if name == "cross_attentions" else 1
                close(got.select(dim, -1), expected.select(dim, step))
        for got, expected in zip(
            generated.decoder_attentions[step], whole.decoder_attentions, strict=True
        ):
            close(got[:, :, -1], expected[:, :, step, : step + 1])


def test_weights_that_an_implementation_lacks_are_refused(model, batch):
    with pytest.raises(ValueError, match=r'set_attn_implementation\("eager"\)'):
        model(**batch, output_attentions=True)
    inputs = {name: batch[name] for name in PROMPT}
    with pytest.raises(ValueError, match="sdpa attention returns no weights"):
        model.generate(**inputs, output_attentions=True, return_dict_in_generate=True)


def test_features_are_what_itc_compares(eager, batch):
    wanted = {"output_attentions": True, "output_hidden_states": True}
    output = eager(**batch)
    images = eager.get_image_features(batch["pixel_values"], **wanted)
    texts = eager.get_text_features(batch["statement_ids"], batch["statement_mask"], **wanted)
    close(images.pooler_output, output.image_embeds)
    close(texts.pooler_output, output.text_embeds)
    similarity = images.pooler_output @ texts.pooler_output.T
    close(output.logits_per_image, similarity / eager.temperature)
    length = batch["statement_ids"].shape[1]
    for features, tokens in ((images, IMAGE_TOKENS), (texts, length)):
        assert features.last_hidden_state.shape == (4, tokens, 32)
        assert [tuple(x.shape) for x in features.hidden_states] == [(4, tokens, 32)] * 3
        assert [tuple(x.shape) for x in features.attentions] == [(4, 4, tokens, tokens)] * 2
    close(images.hidden_states[-1], eager.image_encoder(batch["pixel_values"]))
    assert isinstance(eager.get_image_features(batch["pixel_values"], return_dict=False), tuple)
