"""Further films and coatings: upright sheets, folds, plain and flaky surfaces, embedded sections,
trenches cut by an ion beam."""

import numpy as np

from mvaema.synthetic.canvas import CLOUDY, GRAINY, bumps, noise, smooth
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    log_uniform,
    measure_sizes,
    sprinkle,
    tilt,
)
from mvaema.synthetic.surfaces import jittered, measure_cells


def nanosheets(stage: Stage) -> Specimen:
    """Thin sheets that stand upright at random and cross each other, with deep gaps between."""
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 100, 8000)
    thin, lean = s.uniform(0.02, 0.06), s.uniform(0.1, 0.5)
    canvas = stage.canvas(width_nm * v.uniform(3, 8))
    d = width_nm / canvas.nm
    half = max(0.9, thin * d)
    facts = Facts("nanosheets", dimension="thickness", arrangement="packed", substrate=False)
    canvas.z -= 1.1 * d
    count = int(np.clip(3.2 * canvas.width * canvas.height / (d * d), 25, 200))
    for x, y in v.random((count, 2)) * (canvas.width, canvas.height):
        a, up = v.uniform(0, np.pi), v.normal(0, lean)
        across = np.array([np.cos(a) * np.cos(up), np.sin(a) * np.cos(up), np.sin(up)])
        along = np.array([-np.sin(a), np.cos(a), 0.0])
        high = np.cross(across, along)
        corner = (high + along * v.choice([-1, 1])) / 2**0.5
        faces = np.stack([across, -across, along, -along, high, -high, corner])
        wide, tall = d * v.uniform(0.35, 0.8), d * v.uniform(0.4, 0.75)
        canvas.begin(2 * half, v.normal(1, 0.06))
        offsets = [half, half, wide, wide, tall, tall, 0.55 * (wide + tall)]
        canvas.polyhedron(x, y, -0.6 * d, faces, offsets, reach=0.9 * d)
    facts.size_mean_nm, facts.size_std_nm = 2 * half * canvas.nm, 0.0
    facts.size_min_nm = facts.size_max_nm = facts.size_mean_nm
    facts.coverage, facts.touching = 1.0, 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def columns(stage: Stage) -> Specimen:
    """A coating of knobbly columns, seen from the side: dark space above, more columns behind."""
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 100, 20_000)
    knobbly, rows = s.uniform(0.1, 0.45), int(s.integers(2, 5))
    canvas = stage.canvas(width_nm * v.uniform(8, 24))
    d = width_nm / canvas.nm
    w, h = canvas.width, canvas.height
    facts = Facts("columns", arrangement="packed", substrate=False, rough=True)
    facts.tilt_deg = float(v.uniform(60, 85))
    canvas.z -= 12 * d
    canvas.yields[0] = 0.15
    sky = v.uniform(-0.3, 0.35) * h
    count = int(np.clip(rows * w / d, 12, 70))
    steps = max(4, 1000 // count)
    back = np.sort(v.random(count))[::-1]  # the farthest first
    x0, top = v.uniform(-0.5, w + 0.5, count), sky + (1 - back) * 0.75 * h
    top += v.normal(0, 0.08, count) * h
    for i in range(count):
        t = np.arange(steps) * 0.45 * d
        y = top[i] + t
        x = x0[i] + v.normal(0, 0.03) * t + v.normal(0, 0.12 * d, steps)
        radius = d / 2 * np.exp(v.normal(0, knobbly, steps)).clip(0.5, 1.6)
        radius[0] *= 0.8
        z = np.full(steps, -6 * d * back[i])
        tone = v.normal(1, 0.05) * (1 - 0.5 * back[i])
        canvas.spheres(x, y, z, radius, np.full(steps, tone))
    facts.size_mean_nm, facts.size_std_nm, facts.size_min_nm, facts.size_max_nm = (
        width_nm,
        0.0,
        width_nm,
        width_nm,
    )
    facts.coverage, facts.touching = float((canvas.owner > 0).mean()), 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def folds(stage: Stage) -> Specimen:
    """A thin film thrown into irregular folds and creases."""
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 100, 40_000)
    sharp, count = s.uniform(0.05, 0.3), int(s.integers(2, 6))
    canvas = stage.canvas(width_nm * v.uniform(2, 9), tilt(v, 0.3, 10, 40))
    d = width_nm / canvas.nm
    z = 0.35 * d * bumps(v, canvas.shape, 1.2 * d)
    for _ in range(count):
        # Creases run one behind the other, wander and fade.
        a, period = v.uniform(0, np.pi), d * v.uniform(0.6, 2.5)
        along = canvas.xs * np.float32(np.cos(a)) + canvas.ys * np.float32(np.sin(a))
        phase = along / period + 0.8 * bumps(v, canvas.shape, 1.5 * period)
        crest = np.abs(phase - np.round(phase))
        fade = np.clip(0.5 + bumps(v, canvas.shape, 1.2 * d), 0, 1)
        z += v.uniform(0.1, 0.35) * d * fade * np.exp(-crest / (0.4 * sharp))
    canvas.z = canvas.z + (z + 0.2 * noise(v, canvas.shape, GRAINY)).astype(np.float32)
    facts = Facts("folds", arrangement="random", substrate=False)
    facts.tilt_deg = float(np.rad2deg(canvas.tilt))
    facts.coverage, facts.touching = 1.0, 1.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.06))


def plain(stage: Stage) -> Specimen:
    """A nearly flat film: faint roughness and stains, a few scratches."""
    s, v = stage.specimen, stage.view
    scratches = int(s.choice([0, 0, 1, 3, 8, 25]))
    rough, stain = s.uniform(0.05, 0.6), s.uniform(0.02, 0.25)
    texture = s.random() < 0.3
    canvas = stage.canvas(log_uniform(s, 300, 400_000) * v.uniform(0.6, 1.6))
    canvas.z += rough * noise(v, canvas.shape, GRAINY)
    if texture:
        canvas.z += 1.5 * rough * bumps(v, canvas.shape, canvas.width * v.uniform(0.01, 0.08))
    way = v.uniform(0, np.pi)
    for _ in range(scratches):
        a = v.normal(way, 0.25)
        x, y = v.random(2) * (canvas.width, canvas.height)
        across = (canvas.xs - x) * np.sin(a) - (canvas.ys - y) * np.cos(a)
        along = (canvas.xs - x) * np.cos(a) + (canvas.ys - y) * np.sin(a)
        short = np.abs(along) < canvas.width * v.uniform(0.1, 1.2)
        width = v.uniform(0.7, 2.5)
        canvas.z -= (width * v.uniform(0.4, 1.2) * np.exp(-((across / width) ** 2)) * short).astype(
            np.float32
        )
    facts = Facts("plain", arrangement="single", substrate=False, broken=scratches)
    facts.coverage, facts.touching, facts.rough = 1.0, 1.0, rough > 0.3
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, stain))


def flaky(stage: Stage) -> Specimen:
    """A coating of flat scales that overlap, each at its own slant."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 100, 40_000)
    slant = s.uniform(0.1, 0.5)
    canvas = stage.canvas(size_nm * v.uniform(3.5, 13))
    d = size_nm / canvas.nm
    z = np.full(canvas.shape, -0.3 * d, np.float32)
    index = np.zeros(canvas.shape, np.int32)
    shift = 0
    for layer in range(3):
        points = jittered(v, canvas, d * 1.15, 0.33)
        edge, cell = canvas.cells(points)
        n = len(points)
        gx, gy = v.normal(0, slant, (2, n)).astype(np.float32)
        px, py = points.astype(np.float32).T
        top = v.normal(0, 0.25 * d, n).astype(np.float32)[cell] + 0.12 * d * layer
        top += gx[cell] * (canvas.xs - px[cell]) + gy[cell] * (canvas.ys - py[cell])
        there = (v.random(n) < 0.75)[cell] & (edge > 0.02 * d)
        seen = there & (top > z)
        np.copyto(z, top.astype(np.float32), where=seen)
        np.copyto(index, cell + shift, where=seen)
        shift += n
    canvas.z = smooth(z, 0.6) + 0.15 * noise(v, canvas.shape, GRAINY)
    facts = Facts("flaky", dimension="equivalent diameter", arrangement="packed", substrate=False)
    measure_cells(facts, index, np.ones_like(index, bool), shift, canvas.nm)
    facts.coverage, facts.touching = 1.0, 1.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, v.normal(1, 0.06, shift).astype(np.float32)[index])


def embedded_section(stage: Stage) -> Specimen:
    """A polished cross-section: a layer between its substrate and the resin, told apart by grey
    level, with pores or a gap."""
    s, v = stage.specimen, stage.view
    thick_nm = log_uniform(s, 80, 60_000)
    layers = int(s.integers(1, 3))
    tones = s.permutation(np.array([0.35, 0.62, 0.9, 1.25, 1.6]))[: layers + 2]
    porous, gap = s.uniform(0, 0.3, layers + 2) * (s.random(layers + 2) < 0.25), s.random() < 0.3
    canvas = stage.canvas(thick_nm * layers * v.uniform(1.3, 4))
    thick = thick_nm / canvas.nm
    angle = v.normal(0, 0.05) + (np.pi / 2 if v.random() < 0.12 else 0)
    u = (canvas.ys - canvas.height / 2) * np.cos(angle) - (canvas.xs - canvas.width / 2) * np.sin(
        angle
    )
    u = u + canvas.height / 2
    start = 0.5 * canvas.height - 0.5 * layers * thick + v.normal(0, 0.08) * canvas.height
    rough = v.uniform(0.3, 3.5)
    texture = np.full(canvas.shape, np.float32(tones[0]))
    labels = np.zeros(canvas.shape, np.int32)
    z = np.zeros(canvas.shape, np.float32)
    for i in range(layers + 2):
        if i:
            border = start + (i - 1) * thick + rough * noise(v, canvas.shape, CLOUDY)[:1]
            here = u > border
            np.copyto(texture, np.float32(tones[i]), where=here)
            labels[here] = i
            if gap and i == 1:
                crack = np.abs(u - border) < v.uniform(1, 4) + 2 * bumps(v, canvas.shape, 25)
                z -= 8 * crack
        pores = bumps(v, canvas.shape, v.uniform(5, 20)) > 2.2 - 5 * porous[i]
        z -= np.float32(6) * (pores & (labels == i))
    canvas.z = smooth(z, 0.8) + 0.15 * noise(v, canvas.shape, GRAINY)
    canvas.owner = np.where((labels > 0) & (labels <= layers), 1, 0).astype(np.int32)
    facts = Facts(
        "embedded_section", dimension="thickness", arrangement="stacked", shape=str(layers)
    )
    facts.count = layers
    measure_sizes(np.full(layers, thick_nm), facts)
    facts.coverage, facts.touching = float(canvas.owner.mean()), 1.0
    facts.rough = rough > 2
    return Specimen(canvas, facts, texture * mottle(canvas, v, 0.06))


def trench(stage: Stage) -> Specimen:
    """A box cut into a surface by an ion beam: on its back wall the layers of the film show."""
    s, v = stage.specimen, stage.view
    thick_nm = log_uniform(s, 50, 5000)
    canvas = stage.canvas(thick_nm * v.uniform(3, 8))
    w, h = canvas.width, canvas.height
    thick = thick_nm / canvas.nm
    left, right = v.uniform(0.08, 0.25) * w, v.uniform(0.75, 0.92) * w
    top, bottom = v.uniform(0.15, 0.35) * h, v.uniform(0.75, 1.05) * h
    lean = v.normal(0, 0.03)
    inside = np.minimum(canvas.xs - left - lean * canvas.ys, right - lean * canvas.ys - canvas.xs)
    inside = np.minimum(inside, np.minimum(canvas.ys - top, bottom - canvas.ys))
    rough = (v.uniform(0.5, 2.5) * bumps(v, canvas.shape, 12)).astype(np.float32)
    rough += 0.4 * noise(v, canvas.shape, GRAINY)
    depth = np.clip(inside / 2, 0, 1)
    curtain = 0.25 * noise(v, canvas.shape, GRAINY)[0][None] * v.uniform(0, 1)
    canvas.z = (rough * (1 - depth) - 0.12 * w * depth + curtain * depth).astype(np.float32)
    tones = s.permutation(np.array([0.3, 0.6, 0.95, 1.3])).astype(np.float32)
    down = canvas.ys - top - 1.5 * noise(v, canvas.shape, CLOUDY)[:1]
    wall = np.where(down < thick, tones[0], np.where(down < 2.4 * thick, tones[1], tones[2]))
    face = inside > 0
    texture = np.where(face, wall, np.float32(1.25)).astype(np.float32)
    canvas.owner = (face & (down < thick)).astype(np.int32)
    facts = Facts("trench", dimension="thickness", arrangement="stacked", substrate=False)
    facts.count = None
    measure_sizes(np.array([thick_nm]), facts)
    facts.coverage, facts.touching, facts.rough = 1.0, 1.0, True
    return Specimen(canvas, facts, texture)
