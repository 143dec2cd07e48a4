"""Rectilinear trenches and small arrays: patterned surfaces that do not fill the field."""

import numpy as np
from scipy import ndimage

from mvaema.synthetic.canvas import GRAINY, noise, smooth
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    log_uniform,
    measure_objects,
    sprinkle,
    tilt,
)


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
