"""What is skipped or shared to save time changes no loss, no gradient and no answer.

The plain path: each image repeated for each of its questions, each text padded to the longest,
every state and logit computed. The fast one: an image's keys and values once, texts in groups of
like length, the last layer where its states are read, logits where there is a label, a word's
attention to its image for all rows of the image, greedy search of our own.
"""

import pytest
import torch
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
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


def ends_at_different_words(model, batch) -> int:
    """Make some other word the end of an answer, one that answers reach at different lengths."""
    words = model.generate(**batch, max_new_tokens=12, min_new_tokens=12)[:, 1:]

    def lengths(word):
        return {(row == word).nonzero()[0].item() for row in words if (row == word).any()}

    return max(words.unique().tolist(), key=lambda word: len(lengths(word)))


@pytest.mark.parametrize(
    "options",
    [{}, {"min_new_tokens": 5}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}],
)
@pytest.mark.parametrize("overrides", [{}, {"instruction_aware": True}])
def test_greedy_search_is_that_of_transformers(make_model, ragged, monkeypatch, options, overrides):
    """With answers that end early, and processors of their scores."""
    model = make_model(**overrides)
    batch = ragged(2)
    batch = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    end = ends_at_different_words(model, batch)
    options = {"max_new_tokens": 12, "eos_token_id": end, **options}
    # Asking for scores takes transformers' own loop.
    theirs = model.generate(**batch, **options, return_dict_in_generate=True, output_scores=True)
    monkeypatch.setattr(GenerationMixin, "_sample", None)
    ours = model.generate(**batch, **options)
    assert torch.equal(ours, theirs.sequences)
    padding = (ours == model.config.pad_token_id).sum(dim=1)
    assert len(padding.unique()) > 2 and len(ours.unique(dim=0)) > 16


def test_greedy_search_stops_when_all_have_ended(make_model, ragged):
    model = make_model()
    batch = {name: ragged(1)[name][:1] for name in ("pixel_values", "input_ids", "attention_mask")}
    words = model.generate(**batch, max_new_tokens=9, min_new_tokens=9)[0, 1:].tolist()
    ended = model.generate(**batch, max_new_tokens=9, eos_token_id=words[3])[0, 1:].tolist()
    assert ended == words[: words.index(words[3]) + 1]


def test_greedy_search_goes_on_from_given_words_and_fills_a_given_cache(make_model, ragged):
    """What is left to transformers gives the same answers."""
    model = make_model()
    batch = {name: ragged(2)[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    whole = model.generate(**batch, max_new_tokens=8, min_new_tokens=8)
    rest = model.generate(
        **batch, decoder_input_ids=whole[:, :4], max_new_tokens=5, min_new_tokens=5
    )
    assert torch.equal(rest, whole)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    filled = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, cache=cache)
    assert torch.equal(filled, whole)
    assert cache.get_seq_length() == 8


@pytest.mark.parametrize("questions", [1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_first_token_alone_is_that_of_the_whole(make_model, ragged, attention, questions):
    model = make_model(attn_implementation=attention)
    batch = ragged(questions)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states = model.image_encoder(batch["pixel_values"])
    inputs = {
        "images": model.text_stack.project_images(states),
        "image_index": torch.arange(len(ids)) // questions,
    }
    for given in ({}, inputs):
        for some_mask in (mask, None):
            whole = model.text_stack(ids, some_mask, **given)
            first = model.text_stack(ids, some_mask, first_only=True, **given)
            torch.testing.assert_close(first, whole[:, 0], atol=1e-5, rtol=1e-5)
            weight = model.text_stack.layers[-1].self_attn.k_proj.weight
            (of_whole,), (of_first,) = (
                torch.autograd.grad(x.pow(4).sum(), weight, retain_graph=True)
                for x in (whole[:, 0], first)
            )
            # Relative to the largest: of keys some are 0 but for rounding.
            scale = of_whole.abs().max()
            assert scale > 1e-2
            torch.testing.assert_close(of_first / scale, of_whole / scale, atol=1e-4, rtol=0)


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
