"""Patterned surfaces: gratings and lattices, rectilinear trenches, small arrays."""

import numpy as np
from scipy import ndimage

from mvaema.synthetic.canvas import GRAINY, Canvas, noise, smooth
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    log_uniform,
    measure_objects,
    sprinkle,
    tilt,
)


def _waves(plane: Canvas, pitch: float, angle: float):
    """Lattice coordinates of every pixel: signed distances (u, v) from the nearest lattice point
    of a square lattice, and its indices."""
    c, n = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = plane.xs - plane.width / 2, plane.ys - plane.height / 2
    u, v = (c * x + n * y) / np.float32(pitch), (c * y - n * x) / np.float32(pitch)
    i, j = np.round(u), np.round(v)
    return (u - i) * pitch, (v - j) * pitch, i.astype(np.int32), j.astype(np.int32)


def _depth_inside(kind: str, square: bool, pitch: float, half: float, waves) -> np.ndarray:
    """Distance of each pixel to the edge of its element; negative outside the elements."""
    du, dv, i, j = waves
    if kind == "grating":
        return half - np.abs(du)
    if kind == "zigzag":
        swing = 0.35 * pitch * (np.abs(((j + dv / pitch) / 2) % 1 - 0.5) * 4 - 1)
        shifted = du + i * pitch + swing
        return half - np.abs(shifted - pitch * np.round(shifted / pitch))
    if square:
        return half - np.maximum(np.abs(du), np.abs(dv))
    return half - np.sqrt(du * du + dv * dv)


def _lost_elements(canvas: Canvas, plane: Canvas, v, pitch: float, waves):
    """The pixels whose element is missing, and how many elements are missing in view."""
    _, _, i, j = waves
    lost = v.random((64, 64)) < 0.02
    gone = lost[i % 64, j % 64]
    # Counted where most of a cell lies in view.
    whole = np.zeros((64, 64), np.int64)
    inside = np.zeros(plane.shape, bool)
    inside[: int(canvas.depth)] = True
    np.add.at(whole, (i[gone & inside] % 64, j[gone & inside] % 64), 1)
    return gone, int((whole > 0.5 * pitch * pitch).sum())


def patterned(stage: Stage) -> Specimen:
    """Gratings, arrays of pillars, holes and tapered pits, zigzag lines; top view or tilted."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"grating": 1.3, "pillars": 1.4, "holes": 1.1, "pits": 0.7, "zigzag": 0.6})
    pitch_nm = log_uniform(s, 60, 30_000)
    duty = s.uniform(0.35, 0.65)
    tall = s.uniform(0.25, 1.3) if kind in ("pillars", "grating") else s.uniform(0.2, 0.7)
    square = s.random() < 0.5
    lattice_angle = v.normal(0, 0.08) if v.random() < 0.6 else v.uniform(0, np.pi)
    tilt_deg = tilt(v, 0.5, 20, 55)
    canvas = stage.canvas(pitch_nm * v.uniform(3.5, 16), tilt_deg)
    pitch = pitch_nm / canvas.nm
    height = tall * pitch * duty
    plane = canvas.plane(height)
    waves = _waves(plane, pitch, lattice_angle)
    half = duty * pitch / 2
    rough_edge = s.choice([0, 0.008, 0.02]) * pitch * noise(v, plane.shape, GRAINY)
    facts = Facts(kind, dimension="width", tilt_deg=tilt_deg, arrangement="ordered")
    facts.spacing_nm, facts.size_mean_nm = pitch_nm, duty * pitch_nm
    facts.size_min_nm = facts.size_max_nm = facts.size_mean_nm
    facts.size_std_nm = 0.0
    if kind == "pits":
        rough_edge = 0.0  # their edges follow crystal planes
    facts.rough = bool(np.any(rough_edge))
    if kind not in ("grating", "zigzag"):
        facts.shape, facts.dimension = ("square", "width") if square else ("round", "diameter")
    inner = _depth_inside(kind, square, pitch, half, waves) + rough_edge
    if kind in ("pillars", "holes") and v.random() < 0.3:
        gone, facts.missing = _lost_elements(canvas, plane, v, pitch, waves)
        inner = np.where(gone, np.float32(-2), inner)
    wall = np.clip(inner / 1.3 + 0.5, 0, 1)
    if kind == "pits":
        wall = np.clip(1 - np.maximum(inner, 0) / half, 0, 1)
        facts.dimension = "width"
    profile = 1 - wall if kind == "holes" else wall
    plane.z = (height * profile).astype(np.float32)
    plane.z += (0.1 + 0.25 * s.random()) * noise(v, plane.shape, GRAINY)
    mask = inner > 0
    plane.owner = mask.astype(np.int32)
    plane.sizes, plane.drawn, plane.yields = [0.0, half * 2], [0, 1], [1.0, 1.0]
    tone = float(s.choice([1.0, 1.0, 1.5, 0.65]))
    plane.yields[1] = tone
    if tone != 1.0:
        facts.two_materials = "brighter" if tone > 1 else "darker"
    canvas.view(plane)
    facts.coverage = float(mask[: int(canvas.depth)].mean())
    if kind in ("holes", "pits"):
        facts.pore_fraction, facts.coverage = facts.coverage, 1 - facts.coverage
    shown = mask[: int(canvas.depth)]
    labels, n = ndimage.label(shown)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    facts.count = int((area > 12).sum())
    facts.touching = 0.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))


def trenches(stage: Stage) -> Specimen:
    """Lines with bends and ends, sunk into a resist or standing on the ground."""
    s, v = stage.specimen, stage.view
    width_nm = log_uniform(s, 30, 5000)
    sunk, tone = s.random() < 0.65, float(s.choice([1.0, 0.6, 1.4]))
    canvas = stage.canvas(width_nm * v.uniform(7, 24))
    d = width_nm / canvas.nm
    mask = np.zeros(canvas.shape, bool)
    step = 2 * d
    start = v.random() * step
    for row in range(-1, int(canvas.height / step) + 2):
        x = -v.random() * 3 * step
        y = start + row * step
        while x < canvas.width:
            length = v.choice([1.5, 3, 6, 14]) * step * v.uniform(0.7, 1.3)
            if v.random() < 0.8:
                mask |= _bar(canvas, x, y, x + length, y, d / 2)
                if v.random() < 0.3:  # a bend
                    far = y + v.choice([-1, 1]) * step * v.integers(1, 3)
                    mask |= _bar(canvas, x + length, y, x + length, far, d / 2)
            x += length + 1.6 * d
    mask = mask.T.copy() if v.random() < 0.5 and canvas.width == canvas.height else mask
    soft = smooth(mask.astype(np.float32), 0.22 * d)
    inner = (soft - 0.5) * 1.4 * d
    wall = np.clip(inner / 1.2 + 0.5, 0, 1)
    height = min(d, 12) * s.uniform(0.5, 1.3) * (-1 if sunk else 1)
    canvas.z = (height * wall + 0.3 * s.random() * noise(v, canvas.shape, GRAINY)).astype(
        np.float32
    )
    canvas.owner = (inner > 0).astype(np.int32)
    facts = Facts("trenches", dimension="width", arrangement="ordered", substrate=True)
    facts.size_mean_nm, facts.size_std_nm = width_nm, 0.0
    facts.size_min_nm = facts.size_max_nm = width_nm
    _, n = ndimage.label(canvas.owner)
    facts.count, facts.touching = int(n), 0.0
    facts.coverage = float(canvas.owner.mean())
    facts.shape = "sunk" if sunk else "raised"
    if tone != 1.0:
        facts.two_materials = "brighter" if tone > 1 else "darker"
    texture = np.where(canvas.owner > 0, np.float32(tone), np.float32(1))
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, texture * mottle(canvas, v, 0.03))


def _bar(canvas, x0, y0, x1, y1, half) -> np.ndarray:
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    across = (canvas.xs >= x0 - half) & (canvas.xs <= x1 + half)
    return across & (canvas.ys >= y0 - half) & (canvas.ys <= y1 + half)


def small_array(stage: Stage) -> Specimen:
    """A finite array of pillars or bumps with plain ground around it, often at a tilt."""
    s, v = stage.specimen, stage.view
    pitch_nm = log_uniform(s, 200, 30_000)
    ratio, tall = s.uniform(0.2, 0.45), s.uniform(0.3, 3.0)
    nx, ny = (int(n) for n in s.integers(3, 11, 2))
    square = s.random() < 0.4
    ground = s.uniform(0.4, 0.9)
    canvas = stage.canvas(pitch_nm * max(nx, ny) * v.uniform(1.05, 2.6), tilt(v, 0.6, 20, 55))
    d = pitch_nm / canvas.nm
    facts = Facts("small_array", arrangement="ordered", spacing_nm=pitch_nm)
    facts.tilt_deg = float(np.rad2deg(canvas.tilt))
    facts.dimension = "width" if square else "diameter"
    canvas.yields[0] = ground
    canvas.z += 0.2 * s.random() * noise(v, canvas.shape, GRAINY)
    a = v.choice([0.0, np.pi / 4, v.uniform(0, 1.5)]) + v.normal(0, 0.03)
    c, n = np.cos(a), np.sin(a)
    middle = np.array([canvas.width, canvas.depth]) * v.uniform(0.42, 0.58, 2)
    size, faces = ratio * d, np.array([[c, n, 0], [-n, c, 0], [0, 0, 1]])
    faces = canvas.rotate(np.concatenate([faces, -faces]))
    height = tall * size
    for i in range(nx):
        for j in range(ny):
            u, w = (i - (nx - 1) / 2) * d, (j - (ny - 1) / 2) * d
            x, y = middle[0] + c * u - n * w, middle[1] + n * u + c * w
            canvas.begin(size, v.normal(1.15, 0.03))
            if square:
                place = canvas.project(x, y, height / 2)
                half = [size / 2, size / 2, height / 2] * 2
                canvas.polyhedron(*place, faces, half, reach=0.8 * (size + height))
            else:
                foot, top = canvas.project(x, y, 0), canvas.project(x, y, height)
                if canvas.sin > 0.1:
                    canvas.rod(foot, top, size / 2, size / 2 * 0.9)
                canvas.sphere(*top, size / 2 * 0.9)
    measure_objects(canvas, facts)
    facts.length_nm = height * canvas.nm
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))
