"""The model against naive formulas and against itself by other routes."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from configuration_mvaema import PRESETS, MVaEMaConfig
from modeling_mvaema import MVaEMaModel, mine_negatives, pair_noise


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-5)


# ---- losses --------------------------------------------------------------------------------


def naive_itc(images, texts, temperature):
    """The paper's formula, pair by pair."""
    count = len(images)
    total = 0.0
    for i in range(count):
        image_row = [math.exp(float(images[i] @ texts[j]) / temperature) for j in range(count)]
        text_row = [math.exp(float(images[j] @ texts[i]) / temperature) for j in range(count)]
        total -= 0.5 * (math.log(image_row[i] / sum(image_row)))
        total -= 0.5 * (math.log(text_row[i] / sum(text_row)))
    return total / count


def test_itc_is_the_papers_formula_when_all_texts_differ(model, batch):
    output = model(**batch)
    embeds = output.image_embeds.detach(), output.text_embeds.detach()
    expected = naive_itc(*embeds, model.temperature.item())
    assert output.itc_loss.item() == pytest.approx(expected, abs=1e-5)


def test_itc_takes_equal_texts_and_equal_images_as_positives(model, processor, batch):
    """Texts 0 and 2 are equal, images 1 and 3 are declared the same."""
    statements = processor(statements=["a film", "wires", "a film", "something longer by far"])
    output = model(
        pixel_values=batch["pixel_values"], image_ids=torch.tensor([7, 8, 9, 8]), **statements
    )
    positives = [{0, 2}, {1, 3}, {0, 2}, {1, 3}]
    similarity = (output.image_embeds @ output.text_embeds.T / model.temperature).detach().numpy()
    total = 0.0
    for matrix in (similarity, similarity.T):
        for i, row in enumerate(matrix.astype(float)):
            log_p = row - np.log(np.exp(row).sum())
            total -= np.mean([log_p[j] for j in positives[i]]) / 2
    assert output.itc_loss.item() == pytest.approx(total / 4, abs=1e-5)


def test_several_statements_about_one_image_are_no_negatives(model, processor, batch):
    """Two statements per image equal the same four pairs, written out with repeated images."""
    statements = processor(statements=["wires", "a film", "a tip", "pores"])
    pixels = batch["pixel_values"][:2]
    short = model(pixel_values=pixels, **statements)
    long = model(
        pixel_values=pixels.repeat_interleave(2, 0),
        image_ids=torch.tensor([0, 0, 1, 1]),
        **statements,
    )
    close(short.itc_loss, long.itc_loss)
    close(short.itm_loss, long.itm_loss)


def test_a_text_that_equals_any_text_of_an_image_is_no_negative_of_it(model, processor, batch):
    """Images 0 and 1 share a caption; each has an answer of its own. Image 2 shares nothing."""
    texts = ["wires", "long ones", "wires", "short ones", "a film", "a cracked one"]
    output = model(pixel_values=batch["pixel_values"][:3], **processor(statements=texts))
    positives = {0: {0, 1, 2}, 1: {0, 2, 3}, 2: {4, 5}}
    images = output.image_embeds.repeat_interleave(2, dim=0)
    similarity = (images @ output.text_embeds.T / model.temperature).detach().numpy().astype(float)
    total = 0.0
    for i in range(6):
        log_p = similarity[i] - np.log(np.exp(similarity[i]).sum())
        total -= np.mean([log_p[j] for j in positives[i // 2]]) / 2
        of_text = [j for j in range(6) if i in positives[j // 2]]
        log_p = similarity[:, i] - np.log(np.exp(similarity[:, i]).sum())
        total -= np.mean([log_p[j] for j in of_text]) / 2
    assert output.itc_loss.item() == pytest.approx(total / 6, abs=1e-5)


def test_itm_is_binary_cross_entropy_with_the_hardest_negatives_but_for_noise(
    model, batch, monkeypatch
):
    monkeypatch.setattr("modeling_mvaema.pair_noise", lambda a, b: torch.zeros(len(a), len(b)))
    output = model(**batch)
    states = model.image_encoder(batch["pixel_values"])
    ids, mask = batch["statement_ids"], batch["statement_mask"]
    similarity = (output.image_embeds @ output.text_embeds.T).detach()

    def p(image, text):
        logit = model.match(states[image][None], ids[text][None], mask[text][None])
        return 1 / (1 + math.exp(-float(logit)))

    terms = []
    for i in range(4):
        others = [j for j in range(4) if j != i]
        terms.append(-math.log(p(i, i)))
        terms.append(-math.log(1 - p(i, max(others, key=lambda j: similarity[i, j]))))
        terms.append(-math.log(1 - p(max(others, key=lambda j: similarity[j, i]), i)))
    assert output.itm_loss.item() == pytest.approx(sum(terms) / 12, abs=1e-5)


def test_negatives_are_drawn_by_similarity_and_never_positives():
    """Over many pairs of keys the draws follow the softmax of the similarities."""
    similarity = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(20_000, 4)
    positives = torch.tensor([False, False, False, True]).expand(20_000, 4)
    noise = pair_noise(torch.arange(20_000), torch.tensor([3, 1, 4, 159]))
    index, found = mine_negatives(similarity, positives, noise)
    assert found.all()
    shares = torch.bincount(index, minlength=4) / len(index)
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    close(shares, torch.cat([expected, torch.zeros(1)]), atol=0.01)
    assert torch.equal(noise, pair_noise(torch.arange(20_000), torch.tensor([3, 1, 4, 159])))
    # Neither neighbouring rows nor neighbouring columns are alike.
    assert np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1] == pytest.approx(0, abs=0.03)
    assert np.corrcoef(noise[:, 0], noise[:, 1])[0, 1] == pytest.approx(0, abs=0.03)


def test_itm_without_any_negative_counts_the_matching_pairs_only(model, processor, images):
    output = model(**processor(images=images[0], statements="a film"))
    states = model.image_encoder(processor(images=images[0])["pixel_values"])
    text = processor(statements="a film")
    logit = model.match(states, text["statement_ids"], text["statement_mask"])
    close(output.itm_loss, -torch.nn.functional.logsigmoid(logit)[0])
    close(output.itc_loss, torch.tensor(0.0))


def test_lm_loss_is_the_negative_log_likelihood_of_the_answers(model, batch):
    """Word by word, each from a decoder call that has seen only its predecessors."""
    output = model(**batch)
    memory = output.encoder_last_hidden_state
    losses = []
    for row, labels in enumerate(batch["labels"]):
        words = [int(w) for w in labels if w != -100]
        assert words[-1] == model.config.eos_token_id
        for i, word in enumerate(words):
            prefix = torch.tensor([[model.config.dec_token_id, *words[:i]]])
            logits = model.decode(
                prefix, memory[row : row + 1], batch["attention_mask"][row : row + 1]
            )
            losses.append(-float(logits[0, -1].log_softmax(-1)[word]))
    assert output.lm_loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_loss_is_the_weighted_sum(make_model, batch):
    output = make_model(itc_weight=0.5, itm_weight=2.0, lm_weight=3.0)(**batch)
    close(output.loss, 0.5 * output.itc_loss + 2.0 * output.itm_loss + 3.0 * output.lm_loss)


@pytest.mark.parametrize("name", ["itc", "itm", "lm"])
def test_a_loss_of_weight_zero_is_off(make_model, batch, name):
    output = make_model(**{f"{name}_weight": 0})(**batch)
    assert getattr(output, f"{name}_loss") is None
    others = [output[f"{n}_loss"] for n in ("itc", "itm", "lm") if n != name]
    close(output.loss, sum(others))


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


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}]
)
def test_cached_generation_equals_uncached(model, batch, options):
    inputs = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    options |= {"max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(**inputs, **options, use_cache=True)
    plain = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    close(torch.stack(cached.logits), torch.stack(plain.logits))
    # The words depend on the question: otherwise the equality says little.
    assert len({tuple(row) for row in cached.sequences.tolist()}) > 4


def test_cross_attention_reads_the_memory_once(model, batch, monkeypatch):
    """Keys and values: of an image once for all questions, of a question at the first word only."""
    projection = model.text_stack.layers[0].cross_attn.k_proj
    calls = []
    monkeypatch.setattr(
        projection,
        "forward",
        lambda x, f=projection.forward: calls.append(tuple(x.shape[:2])) or f(x),
    )
    inputs = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert calls == [(4, 17), tuple(batch["input_ids"].shape)]


def test_static_cache_generates_the_same(model, batch):
    inputs = {k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}
    dynamic = model.generate(**inputs, max_new_tokens=8)
    static = model.generate(
        **inputs, max_new_tokens=8, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(dynamic, static)


def test_a_padded_question_gets_the_answer_it_gets_alone(model, processor, images):
    questions = ["What?", "How large are the structures, how are they distributed in space?"]
    both = processor(images=images[0], text=[questions])
    assert both["attention_mask"][0].sum() < both["attention_mask"].shape[1]
    together = model.answer(images[0], questions, max_new_tokens=10)
    alone = [model.answer(images[0], question, max_new_tokens=10) for question in questions]
    assert together == alone
    labels = processor(answers=["a film", "a film"])["labels"]
    logits = model(labels=labels, **both).logits
    for i, question in enumerate(questions):
        one = model(labels=labels[:1], **processor(images=images[0], text=question)).logits
        close(logits[i], one[0])


def test_a_padded_statement_embeds_as_it_does_alone(model, processor):
    texts = ["a film", "a much longer statement about pores and wires"]
    together = processor(statements=texts)
    features = model.get_text_features(together["statement_ids"], together["statement_mask"])
    for i, text in enumerate(texts):
        alone = processor(statements=text)
        close(features[i], model.get_text_features(*alone.values())[0])


def test_eager_equals_sdpa(make_model, batch):
    outputs = [make_model(attn_implementation=a)(**batch) for a in ("eager", "sdpa")]
    for name in ("itc_loss", "itm_loss", "lm_loss", "logits", "image_embeds", "text_embeds"):
        close(outputs[0][name], outputs[1][name])


def test_gradient_checkpointing_gives_the_same_gradients(make_model, batch):
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name])


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
    image_states = memory[:, :-length]
    assert image_states.shape[1] == 1 + 16 + 1
    assert (image_states[0] - image_states[1]).abs().max() > 1e-3  # one image, two questions
    model(**batch).loss.backward()
    assert model.image_encoder.instruction_proj.weight.grad.abs().sum() > 0


# ---- ablations -------------------------------------------------------------------------------


def test_without_self_attention_the_words_do_not_mix(make_model, processor):
    model = make_model(use_self_attention=False)
    text = processor(statements=["wires of gold", "wires of iron"])
    states = model.text_stack(text["statement_ids"])
    changed = text["statement_ids"][0] != text["statement_ids"][1]
    assert changed.any() and not changed[1]
    close(states[0, 1], states[1, 1])
    features = model.get_text_features(**{"input_ids": text["statement_ids"]})
    assert (features[0] - features[1]).abs().max() > 1e-3  # the mean still sees the text


def test_without_cross_attention_matching_is_blind(make_model, batch):
    model = make_model(use_cross_attention=False)
    states = model.image_encoder(batch["pixel_values"])
    ids = batch["statement_ids"]
    close(model.match(states, ids), model.match(states.flip(0), ids))
    assert not any("cross_attn" in name for name, _ in model.named_parameters())


# ---- learning --------------------------------------------------------------------------------


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
    paper, small, base = (MVaEMaConfig.from_preset(name) for name in PRESETS)
    assert (paper.hidden_size, paper.head_dim, paper.num_patches) == (64, 16, 49)
    assert (small.hidden_size, small.head_dim, small.num_patches) == (384, 32, 196)
    assert (small.num_image_layers, small.num_text_layers) == (12, 6)
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
    with pytest.raises(ValueError, match="paper, small, base"):
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


# ---- for people ------------------------------------------------------------------------------


def test_answer_has_the_shape_of_the_question(model, images):
    limit = {"max_new_tokens": 4}
    assert isinstance(model.answer(images[0], "What?", **limit), str)
    assert len(model.answer(images[0], ["What?", "Why?"], **limit)) == 2
    assert list(model.answer(images[0], **limit)) == list(model.config.questions)
    rows = model.answer(images, ["What?", "Why?"], batch_size=3, **limit)
    assert [len(row) for row in rows] == [2] * 4
    assert rows[3] == model.answer(images[3], ["What?", "Why?"], **limit)


def test_answer_encodes_an_image_once_for_all_questions(model, images, monkeypatch):
    seen = []
    forward = model.image_encoder.forward
    monkeypatch.setattr(
        model.image_encoder, "forward", lambda x, *a: seen.append(len(x)) or forward(x, *a)
    )
    model.answer(images[0], max_new_tokens=2)
    assert seen == [1]


def test_what_is_known_of_each_image_reaches_its_prompts(model, processor, images, monkeypatch):
    prompts = []

    def generate(input_ids, **kwargs):
        prompts.extend(processor.batch_decode(input_ids, skip_special_tokens=True))
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    model.answer(
        images[:3],
        ["What?", "Why?"],
        captions=["Wires.", None, None],
        pixel_size_nm=[None, 2.5, None],
        scale_bars=["1 µm", "1 µm", None],
        batch_size=2,
    )
    assert prompts == [
        "Wires. The scale bar marks 1 µm. What?",
        "Wires. The scale bar marks 1 µm. Why?",
        "The field of view is 160 nm wide. What?",
        "The field of view is 160 nm wide. Why?",
        "What?",
        "Why?",
    ]


def test_classify_ranks_by_each_of_the_three_scores(model, processor, images):
    """Against the definitions, computed one caption at a time."""
    captions = model.config.categories
    pixels = processor(images=images[1])
    states = model.image_encoder(pixels["pixel_values"])
    question = processor(text=model.config.category_question)
    expected = {"itc": {}, "itm": {}, "lm": {}}
    for name, caption in captions.items():
        text = processor(statements=caption)
        ids, mask = text["statement_ids"], text["statement_mask"]
        image = model.get_image_features(pixels["pixel_values"])[0]
        expected["itc"][name] = math.exp(
            (image @ model.get_text_features(ids, mask)[0] / model.temperature).item()
        )
        expected["itm"][name] = float(model.match(states, ids, mask).sigmoid())
        labels = processor(answers=caption)["labels"]
        loss = model(**pixels, **question, labels=labels).lm_loss
        expected["lm"][name] = math.exp(-float(loss) * labels.shape[1])
    for by in ("itc", "lm"):
        total = sum(expected[by].values())
        expected[by] = {name: value / total for name, value in expected[by].items()}
    for by, scores in expected.items():
        ranked = model.classify(images, by=by, batch_size=2)[1]
        assert list(ranked) == sorted(scores, key=scores.get, reverse=True)
        assert ranked == pytest.approx(scores, rel=1e-3)
        assert model.classify(images[1], by=by) == pytest.approx(ranked, rel=1e-3)


def test_a_model_from_nowhere_asks_for_its_processor(make_model, images):
    model = make_model()
    model.processor = None
    with pytest.raises(ValueError, match=r"model\.processor = processor"):
        model.answer(images[0], "What?")


def test_modes_share_modules(model):
    """One `mlp` and one `cross_attn` per layer, the same objects in every mode."""
    layer = model.text_stack.layers[0]
    assert len([m for m in layer.children() if type(m).__name__ == "MVaEMaMLP"]) == 1
    names = {name for name, _ in layer.named_children() if name.endswith("_attn")}
    assert names == {"self_attn", "causal_attn", "cross_attn"}
    assert model.lm_head.weight is model.text_stack.word_embeddings.weight
    assert isinstance(model, MVaEMaModel)
