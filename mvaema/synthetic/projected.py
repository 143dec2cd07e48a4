"""What a transmission microscope shows: nanoparticles, wires and networks on a thin support."""

import numpy as np
from scipy import ndimage

from mvaema.synthetic.aggregates import grow
from mvaema.synthetic.canvas import CLOUDY, GRAINY, Canvas, bumps, noise, smooth
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    lattice,
    log_uniform,
    measure_objects,
    rotation,
    scatter,
)
from mvaema.synthetic.surfaces import measure_cells
from mvaema.synthetic.transmission import support_film

_BODIES = {
    "cubic": np.concatenate([np.eye(3), -np.eye(3)]),
    "octahedral": np.array([[i, j, k] for i in (1, -1) for j in (1, -1) for k in (1, -1)]) / 3**0.5,
}
_BODIES["truncated"] = np.concatenate([_BODIES["cubic"], _BODIES["octahedral"]])


def _support(stage: Stage, canvas: Canvas) -> np.ndarray | float:
    kind = choose(stage.view, {"plain": 5, "holes": 0.7, "lace": 0.8})
    return support_film(canvas, stage.view, kind)


def _fringes(stage: Stage, canvas: Canvas, period: float, depth: float, chance: float) -> None:
    """Modulate the mass of the objects by parallel fringes, each object by its own."""
    v, n = stage.view, len(canvas.sizes)
    angle = v.uniform(0, np.pi, n)
    shows = np.where(v.random(n) < chance, depth, 0.0)
    shows[0] = 0
    k = 2 * np.pi / period * np.stack([np.cos(angle), np.sin(angle)])
    k = (k * np.exp(v.normal(0, 0.12, n))).astype(np.float32)
    owner = canvas.owner
    phase = k[0][owner] * canvas.xs + k[1][owner] * canvas.ys
    canvas.mass *= 1 + shows.astype(np.float32)[owner] * np.cos(phase)


def nanoparticles(stage: Stage) -> Specimen:
    """Particles on a support film: apart, in layers and chains, in aggregates, at high
    magnification with their lattice."""
    kind = choose(
        stage.specimen,
        {
            "nanospheres": 3,
            "nanocrystals": 2.5,
            "nanorods": 1.2,
            "core_shells": 1.2,
            "aggregates": 2,
            "supported_particles": 1.6,
            "lattice_crystals": 1.2,
            "faint_dots": 1.2,
            "vesicles": 0.8,
        },
    )
    if kind == "aggregates":
        return _aggregates(stage, kind)
    if kind == "supported_particles":
        return _supported(stage, kind)
    if kind == "lattice_crystals":
        return _lattice_crystals(stage, kind)
    return _separate(stage, kind)


def _places(stage: Stage, canvas: Canvas, arrangement: str, d: float, count: int) -> np.ndarray:
    v = stage.view
    width, height = canvas.width, canvas.height
    if arrangement == "packed":
        points = lattice(d * v.uniform(1.02, 1.25), width, height, v.uniform(0, 1), True, d)
        points = points + v.normal(0, 0.06 * d, points.shape)
        # A layer that ends somewhere in the field, with gaps.
        field = bumps(v, canvas.shape, canvas.width * v.uniform(0.15, 0.6))
        x, y = np.clip(points, 0, (width - 1, height - 1)).astype(int).T
        return points[field[y, x] > v.uniform(-2.5, 0.2)]
    if arrangement == "scattered":
        return scatter(v, count, width, height, 1.08 * d)
    if arrangement == "clustered":
        return grow(v, canvas, count, d, int(v.integers(1, 7)), v.uniform(0, 1))[:, :2]
    return v.random((count, 2)) * (width + d, height + d) - d / 2


def _separate(stage: Stage, kind: str) -> Specimen:
    """Bodies of one shape, apart or touching."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 1.5, 12) if kind == "faint_dots" else log_uniform(s, 4, 700)
    spread = float(s.choice([0.03, 0.08, 0.15, 0.3]))
    shape = choose(s, {"cubic": 1, "octahedral": 1, "truncated": 1.4})
    spread = 0.5 if kind == "vesicles" else spread
    aspect = s.uniform(1.6, 6)
    shell = s.uniform(0.12, 0.4)
    crystal = s.uniform(0, 0.5) if s.random() < 0.7 else 0.0
    options = {"packed": 1.3, "scattered": 1.2, "clustered": 1.4, "random": 0.8}
    arrangement = choose(s, options)
    most = 12 if kind in ("vesicles", "core_shells") else 26
    ratio = v.uniform(14, 60) if kind == "faint_dots" else log_uniform(v, 2.5, most)
    canvas = stage.canvas(size_nm * ratio * (aspect**0.5 if kind == "nanorods" else 1))
    d = size_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique)
    facts.arrangement = "random" if arrangement == "scattered" else arrangement
    # A rod's neighbours lie beside it, so its length does not set the pitch.
    pitch = d * {"nanorods": (1 + aspect) / 2, "nanocrystals": 1.2}.get(kind, 1.0)
    filling = v.uniform(0.04, 0.45)
    count = int(np.clip(filling * canvas.width * canvas.height / pitch**2, 2, 220))
    points = _places(stage, canvas, arrangement, pitch, count)[:260]
    sizes = np.clip(d * np.exp(v.normal(0, spread, len(points))), 0.35 * d, 2.5 * d)
    preferred, aligned = v.uniform(0, np.pi), v.random() < 0.4
    for (x, y), size in zip(points, sizes, strict=True):
        density = float(np.exp(v.normal(0, crystal)))
        canvas.begin(size, density)
        place = (x, y, size / 2)
        if kind == "nanocrystals":
            faces = _BODIES[shape] @ rotation(v).T
            offsets = np.full(len(faces), 0.5 * size) * (1 if shape != "octahedral" else 0.816)
            canvas.polyhedron(*place, faces, offsets, reach=0.9 * size)
        elif kind == "nanorods":
            a = v.normal(preferred, 0.12) if aligned else v.uniform(0, np.pi)
            dx, dy = 0.5 * size * (aspect - 1) * np.array([np.cos(a), np.sin(a)])
            ends = (x - dx, y - dy, size / 2), (x + dx, y + dy, size / 2)
            canvas.capsule(*ends, size / 2)
        elif kind in ("core_shells", "vesicles"):
            _shell(canvas, kind, place, size, shell)
        else:
            canvas.sphere(*place, size / 2)
    if kind == "nanorods":
        facts.length_nm = size_nm * aspect
    if kind == "nanocrystals":
        facts.dimension, facts.shape = "size", "cubic" if shape == "cubic" else "faceted"
    measure_objects(canvas, facts)
    if crystal > 0.2 and kind in ("nanospheres", "nanocrystals"):
        _fringes(stage, canvas, d * v.uniform(0.35, 1.5), v.uniform(0.1, 0.5), 0.4)
    return _finish(stage, canvas, facts, _support(stage, canvas))


def _shell(canvas: Canvas, kind: str, place, size: float, shell: float) -> None:
    """A heavy core in a light shell, or a bag with a thin skin."""
    density, outer = canvas.yields[-1], size / 2
    hollow = kind == "vesicles"
    canvas.yields[-1] = density * (1.0 if hollow else 0.25)
    canvas.sphere(*place, outer)
    inner = (
        max(outer - max(1.5, 0.12 * shell * size), 0.2 * outer) if hollow else outer - shell * outer
    )
    canvas.yields[-1] = density * (-0.95 if hollow else 1.0)
    drawn = canvas.drawn[-1]
    canvas.sphere(*place, inner)
    canvas.drawn[-1], canvas.yields[-1] = drawn, density


def _aggregates(stage: Stage, kind: str) -> Specimen:
    """Hundreds of small spheres stuck together into branched clusters."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 4, 120)
    spread, loose = s.uniform(0.05, 0.3), s.random() ** 0.5
    crystal = s.uniform(0, 0.6)
    canvas = stage.canvas(size_nm * log_uniform(v, 8, 40))
    d = size_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique, arrangement="clustered")
    fill = v.uniform(0.3, 1.6)
    count = int(np.clip(fill * canvas.width * canvas.height / (d * d), 20, 900))
    x, y, z = grow(v, canvas, count, d, int(v.integers(1, 6)), loose).T
    radius = d / 2 * np.exp(np.clip(v.normal(0, spread, count), -0.7, 0.5))
    canvas.spheres(x, y, z, radius, np.exp(v.normal(0, crystal, count)))
    measure_objects(canvas, facts)
    return _finish(stage, canvas, facts, _support(stage, canvas))


def _supported(stage: Stage, kind: str) -> Specimen:
    """Small heavy particles on larger, lighter grains, as in a catalyst."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 1.5, 15)
    ratio, heavy = s.uniform(3, 9), s.uniform(1.5, 5)
    smooth_grains = s.random() < 0.5
    canvas = stage.canvas(size_nm * v.uniform(15, 60))
    d = size_nm / canvas.nm
    grain = ratio * d
    facts = Facts(kind, technique=stage.technique)
    n = int(np.clip(v.uniform(0.4, 1.3) * canvas.width * canvas.height / grain**2, 2, 60))
    centres = v.random((n, 2)) * (canvas.width, canvas.height)
    centres = centres * 0.8 + 0.1 * canvas.width if v.random() < 0.5 else centres
    for x, y in centres:
        canvas.begin(grain, float(np.exp(v.normal(0, 0.35))) / ratio)
        size = grain * np.exp(v.normal(0, 0.25))
        turn = rotation(v)
        if smooth_grains:
            canvas.ellipsoid(x, y, grain, size / 2 * v.uniform(0.6, 1.1, 3), turn)
        else:
            faces = _BODIES["truncated"] @ turn.T
            canvas.polyhedron(x, y, grain, faces, size / 2 * v.uniform(0.7, 1.1, len(faces)))
    carrier = canvas.owner > 0
    count = int(np.clip(v.uniform(0.02, 0.12) * canvas.width * canvas.height / d**2, 6, 300))
    points = v.random((4 * count, 2)) * (canvas.width - 1, canvas.height - 1)
    on = carrier[points[:, 1].astype(int), points[:, 0].astype(int)]
    points = points[on | (v.random(len(points)) < 0.04)][:count]
    first = len(canvas.sizes)
    if len(points):
        radius = d / 2 * np.exp(np.clip(v.normal(0, 0.25, len(points)), -0.7, 0.6))
        canvas.spheres(
            *points.T, np.full(len(points), 3 * grain), radius, np.full(len(points), heavy)
        )
    seen = np.asarray(canvas.drawn) >= 14
    measure_objects(canvas, facts, np.flatnonzero(seen & (np.arange(len(seen)) >= first)))
    facts.touching, facts.substrate = None, True
    return _finish(stage, canvas, facts, _support(stage, canvas))


def _lattice_crystals(stage: Stage, kind: str) -> Specimen:
    """A few crystals so near that their lattice planes show."""
    s, v = stage.specimen, stage.view
    size_nm, spacing_nm = log_uniform(s, 3, 25), s.uniform(0.19, 0.42)
    wanted = spacing_nm * v.uniform(22, 62)  # 3.5 to 10 pixels a plane
    canvas = stage.canvas(wanted)
    d = size_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique, arrangement="random", rough=False)
    count = int(np.clip(v.uniform(0.3, 1.2) * (canvas.width / d) ** 2, 1, 40))
    for x, y in v.uniform(0.05, 0.95, (count, 2)) * (canvas.width, canvas.height):
        size = d * np.exp(v.normal(0, 0.2))
        canvas.begin(size, float(np.exp(v.normal(0, 0.3))))
        canvas.ellipsoid(x, y, size, size / 2 * v.uniform(0.75, 1.15, 3), rotation(v))
    measure_objects(canvas, facts)
    facts.spacing_nm = spacing_nm
    canvas.mass = smooth(canvas.mass, 1.5)
    _planes(stage, canvas, spacing_nm / canvas.nm, v.uniform(0.15, 0.5))
    return _finish(stage, canvas, facts, 1.0)


def _planes(stage: Stage, canvas: Canvas, period: float, depth: float) -> None:
    """Lattice planes of one spacing in every object, a second set in some."""
    v, n = stage.view, len(canvas.sizes)
    angle = v.uniform(0, np.pi, n).astype(np.float32)
    second = (v.random(n) < 0.5).astype(np.float32)
    k = np.float32(2 * np.pi / period)
    owner, top = canvas.owner, canvas.mass.max()
    a, b = angle[owner], angle[owner] + np.float32(np.pi / 2.6)
    wave = np.cos(k * (np.cos(a) * canvas.xs + np.sin(a) * canvas.ys))
    wave += second[owner] * np.cos(k * (np.cos(b) * canvas.xs + np.sin(b) * canvas.ys))
    canvas.mass += (
        np.float32(depth) * top * (0.6 + wave) * 0.5 * smooth((owner > 0) * np.float32(1), 2)
    )


def thin_wires(stage: Stage) -> Specimen:
    """Wires, tubes and fibrils on a support film."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"crossed_wires": 1.6, "tubes": 1, "fibrils": 1.6, "coated_wires": 0.9})
    diameter_nm = log_uniform(s, 4, 20) if kind == "fibrils" else log_uniform(s, 8, 250)
    spread, bend = s.uniform(0.03, 0.25), s.choice([0.02, 0.08, 0.25])
    wall = s.uniform(0.15, 0.35)
    across = v.uniform(40, 110) if kind == "fibrils" else log_uniform(v, 5, 60)
    canvas = stage.canvas(diameter_nm * across)
    d = diameter_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique, arrangement="random")
    count = int(np.clip(v.uniform(0.1, 1.1) * canvas.width / d, 2, 60))
    aligned = v.random() < 0.3
    facts.arrangement = "aligned" if aligned else "random"
    preferred = v.uniform(0, np.pi)
    length = max(v.choice([0.3, 0.6, 2.5]) * canvas.width, 12 * d)
    for _ in range(count):
        size = float(np.clip(d * np.exp(v.normal(0, spread)), 0.4 * d, 2.2 * d))
        a = v.normal(preferred, 0.15) if aligned else v.uniform(0, np.pi)
        canvas.begin(size, float(np.exp(v.normal(0, 0.2))))
        path, steep, first = _winding(v, canvas, a, length * v.uniform(0.6, 1.4), bend)
        height = np.full(len(path), size / 2, np.float32)
        canvas.strand(path, height, size / 2, steep, first=first)
        if kind == "tubes":
            drawn, density = canvas.drawn[-1], canvas.yields[-1]
            canvas.yields[-1] = -0.8 * density
            canvas.strand(path, height, size / 2 * (1 - 2 * wall), steep, first=first)
            canvas.drawn[-1], canvas.yields[-1] = drawn, density
        elif kind == "coated_wires":
            _grains_on(canvas, v, path, steep, first, size)
    measure_objects(canvas, facts)
    return _finish(stage, canvas, facts, _support(stage, canvas))


def _winding(rng, canvas: Canvas, angle: float, length: float, bend: float):
    """A bent course: (path, steep, first) as `Canvas.strand` takes them."""
    steep = abs(np.tan(angle)) > 1
    along = canvas.height if steep else canvas.width
    breadth = canvas.width if steep else canvas.height
    slope = 1 / np.tan(angle) if steep else np.tan(angle)
    n = int(np.clip(length * np.cos(np.arctan(slope)), 8, 2 * along))
    first = int(rng.uniform(-0.7 * n, along - 0.3 * n))
    t = np.arange(n, dtype=np.float32)
    middle = rng.uniform(0, breadth)
    wave = np.zeros(n, np.float32)
    for k in range(1, 4):
        period = rng.uniform(0.3, 1.4) * along / k
        wave += bend * period / 2 * np.sin(2 * np.pi * t / period + rng.uniform(0, 6.3)) / k**0.5
    return middle + slope * (t - n / 2) + wave, steep, first


def _grains_on(canvas: Canvas, v, path, steep: bool, first: int, size: float) -> None:
    """Small grains along a wire, part of it."""
    n = int(np.clip(len(path) / size * 5, 4, 160))
    at = v.integers(0, len(path), n)
    side = path[at] + v.normal(0, 0.35 * size, n)
    x, y = (side, at + first) if steep else (at + first, side)
    radius = size * np.exp(v.normal(-1.7, 0.25, n))
    for a, b, r in zip(x, y, radius, strict=True):
        canvas.sphere(a, b, size, r)


def networks(stage: Stage) -> Specimen:
    """Open networks of fused grains, and films full of holes."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"open_network": 1.5, "holey_sheet": 1})
    pore_nm = log_uniform(s, 10, 800)
    canvas = stage.canvas(pore_nm * v.uniform(5, 16))
    d = pore_nm / canvas.nm
    facts = Facts(kind, technique=stage.technique, arrangement="random", substrate=False)
    mass = np.zeros(canvas.shape, np.float32)
    if kind == "open_network":
        solid = np.zeros(canvas.shape, bool)
        for _ in range(3):
            field = bumps(v, canvas.shape, 0.6 * d) + 0.35 * noise(v, canvas.shape, CLOUDY, d / 60)
            sheet = np.clip(0.35 - np.abs(field), 0, None)
            mass += sheet * (1 + 0.5 * noise(v, canvas.shape, GRAINY)).clip(0.1)
            solid |= sheet > 0
        openings = ~solid
    else:
        field = bumps(v, canvas.shape, 0.8 * d)
        inner = np.clip((s.uniform(0.1, 0.9) - field) * 0.25 * d, 0, 1)
        mass = inner * (1 + 0.3 * noise(v, canvas.shape, CLOUDY))
        openings = inner < 0.5
    canvas.mass = np.maximum(mass, 0).astype(np.float32)
    canvas.owner = (~openings).astype(np.int32)
    pores, n = ndimage.label(openings)
    measure_cells(facts, pores, openings, n + 1, canvas.nm)
    facts.dimension = "equivalent diameter"
    facts.pore_fraction = float(openings.mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 1.0
    return _finish(stage, canvas, facts, 0.0)


def _finish(stage: Stage, canvas: Canvas, facts: Facts, film) -> Specimen:
    facts.two_materials = "darker" if stage.technique == "TEM" else "brighter"
    facts.substrate = facts.substrate and facts.coverage < 0.97
    return Specimen(canvas, facts, film=film)
