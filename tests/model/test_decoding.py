"""`answer(decoding=...)` against naive recomputations: word by word, without a cache, by hand."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT
from support.tiny_student import save_tiny_student
from transformers import AutoModel

from candidates_mvaema import DECODINGS, agreements, draw_numbers
from loop_mvaema import Draw

QUESTIONS = ["What?", "How large are the structures, how are they distributed in space?"]
LENGTH = {"max_new_tokens": 6}
CANDIDATES = {"num_return_sequences": 3, **LENGTH}


@torch.no_grad()
def next_logits(model, inputs, words: list[int]) -> torch.Tensor:
    """Logits (vocabulary,) of the word after `words`, computed from the beginning."""
    start = [model.config.dec_token_id, *words]
    return model(**inputs, decoder_input_ids=torch.tensor([start])).logits[0, -1]


def word_by_word(model, inputs, choose) -> str:
    """An answer, the next word of which is `choose(words so far)`."""
    words = []
    while len(words) < LENGTH["max_new_tokens"] and model.config.eos_token_id not in words:
        words.append(choose(words))
    return model.processor.decode(words, skip_special_tokens=True)


def unpadded(inputs) -> list[np.ndarray]:
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [ids[kept].numpy() for ids, kept in rows]


def drawn_by_hand(model, inputs, number: int, temperature=0.7, top_p=0.95, seed=0) -> str:
    """Draw `number` by its definition; draw 0 is the greedy answer."""
    draws = range(number, number + 1)
    given = (inputs["pixel_values"].numpy(), unpadded(inputs))
    uniform = draw_numbers(*given, seed, draws, model.config.max_position_embeddings)[0].tolist()

    def choose(words):
        logits = next_logits(model, inputs, words)
        if number == 0:
            return int(logits.argmax())
        probabilities = (logits / temperature).softmax(dim=0).tolist()
        ranked = sorted(range(len(probabilities)), key=lambda word: -probabilities[word])
        nucleus, mass = set(), 0.0
        for word in ranked:
            if mass >= top_p:
                break
            nucleus.add(word)
            mass += probabilities[word]
        sought, below = uniform[len(words)] * mass, 0.0
        for word in sorted(nucleus):
            below += probabilities[word]
            if below > sought:
                return word
        return ranked[0]

    return word_by_word(model, inputs, choose)


def agreement_by_hand(text: str, others: list[str]) -> float:
    """Mean F1 of the words and neighbouring pairs of words that two texts share."""

    def parts(said):
        kept = "".join(c if c.isalnum() or c == "_" else " " for c in said.lower()).split()
        return kept + [f"{a} {b}" for a, b in itertools.pairwise(kept)]

    total = 0.0
    for other in others:
        mine, theirs = parts(text), parts(other)
        size, shared = len(mine) + len(theirs), 0
        for part in mine:
            if part in theirs:
                theirs.remove(part)
                shared += 1
        total += 2 * shared / size if size else 0.0
    return total / len(others)


@torch.no_grad()
def fit_by_hand(model, image, text: str) -> float:
    """The matching head's probability of a text."""
    if not text.strip():
        return 0.0
    inputs = model.processor(images=image, statements=text)
    states = model.image_encoder(inputs["pixel_values"])
    return float(model.match(states, inputs["statement_ids"], inputs["statement_mask"]).sigmoid())


@pytest.fixture
def prompts(model, images) -> list:
    """Image, question and the inputs that belong to them."""
    pairs = list(itertools.product(images[:2], QUESTIONS))
    return [(image, q, model.processor(images=image, text=q)) for image, q in pairs]


def answers(model, images, **options) -> list[str]:
    rows = model.answer(images[:2], QUESTIONS, **options)
    return [answer for row in rows for answer in row]


def test_greedy_is_what_generate_gives(model, images):
    inputs = model.processor(images=images[:2], text=[QUESTIONS] * 2)
    ids = model.generate(**inputs, **LENGTH, do_sample=False)
    expected = model.processor.batch_decode(ids, skip_special_tokens=True)
    assert answers(model, images, decoding="greedy", **LENGTH) == expected
    assert answers(model, images, do_sample=False, **LENGTH) == expected
    by_itself = answers(model, images, decoding=model.default_decoding, **LENGTH)
    assert answers(model, images, **LENGTH) == by_itself
    assert len(set(expected)) > 2
    # What the checkpoint tells `generate` about beams and sampling does not change it.
    model.generation_config.update(num_beams=3, do_sample=True)
    assert answers(model, images, decoding="greedy", **LENGTH) == expected


def test_beam_is_beam_search_without_repeated_trigrams(model, images):
    inputs = model.processor(images=images[:2], text=[QUESTIONS] * 2)
    for given in ({}, {"num_beams": 2, "length_penalty": 0.5}):
        options = {"num_beams": 4, "no_repeat_ngram_size": 3, "do_sample": False, **given}
        ids = model.generate(**inputs, max_new_tokens=20, **options)
        expected = model.processor.batch_decode(ids, skip_special_tokens=True)
        assert answers(model, images, decoding="beam", max_new_tokens=20, **given) == expected
        for row in ids.tolist():
            said = [word for word in row if word != model.config.pad_token_id]
            trigrams = list(zip(said, said[1:], said[2:], strict=False))
            assert len(trigrams) == len(set(trigrams))


def test_words_are_drawn_with_their_probabilities():
    scores = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05]).log()
    count = 10_000
    numbers = (torch.arange(count) + 0.5) / count
    left = Draw(numbers.unsqueeze(1))(torch.zeros(count, 1), scores.expand(count, -1))
    words = left.argmax(dim=1)
    assert torch.equal(left.exp().sum(dim=1), torch.ones(count))  # one word is left
    shares = torch.bincount(words, minlength=5) / count
    torch.testing.assert_close(shares, scores.exp(), atol=2e-4, rtol=0)
    # NaN is the most likely word, and the last number finds a word that is possible.
    edge = Draw(torch.tensor([[torch.nan], [1.0]]))(torch.zeros(2, 1), scores.expand(2, -1))
    assert edge.argmax(dim=1).tolist()[0] == 0 and scores[edge.argmax(dim=1)[1]] > -torch.inf


def test_a_sample_is_drawn_from_the_nucleus(model, images, prompts):
    for options in ({}, {"temperature": 1.5, "top_p": 0.6, "seed": 3}):
        expected = [drawn_by_hand(model, inputs, 1, **options) for _, _, inputs in prompts]
        assert answers(model, images, decoding="sample", **options, **LENGTH) == expected
    assert len(set(expected)) == len(expected)


def test_the_best_candidate_is_chosen(model, images, prompts):
    expected = {"consensus": [], "rerank": [], "consensus+itm": []}
    for image, _, inputs in prompts:
        texts = [drawn_by_hand(model, inputs, number) for number in range(4)]
        agreement = [agreement_by_hand(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
        fit = [fit_by_hand(model, image, text) for text in texts]
        both = [a * f for a, f in zip(agreement, fit, strict=True)]
        for name, scores in zip(expected, (agreement, fit, both), strict=True):
            expected[name].append(texts[scores.index(max(scores))])
    found = {name: answers(model, images, decoding=name, **CANDIDATES) for name in expected}
    assert found == expected
    assert found["consensus"] != found["rerank"]


def test_agreement_by_words_and_bigrams():
    texts = [
        "Dark dark dark wires.",
        "The wires are long; the wires cross.",
        "the wires are dark",
        "Long wires",
        "",
        "?",
    ]
    expected = [agreement_by_hand(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
    assert agreements(texts) == pytest.approx(expected)
    assert max(texts, key=dict(zip(texts, expected, strict=True)).get) == "the wires are dark"


@pytest.mark.parametrize("causal", [True, False])
def test_contrast_with_the_blank_image(make_model, images, causal):
    model = make_model(use_causal_mask=causal)
    grey = Image.new("L", (64, 48), 128)
    for scale, min_p in ((2.0, 0.1), (1.5, 0.7)):
        expected = []
        for image, question in itertools.product(images[:2], QUESTIONS):
            seen = model.processor(images=image, text=question)
            blank = model.processor(images=grey, text=question)

            def choose(words, seen=seen, blank=blank, scale=scale, min_p=min_p):
                with_image = next_logits(model, seen, words).softmax(dim=0)
                without = next_logits(model, blank, words).softmax(dim=0)
                score = with_image.log() * scale - without.log() * (scale - 1)
                plausible = with_image >= min_p * with_image.max()
                return max(plausible.nonzero().flatten().tolist(), key=lambda word: score[word])

            expected.append(word_by_word(model, seen, choose))
        options = {"guidance_scale": scale, "min_p": min_p} if scale != 2.0 else {}
        assert answers(model, images, decoding="contrast", **options, **LENGTH) == expected
    greedy = answers(model, images, decoding="greedy", **LENGTH)
    assert answers(model, images, decoding="contrast", **LENGTH) != greedy
    assert answers(model, images, decoding="contrast", guidance_scale=1.0, **LENGTH) == greedy


@pytest.mark.parametrize(
    "decoding, aware",
    [
        ("beam", False),
        *(pytest.param(d, False, marks=pytest.mark.slow) for d in DECODINGS if d != "beam"),
        pytest.param("contrast", True, marks=pytest.mark.slow),
        ("rerank", True),
    ],
)
def test_an_answer_is_the_same_in_any_batch(make_model, images, decoding, aware):
    model = make_model(instruction_aware=aware)
    state = torch.random.get_rng_state()
    found = model.answer(images, QUESTIONS, decoding=decoding, batch_size=64, **LENGTH)
    assert model.answer(images, QUESTIONS, decoding=decoding, batch_size=1, **LENGTH) == found
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    for image, row in zip(images, found, strict=True):
        alone = [model.answer(image, q, decoding=decoding, **LENGTH) for q in QUESTIONS]
        assert alone == row


def test_each_image_prompt_and_seed_has_draws_of_its_own(model, images):
    again = {"decoding": "sample", "temperature": 3.0, "top_p": 1.0, **LENGTH}
    found = [answers(model, images, seed=seed, **again) for seed in range(2)]
    assert len({answer for row in found for answer in row}) == 8
    one = model.processor(images=images[0], text=QUESTIONS)
    prompts = unpadded(one)
    numbers = draw_numbers(one["pixel_values"].numpy(), prompts, 0, range(3), 64)
    assert np.isnan(numbers[[0, 3]]).all()
    drawn = numbers[[1, 2, 4, 5]]
    assert len({tuple(row) for row in drawn.tolist()}) == 4
    assert 0 <= drawn.min() and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 0.1
    # torch draws the same numbers from the seed that image, prompt and draw make.
    image = hashlib.blake2b(one["pixel_values"][0].numpy().tobytes(), digest_size=32).digest()
    key = hashlib.blake2b(prompts[1].tobytes(), key=image, digest_size=8)
    key.update(b"/0/2")
    seeded = torch.Generator().manual_seed(int.from_bytes(key.digest(), "little"))
    assert torch.equal(torch.from_numpy(numbers[5]), torch.rand(64, generator=seeded))


@pytest.mark.slow
def test_another_process_gives_the_same_answers(tmp_path):
    folder = save_tiny_student(tmp_path / "student")
    image = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    script = (
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "print(repr([model.answer('image.png', 'What?', decoding=d, max_new_tokens=6)"
        f" for d in {list(DECODINGS)}]))\n"
    )
    run = [sys.executable, "-c", script]
    said = {
        subprocess.run(
            run,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    here = [
        model.answer(image, "What?", decoding=decoding, max_new_tokens=6) for decoding in DECODINGS
    ]
    assert said == {f"{here!r}\n"}


def test_candidates_share_one_encoding_of_their_image(model, images):
    seen = []
    model.image_encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    for decoding in ("consensus", "consensus+itm"):
        model.answer(images[0], QUESTIONS, decoding=decoding, **CANDIDATES)
    assert seen == [1, 1]


def test_options_of_generate_go_with_every_decoding(model, images):
    """Repetition control, and a logits processor of the caller's own."""
    said = []

    def watch(input_ids, scores):
        said.append(input_ids.clone())
        return scores

    for decoding in DECODINGS:
        said.clear()
        options = {"no_repeat_ngram_size": 1, "logits_processor": [watch], "max_new_tokens": 9}
        answers(model, images, decoding=decoding, **options)
        assert len(said) >= 3
        for row in said[-1].tolist():
            words = [word for word in row if word != model.config.pad_token_id]
            assert len(words) == len(set(words))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding": "best"}, r"decoding must be one of greedy, .* got 'best'"),
        ({"decoding": "greedy", "num_beams": 3}, r"'greedy' contradicts num_beams"),
        ({"decoding": "greedy", "temperature": 0.5}, r"'greedy' contradicts temperature"),
        ({"decoding": "consensus", "num_beams": 3}, r"'consensus' contradicts num_beams.*top_p"),
        ({"decoding": "consensus", "do_sample": True}, r"contradicts do_sample"),
        ({"decoding": "contrast", "num_beams": 2}, r"contradicts num_beams"),
        ({"decoding": "beam", "top_p": 0.9, "seed": 1}, r"contradicts seed, top_p"),
        ({"decoding": "sample", "num_return_sequences": 2}, r"contradicts num_return_sequences"),
        ({"decoding": "rerank", "num_return_sequences": 0}, r"must be a positive number; got 0"),
        ({"decoding": "consensus", "temperature": 0.0}, r"temperature"),
        ({"decoding": "contrast", "min_p": 2.0}, r"min_p"),
        ({"num_beams": 2, "num_return_sequences": 2}, r"such as decoding='consensus'"),
        ({"seed": 2}, r"seed.* need a decoding"),
    ],
)
def test_what_contradicts_is_an_error(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.answer(images[0], "What?", **options)


def test_what_says_nothing_else_is_no_contradiction(model, images):
    plain = {"do_sample": False, "num_beams": 1, "temperature": None, **LENGTH}
    expected = model.answer(images[0], "What?", decoding="greedy", **LENGTH)
    assert model.answer(images[0], "What?", decoding="greedy", **plain) == expected


def test_a_student_without_a_matching_head(make_model, images):
    model = make_model(itm_weight=0.0)
    for decoding in ("rerank", "consensus+itm"):
        with pytest.raises(ValueError, match=r"needs the matching head"):
            model.answer(images[0], "What?", decoding=decoding)
    with pytest.raises(ValueError, match=r"support needs the matching head"):
        model.support(images[0], "wires")


@pytest.mark.slow
def test_a_checkpoint_may_have_another_default(tmp_path, images):
    folder = save_tiny_student(tmp_path / "student")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    greedy = answers(model, images, decoding="greedy", **LENGTH)
    assert answers(model, images, **LENGTH) == answers(
        model, images, decoding=model.default_decoding, **LENGTH
    )
    model.generation_config.decoding = "contrast"
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again.default_decoding == "contrast"
    found = answers(again, images, **LENGTH)
    assert found == answers(model, images, decoding="contrast", **LENGTH) != greedy
    # Options of `generate` go before it, and `generate` itself does not change.
    assert answers(again, images, num_beams=1, **LENGTH) == greedy
    again.generation_config.decoding = "best"
    with pytest.raises(ValueError, match="decoding must be one of"):
        again.answer(images[0], "What?")
