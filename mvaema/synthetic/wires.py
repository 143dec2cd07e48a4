"""Long and thin: nanowires, fibres and tips."""

from dataclasses import dataclass

import numpy as np

from mvaema.synthetic.canvas import GRAINY, Canvas, noise, smooth
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    lattice,
    log_uniform,
    measure_objects,
    sprinkle,
    tilt,
    visible,
)


def _capped_rod(canvas: Canvas, foot, top, radius0, radius1, cap: float) -> None:
    """A rod between two points of the specimen, ended by a ball of `cap` times its radius."""
    canvas.rod(canvas.project(*foot), canvas.project(*top), radius0, radius1)
    canvas.sphere(*canvas.project(*top), radius1 * cap)


def _bent_wire(canvas: Canvas, ends, bend: float, radius: float) -> None:
    """A wire with round ends between two canvas points, bowed sideways by `bend` pixels."""
    (x0, y0, z0), (x1, y1, z1) = ends
    steep = abs(y1 - y0) > abs(x1 - x0)
    if steep:
        x0, y0, x1, y1 = y0, x0, y1, x1
    if x0 > x1:
        x0, y0, z0, x1, y1, z1 = x1, y1, z1, x0, y0, z0
    columns = np.arange(int(np.ceil(x0)), int(x1) + 1)
    if len(columns) < 2:
        return
    t = (columns - x0) / (x1 - x0)
    path = y0 + (y1 - y0) * t + 4 * bend * t * (1 - t)
    canvas.strand(path, z0 + (z1 - z0) * t, radius, steep, first=int(columns[0]))
    for x, y, z in ((x0, y0, z0), (x1, y1, z1)):
        canvas.sphere(*((y, x) if steep else (x, y)), z, radius)


def nanowires(stage: Stage) -> Specimen:
    """Upright forests and ordered arrays, tangled mats, single wires lying on a ground."""
    s, v = stage.specimen, stage.view
    kind = choose(
        s, {"forest": 1.8, "wire_array": 1.4, "wires_from_above": 0.8, "mat": 0.7, "lying": 1}
    )
    diameter_nm = log_uniform(s, 20, 2000)
    spread = float(s.choice([0.04, 0.12, 0.25]))
    aspect = s.uniform(7, 22)
    cap = s.choice([1.0, 1.0, 1.25])
    ground_yield = s.uniform(0.2, 0.7)
    lean = float(s.choice([0.0, 0.04, 0.12]))
    hexagonal = s.random() < 0.6
    pitch_ratio = s.uniform(2.2, 5)
    taper = s.uniform(0.75, 1.0)
    across = {"lying": v.uniform(30, 90), "mat": v.uniform(18, 60)}.get(kind, v.uniform(18, 50))
    upright = kind in ("forest", "wire_array")
    tilt_deg = float(v.uniform(25, 60)) if upright else tilt(v, 0.1, 10, 30)
    if kind == "wires_from_above":
        tilt_deg = 0.0
    canvas = stage.canvas(diameter_nm * across, tilt_deg)
    d = diameter_nm / canvas.nm
    facts = Facts(kind, tilt_deg=tilt_deg)
    canvas.yields[0] = ground_yield
    canvas.z += 0.2 * noise(v, canvas.shape, GRAINY)
    wires = _Wires(d, spread, aspect, cap, lean, hexagonal, pitch_ratio, taper)
    if upright or kind == "wires_from_above":
        _standing(stage, canvas, facts, wires)
    else:
        _lying(stage, canvas, facts, wires)
    measure_objects(canvas, facts)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))


@dataclass
class _Wires:
    """What the wires of a specimen have in common; lengths in canvas pixels."""

    diameter: float
    spread: float  # of the logarithm of the diameters
    aspect: float  # length over diameter of upright wires
    cap: float  # radius of the ball at the tip, over that of the tip
    lean: float  # sideways, over length
    hexagonal: bool  # lattice of an array, else square
    pitch_ratio: float  # pitch over diameter
    taper: float  # radius of the tip over that of the foot

    def diameters(self, rng: np.random.Generator, count: int) -> np.ndarray:
        d = self.diameter
        return np.clip(d * np.exp(rng.normal(0, self.spread, count)), 0.4 * d, 2.5 * d)


def _standing(stage: Stage, canvas: Canvas, facts: Facts, wires: _Wires) -> None:
    """Upright wires: a forest or an array, at a tilt or from above."""
    s, v = stage.specimen, stage.view
    kind, d = facts.kind, wires.diameter
    upright = kind != "wires_from_above"
    length = wires.aspect * d if upright else s.uniform(2, 5) * d
    depth = canvas.depth + length * canvas.sin / canvas.cos
    if kind == "forest":
        count = int(np.clip(canvas.width * depth / (d * d * v.uniform(6, 20)), 20, 130))
        points = v.random((count, 2)) * (canvas.width + 2 * d, depth) - (d, 0)
    else:
        pitch = max(wires.pitch_ratio * d, np.sqrt(canvas.width * depth / 140))
        points = lattice(pitch, canvas.width, depth, v.uniform(0, 1.05), wires.hexagonal, d)
        missing = v.random(len(points)) < v.choice([0, 0, 0.03])
        # Where every wire would be seen whole.
        px, py, _ = canvas.project(points[:, 0], points[:, 1], length)
        inside = (px > d) & (px < canvas.width - d) & (py > d)
        inside &= points[:, 1] * canvas.cos < canvas.height - d
        facts.missing = int((missing & inside).sum())
        points = points[~missing]
        facts.arrangement, facts.spacing_nm = "ordered", pitch * canvas.nm
        facts.shape = "hexagonal" if wires.hexagonal else "square"
    facts.length_nm = length * canvas.nm if upright else None
    length_spread = 0.2 if kind == "forest" else 0.03
    for (x, y), size in zip(points, wires.diameters(v, len(points)), strict=True):
        grown = length * max(0.3, v.normal(1, length_spread))
        dx, dy = v.normal(0, wires.lean, 2) * grown
        canvas.begin(size, v.normal(1, 0.05))
        top = (x + dx, y + dy, grown)
        _capped_rod(canvas, (x, y, 0), top, size / 2, size / 2 * wires.taper, wires.cap)
    if kind == "wires_from_above" and v.random() < 0.6:
        ids = []
        for _ in range(v.integers(1, 7)):  # fallen wires
            x, y, a = *v.random(2) * (canvas.width, canvas.height), v.uniform(0, np.pi)
            reach = v.uniform(2, 5) * d * np.array([np.cos(a), np.sin(a)])
            ids.append(canvas.begin(d, v.uniform(0.6, 0.9)))
            canvas.rod((x, y, d / 2), (x + reach[0], y + reach[1], d / 2), d / 2, d / 2)
        facts.broken = len(np.intersect1d(ids, visible(canvas)))


def _lying(stage: Stage, canvas: Canvas, facts: Facts, wires: _Wires) -> None:
    """Wires on the ground, a few or a tangled mat."""
    s, v = stage.specimen, stage.view
    kind, d = facts.kind, wires.diameter
    dense = kind == "mat"
    length = (s.uniform(0.5, 1.2) if dense else s.uniform(0.15, 0.6)) * canvas.width
    count = int(v.integers(40, 80)) if dense else int(v.integers(3, 22))
    facts.arrangement = "random"
    if s.random() < 0.25:
        facts.arrangement = "aligned"
    preferred = v.uniform(0, np.pi)
    facts.length_nm = length * canvas.nm if not dense else None
    layers = (count / 10 if dense else 0.6) * d
    centres = v.random((count, 2)) * (canvas.width, canvas.depth)
    for i, ((x, y), size) in enumerate(zip(centres, wires.diameters(v, count), strict=True)):
        a = v.normal(preferred, 0.12) if facts.arrangement == "aligned" else v.uniform(0, np.pi)
        z = size / 2 + layers * (i / count)
        half = length * v.uniform(0.7, 1.3) / 2
        canvas.begin(size, v.normal(1, 0.06) * (0.7 + 0.3 * i / count if dense else 1))
        rise = v.normal(0, 0.03) if dense else 0.0
        along = half * np.array([np.cos(a), np.sin(a), rise])
        centre = np.array([x, y, z])
        ends = [canvas.project(*(centre + sign * along)) for sign in (-1, 1)]
        _bent_wire(canvas, ends, v.normal(0, 0.10 if dense else 0.05) * half, size / 2)


def _course(rng, canvas: Canvas, angle: float, through, bend: float):
    """A gently bent course across the canvas: (path, steep) as `Canvas.strand` takes them."""
    steep = abs(np.tan(angle)) > 1
    n = canvas.height if steep else canvas.width
    slope = 1 / np.tan(angle) if steep else np.tan(angle)
    x, y = through
    t = np.arange(n, dtype=np.float32) - (y if steep else x)
    period = rng.uniform(0.7, 2.5) * n
    wave = bend * n * np.sin(2 * np.pi * t / period + rng.uniform(0, 6.3))
    wave += 0.3 * bend * n * np.sin(2 * np.pi * t * 2.3 / period + rng.uniform(0, 6.3))
    return (x if steep else y) + slope * t + wave, steep


def fibres(stage: Stage) -> Specimen:
    """Spun mats, a few fibres on a film, aligned bundles, woven yarns, flat ribbons."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"spun": 1.6, "few_fibres": 1.8, "bundle": 0.9, "woven": 0.8, "ribbons": 0.6})
    width_nm = log_uniform(s, 100, 25_000)
    spread = float(s.choice([0.06, 0.2, 0.4])) if kind != "woven" else 0.05
    ground_yield = s.uniform(0.25, 0.8) if kind == "few_fibres" else s.uniform(0.15, 0.4)
    bend = s.uniform(0.01, 0.09) * (0.3 if kind == "few_fibres" else 1)
    grooved = s.random() < 0.4
    beads = kind == "spun" and s.random() < 0.3
    across = {"woven": v.uniform(18, 36), "few_fibres": log_uniform(v, 2, 60)}.get(
        kind, log_uniform(v, 5, 70) if kind == "spun" else v.uniform(6, 32)
    )
    canvas = stage.canvas(width_nm * across)
    d = width_nm / canvas.nm
    facts = Facts(kind, dimension="width" if kind == "ribbons" else "diameter", rough=grooved)
    canvas.yields[0] = ground_yield
    canvas.z += (0.25 if kind == "few_fibres" else 0) * noise(v, canvas.shape, GRAINY)

    if kind == "woven":
        _weave(canvas, v, d, facts)
    else:
        _strands(stage, canvas, facts, d, spread, bend, beads)
    measure_objects(canvas, facts)
    if grooved:
        grain = noise(v, canvas.shape, GRAINY)
        canvas.z += s.uniform(0.04, 0.2) * min(d, 12) * smooth(grain, 0.8) * (canvas.owner > 0)
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def _strands(
    stage: Stage, canvas: Canvas, facts: Facts, d: float, spread: float, bend: float, beads: bool
) -> None:
    """Fibres across the whole field, one above the other."""
    s, v = stage.specimen, stage.view
    kind = facts.kind
    layers = {"few_fibres": 1.5, "bundle": 3.0}.get(kind, 7.0)
    fill = {"few_fibres": v.uniform(0.08, 0.2), "bundle": 1.6}.get(kind, v.uniform(0.8, 1.6))
    count = int(np.clip(fill * canvas.width / d, 2, 60))
    aligned = kind == "bundle" or (kind == "spun" and s.random() < 0.2)
    facts.arrangement = "aligned" if aligned else "random"
    preferred = v.uniform(0, np.pi)
    flat = s.uniform(0.2, 0.35) if kind == "ribbons" else 1.0
    for i in range(count):
        a = v.normal(preferred, 0.06) if aligned else v.uniform(0, np.pi)
        through = v.random(2) * (canvas.width, canvas.height)
        path, steep = _course(v, canvas, a, through, bend * (0.4 if aligned else 1))
        size = float(np.clip(d * np.exp(v.normal(0, spread)), 0.35 * d, 2.5 * d))
        t = np.arange(len(path)) / len(path)
        base = flat * size * 0.5 + layers * d * i / count
        height = base + 0.25 * d * np.sin(2 * np.pi * (v.uniform(0.5, 2) * t + v.random()))
        canvas.begin(size, v.normal(1, 0.05) * (0.55 + 0.45 * (i + 1) / count))
        canvas.strand(path, height, size / 2, steep, flat)
        if beads and v.random() < 0.35 and _bead(canvas, v, path, height, steep, size):
            facts.broken += 1
    if facts.broken:
        facts.shape = "beaded"


def _bead(canvas: Canvas, v, path, height, steep: bool, size: float) -> bool:
    """A swelling somewhere on a strand; returns whether it lies in the field."""
    k = int(v.integers(len(path)))
    x, y = (path[k], k) if steep else (k, path[k])
    if not (0 < x < canvas.width and 0 < y < canvas.height):
        return False
    axes = size * np.array([v.uniform(1.4, 2.2), 1.0, 1.0])
    angle = np.pi / 2 - np.arctan(np.gradient(path)[k])
    angle = angle if steep else np.pi / 2 - angle
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    canvas.ellipsoid(x, y, height[k], axes, turn)
    return True


def _weave(canvas: Canvas, v, d: float, facts: Facts) -> None:
    """A plain weave: yarns of parallel filaments pass over and under each other."""
    n = int(v.integers(4, 7))  # filaments of a yarn, side by side
    pitch = 1.15 * n * d
    amplitude = 1.3 * d
    facts.arrangement, facts.spacing_nm = "ordered", pitch * canvas.nm
    start = v.random(2) * pitch
    twist = v.uniform(-0.08, 0.08)
    for steep in (False, True):
        across = canvas.width if steep else canvas.height
        along = np.arange(canvas.height if steep else canvas.width, dtype=np.float32)
        origin, other = (start[0], start[1]) if steep else (start[1], start[0])
        for k in range(-1, int(across / pitch) + 2):
            phase = np.pi * (along - other) / pitch + np.pi * (k + (1 if steep else 0))
            swing = np.cos(phase)
            for j in range(n):
                offset = (j - (n - 1) / 2) * d * 0.98
                wobble = 0.25 * d * np.sin(along / (3.1 * pitch) * 6.3 + v.uniform(0, 6.3))
                path = origin + k * pitch + offset * (0.94 + 0.06 * swing) + wobble
                path = path + twist * (along - along.mean())
                bulge = np.sqrt(max(0.0, 1 - (2 * offset / (n * d)) ** 2)) * 1.2 * d
                canvas.begin(d, v.normal(1, 0.05))
                canvas.strand(path, amplitude * swing * 1.6 + bulge, d / 2 * 1.03, steep)


def tips(stage: Stage) -> Specimen:
    """A sharp cone before a dark chamber, or a pyramid on a cantilever."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"cone": 2, "blunt_cone": 0.8, "pyramid": 1})
    apex_nm = log_uniform(s, 20, 4000)
    half_angle = s.uniform(0.05, 0.22)
    rough = s.random() < 0.5
    if kind == "pyramid":
        return _pyramid_tip(stage, log_uniform(s, 1000, 20_000), s.uniform(0.5, 0.75))
    relative = v.uniform(4.5, 8) if kind == "blunt_cone" else v.uniform(12, 40)
    canvas = stage.canvas(apex_nm * relative)
    facts = Facts(kind, dimension="apex diameter", arrangement="single", rough=rough)
    facts.angle_deg = float(np.rad2deg(2 * half_angle))
    r = apex_nm / 2 / canvas.nm
    # Pointing anywhere but at a corner: from the apex inside the image out of its border.
    a = v.uniform(0, 2 * np.pi)
    apex = np.array([canvas.width, canvas.height]) * (0.5 + 0.28 * np.array([np.cos(a), np.sin(a)]))
    apex += v.normal(0, 0.04 * canvas.width, 2)
    back = -np.array([np.cos(a + v.normal(0, 0.25)), np.sin(a + v.normal(0, 0.25))])
    back /= np.linalg.norm(back)
    far = 1.6 * canvas.width
    canvas.z -= 3 * canvas.width  # nothing is behind it for a long way
    canvas.yields[0] = s.uniform(0.05, 0.25)
    canvas.begin(2 * r, 1.0)
    # The ball touches the flanks of the cone.
    joint = apex - back * r * np.sin(half_angle)
    rod0 = r * np.cos(half_angle)
    end = joint + far * back
    canvas.rod((*joint, 0), (*end, 0), rod0, rod0 + far * np.tan(half_angle))
    canvas.sphere(*apex, 0, r)
    seen = visible(canvas)
    facts.count = len(seen)
    facts.size_mean_nm = facts.size_min_nm = facts.size_max_nm = apex_nm
    facts.size_std_nm = 0.0
    facts.coverage = float(np.mean(canvas.owner > 0))
    facts.touching = 0.0
    body = canvas.owner > 0
    if rough:
        canvas.z += body * 0.7 * noise(v, canvas.shape, GRAINY)
    n_debris = 0
    if v.random() < 0.2 + 0.4 * stage.difficulty:
        for _ in range(v.integers(1, 4)):
            t = v.uniform(0.1, 0.5) * canvas.width
            radius = v.uniform(0.012, 0.03) * canvas.width
            side = (
                np.array([-back[1], back[0]]) * (rod0 + t * np.tan(half_angle)) * v.choice([-1, 1])
            )
            x, y = joint + t * back + side * v.uniform(0.5, 1.0)
            if radius < x < canvas.width - radius and radius < y < canvas.height - radius:
                canvas.begin(2 * radius, 1.2)
                canvas.sphere(x, y, rod0 + 0.5 * t * np.tan(half_angle), radius)
                n_debris += 1
    facts.debris = n_debris
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def _pyramid_tip(stage: Stage, height_nm: float, slope: float) -> Specimen:
    """A four-sided pyramid near the end of a cantilever, seen at a tilt."""
    s, v = stage.specimen, stage.view
    tilt_deg = float(v.uniform(25, 65))
    canvas = stage.canvas(height_nm * v.uniform(2.2, 5), tilt_deg)
    facts = Facts("pyramid", dimension="height", arrangement="single", tilt_deg=tilt_deg)
    h = height_nm / canvas.nm
    base = slope * h  # half width at the foot
    canvas.z -= 4 * canvas.width
    canvas.yields[0] = s.uniform(0.05, 0.3)
    width = base * s.uniform(1.6, 3)
    foot = np.array([0.5 * canvas.width, 0.5 * canvas.height / canvas.cos])
    foot += v.normal(0, 0.05 * canvas.width, 2)
    foot[1] += 0.35 * h * canvas.sin / canvas.cos
    turn = v.uniform(-0.5, 0.5) + v.choice([0, np.pi / 2, np.pi, -np.pi / 2])
    across, along = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    # The lever: a slab that ends a little beyond the pyramid.
    end, back = base * s.uniform(1.2, 2), 3.0 * canvas.width
    thick = s.uniform(0.1, 0.3) * base
    centre = foot - along * (back - end) / 2
    normals = np.array(
        [[*across, 0], [*-across, 0], [*along, 0], [*-along, 0], [0, 0, 1], [0, 0, -1]]
    )
    half = (back + end) / 2
    canvas.begin(2 * width, 0.75)
    lever = canvas.rotate(normals)
    canvas.polyhedron(
        *canvas.project(*centre, -thick), lever, [width, width, half, half, thick, thick]
    )
    tip = canvas.begin(height_nm / canvas.nm, 1.0)
    lean = np.arctan(slope)
    side = np.array([[*(d * np.cos(lean)), np.sin(lean)] for d in (across, -across, along, -along)])
    normals = canvas.rotate(np.concatenate([side, [[0, 0, -1]]]))
    # Around the middle of the foot: flanks at base * cos(lean), the foot itself at 0.
    flank = base * np.cos(lean)
    canvas.polyhedron(
        *canvas.project(*foot, 0), normals, [flank, flank, flank, flank, 1e-3], reach=1.5 * h + base
    )
    facts.count = int(tip in visible(canvas))
    facts.size_mean_nm = facts.size_min_nm = facts.size_max_nm = height_nm
    facts.size_std_nm = 0.0
    facts.length_nm = 2 * width * canvas.nm
    facts.angle_deg = float(np.rad2deg(2 * lean))
    facts.coverage = float(np.mean(canvas.owner > 0))
    facts.touching = 0.0
    facts.debris = sprinkle(canvas, v, stage.difficulty, lowest=-2.0 * canvas.width)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))
