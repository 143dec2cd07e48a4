"""Flags, against definitions and against texts whose flags are known."""

import random

import numpy as np

from configuration_mvaema import QUESTIONS
from mvaema.teacher.flags import Flagger, is_loop, length_outliers, near_duplicates, signature


def test_loops_are_flagged_and_prose_is_not():
    assert is_loop("The surface is rough and porous here. " * 4)
    assert is_loop("wires " * 200)
    for question in QUESTIONS.values():
        assert not is_loop(question)
    assert not is_loop(" ".join(QUESTIONS.values()))


def jaccard(a: str, b: str) -> float:
    def shingles(text):
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def test_near_duplicates_agree_with_jaccard():
    """Against the similarity computed by its definition, on pairs far from the threshold."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(100)]
    for i in range(40):  # one word in sixty changed: similar; twenty changed: not
        changed = texts[i].split()
        for position in rng.sample(range(60), 1 if i % 2 else 20):
            changed[position] = "other"
        texts.append(" ".join(changed))
    expected = [any(jaccard(t, u) > 0.8 for u in texts[:i]) for i, t in enumerate(texts)]
    found = near_duplicates(np.stack([signature(t) for t in texts]))
    assert sum(expected) == 20
    assert [bool(x) for x in found] == expected


def test_length_outliers():
    lengths = np.array([200 + i for i in range(50)] + [5, 20_000])
    assert np.flatnonzero(length_outliers(lengths)).tolist() == [50, 51]
    assert not length_outliers(np.array([1, 1000])).any(), "too few to judge"
    assert not length_outliers(np.array([100] * 30 + [110])).any()


def test_duplicates_are_judged_within_a_question_group():
    flagger = Flagger()
    sequence = [("a", "No labels are visible."), ("b", "No labels are visible."),
                ("a", "no labels are visible"), ("b", "Something else entirely here.")]  # fmt: skip
    for group, text in sequence:
        flagger.add(group, text)
    flagger.finish()
    flags = [flagger.next(group) for group, _ in sequence]
    assert flags == [[], [], ["exact_duplicate"], []]
