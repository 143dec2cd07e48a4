"""Finding micrographs that are the same picture: copies that were scaled, compressed or edited.

What is special about it:
- an image is described by a window at its top, as wide as the image and 0.55 times as high. The
  window does not change when an info bar at the bottom is cut off or burnt in. It never contains
  the bar, which would make all images of one instrument alike;
- as in a perceptual hash (pHash, Zauner 2010), the description is the low frequencies of a discrete
  cosine transform, but kept as numbers. Two images are candidates if the cosine of their low
  frequencies is high (contrast and brightness cancel). They are near-duplicates if the signs of
  256 higher frequencies agree as well; between unrelated images half of the signs agree;
- rotated and mirrored copies are found: mirroring changes only the signs of coefficients;
- nothing is quadratic: descriptions are compared only if they chose a common pivot from a sample
  of the dataset (an inverted file index, Jégou et al. 2011, with random centroids).

It does not find other fields of view of the same specimen, which is what `group` is for, nor
copies cropped by more than a few per cent.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image as PILImage
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from mvaema.micrographs.dataset import DatasetError, decode_image

WINDOW_HEIGHT = 0.55  # of the width
WINDOW_PIXELS = 64
LOW = 12  # coefficients 0 ... 11 in each direction, without the mean
MIN_SIDE = 44  # the window then has 24 rows, a few more than the coefficients in use
HIGH = 20  # the hash takes the signs of coefficients LOW ... 19: 256 of them
# Measured on real micrographs by benchmarks/near_duplicates.py.
MIN_COSINE = 0.85
MIN_AGREEMENT = 0.68

CELL = 1024  # descriptions that are compared all with all
PIVOTS = 3  # pivots that each description chooses

_row, _column = np.mgrid[:HIGH, :HIGH]
_LOW = (np.maximum(_row, _column) < LOW) & (_row + _column > 0)
_HIGH = np.maximum(_row, _column) >= LOW
# High frequencies are weak in natural images; this gives all of them some influence.
_WEIGHTS = np.sqrt(np.hypot(_row, _column))[_LOW]
LOW_SIZE, HIGH_SIZE = int(_LOW.sum()), int(_HIGH.sum()) // 8
SIZE = LOW_SIZE + HIGH_SIZE
# Mirroring left to right changes the signs of the odd columns.
_MIRROR_LOW = np.where(_column[_LOW] % 2, -1, 1).astype(np.int8)
_MIRROR_HIGH = np.packbits(_column[_HIGH] % 2)

TURNS = (
    None,
    PILImage.Transpose.ROTATE_90,
    PILImage.Transpose.ROTATE_180,
    PILImage.Transpose.ROTATE_270,
)


def describe(image: PILImage.Image) -> np.ndarray:
    """The description of an image: uint8 (4, 175), one row for each quarter turn.

    A row holds 143 weighted low-frequency coefficients (int8, scaled to the range) and the signs
    of 256 higher ones (bits). It is all 0 for an image without contrast or with a side below
    `MIN_SIDE` pixels, which cannot be recognised.
    """
    image = image.convert("L")
    rows = np.zeros((len(TURNS), SIZE), np.uint8)
    if min(image.size) < MIN_SIDE:
        return rows
    # Shrunk before it is rotated, but not below the size of the window.
    scale = 2 * WINDOW_PIXELS / min(image.size)
    if scale < 1:
        image = image.resize([round(side * scale) for side in image.size], PILImage.Resampling.BOX)
    for row, turn in zip(rows, TURNS, strict=True):
        turned = image if turn is None else image.transpose(turn)
        window = turned.resize(
            (WINDOW_PIXELS, WINDOW_PIXELS),
            PILImage.Resampling.BICUBIC,
            box=(0, 0, turned.width, min(turned.height, WINDOW_HEIGHT * turned.width)),
        )
        coefficients = dctn(np.asarray(window, np.float32), norm="ortho")[:HIGH, :HIGH]
        low = coefficients[_LOW] * _WEIGHTS
        largest = np.abs(low).max()
        if largest < 1:  # there is less than a grey level of contrast
            continue
        row[:LOW_SIZE] = np.rint(low * (127 / largest)).astype(np.int8).view(np.uint8)
        row[LOW_SIZE:] = np.packbits(coefficients[_HIGH] > 0)
    return rows


def near_duplicate_clusters(
    dataset: Dataset,
    *,
    min_cosine: float = MIN_COSINE,
    min_agreement: float = MIN_AGREEMENT,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> np.ndarray:
    """Which rows show the same picture.

    Args:
        dataset: with the columns `image` and `image_id`.
        min_cosine: least cosine of the low frequencies of two near-duplicates.
        min_agreement: least share of equal signs among their higher frequencies.
        workers: processes that decode images; None decodes in this process.
        skip_unreadable: give -1 to images that cannot be read, instead of raising.

    Returns:
        int (rows,): the cluster of each row, as the index of the cluster's first row. A row without
        near-duplicates is its own cluster. Near-duplicates of near-duplicates share a cluster.

    Raises:
        DatasetError: an image cannot be read; the message names its `image_id`.
    """
    with tempfile.TemporaryDirectory() as folder:
        descriptions, readable = _describe_all(dataset, Path(folder), workers, skip_unreadable)
        clusters = cluster(descriptions, min_cosine, min_agreement)
    return np.where(readable, clusters, -1)


def _describe_all(
    dataset: Dataset, folder: Path, workers: int | None, skip_unreadable: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The descriptions of all rows, uint8 (rows, 4, 175), on disk, not in memory.

    And bool (rows,): whether the image can be read; the description is 0 if not.
    """
    readable = np.ones(len(dataset), bool)
    if not len(dataset):
        return np.empty((0, len(TURNS), SIZE), np.uint8), readable

    def described(row: dict) -> dict:
        try:
            return {"description": describe(decode_image(row)).tobytes()}
        except DatasetError:
            if not skip_unreadable:
                raise
            return {"description": b""}

    columns = ["image", "image_id"]
    table = dataset.select_columns(columns).map(
        described,
        remove_columns=columns,
        features=Features({"description": Value("binary")}),
        num_proc=workers,
        # Neither into the cache nor beside the dataset, which may be read-only.
        cache_file_name=str(folder / "descriptions.arrow"),
        desc="Looking for near-duplicates",
    )
    shape = (len(dataset), len(TURNS), SIZE)
    descriptions = np.memmap(folder / "descriptions.npy", np.uint8, "w+", shape=shape)
    start = 0
    for batch in table.with_format("arrow").iter(10_000):
        found = batch["description"].to_pylist()
        readable[start : start + len(found)] = list(map(bool, found))
        blob = b"".join(one or bytes(len(TURNS) * SIZE) for one in found)
        rows = np.frombuffer(blob, np.uint8).reshape(-1, *shape[1:])
        descriptions[start : start + len(rows)] = rows
        start += len(rows)
    return descriptions, readable


def cluster(
    descriptions: np.ndarray,
    min_cosine: float = MIN_COSINE,
    min_agreement: float = MIN_AGREEMENT,
    *,
    cell: int = CELL,
) -> np.ndarray:
    """Clusters, as from `near_duplicate_clusters`, of the results of `describe`.

    Args:
        descriptions: uint8 (rows, 4, 175).
        min_cosine, min_agreement: as for `near_duplicate_clusters`.
        cell: descriptions that are compared all with all.
    """
    count = len(descriptions)
    if not count:
        return np.empty(0, np.int64)
    search = _Search(min_cosine, min_agreement, cell)
    upright = np.ascontiguousarray(descriptions[:, 0])
    # Identical descriptions are linked without a search, which cannot separate them.
    rows = upright.view(np.dtype((np.void, SIZE)))[:, 0]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    has_contrast = upright[first, :LOW_SIZE].any(axis=1)
    links = [np.stack([np.arange(count), first[inverse]])[:, has_contrast[inverse]]]
    first = np.sort(first[has_contrast])
    upright = upright[first]
    orientations = [(turn, mirrored) for turn in range(len(TURNS)) for mirrored in (False, True)]
    for turn, mirrored in tqdm(orientations, desc="Comparing", unit=" orientations"):
        turned = descriptions[first, turn]
        if mirrored:
            turned[:, :LOW_SIZE] = (turned[:, :LOW_SIZE].view(np.int8) * _MIRROR_LOW).view(np.uint8)
            turned[:, LOW_SIZE:] ^= _MIRROR_HIGH
        links += [first[pairs] for pairs in search.links(upright, turned)]
    a, b = np.concatenate(links, axis=1)
    labels = components(a, b, count)
    _, representative = np.unique(labels, return_index=True)
    return representative[labels]


def components(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """int (count,): the connected component of each node, given edges from `a` to `b`, (edges,)."""
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


class _Search:
    """Finds links between similar descriptions, enough of them to connect each cluster."""

    def __init__(self, min_cosine: float, min_agreement: float, cell: int):
        self.min_cosine = min_cosine
        self.max_differences = int((1 - min_agreement) * 8 * HIGH_SIZE)
        self.cell = cell
        self.random = np.random.default_rng(0)

    def links(self, base: np.ndarray, query: np.ndarray) -> Iterator[np.ndarray]:
        """int (2, links) arrays: similar rows of `base` and `query`.

        Row i of `query` is the image of row i of `base` in another orientation.
        """
        everything = np.arange(len(base))
        yield from self._within(base, query, everything, everything, depth=0)

    def _within(self, base, query, b, q, depth) -> Iterator[np.ndarray]:
        # Descriptions that four rounds of pivots cannot separate are nearly identical, and rare.
        if max(len(b), len(q)) <= self.cell or depth == 4:
            for start in range(0, len(q), self.cell):
                yield self._compared(base, query, b, q[start : start + self.cell])
            return
        pivots = self.random.choice(b, min(len(b), 2 + PIVOTS * len(b) // self.cell), replace=False)
        centres = _unit(base[pivots])
        for b_cell, q_cell in zip(
            self._cells(base, b, centres), self._cells(query, q, centres), strict=True
        ):
            if len(b_cell) and len(q_cell):
                yield from self._within(base, query, b_cell, q_cell, depth + 1)

    def _cells(self, rows, chosen, centres) -> list[np.ndarray]:
        """For each centre, the chosen rows that have it among their nearest."""
        count = min(PIVOTS, len(centres))
        nearest = np.empty((len(chosen), count), np.int32)
        for start in range(0, len(chosen), self.cell):
            block = chosen[start : start + self.cell]
            cosines = _unit(rows[block]) @ centres.T
            nearest[start : start + self.cell] = np.argpartition(-cosines, count - 1)[:, :count]
        order = np.argsort(nearest, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(nearest.ravel(), minlength=len(centres)))
        return np.split(chosen[order // count], ends[:-1])

    def _compared(self, base, query, b, q) -> np.ndarray:
        alike = _unit(query[q]) @ _unit(base[b]).T >= self.min_cosine
        i, j = np.divmod(np.flatnonzero(alike), len(b))
        pairs = np.stack([b[j], q[i]])
        pairs = pairs[:, pairs[0] != pairs[1]]
        differences = base[pairs[0], LOW_SIZE:] ^ query[pairs[1], LOW_SIZE:]
        count = np.bitwise_count(differences).sum(axis=1)
        pairs = pairs[:, count <= self.max_differences]
        if pairs.shape[1] <= len(b) + len(q):
            return pairs
        # Many near-duplicates: links to one of them connect them as well as all pairs.
        members, inverse = np.unique(pairs, return_inverse=True)
        labels = components(*inverse.reshape(pairs.shape), len(members))
        _, first = np.unique(labels, return_index=True)
        return np.stack([members[first[labels]], members])


def _unit(rows: np.ndarray) -> np.ndarray:
    """The low frequencies of descriptions as float32 vectors of length 1."""
    vectors = rows[:, :LOW_SIZE].view(np.int8).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)
