"""Particles and powders: bodies that lie, pile up and stick together on a ground."""

import numpy as np

from mvaema.synthetic.canvas import CLOUDY, GRAINY, Canvas, noise
from mvaema.synthetic.optics import mottle
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
    sprinkle,
    tilt,
)

_CUBE = np.concatenate([np.eye(3), -np.eye(3)])
_OCTAHEDRON = np.array([[i, j, k] for i in (1, -1) for j in (1, -1) for k in (1, -1)]) / np.sqrt(3)
_PRISM = np.array(
    [*((np.cos(k), np.sin(k), 0) for k in np.arange(6) * np.pi / 3), (0, 0, 1), (0, 0, -1)]
)


# Diameter of the circle with the area that a powder grain shows, over its nominal size (measured).
_APPARENT = {"atomised": 1.0, "fragments": 1.12, "agglomerates": 0.94, "flakes": 0.83}


class Pile:
    """Spheres that come to rest on the ground or on those below, by dropping straight down."""

    def __init__(self, capacity: int):
        self.spheres = np.empty((4, capacity))  # x, y, z, radius
        self.count = 0

    def add(self, places, r: float) -> tuple[float, float, float]:
        """Drop a sphere at the lowest of `places` (n, 2); returns where its centre stops."""
        x, y, z, radius = self.spheres[:, : self.count]
        places = np.atleast_2d(places)
        reach = radius + r
        free = reach * reach - (x - places[:, :1]) ** 2 - (y - places[:, 1:]) ** 2
        heights = np.where(free > 0, z + np.sqrt(np.maximum(free, 0)), r).max(axis=1, initial=r)
        best = int(np.argmin(heights))
        rest = (*places[best], heights[best])
        self.spheres[:, self.count] = (*rest, r)
        self.count += 1
        return rest


def _positions(kind, rng, canvas: Canvas, diameters: np.ndarray):
    """Where bodies of the given sizes (canvas pixels) come to lie: (x, y, z) of their centres."""
    width, depth = canvas.width, canvas.depth
    mean = float(diameters.mean())
    if kind == "scattered":
        points = scatter(rng, len(diameters), width, depth, 1.02 * float(diameters.max()))
    elif kind == "random":
        points = rng.random((len(diameters), 2)) * (width + mean, depth + mean) - mean / 2
    else:  # clustered: each new one leans against one that is there
        points = np.empty((len(diameters), 2))
        n_clusters = int(rng.integers(2, 6))
        seeds = rng.uniform(0.12, 0.88, (n_clusters, 2)) * (width, depth)
        cluster = rng.integers(len(seeds), size=len(diameters))
        for i, size in enumerate(diameters):
            mates = np.flatnonzero(cluster[:i] == cluster[i])
            if len(mates) == 0:
                points[i] = seeds[cluster[i]]
                continue
            mate = mates[int(len(mates) * rng.random() ** 0.7)]
            angle = rng.uniform(0, 2 * np.pi)
            apart = (size + diameters[mate]) / 2 * rng.uniform(0.85, 1.0)
            points[i] = points[mate] + apart * np.array([np.cos(angle), np.sin(angle)])
    pile = Pile(len(points))
    return [pile.add(point, d / 2) for point, d in zip(points, diameters, strict=False)]


def _slanted(rng, angle: float) -> np.ndarray:
    """A rotation (3, 3) that turns the plane and leans it by about `angle`."""
    a, lean, way = rng.uniform(0, 2 * np.pi), rng.normal(0, angle), rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    axis = np.array([np.cos(way), np.sin(way), 0])
    cross = np.cross(np.eye(3), axis)
    return (np.eye(3) + np.sin(lean) * cross + (1 - np.cos(lean)) * cross @ cross) @ turn


def _ground(canvas: Canvas, rng, amplitude: float) -> None:
    if amplitude:
        canvas.z += amplitude * noise(rng, canvas.shape, GRAINY)


def particles(stage: Stage) -> Specimen:
    """Spheres, crystals and rods: scattered, clustered or packed in a layer."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"spheres": 5, "packed_spheres": 2, "crystals": 2.5, "rods": 1.5, "dots": 1.5})
    size_nm = log_uniform(s, 15, 10_000)
    spread = float(s.choice([0.03, 0.08, 0.15, 0.3])) if kind != "packed_spheres" else 0.02
    arrangement = choose(s, {"scattered": 1, "random": 1, "clustered": 1.4})
    ground_yield = s.uniform(0.25, 0.8)
    shape = choose(s, {"cubic": 1.2, "octahedral": 0.8, "prismatic": 0.8})
    aspect = s.uniform(1.8, 7)
    hexagonal = s.random() < 0.8
    rough = s.random() < 0.3
    across = {"dots": v.uniform(26, 60), "packed_spheres": v.uniform(7, 16)}.get(
        kind, log_uniform(v, 1.6, 32)
    )
    tilt_deg = tilt(v, 0.25)
    canvas = stage.canvas(size_nm * across * (aspect**0.5 if kind == "rods" else 1), tilt_deg)
    facts = Facts(kind, tilt_deg=tilt_deg, rough=rough)
    d = size_nm / canvas.nm
    canvas.yields[0] = ground_yield
    _ground(canvas, v, 0.15 * s.random())
    relief = 0.05 * noise(v, canvas.shape, GRAINY, max(0.5, d / 60)) if rough else None

    if kind == "packed_spheres":
        facts.spacing_nm = size_nm * 1.01
        _packed_layer(canvas, v, facts, d, spread, hexagonal, relief)
    else:
        area = {"dots": 0.5, "rods": aspect}.get(kind, 1.0) * d * d
        filling = {"dots": v.uniform(0.02, 0.08)}.get(kind, v.uniform(0.1, 0.5))
        count = int(np.clip(filling * canvas.width * canvas.depth / area, 1, 200))
        sizes = np.clip(d * np.exp(v.normal(0, spread, count)), 0.3 * d, 2.5 * d)
        if arrangement == "scattered":
            count = min(count, int(0.35 * canvas.width * canvas.depth / sizes.max() ** 2) + 3)
        facts.arrangement = "clustered" if arrangement == "clustered" else "random"
        bright = s.uniform(1.0, 1.5) if kind != "dots" else s.uniform(1.3, 2.2)
        if bright / ground_yield > 1.5:
            facts.two_materials = "brighter"
        gaps = sizes * (aspect if kind == "rods" and arrangement == "scattered" else 1)
        if kind == "crystals":
            facts.shape, facts.dimension = shape, "edge length"
            gaps = sizes * 1.5
        elif kind == "rods":
            facts.length_nm = size_nm * aspect
        for place, size in zip(_positions(arrangement, v, canvas, gaps), sizes, strict=False):
            canvas.begin(size, bright * v.normal(1, 0.04))
            if kind == "crystals":
                _crystal(canvas, v, place, size, shape)
            elif kind == "rods":
                _rod(canvas, v, place, size, aspect)
            else:
                canvas.sphere(*canvas.project(*place), size / 2, relief)
    measure_objects(canvas, facts)
    if kind in ("spheres", "crystals", "packed_spheres"):
        facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def _packed_layer(canvas: Canvas, v, facts: Facts, d: float, spread, hexagonal: bool, relief):
    """Equal spheres side by side on a lattice, some of them missing."""
    points = lattice(1.01 * d, canvas.width, canvas.depth, v.uniform(0, 1), hexagonal, d)
    points = points + v.normal(0, 0.015 * d, points.shape)
    missing = v.random(len(points)) < v.choice([0, 0.01, 0.03])
    inside = ((points > d / 2) & (points < (canvas.width - d / 2, canvas.depth - d / 2))).all(1)
    facts.arrangement, facts.shape = "packed", "hexagonal" if hexagonal else "square"
    facts.missing = int((missing & inside).sum())
    for x, y in points[~missing]:
        size = d * v.normal(1, spread)
        canvas.begin(size)
        canvas.sphere(*canvas.project(x, y, size / 2), size / 2, relief)


def _crystal(canvas: Canvas, v, place, size: float, shape: str) -> None:
    faces, inner = {
        "cubic": (_CUBE, 0.5),
        "octahedral": (_OCTAHEDRON, 0.408),
        "prismatic": (_PRISM, 0.45 * np.append(np.full(6, v.uniform(0.5, 1)), [1.6, 1.6])),
    }[shape]
    turn = rotation(v)
    if v.random() < 0.5:
        turn = _slanted(v, 0)  # lying on a face
    normals = canvas.rotate(faces @ turn.T)
    offsets = np.broadcast_to(inner * size, len(faces))
    canvas.polyhedron(*canvas.project(*place), normals, offsets, reach=0.95 * size)


def _rod(canvas: Canvas, v, place, size: float, aspect: float) -> None:
    """A rod with round ends that lies on the ground, or nearly."""
    x, y, z = place
    a, up = v.uniform(0, np.pi), v.normal(0, 0.12)
    along = np.array([np.cos(a) * np.cos(up), np.sin(a) * np.cos(up), np.sin(up)])
    half = 0.5 * size * (aspect - 1) * along
    centre = np.array([x, y, min(z, 1.5 * size)])
    ends = [canvas.project(*(centre + e * half)) for e in (-1, 1)]
    canvas.rod(*ends, size / 2, size / 2)
    for end in ends:
        canvas.sphere(*end, size / 2)


def powder(stage: Stage) -> Specimen:
    """A heap of grains: atomised spheres with satellites, crushed fragments, lumps of fine
    grains, flakes."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"atomised": 1.3, "fragments": 1.3, "agglomerates": 1, "flakes": 0.8})
    size_nm = log_uniform(s, 100, 60_000)
    spread = float(s.uniform(0.3, 0.55))
    filling = s.choice([0.9, 1.4, 2.0])
    ground_yield = s.uniform(0.15, 0.4)
    canvas = stage.canvas(size_nm * v.uniform(4.5, 8.5), tilt(v, 0.15, 10, 35))
    facts = Facts(kind, tilt_deg=float(np.rad2deg(canvas.tilt)), rough=kind != "flakes")
    if kind in ("fragments", "flakes"):
        facts.dimension = "equivalent diameter"
    canvas.yields[0] = ground_yield
    _ground(canvas, v, 0.4)
    d = size_nm / canvas.nm
    count = int(np.clip(filling * canvas.width * canvas.depth / (d * d * np.exp(spread**2)), 8, 65))
    sizes = np.sort(np.clip(d * np.exp(v.normal(0, spread, count)), 0.3 * d, 3 * d))[::-1]
    sizes = sizes[np.argsort(np.arange(count) + v.normal(0, count / 3, count))]
    pile = Pile(count)
    relief = {
        "atomised": lambda: 0.07 * noise(v, canvas.shape, GRAINY, max(0.4, d / 60)),
        "fragments": lambda: 0.035 * d * noise(v, canvas.shape, CLOUDY, max(0.5, d / 40)),
        "agglomerates": lambda: (
            0.30 * (0.7 - np.abs(noise(v, canvas.shape, GRAINY, max(0.35, d / 130))))
        ),
        "flakes": lambda: 0.01 * d * noise(v, canvas.shape, GRAINY),
    }[kind]()
    for size in sizes:
        # A grain rolls a little way down: the lowest of a few places.
        places = v.random((4, 2)) * (canvas.width + size, canvas.depth + size) - size / 2
        r = size * (0.38 if kind == "flakes" else 0.5)
        centre = canvas.project(*pile.add(places, r))
        canvas.begin(size * _APPARENT[kind], v.normal(1, 0.05))
        _grain(canvas, v, kind, centre, size, relief)
    measure_objects(canvas, facts)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _grain(canvas: Canvas, v, kind: str, centre, size: float, relief: np.ndarray) -> None:
    """One grain of a powder around a canvas point."""
    if kind == "atomised":
        canvas.sphere(*centre, size / 2, relief)
        if v.random() < 0.3:  # a satellite, part of the grain
            out = v.normal(size=3)
            out = out / np.linalg.norm(out) * size * 0.5
            canvas.sphere(*(np.array(centre) + out * (1, 1, np.sign(out[2]))), 0.14 * size)
    elif kind == "agglomerates":
        axes = size / 2 * v.uniform(0.8, 1.1, 3)
        canvas.ellipsoid(*centre, axes, rotation(v), 1.6 * relief)
    else:
        n = int(v.integers(6, 10))
        if kind == "flakes":
            # A plate: two broad faces and a rim all around, lying at a slant or on edge.
            turn = rotation(v) if v.random() < 0.25 else _slanted(v, 0.3)
            a = 2 * np.pi * (np.arange(n) + v.uniform(-0.35, 0.35, n)) / n
            rim = np.stack([np.cos(a), np.sin(a), np.zeros(n)], 1)
            faces = np.concatenate([rim, [[0, 0, 1], [0, 0, -1]]]) @ turn.T
            offsets = size * np.append(v.uniform(0.36, 0.5, n), [0.07, 0.07])
        else:
            faces = v.normal(size=(n, 3))
            faces /= np.linalg.norm(faces, axis=1, keepdims=True)
            # A turned box closes the body where its random faces leave it open.
            faces = np.concatenate([faces, _CUBE @ rotation(v)])
            offsets = size / 2 * np.append(v.uniform(0.72, 1.0, n), np.ones(6))
        canvas.polyhedron(*centre, canvas.rotate(faces), offsets, relief, reach=0.62 * size)
