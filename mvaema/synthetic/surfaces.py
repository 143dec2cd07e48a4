"""Films, patterned surfaces and porous sponges: surfaces without separate bodies."""

import numpy as np
from scipy import ndimage

from mvaema.synthetic.canvas import CLOUDY, GRAINY, WHITE, Canvas, bumps, noise, smooth
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    lattice,
    log_uniform,
    measure_objects,
    measure_sizes,
    scatter,
    sprinkle,
    tilt,
)


def jittered(rng, canvas: Canvas, pitch: float, jitter: float) -> np.ndarray:
    """Points (n, 2), `pitch` apart on average: a disturbed hexagonal lattice that extends beyond
    the border."""
    points = lattice(
        pitch * 1.0746, canvas.width, canvas.height, rng.uniform(0, 1), True, 1.6 * pitch
    )
    return points + rng.normal(0, jitter * pitch, points.shape)


def bend(rng, canvas: Canvas, amount: float, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (rows, columns) of the canvas, shifted smoothly by about `amount` pixels
    over hills of `length`: indexing with them bends a picture."""
    y = canvas.ys + amount * bumps(rng, canvas.shape, length)
    x = canvas.xs + amount * bumps(rng, canvas.shape, length)
    rows = np.clip(y, 0, canvas.height - 1).astype(np.int32)
    return rows, np.clip(x, 0, canvas.width - 1).astype(np.int32)


def measure_cells(facts: Facts, index: np.ndarray, mask: np.ndarray, count: int, nm: float) -> None:
    """Set the facts on count and sizes from the cells with pixels in `mask`.

    Sizes are equivalent diameters, of the cells that the border does not cut if there are some.

    Args:
        index: int (height, width), the cell of each pixel, below `count`.
        mask: bool (height, width).
        nm: nanometres per pixel.
    """
    area = np.bincount(index[mask], minlength=count)
    rim = np.zeros(count, bool)
    for edge in (index[0], index[-1], index[:, 0], index[:, -1]):
        rim[edge] = True
    seen = area > 12
    whole = seen & ~rim
    facts.count = int(seen.sum())
    diameter = 2 * np.sqrt(area / np.pi) * nm
    measure_sizes(diameter[whole if whole.sum() > 2 else seen], facts)


def rounded(edge: np.ndarray, pitch: float, level: float) -> tuple[np.ndarray, float]:
    """Walls between cells that thicken where they meet, so that the openings are round.

    Args:
        edge: distance to the nearest cell edge (`Canvas.cells`), in pixels.
        pitch: mean distance of the cells.
        level: how much is wall, about 0.13 (thin) to 0.22 (thick) of the pitch.

    Returns:
        Depth inside the wall (negative in openings), and half the width of a straight wall, both
        in pixels.
    """
    soft = smooth(np.minimum(edge, 0.35 * pitch), 0.12 * pitch)
    body = np.float32(level * pitch) - soft
    rim = edge[np.abs(body) < 0.5]
    return body, float(np.median(rim)) if rim.size else 0.0


def films(stage: Stage) -> Specimen:
    """Polycrystalline, cracked, granular, wrinkled and perforated films, and stacks in section."""
    s = stage.specimen
    kind = choose(
        s,
        {
            "grains": 1.3,
            "cracked": 1,
            "granular": 1,
            "wrinkled": 0.8,
            "pinholes": 0.4,
            "section": 0.8,
        },
    )
    return {
        "grains": _grains,
        "cracked": _cracked,
        "granular": _granular,
        "wrinkled": _wrinkled,
        "pinholes": _pinholes,
        "section": _section,
    }[kind](stage, kind)


def _grains(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 60, 20_000)
    jitter, groove, facet = s.uniform(0.12, 0.34), s.uniform(0.05, 0.14), s.uniform(0.03, 0.35)
    canvas = stage.canvas(size_nm * v.uniform(4.5, 12))
    d = size_nm / canvas.nm
    facts = Facts(kind, dimension="diameter", arrangement="packed", substrate=False)
    points = jittered(v, canvas, d, jitter)
    edge, index = canvas.cells(points)
    n = len(points)
    # Facets: every grain is cut at its own small angle, and stands a little higher or lower.
    gx, gy = v.normal(0, facet, (2, n)).astype(np.float32)
    level = v.normal(0, 0.06 * d, n).astype(np.float32)
    px, py = points.astype(np.float32).T
    z = level[index] + gx[index] * (canvas.xs - px[index]) + gy[index] * (canvas.ys - py[index])
    width = groove * d
    z -= 2.2 * width * np.exp(-edge / width)
    canvas.z = smooth(z.astype(np.float32), 0.7)
    rough = s.random() < 0.4
    if rough:
        canvas.z += 0.35 * noise(v, canvas.shape, GRAINY)
    facts.rough = rough
    measure_cells(facts, index, np.ones_like(index, bool), n, canvas.nm)
    facts.coverage, facts.touching = 1.0, 1.0
    channelling = v.normal(1, s.uniform(0.03, 0.15), n).clip(0.6, 1.4).astype(np.float32)
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, channelling[index])


def _cracked(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 200, 60_000)
    gap_ratio, ragged = s.uniform(0.05, 0.16), s.uniform(0.0, 0.05)
    canvas = stage.canvas(size_nm * v.uniform(3.5, 9))
    d = size_nm / canvas.nm
    points = jittered(v, canvas, d, s.uniform(0.2, 0.34))
    edge, _ = canvas.cells(points)
    half = max(1.6, gap_ratio * d / 2)
    edge = edge + ragged * d * noise(v, canvas.shape, CLOUDY, max(0.5, d / 70))
    depth = max(4.0, 0.25 * d)
    wall = np.clip((edge - half) / 1.2 + 0.5, 0, 1)
    curl = s.uniform(0, 0.06) * d * np.exp(-np.maximum(edge, 0) / (0.15 * d))
    canvas.z = (depth * wall + curl * wall).astype(np.float32)
    canvas.z += 0.4 * s.random() * noise(v, canvas.shape, GRAINY)
    facts = Facts(kind, dimension="equivalent diameter", arrangement="packed", rough=ragged > 0.03)
    openings = edge < half
    islands, n = ndimage.label(~openings)
    measure_cells(facts, islands, ~openings, n + 1, canvas.nm)
    facts.pore_fraction = float(openings.mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 0.0
    facts.length_nm = 2 * half * canvas.nm
    texture = np.where(openings, np.float32(s.uniform(0.4, 0.8)), np.float32(1))
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, texture)


def _granular(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 15, 4000)
    spread = s.uniform(0.1, 0.3)
    clumped = s.random() < 0.5
    canvas = stage.canvas(size_nm * v.uniform(8, 14))
    d = size_nm / canvas.nm
    facts = Facts(kind, arrangement="packed", rough=True, substrate=False)
    points = jittered(v, canvas, 0.87 * d, 0.25)
    lumps = 0.35 * d * noise(v, canvas.shape, CLOUDY, max(0.5, d / 12)) if clumped else None
    for x, y in points:
        size = d * np.exp(v.normal(0, spread))
        base = v.normal(0, 0.1 * d)
        if lumps is not None:
            inside = (min(max(int(y), 0), canvas.height - 1), min(max(int(x), 0), canvas.width - 1))
            base += float(lumps[inside])
        canvas.begin(size, v.normal(1, 0.04))
        canvas.sphere(x, y, base, size / 2 * 1.12)
    canvas.z = np.maximum(canvas.z, float(np.percentile(canvas.z, 2)))
    measure_objects(canvas, facts)
    facts.substrate = False
    return Specimen(canvas, facts, mottle(canvas, v, 0.04))


def _wrinkled(stage: Stage, kind: str) -> Specimen:
    s, v = stage.specimen, stage.view
    wave_nm = log_uniform(s, 100, 30_000)
    amplitude, wander = s.uniform(0.08, 0.22), s.uniform(0.05, 0.4)
    ordered = wander < 0.15
    tilt_deg = tilt(v, 0.3, 10, 40)
    canvas = stage.canvas(wave_nm * v.uniform(5, 14), tilt_deg)
    period = wave_nm / canvas.nm
    plane = canvas.plane(2 * amplitude * period)
    a = v.uniform(0, np.pi)
    along = plane.xs * np.float32(np.cos(a)) + plane.ys * np.float32(np.sin(a))
    phase = along / period + wander * smooth(
        noise(v, plane.shape, CLOUDY, max(0.5, period / 25)), 1.5
    )
    ridge = np.cos(2 * np.pi * phase)
    ridge = (ridge + 0.25 * ridge * ridge).astype(np.float32)
    fade = 1 + 0.35 * noise(v, plane.shape, CLOUDY, max(0.5, period / 25))
    plane.z = amplitude * period * ridge * np.clip(fade, 0.3, 1.7)
    plane.z += 0.15 * noise(v, plane.shape, GRAINY)
    canvas.view(plane)
    facts = Facts(kind, dimension="spacing", tilt_deg=tilt_deg, substrate=False)
    facts.arrangement = "aligned" if ordered else "random"
    facts.spacing_nm = facts.size_mean_nm = wave_nm
    facts.coverage, facts.touching = 1.0, 1.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def round_pores(stage: Stage) -> Specimen:
    """A solid with round pores of many sizes, as bubbles leave them."""
    return _perforated(stage, "round_pores", s_spread=(0.3, 0.8), most=110, across=(8, 30))


def _pinholes(stage: Stage, kind: str) -> Specimen:
    return _perforated(stage, kind, s_spread=(0.1, 0.4), most=30, across=(10, 32))


def _perforated(stage: Stage, kind: str, s_spread, most: int, across) -> Specimen:
    """A surface with round holes, whose sizes spread by `s_spread` in the logarithm."""
    s, v = stage.specimen, stage.view
    size_nm = log_uniform(s, 40, 20_000)
    spread = s.uniform(*s_spread)
    canvas = stage.canvas(size_nm * v.uniform(*across))
    d = size_nm / canvas.nm
    count = int(v.integers(4, most))
    points = scatter(v, count, canvas.width, canvas.height, (2.2 if most < 50 else 1.3) * d)
    large = 1.9 if most < 50 else 4.0
    sizes = np.clip(d * np.exp(v.normal(0, spread, len(points))), 0.4 * d, large * d)
    canvas.z += (0.2 + 0.8 * s.random()) * noise(v, canvas.shape, GRAINY)
    depth, openings = 0.8 * d, np.zeros(canvas.shape, bool)
    floor = np.float32(s.uniform(0.3, 1.5))
    ragged = s.uniform(0, 0.25)
    bumps = noise(v, canvas.shape, CLOUDY, max(0.5, d / 30))
    for (x, y), size in zip(points, sizes, strict=True):
        window = canvas.window(x - size, x + size, y - size, y + size)
        if window is None:
            continue
        r = np.hypot(canvas.xs[:, window[1]] - x, canvas.ys[window[0]] - y)
        inner = size / 2 * (1 + ragged * bumps[window]) - r
        drop = np.clip(inner / 1.5 + 0.5, 0, 1)
        canvas.z[window] -= (depth * drop).astype(np.float32)
        canvas.z[window] += 0.06 * size * np.exp(-((inner / (0.12 * size)) ** 2)) * (inner < 0)
        openings[window] |= inner > 0
    holes, _ = ndimage.label(openings)
    area = np.bincount(holes.ravel())[1:]
    diameters = 2 * np.sqrt(area[area > 12] / np.pi) * canvas.nm
    facts = Facts(kind, dimension="diameter", rough=False)
    facts.count = len(diameters)
    measure_sizes(diameters, facts)
    facts.pore_fraction = float(openings.mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 0.0
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    texture = np.where(openings, floor, np.float32(1)) * mottle(canvas, v, 0.06)
    return Specimen(canvas, facts, texture)


def _section(stage: Stage, kind: str) -> Specimen:
    """A cleaved stack: substrate, one to four layers, and the dark chamber above."""
    s, v = stage.specimen, stage.view
    thickness_nm = log_uniform(s, 30, 8000)
    layers = int(s.integers(1, 5))
    ratios = np.exp(s.normal(0, 0.35, layers))
    thick_nm = thickness_nm * ratios
    canvas = stage.canvas(float(thick_nm.sum()) * v.uniform(1.8, 3.2))
    angle = v.normal(0, 0.05)
    u = canvas.ys - np.tan(angle) * (canvas.xs - canvas.width / 2)
    top = v.uniform(0.18, 0.32) * canvas.height
    z = np.full(canvas.shape, -1.5 * canvas.width, np.float32)
    yields = np.full(canvas.shape, 0.12, np.float32)
    labels = np.zeros(canvas.shape, np.int32)
    contrast = np.float32(0.85)
    start, columnar = top, s.random(layers) < 0.4
    tones = s.permutation(np.linspace(0.55, 1.45, layers + 1)).astype(np.float32)
    for i in range(layers + 1):
        thick = thick_nm[i] / canvas.nm if i < layers else 4 * canvas.height
        border = start + v.uniform(0.3, 1.3) * noise(v, canvas.shape, CLOUDY)[:1]
        here = u > border
        if i < layers and columnar[i]:
            grain = 1.2 * noise(v, canvas.shape, GRAINY)[0][None]
            grain = grain + 0.4 * noise(v, canvas.shape, GRAINY)
        else:
            grain = 0.35 * noise(v, canvas.shape, GRAINY)
        np.copyto(z, 1.3 * i % 2.6 + grain, where=here)
        np.copyto(yields, contrast * tones[i], where=here)
        labels[here] = i + 1
        start += thick
    canvas.z = z
    facts = Facts(kind, dimension="thickness", arrangement="stacked", shape=str(layers))
    facts.count = layers
    measure_sizes(thick_nm, facts)
    facts.coverage = float(np.mean((labels > 0) & (labels <= layers)))
    facts.touching = 1.0
    facts.rough = bool(columnar.any())
    return Specimen(canvas, facts, yields)


def porous(stage: Stage) -> Specimen:
    """Open foams, perforated membranes, honeycombs and bicontinuous sponges."""
    s, v = stage.specimen, stage.view
    kind = choose(s, {"foam": 1.4, "membrane": 1, "honeycomb": 1, "sponge": 1})
    pore_nm = log_uniform(s, 60, 200_000)
    if kind == "sponge":
        return _sponge(stage, pore_nm)
    strut = s.uniform(0.05, 0.14)
    wall = s.uniform(0.11, 0.21)
    wild = s.uniform(0, 0.3) if s.random() < 0.7 else 0.0
    canvas = stage.canvas(
        pore_nm * log_uniform(v, 3, 13), tilt(v, 0.2, 10, 30) if kind != "foam" else 0
    )
    d = pore_nm / canvas.nm
    plane = canvas.plane(0.1 * d)
    clouds = noise(v, plane.shape, CLOUDY, max(0.5, d / 40))
    jitter = {"foam": 0.28, "membrane": 0.22, "honeycomb": 0.08}[kind]
    depth = {"foam": 1.7, "membrane": 0.8, "honeycomb": 1.4}[kind] * d
    z = (0.15 * d * clouds - depth).astype(np.float32)
    for layer in range(2 if kind == "foam" else 1):
        pitch = d * (1 if layer == 0 else v.uniform(0.8, 1.1))
        points = jittered(v, plane, pitch, jitter)
        edge, index = plane.cells(points)
        if wild and kind != "membrane":
            bent = bend(v, plane, wild * d, 0.9 * d)
            edge, index = edge[bent], index[bent]
        if kind == "membrane":
            # Round pores of their own sizes, one in each cell.
            r = np.hypot(plane.xs - points[index, 0], plane.ys - points[index, 1])
            radius = 0.5 * d * v.uniform(0.5, 0.95, len(points)).astype(np.float32)
            body = r - radius[index] + 0.015 * d * clouds
            surface = np.minimum(body, 0.05 * d)
        elif kind == "foam":
            body, half = rounded(edge, pitch, wall)
            body = body + 0.012 * d * clouds
            inside = np.clip(body / (0.12 * d), 0, 1)
            surface = 0.13 * d * np.sqrt(inside * (2 - inside)) - 0.75 * d * layer
            surface = surface + 0.06 * d * clouds
        else:
            half = strut * d / 2
            body = (
                half - np.minimum(edge, smooth(edge, 0.03 * d) + 0.25 * half) + 0.008 * d * clouds
            )
            surface = np.minimum(body, 0.05 * d)
        if layer == 0:
            openings = body <= 0
            if kind != "membrane":
                wall_nm = 2 * half * canvas.nm
        z = np.where(body > 0, np.maximum(z, surface), z)
    plane.z = z.astype(np.float32) + (0.1 + 0.3 * s.random()) * noise(v, plane.shape, GRAINY)
    plane.owner = np.where(openings, 0, 1).astype(np.int32)
    plane.sizes, plane.drawn, plane.yields = [0.0, 1.0], [0, 1], [0.8, 1.0]
    canvas.view(plane)
    facts = Facts(kind, dimension="diameter", arrangement="packed", substrate=False)
    facts.tilt_deg = float(np.rad2deg(canvas.tilt))
    rows = int(canvas.depth)
    pores, n = ndimage.label(openings[:rows])
    measure_cells(facts, pores, openings[:rows], n + 1, canvas.nm)
    facts.pore_fraction = float(openings[:rows].mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 1.0
    facts.length_nm = wall_nm if kind != "membrane" else None
    facts.rough = True
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))


def _sponge(stage: Stage, pore_nm: float) -> Specimen:
    """A bicontinuous network: a random field with one preferred length, cut at a level."""
    s, v = stage.specimen, stage.view
    level = s.uniform(-0.35, 0.35)
    canvas = stage.canvas(pore_nm * v.uniform(10, 24))
    d = pore_nm / canvas.nm
    fine = noise(v, canvas.shape, WHITE)
    fine = smooth(fine, 0.42 * d) - smooth(fine, 0.75 * d)
    fine = fine / fine.std()
    coarse = noise(v, canvas.shape, WHITE)
    coarse = smooth(coarse, 0.5 * d) - smooth(coarse, 0.8 * d)
    coarse = coarse / coarse.std()
    openings = fine < level
    top = np.sqrt(np.clip(fine - level, 0, 1.2)) * 0.7 * d
    below = np.clip(coarse, -1.5, 1) * 0.6 * d - 1.1 * d
    canvas.z = np.where(openings, below, top).astype(np.float32)
    canvas.z += 0.3 * noise(v, canvas.shape, GRAINY) + 0.1 * d * noise(v, canvas.shape, CLOUDY)
    facts = Facts("sponge", dimension="width", substrate=False, rough=True)
    # The width of a pore, not its winding length: in a channel the distance to the wall is, on
    # average, a quarter of the width.
    depth = ndimage.distance_transform_edt(openings[::2, ::2])
    facts.size_mean_nm = float(4 * depth[depth > 0].mean() * 2 * canvas.nm)
    facts.pore_fraction = float(openings.mean())
    facts.coverage, facts.touching = 1 - facts.pore_fraction, 1.0
    return Specimen(canvas, facts, mottle(canvas, v, 0.05))
