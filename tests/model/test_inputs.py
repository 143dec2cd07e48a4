"""What `forward` and `generate` take: each argument does what it says, and others are refused."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

PROMPT = ("pixel_values", "input_ids", "attention_mask")
LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6}


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture
def prompt(batch):
    return {name: batch[name] for name in PROMPT}


@pytest.mark.parametrize("name", ["num_items_in_batch", "label", "head_mask", "position_ids"])
def test_an_argument_that_forward_has_not_is_refused_by_name(model, batch, name):
    with pytest.raises(TypeError, match=name):
        model(**batch, **{name: torch.ones(1)})


@pytest.mark.parametrize(
    "kept, named",
    [
        (["input_ids"], "nothing to compute"),
        (["input_ids", "labels"], "pixel_values are missing"),
        (["pixel_values", "labels"], "input_ids are missing"),
    ],
)
def test_what_is_missing_is_named(model, batch, kept, named):
    with pytest.raises(ValueError, match=named):
        model(**{name: batch[name] for name in kept})


def test_what_is_given_twice_is_named(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids and inputs_embeds were given"):
        model(**batch, inputs_embeds=embeds)


def test_a_mask_of_another_width_is_refused(model, batch):
    wide = torch.nn.functional.pad(batch["attention_mask"], (3, 0), value=1)
    with pytest.raises(
        ValueError, match=r"must be \(8, 15\), cached tokens included; got \(8, 18\)"
    ):
        model(**batch | {"attention_mask": wide})


def test_embeddings_do_what_their_words_do(model, batch, prompt):
    look_up = model.get_input_embeddings()
    answers = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    embeds = {"inputs_embeds": look_up(batch["input_ids"])}
    masked = {name: batch[name] for name in ("pixel_values", "attention_mask")}
    output = model(
        **masked, **embeds, decoder_inputs_embeds=look_up(answers), labels=batch["labels"]
    )
    expected = model(**prompt, labels=batch["labels"])
    close(output.logits, expected.logits)
    close(output.loss, expected.loss)
    assert torch.equal(
        model.generate(**masked, **embeds, **LENGTH), model.generate(**prompt, **LENGTH)
    )


@pytest.mark.parametrize("use_causal_mask", [True, False])
def test_words_that_the_decoders_mask_hides_change_nothing(
    make_model, batch, prompt, use_causal_mask
):
    model = make_model(use_causal_mask=use_causal_mask)
    words = batch["labels"].clamp(min=5)
    hidden = torch.arange(words.shape[1]).eq(1)
    outputs = [
        model(
            **prompt,
            decoder_input_ids=words.masked_fill(hidden, word),
            decoder_attention_mask=(~hidden).long().expand_as(words),
        ).logits[:, ~hidden]
        for word in (20, 30)
    ]
    close(*outputs)
    seen = model(**prompt, decoder_input_ids=words.masked_fill(hidden, 20)).logits[:, ~hidden]
    assert (seen - outputs[0]).abs().max() > 1e-3


def test_a_mask_of_ones_for_the_decoder_changes_nothing(model, batch, prompt):
    ones = torch.ones_like(batch["labels"])
    close(
        model(**prompt, labels=batch["labels"], decoder_attention_mask=ones).loss,
        model(**prompt, labels=batch["labels"]).loss,
    )


@pytest.mark.parametrize(
    "cache", [DynamicCache, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())]
)
def test_any_cache_is_taken_and_filled(model, prompt, cache):
    expected, cache = model.generate(**prompt, **LENGTH), cache()
    assert torch.equal(model.generate(**prompt, **LENGTH, cache=cache), expected)
    words = expected[:, :3]
    with pytest.warns(FutureWarning, match="past_key_values"):
        filled = model(**prompt, decoder_input_ids=words, past_key_values=DynamicCache()).cache
    assert filled.get_seq_length() == 3
    step = model(**prompt, decoder_input_ids=expected[:, 3:4], cache=filled)
    close(step.logits[:, -1], model(**prompt, decoder_input_ids=expected[:, :4]).logits[:, -1])


def test_the_callers_length_counts(model, prompt, caplog):
    assert model.generate(**prompt, max_length=5, min_length=5).shape[1] == 5
    assert model.generate(**prompt, max_new_tokens=7, min_new_tokens=7).shape[1] == 8
    assert "seem to have been set" not in caplog.text
    model.generation_config.min_new_tokens = model.generation_config.max_new_tokens
    assert model.generate(**prompt).shape[1] == model.config.max_position_embeddings


def test_any_of_several_tokens_may_end_an_answer(make_model, prompt, tmp_path):
    free = make_model().generate(**prompt, **LENGTH)
    ends = sorted(set(free[:, 2:5].flatten().tolist()))[:2]
    assert len(ends) == 2
    model = make_model(eos_token_id=ends)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == ends
    rows = model.generate(**prompt, max_new_tokens=6).tolist()
    assert {word for row in rows for word in row} >= set(ends)
    for row in rows:
        ended = [i for i, word in enumerate(row) if word in ends]
        assert not ended or set(row[ended[0] + 1 :]) <= {model.config.pad_token_id}


def test_guidance_is_refused_with_the_reason(model, prompt):
    with pytest.raises(ValueError, match="guidance_scale has no use here"):
        model.generate(**prompt, guidance_scale=2.0, max_new_tokens=3)
