"""`generate`, `answer` and `classify`: what is cached, what is shared, what people get."""

import math

import numpy as np
import pytest
import torch
from PIL import Image


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


def test_measurements_stand_behind_answers_about_sizes(model, images):
    limit = {"max_new_tokens": 4}
    measured = ["Measured: 9 pores, median 38 nm.", None]
    plain = model.answer(images[:2], **limit)
    answers = model.answer(images[:2], measurements=measured, **limit)
    for name in model.config.questions:
        beside = f" {measured[0]}" if name in ("basics", "size_distribution") else ""
        assert answers[0][name] == f"{plain[0][name]}{beside}".strip()
        assert answers[1][name] == plain[1][name]
    how = model.answer(images[0], "How large are the pores?", measurements=measured[0], **limit)
    assert how.endswith(measured[0])
    why = model.answer(images[0], "Why?", measurements=measured[0], **limit)
    assert "Measured" not in why
    with pytest.raises(ValueError, match="measurements: expected 2, one per image; got 1"):
        model.answer(images[:2], measurements=measured[:1], **limit)


@pytest.mark.parametrize("decoding", [None, "greedy"])
def test_prompts_of_ones_own_are_answered_like_questions(model, processor, images, decoding):
    questions = ["What is it?", "How large are the structures, roughly?"]
    inputs = processor(images=images, text=[questions] * len(images))
    expected = model.answer(images, questions, decoding=decoding)
    found = model.answer_prompts(inputs, decoding=decoding)
    assert found == [answer for row in expected for answer in row]
    with pytest.raises(ValueError, match="contradicts seed"):
        model.answer_prompts(inputs, decoding="greedy", seed=1)


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
        decoding="greedy",
    )
    assert prompts == [
        "Wires. The scale bar marks 1 µm. What?",
        "Wires. The scale bar marks 1 µm. Why?",
        "The field of view is 160 nm wide. What?",
        "The field of view is 160 nm wide. Why?",
        "What?",
        "Why?",
    ]


def test_classify_ranks_by_each_score(model, processor, images):
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
    product = {name: expected["itc"][name] * expected["itm"][name] for name in captions}
    total = sum(product.values())
    expected["itc+itm"] = {name: value / total for name, value in product.items()}
    for by, scores in expected.items():
        ranked = model.classify(images, by=by, batch_size=2)[1]
        assert list(ranked) == sorted(scores, key=scores.get, reverse=True)
        assert ranked == pytest.approx(scores, rel=1e-3)
        assert model.classify(images[1], by=by) == pytest.approx(ranked, rel=1e-3)


def test_views_are_the_flips_and_turns_of_the_image(model):
    """Against the same classification of images that Pillow has flipped and turned."""
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32), dtype=np.uint8)
    image = Image.fromarray(pixels)
    turned = [image, *(image.transpose(way) for way in Image.Transpose)]
    assert len({view.tobytes() for view in turned}) == 8
    for by in ("itc", "itm", "lm", "itc+itm"):
        logarithms = [
            {name: math.log(score) for name, score in row.items()}
            for row in model.classify(turned, by=by)
        ]
        for views, used in ((1, turned[:1]), (2, turned[:2]), (8, turned)):
            rows = logarithms[: len(used)]
            mean = {n: math.exp(sum(row[n] for row in rows) / len(rows)) for n in rows[0]}
            total = 1 if by == "itm" else sum(mean.values())
            expected = {name: value / total for name, value in mean.items()}
            found = model.classify(image, by=by, views=views)
            assert found == pytest.approx(expected, rel=1e-3)
            assert list(found) == sorted(expected, key=expected.get, reverse=True)
    for wrong in (0, 9, 1.5):
        with pytest.raises(ValueError, match="views must be from 1 to 8"):
            model.classify(image, views=wrong)


def test_support_is_the_matching_heads_probability(model, processor, images):
    said = {"basics": "wires of 5 nm", "surface": "a film", "imaging": " "}
    expected = []
    for image in images[:2]:
        states = model.image_encoder(processor(images=image)["pixel_values"])
        for text in list(said.values())[:2]:
            one = processor(statements=text)
            logit = model.match(states, one["statement_ids"], one["statement_mask"])
            expected.append(1 / (1 + math.exp(-logit.item())))
        expected.append(0.0)  # a blank answer says nothing of the image
    assert len(set(expected)) == 5
    texts, several = list(said.values()), images[:2]
    assert model.support(images[0], texts[0]) == pytest.approx(expected[0], rel=1e-4)
    assert model.support(images[0], texts) == pytest.approx(expected[:3], rel=1e-4)
    assert model.support(images[0], said) == pytest.approx(
        dict(zip(said, expected[:3], strict=True)), rel=1e-4
    )
    for batch_size in (1, 8):
        found = model.support(several, [said, texts[:1]], batch_size=batch_size)
        assert list(found[0].values()) == pytest.approx(expected[:3], rel=1e-4)
        assert found[1] == pytest.approx(expected[3:4], rel=1e-4)
    # What `answer` returns can be passed on as it is.
    for questions in (None, "What?", ["What?", "Why?"]):
        answers = model.answer(several, questions, max_new_tokens=3)
        for image, row, answer in zip(
            several, model.support(several, answers), answers, strict=True
        ):
            assert model.support(image, answer) == pytest.approx(row, rel=1e-4)
    assert model.support(images[0], []) == []
    with pytest.raises(ValueError, match="2 images and answers about 1"):
        model.support(several, [said])


def test_a_model_from_nowhere_asks_for_its_processor(make_model, images):
    model = make_model()
    model.processor = None
    with pytest.raises(ValueError, match=r"model\.processor = processor"):
        model.answer(images[0], "What?")
