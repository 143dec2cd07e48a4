"""The model equals its naive specification (`tests/support/reference_model.py`).

What is packed, cached, shared between questions or left out to save time changes no output, no
loss and no gradient.
"""

import pytest
import torch
from support import reference_model as naive
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from generation_mvaema import MVaEMaMemory
from losses_mvaema import Pairs, itm_negatives

WORDS = "wires films tips pores of about 5 nm in a rather dense and cracked network".split()
VARIANTS = [
    {},
    {"instruction_aware": True},
    {"use_self_attention": False},
    {"use_cross_attention": False},
    {"use_causal_mask": False},
]
INPUTS = ("pixel_values", "input_ids", "attention_mask")


def text(length: int, seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i) % len(WORDS)] for i in range(length))


@pytest.fixture
def ragged(processor):
    """Micrographs with `questions` prompts and one statement each, of all lengths."""

    def make(questions: int, count: int = 32) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        rows = count * questions
        inputs = processor(
            text=[text(1 + i * 5 % 15, i) for i in range(rows)],
            answers=[text(1 + i * 3 % 13, i + 1) for i in range(rows)],
            statements=[f"{i % (count - 1)} {text(1 + i * 11 % 15, i)}" for i in range(count)],
        )
        return {"pixel_values": torch.rand(count, 3, 32, 32) * 2 - 1, **inputs}

    return make


def words(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def reference_losses(model, batch) -> tuple[torch.Tensor, ...]:
    """ITC, ITM and LM, the negatives drawn from the model's own similarities."""
    statements = words(batch["statement_ids"], batch["statement_mask"])
    with torch.no_grad():
        images = model.get_image_features(batch["pixel_values"]).pooler_output
        texts = model.get_text_features(
            batch["statement_ids"], batch["statement_mask"]
        ).pooler_output
        similarity = images @ texts.T / model.temperature
    pairs = Pairs.gather(
        batch["statement_ids"], torch.arange(len(images)), torch.arange(len(images)), 0
    )
    wrong_texts, wrong_images, _ = itm_negatives(similarity, similarity.T, pairs, 0)
    negatives = wrong_texts.tolist(), wrong_images.tolist()
    pixels, prompts = batch["pixel_values"], words(batch["input_ids"], batch["attention_mask"])
    repeated = pixels.repeat_interleave(len(prompts) // len(pixels), dim=0)
    return (
        *naive.pair_losses(model, pixels, statements, negatives),
        naive.lm_loss(model, repeated, prompts, words(batch["labels"], batch["labels"] != -100)),
    )


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overrides", VARIANTS)
def test_losses_and_gradients_are_those_of_the_reference(make_model, ragged, overrides):
    model, batch = make_model(**overrides).train(), ragged(2, count=8)
    output = model(**batch)
    ours = gradients(model, output.loss)
    expected = reference_losses(model, batch)
    for loss, of_reference in zip(
        (output.itc_loss, output.itm_loss, output.lm_loss), expected, strict=True
    ):
        torch.testing.assert_close(loss, of_reference, atol=1e-5, rtol=1e-5)
    theirs = gradients(model, sum(expected))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # Relative to the largest: of the keys' biases it is 0 but for rounding.
        scale = max(gradient.abs().max(), 1e-2)
        torch.testing.assert_close(
            ours[name] / scale,
            gradient / scale,
            atol=1e-4,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("overrides", VARIANTS)
def test_logits_are_those_of_the_reference(make_model, ragged, overrides):
    model, batch = make_model(**overrides), ragged(3, count=4)
    with torch.no_grad():
        logits = model(**batch).logits
        prompts = words(batch["input_ids"], batch["attention_mask"])
        for row, answer in enumerate(words(batch["labels"], batch["labels"] != -100)):
            image = batch["pixel_values"][row // 3]
            expected = naive.answer_logits(model, image, prompts[row], answer)
            torch.testing.assert_close(logits[row, : len(answer)], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("overrides", VARIANTS[:2])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}],
)
def test_greedy_answers_are_those_of_the_reference(make_model, ragged, overrides, options):
    """Cached or not, each word is the most likely one after those before it."""
    model, batch = make_model(**overrides), ragged(2, count=6)
    answers = model.generate(
        **{name: batch[name] for name in INPUTS}, max_new_tokens=8, min_new_tokens=8, **options
    )
    prompts = words(batch["input_ids"], batch["attention_mask"])
    end = model.config.eos_token_id
    with torch.no_grad():
        for row, answer in enumerate(answers[:, 1:].tolist()):
            image = batch["pixel_values"][row // 2]
            logits = naive.answer_logits(model, image, prompts[row], answer)
            logits[:, end] = -torch.inf  # min_new_tokens
            assert logits.argmax(dim=1).tolist() == answer
    assert len({tuple(row) for row in answers.tolist()}) > 6


@pytest.mark.parametrize("questions", [1, 3])
def test_packed_training_equals_one_text_at_a_time(make_model, ragged, questions):
    """Many texts in several groups of like length; the reference would take too long here."""
    batch, model = ragged(questions), make_model(itc_weight=0, itm_weight=0).train()
    _, texts = model.text_stack(batch["input_ids"], batch["attention_mask"])
    assert 1 < len(texts.groups) < len(batch["input_ids"])
    losses = []
    for row, labels in enumerate(batch["labels"]):
        length, kept = int(batch["attention_mask"][row].sum()), labels[labels != -100]
        alone = model(
            pixel_values=batch["pixel_values"][row // questions][None],
            input_ids=batch["input_ids"][row, :length][None],
            labels=kept[None],
        )
        losses.append(alone.lm_loss * len(kept))
    expected = sum(losses) / (batch["labels"] != -100).sum()
    torch.testing.assert_close(model(**batch).lm_loss, expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(make_model, ragged):
    batch, model = ragged(3), make_model().train()
    plain = gradients(model, model(**batch).loss)
    model.activation_checkpointing_enable()
    for name, gradient in gradients(model, model(**batch).loss).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4)


def test_labels_may_be_missing_anywhere(make_model, ragged):
    """Also before a word that has one, and from a whole answer."""
    batch, model = ragged(1), make_model(itc_weight=0, itm_weight=0)
    expected = -model(**batch).logits.log_softmax(-1)
    batch["labels"][:, :2] = -100
    batch["labels"][5] = -100
    # What was there is still what the decoder is shown.
    kept = batch["labels"] != -100
    shown = model(
        **{name: batch[name] for name in INPUTS},
        decoder_input_ids=torch.cat(
            [torch.full((32, 1), 3), batch["labels"][:, :-1].clamp(min=0)], dim=1
        ),
    ).logits
    expected = -shown.log_softmax(-1)[kept].gather(1, batch["labels"][kept][:, None]).mean()
    torch.testing.assert_close(model(**batch).lm_loss, expected)


def test_padding_on_the_left_is_padding_too(make_model, ragged):
    """Whatever side it is on, packing cuts no word off."""
    model, batch = make_model(), ragged(1)
    ids, mask = batch["statement_ids"], batch["statement_mask"].flip(1)
    states, texts = model.text_stack(ids, mask)
    states = texts.unpack(states)
    for row in (0, 7, 20):
        alone, _ = model.text_stack(ids[row : row + 1], mask[row : row + 1])
        kept = mask[row].bool()
        torch.testing.assert_close(states[row][kept], alone[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("overrides", VARIANTS[:2])
def test_the_memory_may_be_one_tensor(make_model, ragged, options, overrides):
    """As a user of `encoder_outputs` has it: then each row has the whole of [V ; M] to itself."""
    model, batch = make_model(**overrides), ragged(2)
    inputs = {name: batch[name] for name in INPUTS}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, **options}
    memory = model.encode_prompt(*inputs.values())
    plain = model.generate(
        encoder_outputs=MVaEMaMemory(memory.last_hidden_state),
        attention_mask=inputs["attention_mask"],
        **options,
    )
    assert torch.equal(model.generate(**inputs, **options), plain)
    assert len({tuple(row) for row in plain.tolist()}) > 16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_several_words_at_a_time_continue_a_cache(make_model, ragged, attention):
    """A loop of one's own: the later calls get the memory as the first one returned it."""
    model, batch = make_model(attn_implementation=attention), ragged(3)
    ids = torch.randint(5, 400, (96, 7))
    inputs = {name: batch[name] for name in INPUTS}
    expected = model(decoder_input_ids=ids, **inputs).logits
    output = model(decoder_input_ids=ids[:, :2], use_cache=True, **inputs)
    cached = output.cache.cross_attention_cache.layers[0].keys
    assert cached.shape == (96, 4, inputs["input_ids"].shape[1], 8)  # no copies of the image
    parts = [output.logits]
    for part in ids[:, 2:].split(3, dim=1):
        rest = model(
            decoder_input_ids=part,
            encoder_outputs=MVaEMaMemory(output.encoder_last_hidden_state),
            attention_mask=inputs["attention_mask"],
            cache=output.cache,
        )
        parts.append(rest.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_a_given_cache_is_filled(make_model, ragged):
    model, batch = make_model(), ragged(2)
    inputs = {name: batch[name] for name in INPUTS}
    whole = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
    rest = model.generate(
        **inputs, decoder_input_ids=whole[:, :4], max_new_tokens=5, min_new_tokens=5
    )
    assert torch.equal(rest, whole)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    filled = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, cache=cache)
    assert torch.equal(filled, whole)
    assert cache.get_seq_length() == 8


def test_a_cache_of_another_memory_is_refused(make_model, ragged):
    """A plain cache has no images, so what is missing cannot be told from it."""
    model, batch = make_model(), ragged(1, count=4)
    memory = model.encode_prompt(*(batch[name] for name in INPUTS))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    start = torch.full((4, 1), model.config.dec_token_id)
    model.decode(start, memory, batch["attention_mask"], cache)
    with pytest.raises(ValueError, match="encoder_outputs that the cache was filled from"):
        model.decode(start, MVaEMaMemory(memory[0]), batch["attention_mask"], cache)
