"""Biological specimens: pollen, plant tissue, bacteria, blood cells, diatoms, petals, eyes."""

import numpy as np

from mvaema.synthetic.canvas import CLOUDY, GRAINY, Canvas, bumps, noise, smooth
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
    visible,
)
from mvaema.synthetic.surfaces import bend, jittered, measure_cells, rounded


def biological(stage: Stage) -> Specimen:
    """One of the specimens of this module."""
    kinds = {
        "pollen": (_pollen, 1.2),
        "tissue": (_tissue, 2.2),
        "bacteria": (_bacteria, 1.0),
        "blood_cells": (_blood_cells, 0.9),
        "diatom": (_diatom, 1.0),
        "petal": (_petal, 0.8),
        "insect_eye": (_insect_eye, 0.7),
    }
    kind = choose(stage.specimen, {name: weight for name, (_, weight) in kinds.items()})
    return kinds[kind][0](stage, kind)


def outlined_cells(stage: Stage) -> Specimen:
    """Flat cells of a skin, outlined by thin raised borders."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 8000, 80_000)
    border, wild, bulge = s.uniform(0.02, 0.07), s.uniform(0, 0.18), s.uniform(-0.1, 0.2)
    stretch = s.uniform(1, 2.5)
    canvas = stage.canvas(size_nm * v.uniform(3.5, 12))
    d = size_nm / canvas.nm
    points = jittered(v, canvas, d, s.uniform(0.12, 0.3))
    edge, index = canvas.cells(points)
    rows, columns = bend(v, canvas, wild * d, 0.8 * d)
    rows = (rows / stretch).astype(np.int32)
    edge, index = edge[rows, columns], index[rows, columns]
    ridge = np.exp(-((edge / np.float32(max(1.2, border * d))) ** 2))
    dome = np.clip(edge / (0.5 * d), 0, 1)
    z = 0.12 * d * ridge + bulge * d * np.sqrt(dome * (2 - dome)) * (1 - ridge)
    z += 0.03 * d * bumps(v, canvas.shape, 0.3 * d)
    canvas.z = (z + 0.3 * noise(v, canvas.shape, GRAINY)).astype(np.float32)
    facts = Facts("outlined_cells", arrangement="packed", substrate=False)
    facts.dimension = "equivalent diameter"
    measure_cells(facts, index, np.ones_like(index, bool), len(points), canvas.nm)
    facts.coverage, facts.touching = 1.0, 1.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _pollen(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 8000, 90_000)
    spiny = s.random() < 0.65
    spines = int(s.integers(60, 160))
    spine_length, spine_width = s.uniform(0.12, 0.3), s.uniform(0.05, 0.09)
    oval = s.uniform(0.75, 1.0)
    canvas = stage.canvas(size_nm * v.uniform(1.3, 4.5))
    d = size_nm / canvas.nm
    facts = Facts(kind, arrangement="random", rough=True, shape="spiny" if spiny else "netted")
    canvas.yields[0] = s.uniform(0.2, 0.5)
    canvas.z += 0.6 * noise(v, canvas.shape, GRAINY)
    count = int(np.clip(v.integers(1, 1 + (canvas.width / d) ** 2 * 0.8 + 1), 1, 9))
    places = scatter(v, count, canvas.width - 0.5 * d, canvas.height - 0.5 * d, 0.85 * d)
    if count == 1:
        places = np.array([[canvas.width, canvas.height]]) * v.uniform(0.42, 0.58, 2)
    net = np.abs(noise(v, canvas.shape, CLOUDY, max(0.6, d / 220)))
    relief = (0.16 * np.exp(-((net / 0.35) ** 2)) if not spiny else -0.03 * net).astype(np.float32)
    k = np.arange(spines) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / spines), np.pi * (1 + 5**0.5) * k
    directions = np.stack(
        [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], 1
    )
    for x, y in places:
        if count > 1:
            x, y = x + 0.25 * d, y + 0.25 * d
        r = d / 2 * v.uniform(0.92, 1.08)
        turn = rotation(v)
        axes = np.array([r, r * oval, r * oval])
        canvas.begin(2 * r, v.normal(1, 0.04))
        canvas.ellipsoid(x, y, r, axes, turn, relief)
        if spiny:
            ends = directions * axes @ turn.T
            for e in ends[ends[:, 2] > -0.25 * r]:
                root, out = 0.93 * e, 0.95 * e * (1 + 2 * spine_length)
                wide = spine_width * d
                canvas.rod(
                    (x + root[0], y + root[1], r + root[2]),
                    (x + out[0], y + out[1], r + out[2]),
                    wide,
                    0.12 * wide,
                )
    measure_objects(canvas, facts)
    facts.length_nm = spine_length * size_nm if spiny else None
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _tissue(stage: Stage, kind: str) -> Specimen:
    """Cut plant tissue: lumens between shared walls, small near the skin and larger inside."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 4000, 60_000)
    wall, skin = s.uniform(0.08, 0.19), s.random() < 0.4
    canvas = stage.canvas(size_nm * v.uniform(3.5, 12))
    d = size_nm / canvas.nm
    points = jittered(v, canvas, d, s.uniform(0.12, 0.3))
    # A gradient of sizes: squeeze the points toward one side.
    squeeze = v.uniform(0, 0.5) * v.choice([-1, 1])
    t = np.clip(points[:, 1] / canvas.height, 0, 1)
    points[:, 1] += canvas.height * squeeze * t * (1 - t)
    edge, index = canvas.cells(points)
    body, half = rounded(edge, d, wall)
    wobble = 0.012 * d * noise(v, canvas.shape, CLOUDY, max(0.5, d / 60))
    body = body + wobble
    outside = np.zeros(canvas.shape, bool)
    if skin:  # the stem ends within the view, in a closed wall
        a, way = v.uniform(0, 2 * np.pi), v.uniform(0.15, 0.4) * canvas.width
        rim = (canvas.xs - canvas.width / 2) * np.cos(a) + (canvas.ys - canvas.height / 2) * np.sin(
            a
        )
        rim = rim - way + 0.25 * d * bumps(v, canvas.shape, 4 * d)
        outside, body = rim > 0, np.where(rim > -0.25 * d, np.float32(0.1 * d), body)
    openings = (body <= 0) & ~outside
    depth = v.uniform(0.5, 1.1, len(points)).astype(np.float32)[index] * d
    floor = -depth * (1 - np.exp(-np.maximum(-body, 0) / (0.09 * d)))
    lip = 0.025 * d * np.exp(-(((body - 0.015 * d) / (0.02 * d)) ** 2))
    canvas.z = np.where(openings, floor + 0.5 * wobble, lip).astype(np.float32)
    canvas.z[outside] = -1.2 * d
    canvas.z += 0.35 * noise(v, canvas.shape, GRAINY)
    facts = Facts(kind, arrangement="packed", substrate=False, touching=1.0)
    measure_cells(facts, index, openings, len(points), canvas.nm)
    facts.pore_fraction = float(openings.mean())
    facts.coverage = 1 - facts.pore_fraction
    facts.length_nm = 2 * half * canvas.nm
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _bacteria(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 350, 1500)
    aspect = float(s.choice([1.0, 1.3, 2.2, 3.2, 4.5]))
    crowded = s.random() < 0.4
    canvas = stage.canvas(width_nm * max(1, aspect**0.5) * v.uniform(7, 16))
    d = width_nm / canvas.nm
    facts = Facts(kind, dimension="width", shape="round" if aspect < 1.5 else "rod-shaped")
    facts.length_nm = width_nm * aspect if aspect >= 1.5 else None
    canvas.yields[0] = s.uniform(0.35, 0.8)
    canvas.z += 0.5 * noise(v, canvas.shape, GRAINY)
    area = d * d * aspect
    filling = v.uniform(0.5, 0.9) if crowded else v.uniform(0.1, 0.35)
    count = int(np.clip(filling * canvas.width * canvas.height / area, 4, 90))
    facts.arrangement = "clustered" if crowded else "random"
    relief = 0.03 * noise(v, canvas.shape, GRAINY)
    centres = v.random((count, 2)) * (canvas.width, canvas.height)
    if crowded:
        middle = np.array([canvas.width, canvas.height]) * v.uniform(0.35, 0.65, 2)
        centres = middle + v.normal(0, 0.26 * canvas.width, (count, 2))
    for i, (x, y) in enumerate(centres):
        size = d * v.normal(1, 0.07)
        z = size / 2 + (v.random() * 1.2 * d if crowded else 0.2 * d * i / count)
        long = size * max(0.0, aspect * v.uniform(0.8, 1.25) - 1) / 2
        a = v.uniform(0, np.pi)
        bend = v.normal(0, 0.12) * long
        along, side = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
        canvas.begin(size, v.normal(1, 0.05))
        ends = [(*((x, y) + e * long * along + bend * (e * e) * side), z) for e in (-1, 0, 1)]
        pinch = 0.82 if v.random() < 0.25 and aspect > 1.5 else 1.0  # about to divide
        if long > 0.5:
            for p, q, r0, r1 in ((ends[0], ends[1], 1, pinch), (ends[1], ends[2], pinch, 1)):
                canvas.rod(p, q, size / 2 * r0, size / 2 * r1)
        for k, p in enumerate(ends):
            canvas.sphere(*p, size / 2 * (pinch if k == 1 else 1), relief)
    measure_objects(canvas, facts)
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _blood_cells(stage: Stage, kind: str) -> Specimen:
    """Discs with a dimple on either side, lying or leaning."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 5000, 9500)
    thick, dimple = s.uniform(0.3, 0.42), s.uniform(0.55, 0.95)
    canvas = stage.canvas(size_nm * v.uniform(3, 9))
    d = size_nm / canvas.nm
    facts = Facts(kind, shape="biconcave")
    canvas.yields[0] = s.uniform(0.3, 0.7)
    canvas.z += 0.6 * noise(v, canvas.shape, GRAINY)
    count = int(np.clip(v.uniform(0.2, 0.8) * (canvas.width / d) ** 2, 3, 60))
    centres = v.random((count, 2)) * (canvas.width, canvas.height)
    for i, (x, y) in enumerate(centres):
        size = d * v.normal(1, 0.06)
        r = size / 2
        gx, gy = v.normal(0, 0.28, 2)
        squash = 1 / np.sqrt(1 + gx * gx + gy * gy)
        window = canvas.window(x - r, x + r, y - r, y + r)
        canvas.begin(size, v.normal(1, 0.04))
        if window is None:
            continue
        dx, dy = canvas.xs[:, window[1]] - np.float32(x), canvas.ys[window[0]] - np.float32(y)
        slope = np.hypot(gx, gy) + 1e-6
        steep = (gx * dx + gy * dy) / slope
        rho2 = (dx * dx + dy * dy + steep * steep * (1 / squash**2 - 1)) / (r * r)
        inside = np.maximum(1 - rho2, 0)
        profile = thick * size * np.sqrt(inside) * (1 - dimple * np.exp(-rho2 / 0.16))
        top = profile + gx * dx + gy * dy + thick * size + 0.5 * d * i / count
        canvas.paint(window, top.astype(np.float32), rho2 < 1)
    measure_objects(canvas, facts)
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))


def _diatom(stage: Stage, kind: str) -> Specimen:
    """A silica shell with rows of pores: a disc with rays, or a long boat with ribs."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 6000, 120_000)
    centric = s.random() < 0.55
    narrow = 1.0 if centric else s.uniform(0.22, 0.4)
    rings, rays = int(s.integers(7, 12)), int(s.integers(28, 46))
    canvas = stage.canvas(size_nm * v.uniform(1.05, 1.9))
    d = size_nm / canvas.nm
    r = d / 2
    a = v.uniform(0, np.pi)
    cx, cy = np.array([canvas.width, canvas.height]) * v.uniform(0.44, 0.56, 2)
    dx, dy = canvas.xs - np.float32(cx), canvas.ys - np.float32(cy)
    p, q = dx * np.cos(a) + dy * np.sin(a), dy * np.cos(a) - dx * np.sin(a)
    canvas.yields[0] = s.uniform(0.2, 0.5)
    canvas.z += 0.6 * noise(v, canvas.shape, GRAINY)
    canvas.begin(d, 1.0)
    if centric:
        rho = np.hypot(p, q) / r
        ring = rho * rings
        n = np.maximum(1, np.round(rays * np.round(ring) / rings))
        arc = np.arctan2(q, p) / (2 * np.pi) * n + 0.5 * (np.round(ring) % 2)
        step = 2 * np.pi * np.round(ring) / rings * r / n
        off = np.hypot((ring - np.round(ring)) * r / rings, (arc - np.round(arc)) * step)
        hole = off < 0.28 * r / rings
        hole &= (rho < 0.92) & (rho > 0.08)
        inside = rho < 1
        dome = 0.22 * r * np.sqrt(np.maximum(1 - rho * rho, 0)) + 0.12 * r * (rho > 0.93)
        pitch = r / rings
    else:
        half = narrow * r * np.maximum(1 - (p / r) ** 2, 0) ** 0.75
        rho = np.abs(q) / np.maximum(half, 1e-3)
        ribs = 2 * rings * 2
        phase = (p / r + 1) * ribs / 2
        row = np.abs(q) / (2 * r / ribs)
        hole = (np.abs(phase - np.round(phase)) < 0.27) & (np.abs(row - np.round(row)) < 0.33)
        hole &= (rho < 0.86) & (np.abs(q) > 0.10 * narrow * r)
        inside = (np.abs(p) < r) & (rho < 1)
        dome = 0.5 * narrow * r * np.sqrt(np.maximum(1 - rho * rho, 0)) * (half / (narrow * r))
        groove = np.exp(-((q / (0.025 * r)) ** 2)) * (np.abs(p) < 0.85 * r) * (np.abs(p) > 0.08 * r)
        dome = dome - 0.05 * r * groove
        pitch = 2 * r / ribs
    top = 0.15 * r + dome - 0.35 * pitch * hole
    canvas.paint((slice(None), slice(None)), top.astype(np.float32), inside)
    canvas.z = smooth(canvas.z, 0.5)
    facts = Facts(kind, arrangement="single", shape="round" if centric else "boat-shaped")
    facts.dimension = "diameter" if centric else "length"
    measure_objects(canvas, facts)
    facts.spacing_nm = float(pitch * canvas.nm)
    facts.length_nm = None if centric else size_nm * narrow
    facts.pore_fraction = None
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    texture = np.where(hole & inside, np.float32(0.75), np.float32(1))
    return Specimen(canvas, facts, texture * mottle(canvas, v, 0.03))


def _domes(canvas: Canvas, points, d: float, steep: float):
    edge, index = canvas.cells(points)
    rise = np.clip(edge / (0.5 * d), 0, 1)
    return edge, index, (steep * d * np.sqrt(rise * (2 - rise))).astype(np.float32)


def _petal(stage: Stage, kind: str) -> Specimen:
    """Skin of a petal or leaf: domed cells with fine folds."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 8000, 50_000)
    steep, folds = s.uniform(0.3, 0.9), s.uniform(0.01, 0.035)
    tilt_deg = tilt(v, 0.4, 15, 45)
    canvas = stage.canvas(size_nm * v.uniform(3.5, 9), tilt_deg)
    d = size_nm / canvas.nm
    plane = canvas.plane(steep * d)
    points = jittered(v, plane, d, 0.14)
    edge, index, z = _domes(plane, points, d, steep)
    dx, dy = plane.xs - points[index, 0], plane.ys - points[index, 1]
    turn = v.uniform(0, 6.3, len(points))[index]
    count = v.integers(12, 20)
    fold = np.cos(count * np.arctan2(dy, dx) + turn) * np.clip(edge / (0.15 * d), 0, 1)
    plane.z = (z + folds * d * fold * (np.hypot(dx, dy) > 0.12 * d)).astype(np.float32)
    canvas.view(plane)
    facts = Facts(kind, arrangement="packed", substrate=False, rough=True, tilt_deg=tilt_deg)
    rows = int(canvas.depth)
    measure_cells(facts, index[:rows], np.ones((rows, plane.width), bool), len(points), canvas.nm)
    facts.coverage, facts.touching = 1.0, 1.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _insect_eye(stage: Stage, kind: str) -> Specimen:
    """Hexagonal lenses on a curved surface, with a few bristles between them."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 8000, 35_000)
    hairs = s.random() < 0.7
    hair_length = s.uniform(0.6, 1.8)
    canvas = stage.canvas(size_nm * v.uniform(5, 10))
    d = size_nm / canvas.nm
    points = lattice(d, canvas.width, canvas.height, v.uniform(0, 1), True, 1.6 * d)
    points = points + v.normal(0, 0.015 * d, points.shape)
    _, index, z = _domes(canvas, points, d, s.uniform(0.25, 0.45))
    far = np.hypot(
        canvas.xs - canvas.width * v.uniform(0.2, 0.8),
        canvas.ys - canvas.height * v.uniform(0.2, 0.8),
    )
    ball = 1.5 * canvas.width
    canvas.z = (z + np.sqrt(np.maximum(ball**2 - far**2, 0)) - ball).astype(np.float32)
    canvas.z += 0.15 * noise(v, canvas.shape, GRAINY)
    facts = Facts(
        kind, arrangement="ordered", substrate=False, shape="hexagonal", spacing_nm=size_nm
    )
    n_hairs = 0
    canvas.owner = np.zeros(canvas.shape, np.int32)
    if hairs:
        a = v.uniform(0, 6.3)
        corners = points + d / np.sqrt(3) * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)])
        ids = []
        for x, y in corners[v.random(len(corners)) < 0.3]:
            if not (0 < x < canvas.width and 0 < y < canvas.height):
                continue
            ground = float(canvas.z[int(y), int(x)])
            lean = a + v.normal(0, 0.25)
            out = hair_length * d * v.uniform(0.7, 1.2)
            ids.append(canvas.begin(0.1 * d, 1.1))
            end = (x + 0.7 * out * np.cos(lean), y + 0.7 * out * np.sin(lean), ground + 0.7 * out)
            canvas.rod((x, y, ground), end, 0.055 * d, 0.02 * d)
        n_hairs = len(np.intersect1d(ids, visible(canvas)))
    measure_cells(facts, index, np.ones_like(index, bool), len(points), canvas.nm)
    facts.broken = n_hairs
    facts.coverage, facts.touching = 1.0, 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))
