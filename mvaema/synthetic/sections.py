"""Thin sections and sheets for the transmission microscope: stained cells, layer stacks, flakes."""

import numpy as np

from mvaema.synthetic.canvas import CLOUDY, GRAINY, Canvas, bumps, noise, smooth
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    log_uniform,
    measure_objects,
    measure_sizes,
    scatter,
)
from mvaema.synthetic.surfaces import bend, jittered, measure_cells
from mvaema.synthetic.transmission import support_film


def stained(stage: Stage) -> Specimen:
    """Biological specimens as a transmission microscope shows them."""
    kinds = {
        "cell_section": (_cell_section, 2.0),
        "fibre_section": (_fibre_section, 1.3),
        "bacteria_section": (_bacteria_section, 1.4),
        "virus": (_virus, 1.0),
        "whole_bacterium": (_whole_bacterium, 0.6),
    }
    kind = choose(stage.specimen, {name: weight for name, (_, weight) in kinds.items()})
    return kinds[kind][0](stage, kind)


def _oval(canvas: Canvas, x, y, a, b, angle):
    """A window around an ellipse, and in it the normalised radius (1 at the rim), or None."""
    reach = max(a, b) * 1.4
    window = canvas.window(x - reach, x + reach, y - reach, y + reach)
    if window is None:
        return None
    dx, dy = canvas.xs[:, window[1]] - np.float32(x), canvas.ys[window[0]] - np.float32(y)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    p, q = dx * c + dy * s, dy * c - dx * s
    return window, np.sqrt((p / np.float32(a)) ** 2 + (q / np.float32(b)) ** 2), p, q


def _cell_section(stage: Stage, kind: str) -> Specimen:
    """Stained tissue: processes of cells with dark membranes, mitochondria and vesicles."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 300, 2500)
    canvas = stage.canvas(size_nm * v.uniform(4, 14))
    d = size_nm / canvas.nm
    points = jittered(v, canvas, d, 0.34)
    # Thick processes among thin ones.
    points = points[v.random(len(points)) < v.uniform(0.6, 1)]
    edge, index = canvas.cells(points)
    rows, columns = bend(v, canvas, 0.16 * d, 0.6 * d)
    edge, index = smooth(edge, 0.05 * d)[rows, columns], index[rows, columns]
    n = len(points)
    matrix = v.normal(0.22, 0.1, n).clip(0.05, 0.6).astype(np.float32)
    wall = np.float32(max(1.0, v.uniform(0.015, 0.035) * d))
    edge = np.maximum(edge - float(np.percentile(edge, 3)), 0)
    mass = matrix[index] + v.uniform(0.05, 0.16) * noise(v, canvas.shape, GRAINY)
    mass += v.uniform(0.6, 1.1) * np.exp(-((edge / wall) ** 2))
    inner = edge > 1.5 * wall
    for _ in range(int(v.uniform(0.2, 1.4) * (canvas.width / d) ** 2) + 1):
        x, y = v.random(2) * (canvas.width, canvas.height)
        a = d * v.uniform(0.14, 0.32)
        _mitochondrion(canvas, mass, inner, v, x, y, a, a * v.uniform(0.4, 0.9))
    _vesicles(canvas, mass, inner, v, d)
    canvas.mass = np.maximum(mass, 0).astype(np.float32)
    canvas.owner = (index + 1) * (edge > wall)
    facts = Facts(kind, technique=stage.technique, arrangement="packed", substrate=False)
    facts.dimension = "equivalent diameter"
    measure_cells(facts, index, edge > wall, n, canvas.nm)
    facts.coverage, facts.touching = 1.0, 1.0
    return Specimen(canvas, facts, film=0.0)


def _mitochondrion(canvas, mass, inner, v, x, y, a, b) -> None:
    oval = _oval(canvas, x, y, a, b, v.uniform(0, np.pi))
    if oval is None:
        return
    window, r, p, _ = oval
    here = (r < 1) & inner[window]
    period = max(2.5, a * v.uniform(0.22, 0.4))
    cristae = 0.5 + 0.3 * np.cos(2 * np.pi * p / period)
    skin = 0.6 * np.exp(-(((r - 0.95) * min(a, b) / 1.5) ** 2))
    np.copyto(mass[window], (cristae + skin).astype(np.float32), where=here)


def _vesicles(canvas, mass, inner, v, d) -> None:
    radius = max(1.6, d * v.uniform(0.03, 0.06))
    for _ in range(int(v.integers(0, 5))):
        middle = v.random(2) * (canvas.width, canvas.height)
        for x, y in middle + v.normal(0, 0.2 * d, (int(v.integers(4, 16)), 2)):
            oval = _oval(canvas, x, y, radius, radius, 0.0)
            if oval is None:
                continue
            window, r, *_ = oval
            ring = 0.25 + 0.55 * np.exp(-(((r - 0.85) / 0.3) ** 2))
            np.copyto(mass[window], ring.astype(np.float32), where=(r < 1.15) & inner[window])


def _fibre_section(stage: Stage, kind: str) -> Specimen:
    """Nerve fibres cut across: light axons in dark rings of myelin."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 500, 3000)
    thick = s.uniform(0.04, 0.12)
    canvas = stage.canvas(size_nm * v.uniform(3, 9))
    d = size_nm / canvas.nm
    stretch = v.uniform(1, 1.8)
    points = jittered(v, canvas, d, 0.25)
    edge, index = canvas.cells(points)
    rows, columns = bend(v, canvas, 0.09 * d, 0.7 * d)
    rows = np.clip((rows / stretch), 0, canvas.height - 1).astype(np.int32)
    edge, index = smooth(edge, 0.06 * d)[rows, columns], index[rows, columns]
    n = len(points)
    gap = v.uniform(0.01, 0.06, n).astype(np.float32)[index] * d
    ring = v.normal(thick, 0.3 * thick, n).clip(0.03).astype(np.float32)[index] * d
    axon, myelin = edge > gap + ring, (edge > gap) & (edge <= gap + ring)
    mass = v.uniform(0.25, 0.6) + 0.12 * noise(v, canvas.shape, GRAINY)
    mass += 0.1 * noise(v, canvas.shape, CLOUDY)
    light = v.normal(0.14, 0.05, n).clip(0.02).astype(np.float32)[index]
    mass = np.where(axon, light + 0.07 * noise(v, canvas.shape, GRAINY), mass)
    mass = np.where(myelin, np.float32(v.uniform(0.8, 1.1)), mass)
    for i in v.permutation(n)[: n // 2]:
        x, y = points[i] * (1, stretch) + v.normal(0, 0.1 * d, 2)
        a = d * v.uniform(0.06, 0.14)
        _mitochondrion(canvas, mass, axon, v, x, y, a, a * v.uniform(0.5, 1))
    canvas.mass = np.maximum(mass, 0).astype(np.float32)
    canvas.owner = (index + 1) * axon
    facts = Facts(kind, technique=stage.technique, arrangement="packed", substrate=False)
    facts.dimension = "equivalent diameter"
    measure_cells(facts, index, axon, n, canvas.nm)
    facts.coverage, facts.touching = 1.0, 0.5
    return Specimen(canvas, facts, film=0.0)


def _bacteria_section(stage: Stage, kind: str) -> Specimen:
    """Bacteria cut across: dark granular plasm, a light nucleoid, a wall."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 400, 1500)
    aspect, halo = s.uniform(1, 2.4), s.random() < 0.5
    canvas = stage.canvas(size_nm * v.uniform(1.4, 6))
    d = size_nm / canvas.nm
    mass = v.uniform(0.02, 0.3) + 0.04 * noise(v, canvas.shape, GRAINY)
    mass = np.broadcast_to(mass, canvas.shape).astype(np.float32)
    grain = noise(v, canvas.shape, GRAINY)
    cloud = noise(v, canvas.shape, CLOUDY, max(0.5, d / 60))
    places = scatter(v, int(v.integers(2, 22)), canvas.width, canvas.height, 1.05 * d)
    facts = Facts(kind, technique=stage.technique, arrangement="random", dimension="width")
    for x, y in places:
        b = d / 2 * np.exp(v.normal(0, 0.12))
        a = b * np.exp(abs(v.normal(0, 0.6 * np.log(aspect) + 0.05)))
        canvas.begin(2 * b)
        oval = _oval(canvas, x, y, a, b, v.uniform(0, np.pi))
        if oval is None:
            continue
        window, r, *_ = oval
        r = r + 0.05 * cloud[window]
        plasm = 0.62 + 0.14 * grain[window]
        core = np.clip((cloud[window] - 0.2) * 3, 0, 1) * np.clip((0.75 - r) * 5, 0, 1)
        body = plasm * (1 - 0.65 * core) + 0.4 * np.exp(-(((r - 0.95) * b / 1.6) ** 2))
        inside = r < 1
        if halo:
            light = (r < 1.16) & ~inside
            np.copyto(mass[window], np.float32(0.03), where=light)
        np.copyto(mass[window], body.astype(np.float32), where=inside)
        np.copyto(canvas.owner[window], len(canvas.sizes) - 1, where=inside)
        canvas.drawn[-1] = int(inside.sum())
    canvas.mass = np.maximum(mass, 0)
    measure_objects(canvas, facts)
    return Specimen(canvas, facts, film=0.0)


def _virus(stage: Stage, kind: str) -> Specimen:
    """Negatively stained particles: light, with a dark halo of stain around them."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 15, 150)
    ring = s.random() < 0.6
    canvas = stage.canvas(size_nm * v.uniform(7, 22))
    d = size_nm / canvas.nm
    mass = 0.4 + 0.12 * noise(v, canvas.shape, CLOUDY) + 0.05 * noise(v, canvas.shape, GRAINY)
    mass = np.array(mass, np.float32)
    count = int(v.integers(3, 45))
    places = scatter(v, count, canvas.width, canvas.height, 1.05 * d)
    facts = Facts(kind, technique=stage.technique, arrangement="random")
    for x, y in places:
        size = d * np.exp(v.normal(0, 0.06))
        canvas.begin(size)
        oval = _oval(canvas, x, y, size * 0.5, size * 0.5 * v.uniform(0.85, 1), v.uniform(0, 3.1))
        if oval is None:
            continue
        window, r, *_ = oval
        mass[window] += (0.55 * np.exp(-(((r - 1.12) / 0.2) ** 2))).astype(np.float32)
        inner = 0.45 if ring else 0.0
        mass[window] -= (0.5 * np.clip((1.05 - r) * 6, 0, 1)).astype(np.float32)
        mass[window] += (inner * np.clip((0.62 - r) * 6, 0, 1)).astype(np.float32)
        inside = r < 1
        np.copyto(canvas.owner[window], len(canvas.sizes) - 1, where=inside)
        canvas.drawn[-1] = int(inside.sum())
    canvas.mass = np.maximum(mass, 0)
    measure_objects(canvas, facts)
    facts.two_materials = "brighter" if stage.technique == "TEM" else "darker"
    return Specimen(canvas, facts, film=0.0)


def _whole_bacterium(stage: Stage, kind: str) -> Specimen:
    """One or a few whole bacteria on a support film, some with flagella."""
    s, v = stage.specimen, stage.view
    width_nm, aspect = log_uniform(s, 300, 1000), s.uniform(1.4, 4.5)
    curved, flagella = s.uniform(0, 0.25), s.random() < 0.5
    canvas = stage.canvas(width_nm * aspect * v.uniform(1.3, 4))
    d = width_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique, dimension="width", shape="rod-shaped")
    facts.length_nm = width_nm * aspect
    for x, y in scatter(
        v, int(v.integers(1, 6)), 0.8 * canvas.width, 0.8 * canvas.height, 0.8 * aspect * d
    ):
        x, y, a = x + 0.1 * canvas.width, y + 0.1 * canvas.height, v.uniform(0, np.pi)
        size = d * np.exp(v.normal(0, 0.06))
        canvas.begin(size)
        along, side = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
        t = np.linspace(-1, 1, 14)[:, None]
        spine = (x, y) + 0.5 * (aspect - 1) * size * (t * along + 2 * curved * (t * t - 0.5) * side)
        top = np.zeros(canvas.shape, np.float32)
        for px, py in spine:
            r2 = (canvas.xs - np.float32(px)) ** 2 + (canvas.ys - np.float32(py)) ** 2
            np.maximum(top, np.maximum(np.float32(size * size / 4) - r2, 0), out=top)
        canvas.paint((slice(None), slice(None)), np.sqrt(top), top > 0, np.sqrt(top))
        if flagella:
            body = canvas.yields[-1], canvas.drawn[-1]
            for _ in range(int(v.integers(1, 4))):
                _flagellum(canvas, v, spine[0], a, aspect * d)
            canvas.yields[-1], canvas.drawn[-1] = body
    canvas.mass *= 1 + 0.18 * noise(v, canvas.shape, CLOUDY)
    measure_objects(canvas, facts)
    facts.two_materials = "darker" if stage.technique == "TEM" else "brighter"
    return Specimen(canvas, facts, film=support_film(canvas, v, "plain"))


def _flagellum(canvas: Canvas, v, start, angle: float, length: float) -> None:
    """A thin wavy thread that leaves a cell at its end."""
    n = int(length * v.uniform(0.5, 1.2))
    t = np.arange(n, dtype=np.float32)
    wave = 0.08 * length * np.sin(2 * np.pi * t / (0.45 * length) + v.uniform(0, 6.3))
    steep = abs(np.tan(angle)) > 1
    slope = (1 / np.tan(angle) if steep else np.tan(angle)) + v.normal(0, 0.2)
    x, y = start
    first, base = (int(y), x) if steep else (int(x), y)
    owner = canvas.owner.copy()
    canvas.yields[-1] = 1.5
    back = v.random() < 0.5
    path = base + slope * (t - (n if back else 0)) + wave
    canvas.strand(path, np.zeros(n), 1.1, steep, first=first - (n if back else 0))
    canvas.owner = owner  # the thread does not count as body


def thin_films(stage: Stage) -> Specimen:
    """Stacks of layers in cross-section, and thin sheets lying on a holey support."""
    kind = choose(stage.specimen, {"layer_section": 1.5, "thin_sheet": 1})
    return (_layer_section if kind == "layer_section" else _thin_sheet)(stage, kind)


def _layer_section(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    layers = int(s.integers(1, 6))
    thick_nm = log_uniform(s, 3, 200) * np.exp(s.normal(0, 0.5, layers))
    canvas = stage.canvas(float(thick_nm.sum()) * v.uniform(1.5, 3.2))
    tones = s.permutation(np.linspace(0.08, 1.0, layers + 2)).astype(np.float32)
    columnar = s.random(layers + 2) < 0.45
    flip = v.random() < 0.3
    angle = v.normal(0, 0.08)
    u = canvas.ys - np.tan(angle) * (canvas.xs - canvas.width / 2)
    u = canvas.height - u if flip else u
    mass, labels = np.full(canvas.shape, tones[0]), np.zeros(canvas.shape, np.int32)
    start = v.uniform(0.08, 0.3) * canvas.height
    for i in range(layers + 1):
        border = start + v.uniform(0.2, 2.5) * noise(v, canvas.shape, CLOUDY)[:1]
        here = u > border
        tone = tones[i + 1] + 0.03 * noise(v, canvas.shape, GRAINY)
        if columnar[i + 1]:
            column = smooth(noise(v, canvas.shape, GRAINY), 1.5)[0][None]
            tone = tone * (1 + 0.22 * column + 0.1 * noise(v, canvas.shape, CLOUDY))
        np.copyto(mass, tone.astype(np.float32), where=here)
        labels[here] = i + 1
        start += thick_nm[i] / canvas.nm if i < layers else 0
    canvas.mass, canvas.owner = np.maximum(mass, 0).astype(np.float32), labels
    facts = Facts(kind, technique=stage.technique, dimension="thickness", arrangement="stacked")
    facts.count, facts.shape = layers, str(layers)
    measure_sizes(thick_nm, facts)
    facts.coverage = float(np.mean((labels > 0) & (labels <= layers)))
    facts.touching = 1.0
    return Specimen(canvas, facts, film=0.0)


def _thin_sheet(stage: Stage, kind: str) -> Specimen:
    """A crumpled sheet a few atoms thick, with folds, over a support with holes."""
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 100, 4000)
    canvas = stage.canvas(width_nm * v.uniform(0.8, 2.5))
    d = width_nm / canvas.nm
    outline = bumps(v, canvas.shape, 0.5 * d) + 0.2 * noise(v, canvas.shape, CLOUDY)
    inside = outline > v.uniform(-1.2, 0.4)
    mass = np.where(inside, np.float32(0.3), np.float32(0))
    for _ in range(int(v.integers(1, 5))):
        crease = bumps(v, canvas.shape, canvas.width * v.uniform(0.2, 0.7))
        width = v.uniform(0.02, 0.06)
        mass += inside * v.uniform(0.2, 0.7) * np.exp(-(((crease - v.normal(0, 0.6)) / width) ** 2))
    mass += inside * 0.05 * noise(v, canvas.shape, GRAINY)
    canvas.mass = np.maximum(mass, 0).astype(np.float32)
    canvas.owner = inside.astype(np.int32)
    facts = Facts(kind, technique=stage.technique, arrangement="single", touching=0.0)
    facts.coverage = float(inside.mean())
    facts.substrate = facts.coverage < 0.97
    film = support_film(canvas, v, choose(v, {"holes": 1, "lace": 1, "plain": 0.6}))
    return Specimen(canvas, facts, film=film)
