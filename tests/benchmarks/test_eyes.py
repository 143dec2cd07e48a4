"""Eyes are compared by what they tell about a teacher's words: on data where that is known."""

import math

import numpy as np
from datasets import Dataset

from benchmarks.eyes import Split, category_gain, gain, losses


def rows(count, rng):
    """Micrographs whose answers say "wires" or "grains", and a group for each three."""
    kinds = rng.random(count) < 0.5
    return kinds, Dataset.from_list(
        [
            {
                "image_id": str(i),
                "category": "Nanowires" if wires else "Powder",
                "group": str(i // 3),
                "qa": [{"answer": f"It shows {'wires' if wires else 'grains'}."}],
            }
            for i, wires in enumerate(kinds)
        ]
    )


def test_losses_are_those_of_independent_words():
    probabilities, contains = np.array([[0.2, 0.7]]), np.array([[1.0, 0.0]])
    assert losses(probabilities, contains)[0] == -math.log(0.2) - math.log(0.3)


def test_features_that_show_the_kind_save_what_knowing_it_does_and_noise_saves_nothing():
    rng = np.random.default_rng(0)
    (kinds, train), (others, test) = rows(300, rng), rows(90, rng)
    train, test = Split(train), Split(test, ["grains", "wires"])
    assert train.words == ["grains", "wires"]  # "shows" is in all answers: it tells nothing
    seen, shown = (
        np.stack([k + 0.1 * rng.standard_normal(len(k)), rng.standard_normal(len(k))], 1)
        for k in (kinds, others)
    )
    informed, _ = gain(train, test, seen, shown)
    ignorant, _ = gain(train, test, rng.standard_normal((300, 2)), rng.standard_normal((90, 2)))
    known = category_gain(train, test).mean()
    assert 0.9 < known < 2 * math.log(2)
    assert 0.7 * known < informed.mean() and abs(ignorant.mean()) < 0.1
