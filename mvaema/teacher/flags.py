"""Answers worth a second look: flagged, never deleted.

What is special about it:
- flags that need one text (`unmarked`, `repetition`) and flags that need all of them
  (`length_outlier`, `exact_duplicate`, `near_duplicate`) are told apart; the latter are computed
  per question group, since "No labels are visible." is a fine answer many times over to one
  question and suspicious to another;
- near duplicates are found by MinHash and banding (Broder 1997; Leskovec, Rajaraman and Ullman,
  Mining of Massive Datasets, ch. 3) in arrays of fixed width, so a million answers per group fit
  in memory: 8 bytes x 64 per answer.
"""

import hashlib
import re
import tempfile
import zlib
from collections import Counter

import numpy as np

# A text of some length that zlib shrinks below this share says the same thing over and over;
# prose comes out at 0.4 to 0.6.
LOOP_RATIO, LOOP_LENGTH = 0.2, 300
# Robust z-score of the logarithm of the length (Iglewicz and Hoaglin 1993 propose 3.5).
OUTLIER_SCORE, OUTLIER_SAMPLES = 3.5, 20
# Two answers with at least this share of their three-word shingles in common.
NEAR = 0.8
HASHES, BANDS = 64, 16
PRIME = np.uint64(2**31 - 1)


def is_loop(text: str) -> bool:
    """Whether a text repeats itself instead of ending."""
    data = text.encode()
    if len(data) >= LOOP_LENGTH and len(zlib.compress(data)) / len(data) < LOOP_RATIO:
        return True
    sentences = [s.strip() for s in re.split(r"[.!?\n]+", text.lower()) if len(s.strip()) > 20]
    return any(count >= 3 for count in Counter(sentences).values())


def normalised(text: str) -> str:
    """Lower case, words only: what exact duplicates share."""
    return " ".join(re.findall(r"\w+", text.lower()))


def text_hash(text: str) -> int:
    """64 bits of the normalised text."""
    digest = hashlib.blake2b(normalised(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _coefficients() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    high = int(PRIME)
    return (
        rng.integers(1, high, HASHES, dtype=np.uint64),
        rng.integers(0, high, HASHES, dtype=np.uint64),
    )


SLOPES, OFFSETS = _coefficients()


def signature(text: str) -> np.ndarray:
    """MinHash signature over three-word shingles, uint32 of shape (64,)."""
    words = normalised(text).split()
    shingles = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    codes = np.array([zlib.crc32(shingle.encode()) for shingle in shingles], np.uint64) % PRIME
    return ((codes[:, None] * SLOPES + OFFSETS) % PRIME).min(axis=0).astype(np.uint32)


def near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Which rows resemble an earlier row, bool of shape (n,).

    Args:
        signatures: uint32 of shape (n, 64).
    """
    n = len(signatures)
    found = np.zeros(n, bool)
    rows = HASHES // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        keys = part.view([("", part.dtype)] * rows).ravel()
        order = np.argsort(keys, kind="stable")  # within a bucket, rows keep their order
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        # Every row of a bucket against the first one: linear, however full a bucket is.
        sizes = np.diff(np.r_[starts, n])
        first = np.repeat(order[starts], sizes)
        later = order != first
        row, first = order[later], first[later]
        found[row[(signatures[row] == signatures[first]).mean(axis=1) >= NEAR]] = True
    return found


def repeats(hashes: np.ndarray) -> np.ndarray:
    """Which entries equal an earlier one, bool of shape (n,)."""
    _, first = np.unique(hashes, return_index=True)
    found = np.ones(len(hashes), bool)
    found[first] = False
    return found


def length_outliers(lengths: np.ndarray) -> np.ndarray:
    """Which lengths are far from the median of their group, bool of shape (n,).

    Lengths are in characters; groups of fewer than 20 have no outliers.
    """
    if len(lengths) < OUTLIER_SAMPLES:
        return np.zeros(len(lengths), bool)
    logs = np.log(np.maximum(lengths, 1))
    deviations = np.abs(logs - np.median(logs))
    # Never narrower than ten per cent, or uniform answers would make outliers of their best.
    spread = max(float(np.median(deviations)), np.log(1.1))
    return 0.6745 * deviations / spread > OUTLIER_SCORE


class Flagger:
    """Flags of all answers to all questions, in two passes over the same sequence.

    First `add` every answer, then `finish`, then ask `next` for each in the same order. The
    signatures wait in temporary files, one group at a time is in memory.
    """

    FLAGS = ("length_outlier", "exact_duplicate", "near_duplicate")

    def __init__(self):
        self._files = {}
        self._flags: dict[str, np.ndarray] = {}
        self._position: Counter[str] = Counter()

    RECORD = np.dtype([("hash", np.uint64), ("length", np.uint32), ("minhash", np.uint32, HASHES)])

    def add(self, group: str, text: str):
        if group not in self._files:
            self._files[group] = tempfile.TemporaryFile()
        record = np.array((text_hash(text), len(text), signature(text)), self.RECORD)
        self._files[group].write(record.tobytes())

    def finish(self):
        for group, file in self._files.items():
            file.seek(0)
            records = np.frombuffer(file.read(), self.RECORD)
            file.close()
            exact = repeats(records["hash"])
            near = near_duplicates(records["minhash"]) & ~exact
            self._flags[group] = np.stack([length_outliers(records["length"]), exact, near], axis=1)
        self._files.clear()

    def next(self, group: str) -> list[str]:
        """The flags of the next answer of a group."""
        row = self._flags[group][self._position[group]]
        self._position[group] += 1
        return [name for name, flagged in zip(self.FLAGS, row, strict=True) if flagged]
