"""Many grains: aggregates, fine powders, granular sponges, ordered cubes, specks, inclusions."""

import numpy as np
from scipy import ndimage

from mvaema.synthetic.canvas import CLOUDY, GRAINY, Canvas, bumps, noise
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    log_uniform,
    measure_objects,
    measure_sizes,
    rotation,
    scatter,
    tilt,
)

MOST = 1100  # spheres of a scene, which take about 20 ms


def grow(rng, canvas: Canvas, count: int, d: float, clusters: int, loose: float) -> np.ndarray:
    """Centres (count, 3) of touching spheres of diameter `d`, grown into clusters.

    Every new sphere sticks to a random one that is there; the higher `loose` (0 to 1), the more
    it is a late one, so that branches reach out.
    """
    centres = np.empty((count, 3))
    members: list[list[int]] = [[] for _ in range(clusters)]
    start = rng.uniform(0.05, 0.95, (clusters, 2)) * (canvas.width, canvas.height)
    way = rng.normal(size=(count, 3)) * (1, 1, 0.5)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    cluster = rng.choice(clusters, count, p=rng.dirichlet(np.full(clusters, 2.0)))
    pick = rng.random(count) ** (1 - 0.93 * loose)
    for i in range(count):
        mine = members[cluster[i]]
        if mine:
            centres[i] = centres[mine[int(pick[i] * len(mine))]] + 0.95 * d * way[i]
        else:
            centres[i] = (*start[cluster[i]], d)
        mine.append(i)
    centres[:, 2] = np.abs(centres[:, 2])
    return centres


def particle_aggregates(stage: Stage) -> Specimen:
    """Clusters of small round particles on a plain ground."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 10, 2000)
    spread, loose, ground = s.uniform(0.03, 0.3), s.uniform(0.2, 1), s.uniform(0.15, 0.7)
    canvas = stage.canvas(size_nm * log_uniform(v, 9, 50), tilt(v, 0.15))
    d = size_nm / canvas.nm
    facts = Facts(
        "particle_aggregates", arrangement="clustered", tilt_deg=float(np.rad2deg(canvas.tilt))
    )
    canvas.yields[0] = ground
    canvas.z += 0.2 * s.random() * noise(v, canvas.shape, GRAINY)
    fill = v.uniform(0.15, 2.0)
    count = int(np.clip(fill * canvas.width * canvas.height / (d * d), 12, 700))
    centres = grow(v, canvas, count, d, int(v.integers(1, 14)), loose)
    x, y, z = canvas.project(*centres.T)
    radius = d / 2 * np.exp(np.clip(v.normal(0, spread, count), -0.7, 0.5))
    canvas.spheres(x, y, z, radius, v.normal(1.1, 0.06, count))
    measure_objects(canvas, facts)
    if ground < 0.7:
        facts.two_materials = "brighter"
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def _lumps(rng, canvas: Canvas, d: float, steps: int) -> np.ndarray:
    """A height field of lumps on lumps, the smallest a few grains of diameter `d` wide."""
    z = np.zeros(canvas.shape, np.float32)
    for k in range(steps):
        length = d * 3.0 * 2.4**k
        z += (0.35 * length * bumps(rng, canvas.shape, length)).astype(np.float32)
    return z


def fine_powder(stage: Stage) -> Specimen:
    """A heap of very small grains that stick together into lumps, with dark gaps between."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 15, 5000)
    spread, steps = s.uniform(0.1, 0.4), int(s.integers(2, 4))
    angular = s.random() < 0.3
    canvas = stage.canvas(size_nm * log_uniform(v, 14, 45))
    d = size_nm / canvas.nm
    facts = Facts("fine_powder", arrangement="clustered", rough=True, substrate=False)
    ground = _lumps(v, canvas, d, steps)
    count = int(np.clip(1.6 * canvas.width * canvas.height / (d * d), 60, MOST))
    x, y = (v.random((count, 2)) * (canvas.width - 1, canvas.height - 1)).T
    z = ground[y.astype(int), x.astype(int)] + v.normal(0, 0.5 * d, count)
    radius = d / 2 * np.exp(np.clip(v.normal(0, spread, count), -0.8, 0.6))
    canvas.z = ground - np.float32(1.2 * d)
    canvas.spheres(x, y, z, radius, v.normal(1, 0.08, count))
    if angular:
        canvas.z += 0.12 * np.float32(d) * noise(v, canvas.shape, GRAINY)
    measure_objects(canvas, facts)
    facts.substrate = False
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def dusty_powder(stage: Stage) -> Specimen:
    """A powder too fine to see its grains one by one: lumps upon lumps with dark gaps."""
    s, v = stage.specimen, stage.view
    lump_nm, rough, gaps = log_uniform(s, 80, 20_000), s.uniform(0.15, 0.4), s.uniform(-0.2, 1.2)
    canvas = stage.canvas(lump_nm * log_uniform(v, 3, 20))
    d = lump_nm / canvas.nm
    z, length = np.zeros(canvas.shape, np.float32), 2.2 * d
    while length > 2.2:
        hill = bumps(v, canvas.shape, length)
        # Rounded above, cut deep below, as grains that touch.
        z += (rough * length * np.abs(hill)).astype(np.float32)
        length /= 1.9
    holes = np.clip(bumps(v, canvas.shape, 1.5 * d) - gaps, 0, 1.5)
    canvas.z = z - (0.9 * d * holes).astype(np.float32)
    facts = Facts("dusty_powder", arrangement="clustered", rough=True, substrate=False)
    facts.coverage, facts.touching = 1.0, 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.06))


def loose_grains(stage: Stage) -> Specimen:
    """Angular grains of many sizes spread loosely over a plain ground."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 200, 80_000)
    spread, ground = s.uniform(0.25, 0.6), s.uniform(0.2, 0.7)
    flat = s.uniform(0.4, 1.0)
    canvas = stage.canvas(size_nm * log_uniform(v, 9, 28))
    d = size_nm / canvas.nm
    facts = Facts("loose_grains", dimension="equivalent diameter", arrangement="random", rough=True)
    canvas.yields[0] = ground
    canvas.z += 0.3 * noise(v, canvas.shape, GRAINY)
    relief = 0.06 * d * bumps(v, canvas.shape, 0.3 * d) + 0.3 * noise(v, canvas.shape, GRAINY)
    fill = v.uniform(0.15, 0.8)
    count = int(np.clip(fill * canvas.width * canvas.height / (d * d), 6, 150))
    points = v.random((count, 2)) * (canvas.width, canvas.height)
    for x, y in points:
        size = d * np.exp(np.clip(v.normal(0, spread), -1.1, 1.0))
        n = int(v.integers(5, 9))
        faces = v.normal(size=(n, 3))
        faces /= np.linalg.norm(faces, axis=1, keepdims=True)
        box = rotation(v)
        faces = np.concatenate([faces, box, -box])
        offsets = size / 2 * np.append(v.uniform(0.6, 1.0, n), np.full(6, 1.0))
        canvas.begin(size * 1.05, v.normal(1, 0.07))
        canvas.polyhedron(x, y, 0.4 * flat * size, faces, offsets, relief, reach=0.75 * size)
    measure_objects(canvas, facts)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def granular_sponge(stage: Stage) -> Specimen:
    """A porous body of fused grains: a network of knobbly walls around deep pores."""
    s, v = stage.specimen, stage.view
    pore_nm = log_uniform(s, 80, 50_000)
    ratio, level = s.uniform(0.16, 0.4), s.uniform(-0.2, 0.6)
    canvas = stage.canvas(pore_nm * v.uniform(4, 12))
    d = pore_nm / canvas.nm
    grain = max(3.5, ratio * d)
    field = bumps(v, canvas.shape, 0.9 * d) + 0.3 * noise(v, canvas.shape, CLOUDY)
    surface = 0.8 * d * np.clip(field + level, -1.6, 0.5)
    canvas.z = (surface - 0.5 * grain).astype(np.float32)
    count = int(np.clip(1.5 * canvas.width * canvas.height / grain**2, 60, MOST))
    x, y = (v.random((count, 2)) * (canvas.width - 1, canvas.height - 1)).T
    z = surface[y.astype(int), x.astype(int)] + v.normal(0, 0.15 * grain, count)
    radius = grain / 2 * np.exp(np.clip(v.normal(0, 0.25, count), -0.7, 0.6))
    canvas.spheres(x, y, z, radius, v.normal(1, 0.06, count))
    openings = canvas.z < -0.45 * d
    facts = Facts("granular_sponge", dimension="equivalent diameter", substrate=False, rough=True)
    labels, n = ndimage.label(openings)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    diameters = 2 * np.sqrt(area[area > 20] / np.pi) * canvas.nm
    facts.count = len(diameters)
    measure_sizes(diameters, facts)
    facts.pore_fraction = float(openings.mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def packed_cubes(stage: Stage) -> Specimen:
    """Equal cubes side by side in a nearly square lattice, with slips, cracks and missing ones."""
    s, v = stage.specimen, stage.view
    size_nm, gap = log_uniform(s, 15, 2000), s.uniform(0.06, 0.2)
    canvas = stage.canvas(size_nm * log_uniform(v, 4, 34))
    d = size_nm / canvas.nm
    pitch, a = (1 + gap) * d, v.uniform(0, np.pi / 2)
    # Two parts of the lattice meet along a wandering border, each with its own turn.
    part = bumps(v, canvas.shape, canvas.width * v.uniform(0.3, 0.8)) > v.uniform(-0.5, 2)
    turn = np.float32(a) + np.float32(v.normal(0, 0.25)) * part
    wander = 0.25 * d
    x = canvas.xs + wander * bumps(v, canvas.shape, 5 * d)
    y = canvas.ys + wander * bumps(v, canvas.shape, 5 * d)
    p, q = (
        (x * np.cos(turn) + y * np.sin(turn)) / pitch,
        (y * np.cos(turn) - x * np.sin(turn)) / pitch,
    )
    row = np.floor(q)
    shift = v.normal(0, 0.3, 997) * (v.random(997) < 0.2)  # rows that slipped
    p = p + np.cumsum(shift)[row.astype(int) % 997]
    column = np.floor(p)
    far = np.maximum(np.abs(p - column - 0.5), np.abs(q - row - 0.5)) * pitch
    body = (column * 1009 + row * 7 + part * 500_009).astype(np.int64)
    ids, index = np.unique(body, return_inverse=True)
    index = index.reshape(canvas.shape)
    gone = v.random(len(ids)) < v.choice([0, 0.02, 0.08])
    inside = (far < d / 2) & ~gone[index]
    level = v.normal(0, 0.06 * d, len(ids)).astype(np.float32)[index]
    canvas.z = np.where(inside, level, -0.9 * d).astype(np.float32)
    canvas.z += 0.1 * noise(v, canvas.shape, GRAINY)
    canvas.owner = np.where(inside, index + 1, 0).astype(np.int32)
    canvas.sizes += [d] * len(ids)
    canvas.drawn += np.bincount(index[inside], minlength=len(ids)).tolist()
    canvas.yields += v.normal(1, 0.05, len(ids)).tolist()
    canvas.yields[0] = 0.5
    facts = Facts("packed_cubes", dimension="edge length", arrangement="packed", shape="square")
    measure_objects(canvas, facts)
    facts.spacing_nm = pitch * canvas.nm
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def specks(stage: Stage) -> Specimen:
    """Sparse, irregular bright specks, alone and in small groups, on a flat ground."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 20, 8000)
    ground, bright = s.uniform(0.3, 0.8), s.uniform(1.1, 2.0)
    canvas = stage.canvas(size_nm * log_uniform(v, 25, 80))
    d = size_nm / canvas.nm
    facts = Facts("specks", dimension="equivalent diameter", arrangement="random")
    canvas.yields[0] = ground
    canvas.z += 0.15 * s.random() * noise(v, canvas.shape, GRAINY)
    points = scatter(v, int(v.integers(6, 45)), canvas.width, canvas.height, 2 * d)
    for x, y in points:
        canvas.begin(d, bright * v.normal(1, 0.08))
        pieces = int(v.choice([1, 1, 2, 3]))
        for _ in range(pieces):
            size = d * np.exp(v.normal(-0.3 * (pieces > 1), 0.3))
            dx, dy = v.normal(0, 0.35 * d * (pieces > 1), 2)
            faces = v.normal(size=(6, 3))
            faces /= np.linalg.norm(faces, axis=1, keepdims=True)
            faces = np.concatenate([faces, np.eye(3), -np.eye(3)])
            offsets = size / 2 * np.append(v.uniform(0.6, 1, 6), np.ones(6))
            canvas.polyhedron(x + dx, y + dy, 0.4 * size, faces, offsets, reach=0.8 * size)
        canvas.sizes[-1] = 2 * float(
            np.sqrt(np.count_nonzero(canvas.owner == len(canvas.sizes) - 1) / np.pi)
        )
    measure_objects(canvas, facts)
    facts.two_materials = "brighter"
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))


def inclusions(stage: Stage) -> Specimen:
    """Round particles of many sizes held in a flat matrix, seen by their grey level."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 50, 30_000)
    spread, tone = s.uniform(0.1, 0.7), s.uniform(1.3, 2.2)
    canvas = stage.canvas(size_nm * log_uniform(v, 4, 20))
    d = size_nm / canvas.nm
    facts = Facts("inclusions", arrangement="random", two_materials="brighter")
    canvas.z += 0.3 * noise(v, canvas.shape, GRAINY)
    canvas.yields[0] = s.uniform(0.35, 0.6)
    count = int(np.clip(v.uniform(0.2, 0.7) * canvas.width * canvas.height / (d * d), 5, 160))
    sizes = np.sort(d * np.exp(np.clip(v.normal(0, spread, count), -1.5, 1.1)))[::-1]
    placed = np.empty((0, 3))
    for size in sizes:
        for x, y in v.random((6, 2)) * (canvas.width, canvas.height):
            if (
                len(placed)
                and (
                    np.hypot(placed[:, 0] - x, placed[:, 1] - y) < placed[:, 2] + size / 2 + 1
                ).any()
            ):
                continue
            placed = np.vstack([placed, (x, y, size / 2)])
            canvas.begin(size, tone * canvas.yields[0] * v.normal(1, 0.05))
            # A shallow cap that stands out of the matrix.
            radius = 0.5 * size * 1.25
            canvas.sphere(x, y, -0.75 * size / 2 + 0.6, radius)
            break
    measure_objects(canvas, facts)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))
