"""The named decodings and ways to classify, and what is done with candidate answers, for each
runtime: without torch.

What is special about it:
- draws depend on the seed, the image and the prompt only. No random state is read or changed, and
  an answer is the same in any batch, any process and each runtime;
- options have the names that they have in transformers' `generate`.

The decodings:
- `greedy`: the most likely word at each step;
- `beam`: beam search, in which no three tokens in a row come twice (Paulus et al. 2018);
- `sample`: one answer, drawn from the nucleus (Holtzman et al. 2020);
- `consensus`: of greedy and drawn answers the one with which the others agree most, by the words
  and bigrams that they share: minimum Bayes risk (Eikema and Aziz 2020; Suzgun et al. 2023);
- `contrast`: greedy, by the likelihood with the image against that with a blank one: visual
  contrastive decoding (Leng et al. 2024), with the cut-off of Li et al. 2023;
- `rerank`: of greedy and drawn answers the one that fits the image best by the matching head, which
  re-ranks retrieved texts in ALBEF (Li et al. 2021);
- `consensus+itm`: of the same answers the one with the largest product of agreement and fit.

This file stands alone: `save_pretrained` and `push_to_hub` copy it into the model repository.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Where neither the caller nor the checkpoint's `generation_config.decoding` names another: the only
# one that gained on real micrographs (docs/study.md, "Decoding").
DEFAULT_DECODING = "consensus"

# Draws of this sharpness: Suzgun et al. 2023 find temperatures around 0.7 best for a consensus.
_DRAWN = {"temperature": 0.7, "top_p": 0.95, "seed": 0}
# `num_return_sequences` answers are drawn, beside the greedy one.
CANDIDATES = {"num_return_sequences": 8, **_DRAWN}

# The options of each decoding that choose how it decodes, and their defaults.
DECODINGS: dict[str, dict] = {
    "greedy": {},
    "beam": {
        "num_beams": 4,
        "length_penalty": 1.0,
        "early_stopping": False,
        "no_repeat_ngram_size": 3,
    },
    "sample": _DRAWN,
    "consensus": CANDIDATES,
    # scores = blank + guidance_scale * (image - blank); alpha of Leng et al. is guidance_scale - 1,
    # and their beta, the cut-off, is min_p.
    "contrast": {"guidance_scale": 2.0, "min_p": 0.1},
    "rerank": CANDIDATES,
    "consensus+itm": CANDIDATES,
}
USING_ITM = ("rerank", "consensus+itm")

# The ways to classify, and the weights of the losses that a student must have learnt with for each.
LOSSES_OF_METHOD = {
    "ITC": ("itc_weight",),
    "ITM": ("itm_weight",),
    "LM": ("lm_weight",),
    "ITC+ITM": ("itc_weight", "itm_weight"),
}


def trained_methods(config: Mapping) -> tuple[str, ...]:
    """The ways to classify that a student was trained for, by its configuration."""
    return tuple(
        method
        for method, weights in LOSSES_OF_METHOD.items()
        if all(config[weight] for weight in weights)
    )


def draw_numbers(
    pixel_values: np.ndarray,
    prompts: Sequence[np.ndarray],
    seed: int,
    draws: range,
    steps: int,
) -> np.ndarray:
    """Uniform numbers that decide words, float32 (prompts * draws, steps) in [0, 1).

    They follow from the seed, the image, the prompt and the number of the draw. They are those of
    `torch.rand` with a generator that is seeded so. Draw 0 is NaN, the greedy answer.

    Args:
        pixel_values: float32 (images, channels, height, width); consecutive prompts share an image.
        prompts: int64 (length,) each, without padding.
    """
    per_image = len(prompts) // len(pixel_values)
    images = [hashlib.blake2b(pixels.tobytes(), digest_size=32) for pixels in pixel_values]
    rows = np.full((len(prompts) * len(draws), steps), np.nan, np.float32)
    for i, prompt in enumerate(prompts):
        for j, number in enumerate(draws):
            if not number:
                continue
            image = images[i // per_image].digest()
            key = hashlib.blake2b(prompt.tobytes(), key=image, digest_size=8)
            key.update(f"/{seed}/{number}".encode())
            # torch seeds the same Mersenne Twister with the lower half, and keeps 24 bits of each.
            twister = np.random.RandomState(int.from_bytes(key.digest()[:4], "little"))
            drawn = twister.randint(0, 2**32, steps, dtype=np.uint32)
            rows[i * len(draws) + j] = (drawn & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    return rows


def agreements(texts: Sequence[str]) -> list[float]:
    """How much the other texts agree with each: the mean of `overlap`, in [0, 1]."""
    counted = [_words_and_bigrams(text) for text in texts]
    return [
        sum(overlap(a, b) for j, b in enumerate(counted) if j != i) / (len(texts) - 1)
        for i, a in enumerate(counted)
    ]


def overlap(first: Counter, second: Counter) -> float:
    """F1 of two bags, in [0, 1]; empty ones share nothing."""
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 0.0


def _words_and_bigrams(text: str) -> Counter:
    words = re.findall(r"\w+", text.lower())
    return Counter([*words, *itertools.pairwise(words)])


__all__ = [
    "CANDIDATES",
    "DECODINGS",
    "DEFAULT_DECODING",
    "USING_ITM",
    "agreements",
    "draw_numbers",
    "overlap",
    "trained_methods",
]
