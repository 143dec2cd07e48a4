"""What every specimen has: the stage it lies on, the facts known about it, how it is measured.

The properties of a specimen (material, sizes, kind of arrangement) come from one random stream, a
view of it (place, magnification, tilt) from another. So several views of a scene show the same
material in other places, as a microscopist would image it.
"""

from dataclasses import dataclass, field

import numpy as np

from mvaema.synthetic.canvas import SUBSTRATE, Canvas

# Canvas pixels per image pixel along each axis: the shapes are drawn finer than they are shown.
OVERSAMPLING = 1.25


@dataclass
class Facts:
    """What is true of one image. Lengths are in nanometres; fractions are of the image area
    without the info bar; counts are of what can be seen.

    A value is None if it does not apply or cannot be seen.
    """

    kind: str  # the specimen, a key of `answers.KINDS`
    technique: str = "SEM"  # SEM, TEM or STEM
    detector: str = "SE"
    pixel_size_nm: float = 0.0
    field_of_view_nm: float = 0.0  # width of the image
    tilt_deg: float = 0.0
    count: int | None = None  # structures that can be seen, whole or cut by the border
    dimension: str = "diameter"  # which length `size_mean_nm` is
    size_mean_nm: float | None = None
    size_std_nm: float | None = None
    size_min_nm: float | None = None
    size_max_nm: float | None = None
    length_nm: float | None = None  # the other length: of wires, layers, gaps ...
    spacing_nm: float | None = None  # pitch of a regular arrangement
    coverage: float | None = None  # area fraction of the structures
    pore_fraction: float | None = None  # area fraction of openings
    touching: float | None = None  # fraction of the structures that touch or overlap others
    arrangement: str = "random"  # random, clustered, ordered, aligned, packed, single, stacked
    shape: str | None = None  # a word for the variant of the kind (square, round, ...)
    angle_deg: float | None = None
    missing: int = 0  # elements absent from a regular arrangement
    broken: int = 0  # elements visibly broken, fallen or fused
    debris: int = 0  # foreign specks
    rough: bool = False
    substrate: bool = True  # whether ground can be seen between the structures
    two_materials: str | None = None  # "brighter" or "darker" than the ground
    noise_grey: float = 0.0  # standard deviation of the noise, in grey levels
    blur_px: float = 0.0  # standard deviation of the beam, in image pixels
    astigmatism: float = 0.0
    charging: bool = False
    drift_px: float = 0.0
    bar: str | None = None  # style of the info bar
    printed: list[str] = field(default_factory=list)  # settings printed in it
    marks: list[str] = field(default_factory=list)  # what else is printed, such as "an arrow"
    jpeg: int | None = None  # quality, if the image was compressed with loss


@dataclass
class Stage:
    """What a specimen is made for: the size of the image and the two random streams."""

    width: int  # pixels of the image
    height: int  # pixels of the image above the info bar
    specimen: np.random.Generator
    view: np.random.Generator
    difficulty: float
    technique: str = "SEM"  # SEM, TEM or STEM

    def canvas(self, field_of_view_nm: float, tilt_deg: float = 0.0) -> Canvas:
        """An empty canvas as wide as the field of view."""
        width = round(self.width * OVERSAMPLING)
        height = round(self.height * OVERSAMPLING)
        nm, tilt = field_of_view_nm / width, np.deg2rad(tilt_deg)
        return Canvas(width, height, nm, tilt, transparent=self.technique != "SEM")


@dataclass
class Specimen:
    """A finished specimen: its surface and relative yield, or its thickness and support film, and
    its facts."""

    canvas: Canvas
    facts: Facts
    texture: np.ndarray | float = 1.0  # factor of the secondary yield, per canvas pixel
    film: np.ndarray | float = 1.0  # thickness of the support film (transparent canvas only)

    def material(self) -> np.ndarray:
        """Relative secondary-electron yield of every canvas pixel."""
        yields = np.asarray(self.canvas.yields, np.float32)
        if len(yields) == 1:
            return np.float32(yields[0]) * self.texture
        return yields[self.canvas.owner] * self.texture


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number between `low` and `high` whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def choose(rng: np.random.Generator, options: dict[str, float]) -> str:
    """A key of `options`, drawn with the weights that are its values."""
    weights = np.array(list(options.values()), float)
    return str(rng.choice(list(options), p=weights / weights.sum()))


def tilt(rng: np.random.Generator, chance: float, low: float = 15, high: float = 50) -> float:
    """Degrees of tilt: 0 most of the time, else uniform."""
    return float(rng.uniform(low, high)) if rng.random() < chance else 0.0


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random orientation (3, 3)."""
    a, b, c, d = q = rng.normal(size=4)  # a random quaternion
    turn = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    return np.array(turn, np.float32) / np.float32(q @ q)


def visible(canvas: Canvas) -> np.ndarray:
    """Ids of the objects that an observer would count: large enough, and not mostly hidden.
    Nothing hides an object on a transparent canvas."""
    pixels = np.bincount(canvas.owner.ravel(), minlength=len(canvas.sizes))
    drawn = np.asarray(canvas.drawn)
    seen = drawn >= 14 if canvas.mass is not None else (pixels >= 14) & (pixels >= 0.2 * drawn)
    seen[SUBSTRATE] = False
    return np.flatnonzero(seen)


def measure_objects(canvas: Canvas, facts: Facts, ids: np.ndarray | None = None) -> None:
    """Set the facts on count, sizes, coverage and contacts from what is visible."""
    ids = visible(canvas) if ids is None else ids
    facts.count = len(ids)
    measure_sizes(np.asarray(canvas.sizes)[ids] * canvas.nm, facts)
    owner = canvas.owner
    facts.coverage = float(np.count_nonzero(owner) / owner.size)
    facts.substrate = facts.coverage < 0.97
    contact = np.zeros(len(canvas.sizes), bool)
    for a, b in ((owner[:, 2:], owner[:, :-2]), (owner[2:], owner[:-2])):
        meet = (a != b) & (a > 0) & (b > 0)
        contact[a[meet]] = True
        contact[b[meet]] = True
    facts.touching = float(contact[ids].mean()) if len(ids) else None


def measure_sizes(sizes_nm: np.ndarray, facts: Facts) -> None:
    """Set the facts on mean, spread and range of sizes."""
    if len(sizes_nm):
        facts.size_mean_nm = float(np.mean(sizes_nm))
        facts.size_std_nm = float(np.std(sizes_nm))
        facts.size_min_nm, facts.size_max_nm = float(np.min(sizes_nm)), float(np.max(sizes_nm))


def scatter(rng, count: int, width: float, depth: float, gap: float, tries: int = 12):
    """Up to `count` random points (n, 2) at least `gap` apart, in a field that overlaps the
    border by half a gap."""
    points = np.empty((count, 2))
    n = 0
    candidates = rng.random((count * tries, 2)) * (width + gap, depth + gap) - gap / 2
    for candidate in candidates:
        if n == count:
            break
        near = points[:n] - candidate
        if n == 0 or (near * near).sum(1).min() >= gap * gap:
            points[n] = candidate
            n += 1
    return points[:n]


def lattice(pitch: float, width: float, depth: float, angle: float, hexagonal: bool, margin: float):
    """Points (n, 2) of a square or hexagonal lattice turned by `angle`, `margin` beyond the
    border."""
    reach = int(np.hypot(width, depth) / pitch / (0.85 if hexagonal else 1)) + 4
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    u = i * pitch + (j % 2) * pitch / 2 * hexagonal
    v = j * pitch * (np.sqrt(3) / 2 if hexagonal else 1)
    x = u * np.cos(angle) - v * np.sin(angle) + width / 2
    y = u * np.sin(angle) + v * np.cos(angle) + depth / 2
    keep = (x > -margin) & (x < width + margin) & (y > -margin) & (y < depth + margin)
    return np.stack([x[keep], y[keep]], 1)


def sprinkle(canvas: Canvas, rng: np.random.Generator, difficulty: float, lowest=-np.inf) -> int:
    """Put a few specks of dirt, or none, on surfaces above the height `lowest`; returns how many
    can be seen."""
    if rng.random() > 0.15 + 0.35 * difficulty:
        return 0
    ids = []
    for _ in range(rng.integers(1, 5)):
        radius = rng.uniform(0.008, 0.02) * canvas.width
        x, y = rng.uniform(0.05, 0.95) * canvas.width, rng.uniform(0.05, 0.95) * canvas.height
        ground = float(canvas.z[int(y), int(x)])
        if ground < lowest:
            continue
        ids.append(canvas.begin(2 * radius, rng.uniform(1.1, 1.7)))
        for _ in range(rng.integers(1, 4)):
            dx, dy = rng.normal(0, 0.6 * radius, 2)
            canvas.sphere(x + dx, y + dy, ground + 0.4 * radius, radius * rng.uniform(0.6, 1))
    return len(np.intersect1d(ids, visible(canvas)))
