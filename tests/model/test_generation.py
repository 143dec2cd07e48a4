"""`generate`, `answer` and `classify`: what is cached, what is shared, what people get."""

import math

import pytest
import torch


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-5)


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
        model.image_encoder,
        "forward",
        lambda x, *a, **k: seen.append(len(x)) or forward(x, *a, **k),
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
        image = model.get_image_features(pixels["pixel_values"]).pooler_output[0]
        expected["itc"][name] = math.exp(
            (image @ model.get_text_features(ids, mask).pooler_output[0] / model.temperature).item()
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
