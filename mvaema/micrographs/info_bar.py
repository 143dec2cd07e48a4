"""Finds a burnt-in info bar: the strip on which an instrument prints its settings.

What is special about it:
- it uses pixels alone, so it works for JPEG figure panels that have lost their metadata;
- a bar is a strip across the full width, of one flat grey level, with print on it and straight
  edges. All of this is required, because cutting off picture is worse than leaving a bar;
- print on the picture itself is not a bar.

`benchmarks/info_bar.py` measures it on real micrographs, separately for those on which the
thresholds were chosen.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]

# Grey levels by which the strip may vary: JPEG adds rings around print, resizing blurs it.
LEVEL_TOLERANCE = 12
# Share of a row that is bare strip: between glyphs (the lower value for dense print, the higher
# for a dark picture beside a dark bar), along an edge, and in the picture beyond the edge.
MIN_BARE = (0.35, 0.45)
MIN_BARE_EDGE, MAX_BARE_BEYOND = 0.85, 0.5
# A strip is dark or white; a grey one is more likely a picture's plain background. Unless clipping
# hides noise, this share of the bare strip is flat to within a few levels.
DARK, WHITE = 50, 243
FLAT, MIN_FLAT = 3, 0.7
# Rows between strip and picture that may be frame or blur: at least, and as a share of the image.
FRAME_ROWS, FRAME_SHARE = 3, 1 / 300
# Share of one grey level in a row of a frame.
MIN_PLAIN = 0.9
# Height of a bar, in rows and as a share of the image.
MIN_ROWS, MAX_SHARE = 4, 0.2
# Print differs from its strip by this many grey levels, in this many runs on at least two rows.
PRINT_CONTRAST, MIN_RUNS = 64, 5
# Share of the strip that is print.
MIN_PRINT, MAX_PRINT = 0.005, 0.4
# Of wider images only every n-th column is used.
MAX_WIDTH = 2048


def find_info_bar(image: Image.Image) -> Box | None:
    """The (left, upper, right, lower) box of the info bar of an 8-bit image, in pixels, or None.

    A bar spans the width. It lies in the lower third (Zeiss prints it a little above the bottom)
    or, as the white caption of a figure, at the top.
    """
    grey = np.asarray(image.convert("L"))
    width, height = image.size
    grey = grey[:, :: -(-width // MAX_WIDTH)]
    # cumulative[r, v] is the number of pixels of row r below level v.
    rows = np.arange(height)[:, None] * 256
    counts = np.bincount((rows + grey).ravel(), minlength=256 * height).reshape(height, 256)
    cumulative = np.pad(counts.cumsum(1), ((0, 0), (1, 0)))

    frame = max(FRAME_ROWS, round(FRAME_SHARE * height))
    plain = cumulative[:, 2 * FLAT + 1 :] - cumulative[:, : -2 * FLAT - 1]
    plain = plain.max(1) >= MIN_PLAIN * cumulative[:, -1]

    bars = []
    for level in _levels(cumulative):
        bare = _bare(cumulative, level)
        bands = {band for share in MIN_BARE for band in _bands(bare >= share, frame)}
        bars += [
            _with_frame(plain, upper, lower, frame)
            for upper, lower in sorted(bands)
            if _is_bar(grey, bare, level, upper, lower, frame)
        ]
    if not bars:
        return None
    upper, lower = max(bars, key=lambda bar: bar[1] - bar[0])
    return 0, int(upper), width, int(lower)


def begins_strip(pixels: np.ndarray, row: int) -> bool:
    """Whether a strip of one flat grey level, of any level, begins at a row and ends the image.

    Args:
        pixels: 8-bit, (height, width) or (height, width, 3).
        row: first row of the strip, as something else than the pixels states it.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.int16)
    frame = max(FRAME_ROWS, round(FRAME_SHARE * len(grey)))
    level = np.bincount(grey[row:].ravel()).argmax()
    bare = (np.abs(grey - level) <= LEVEL_TOLERANCE).mean(1)
    inner, beyond = bare[row : row + 2 * frame], bare[max(0, row - 2 * frame) : row]
    return bool(
        inner.max() >= MIN_BARE_EDGE
        and np.median(beyond) <= MAX_BARE_BEYOND
        and np.median(bare[row:]) >= MIN_BARE[0]
    )


def _bare(cumulative: np.ndarray, level: int) -> np.ndarray:
    """The share of each row within the tolerance of a level."""
    low, high = max(0, level - LEVEL_TOLERANCE), min(256, level + LEVEL_TOLERANCE + 1)
    return (cumulative[:, high] - cumulative[:, low]) / cumulative[:, -1]


def _levels(cumulative: np.ndarray) -> list[int]:
    """Grey levels that a strip could have: those that fill much of a row, most common first."""
    shares = np.stack([_bare(cumulative, level) for level in range(256)], axis=1)
    filled = shares.max(1) >= MIN_BARE[0]
    votes = np.bincount(shares[filled].argmax(1), minlength=256)
    levels: list[int] = []
    for level in np.argsort(-votes, kind="stable"):
        if votes[level] < MIN_ROWS // 2:
            break
        if all(abs(int(level) - other) > LEVEL_TOLERANCE // 2 for other in levels):
            levels.append(int(level))
    return levels


def _bands(inside: np.ndarray, gap: int) -> Iterator[tuple[int, int]]:
    """(upper, lower) of each run of rows that are inside, across gaps of at most `gap` rows."""
    rows = np.flatnonzero(inside)
    if not rows.size:
        return
    breaks = np.flatnonzero(np.diff(rows) > gap + 1)
    for first, last in zip([0, *(breaks + 1)], [*breaks, len(rows) - 1], strict=True):
        yield int(rows[first]), int(rows[last]) + 1


def _is_bar(
    grey: np.ndarray, bare: np.ndarray, level: int, upper: int, lower: int, frame: int
) -> bool:
    """Whether a band of rows has the size, position, edges and print of an info bar."""
    height = len(grey)
    if not MIN_ROWS <= lower - upper <= MAX_SHARE * height:
        return False
    if frame < upper < height * 2 // 3:
        return False
    edges = [
        (bare[upper : upper + 2 * frame], bare[max(0, upper - 2 * frame) : upper]),
        (bare[max(upper, lower - 2 * frame) : lower], bare[lower : lower + 2 * frame]),
    ]
    # At the edge of the image there is no picture beyond, and print may be cut.
    edges = [(inner, beyond) for inner, beyond in edges if len(beyond) > frame]
    for inner, beyond in edges:
        if inner.max() < MIN_BARE_EDGE or np.median(beyond) > MAX_BARE_BEYOND:
            return False
    strip = grey[upper:lower].astype(np.int16)
    distance = np.abs(strip - level)
    bare_pixels = strip[distance <= LEVEL_TOLERANCE]
    mode = np.bincount(bare_pixels).argmax()
    if DARK < mode < WHITE or (upper <= frame and mode < WHITE):
        return False
    noisy = (np.abs(bare_pixels - mode) <= FLAT).mean() < MIN_FLAT
    if FLAT < mode < WHITE and noisy:
        return False
    printed = distance > PRINT_CONTRAST
    runs = (np.diff(printed.astype(np.int8), axis=1) == 1).sum(1)
    lines = (runs >= MIN_RUNS).sum()
    return bool(edges and lines > 1 and MIN_PRINT <= printed.mean() <= MAX_PRINT)


def _with_frame(plain: np.ndarray, upper: int, lower: int, frame: int) -> tuple[int, int]:
    """The band with the plain rows beside it: its frame, or the blur of resizing."""
    height = len(plain)
    for _ in range(frame):
        upper -= upper > 0 and plain[upper - 1]
        lower += lower < height and plain[lower]
    # A margin beyond the bar that is no wider than a frame is not picture.
    return 0 if upper <= frame else upper, height if lower >= height - frame else lower
