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


@pytest.mark.parametrize("strict", [True, False])
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
    for states, tokens in ((output.encoder_hidden_states, length), (output.decoder_hidden_states, words)):
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


def test_cross_attention_is_softmax_of_query_and_key(eager, batch):
    """The first layer's, computed by hand."""
    output = eager(**batch, output_attentions=True, output_hidden_states=True)
    layer = eager.text_stack.layers[0]
    attended = layer._attend_to_text if False else None
    assert attended is None
