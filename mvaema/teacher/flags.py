"""Answers worth a second look: flagged, never deleted.

What is special about it:
- `unmarked`, `repetition` and `other_language` (`mvaema.teacher.languages`) need one text.
  `length_outlier`, `exact_duplicate` and `near_duplicate` need all answers to a question, and are
  computed per question: "No labels are visible." may be the right answer to one many times over,
  and suspicious for another;
- near duplicates are found by MinHash and banding (Broder 1997; Leskovec, Rajaraman and Ullman,
  Mining of Massive Datasets, ch. 3) in arrays of fixed width: about 270 bytes per answer, so a
  million answers to a question fit in memory.
"""

import hashlib
import re
import tempfile
import zlib
from collections import Counter

import numpy as np

# A text of at least LOOP_LENGTH bytes that zlib compresses below this share repeats itself; prose
# compresses to 0.4 to 0.6.
LOOP_RATIO, LOOP_LENGTH = 0.2, 300
# Robust z-score of the logarithm of the length (Iglewicz and Hoaglin 1993 propose 3.5).
OUTLIER_SCORE, OUTLIER_SAMPLES = 3.5, 20
# Near duplicates: at least this share of their three-word shingles is common to both.
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
    """Lower case and words only: what exact duplicates have in common."""
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

    `add` every answer, then `finish`, then call `next` for each answer in the same order. The
    signatures wait in temporary files; one question's are in memory at a time.
    """

    FLAGS = ("length_outlier", "exact_duplicate", "near_duplicate")

    def __init__(self):
        self._files = {}
        self._flags: dict[str, np.ndarray] = {}
        self._position: Counter[str] = Counter()

    RECORD = np.dtype([("hash", np.uint64), ("length", np.uint32), ("minhash", np.uint32, HASHES)])

    def add(self, question_id: str, text: str):
        if question_id not in self._files:
            self._files[question_id] = tempfile.TemporaryFile()
        record = np.array((text_hash(text), len(text), signature(text)), self.RECORD)
        self._files[question_id].write(record.tobytes())

    def finish(self):
        for question_id, file in self._files.items():
            file.seek(0)
            records = np.frombuffer(file.read(), self.RECORD)
            file.close()
            exact = repeats(records["hash"])
            near = near_duplicates(records["minhash"]) & ~exact
            self._flags[question_id] = np.stack(
                [length_outliers(records["length"]), exact, near], axis=1
            )
        self._files.clear()

    def next(self, question_id: str) -> list[str]:
        """The flags of the next answer to a question."""
        row = self._flags[question_id][self._position[question_id]]
        self._position[question_id] += 1
        return [name for name, flagged in zip(self.FLAGS, row, strict=True) if flagged]
