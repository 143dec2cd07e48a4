"""What is skipped or shared to save time changes no loss, no gradient and no answer.

The plain path: each image repeated for each of its questions, each text padded to the longest,
every logit computed. The fast one: an image's keys and values once, texts in groups of like
length, logits where there is a label, a word's attention to its image for all rows of the image.
"""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

import modeling_mvaema

WORDS = "wires films tips pores of about 5 nm in a rather dense and cracked network".split()


def text(length: int, seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i) % len(WORDS)] for i in range(length))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(modeling_mvaema, "GROUP_PADDING", 2**7)


@pytest.fixture
def ragged(processor):
    """32 micrographs with `questions` prompts and one statement each, of all lengths."""

    def make(questions: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        rows = 32 * questions
        inputs = processor(
            text=[text(1 + i * 5 % 15, i) for i in range(rows)],
            answers=[text(1 + i * 3 % 13, i + 1) for i in range(rows)],
            statements=[f"{i} {text(1 + i * 11 % 15, i)}" for i in range(32)],
        )
        return {"pixel_values": torch.rand(32, 3, 32, 32) * 2 - 1, **inputs}

    return make


def take_the_plain_path(monkeypatch):
    def whole(mask, hidden_size):
        return None, [modeling_mvaema.TextGroup(*mask.shape)]

    monkeypatch.setattr(modeling_mvaema, "_length_groups", whole)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("questions", "checkpointing"), [(1, False), (3, False), (3, True)])
def test_training_equals_the_plain_path(make_model, ragged, monkeypatch, questions, checkpointing):
    batch = ragged(questions)
    model = make_model().train()
    for mask in (batch["attention_mask"], batch["labels"] != -100, batch["statement_mask"]):
        _, groups = modeling_mvaema._length_groups(mask, 32)
        assert groups[0].length == mask.shape[1] and 2 < len(groups) < len(mask)
    if checkpointing:
        model.activation_checkpointing_enable()
    output = model(**batch)
    assert output.logits is None
    fast = gradients(model, output.loss)

    take_the_plain_path(monkeypatch)
    model.activation_checkpointing_disable()
    model.eval()
    pairs = {name: batch[name] for name in ("pixel_values", "statement_ids", "statement_mask")}
    answers = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    repeated = batch["pixel_values"].repeat_interleave(questions, dim=0)
    compared, answered = model(**pairs), model(pixel_values=repeated, **answers)
    everywhere = torch.nn.functional.cross_entropy(
        answered.logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100
    )
    lm_loss = everywhere.sum() / (batch["labels"] != -100).sum()
    plain = gradients(model, compared.itc_loss + compared.itm_loss + lm_loss)
    torch.testing.assert_close(output.itc_loss, compared.itc_loss)
    torch.testing.assert_close(output.itm_loss, compared.itm_loss)
    torch.testing.assert_close(output.lm_loss, lm_loss)
    for name, gradient in plain.items():
        scale = max(gradient.abs().max(), 1e-3)  # of biases of keys it is 0 but for rounding
        torch.testing.assert_close(fast[name] / scale, gradient / scale, atol=1e-4, rtol=0)


def test_labels_may_be_missing_anywhere(make_model, ragged):
    """Also before a word that has one, and from a whole answer."""
    batch = ragged(1)
    batch["labels"][:, :2] = -100
    batch["labels"][5] = -100
    model = make_model(itc_weight=0, itm_weight=0)
    expected = model(**batch).lm_loss
    torch.testing.assert_close(model.train()(**batch).lm_loss, expected)


@pytest.mark.parametrize("overrides", [{}, {"instruction_aware": True}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static", "disable_compile": True},
    ],
)
def test_answers_equal_the_plain_path(make_model, ragged, monkeypatch, options, overrides):
    """Greedy and with beams; the memory given as one tensor [V ; M], as a user may."""
    model = make_model(**overrides)
    batch = ragged(2)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, **options}
    fast = model.generate(**inputs, **options)
    take_the_plain_path(monkeypatch)
    memory = model.encode_prompt(
        inputs["pixel_values"].repeat_interleave(2, 0),
        *[inputs[name] for name in ("input_ids", "attention_mask")],
    )
    plain = model.generate(
        encoder_outputs=BaseModelOutput(memory),
        attention_mask=inputs["attention_mask"],
        **options,
    )
    assert torch.equal(fast, plain)
    assert len({tuple(row) for row in fast.tolist()}) > 16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_several_words_at_a_time_continue_a_cache(make_model, ragged, attention):
    """A loop of one's own: the later calls get the memory as the first one returned it."""
    model = make_model(attn_implementation=attention)
    batch = ragged(3)
    ids = torch.randint(5, 400, (96, 7))
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    expected = model(decoder_input_ids=ids, **inputs).logits
    output = model(decoder_input_ids=ids[:, :2], use_cache=True, **inputs)
    cached = output.cache.cross_attention_cache.layers[0].keys
    assert cached.shape == (96, 4, inputs["input_ids"].shape[1], 8)  # no copies of the image
    parts = [output.logits]
    for words in ids[:, 2:].split(3, dim=1):
        rest = model(
            decoder_input_ids=words,
            encoder_outputs=BaseModelOutput(output.encoder_last_hidden_state),
            attention_mask=inputs["attention_mask"],
            cache=output.cache,
        )
        parts.append(rest.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_padding_on_the_left_is_padding_too(make_model, ragged):
    """Whatever side it is on, groups cut no word off."""
    model = make_model()
    batch = ragged(1)
    ids, mask = batch["statement_ids"], batch["statement_mask"].flip(1)
    grouped = model.text_stack(ids, mask)
    for row in (0, 7, 20):
        alone = model.text_stack(ids[row : row + 1], mask[row : row + 1])
        words = mask[row].bool()
        torch.testing.assert_close(grouped[row][words], alone[0][words], atol=1e-5, rtol=1e-5)
