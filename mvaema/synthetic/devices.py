"""MEMS devices and electrodes: layouts of polygons at a few heights, top view or tilted."""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from mvaema.synthetic.canvas import GRAINY, noise
from mvaema.synthetic.optics import mottle
from mvaema.synthetic.specimen import (
    Facts,
    Specimen,
    Stage,
    choose,
    log_uniform,
    measure_sizes,
    sprinkle,
    tilt,
)


class Layout:
    """Polygons in units of the smallest feature, drawn in one turned frame on a plane canvas."""

    def __init__(self, plane, unit: float, angle: float):
        self.size = (2 * plane.width, 2 * plane.height)  # drawn twice as fine, for soft edges
        self.shape = plane.shape
        self.unit, self.angle = unit, angle
        self.layers: list[tuple[Image.Image, float, float]] = []

    def layer(self, height: float, material: float) -> None:
        """Start a layer that rises to `height` canvas pixels."""
        self.layers.append((Image.new("L", self.size, 0), height, material))

    def polygon(self, points, fill: int = 255) -> None:
        """A polygon; coordinates in units, from the middle of the plane. `fill` 0 cuts it out."""
        c, n = np.cos(self.angle), np.sin(self.angle)
        x, y = 2 * self.unit * np.asarray(points, float).T
        x, y = c * x - n * y + self.size[0] / 2, n * x + c * y + self.size[1] / 2
        draw = ImageDraw.Draw(self.layers[-1][0])
        draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=fill)

    def box(self, x0, y0, x1, y1, fill: int = 255) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def disc(self, x, y, r, fill: int = 255) -> None:
        a = np.linspace(0, 2 * np.pi, 33)[:-1]
        self.polygon(np.stack([x + r * np.cos(a), y + r * np.sin(a)], 1), fill)

    def masks(self) -> list[np.ndarray]:
        """The layers, anti-aliased, 0 to 1, in canvas pixels."""
        size = self.shape[::-1]
        return [
            np.asarray(im.resize(size, Image.BOX), np.float32) / 255 for im, _, _ in self.layers
        ]


def _comb(layout: Layout, s, v, facts: Facts) -> None:
    """Interdigitated fingers between two bars."""
    gap, n = s.uniform(0.7, 1.6), 60
    pitch = 2 * (1 + gap)
    length = s.uniform(9, 16)
    clear = s.uniform(0.8, 2)
    ox, oy = v.uniform(-2, 2), v.uniform(-3, 3)
    for sign in (1, -1):
        layout.box(
            -99 + ox, oy + sign * (length / 2 + clear), 99 + ox, oy + sign * (length / 2 + 5)
        )
        for k in range(-n // 2, n // 2):
            x = ox + k * pitch + (pitch / 2 if sign > 0 else 0)
            ends = sorted((oy + sign * (length / 2 + clear + 0.1), oy - sign * (length / 2 - 0.3)))
            layout.box(x - 0.5, ends[0], x + 0.5, ends[1])
    facts.dimension, facts.arrangement = "finger width", "ordered"
    facts.spacing_nm = 1 + gap
    facts.length_nm = gap


def _pads(layout: Layout, s, v, facts: Facts) -> None:
    """Contact pads whose leads run together toward an active region."""
    n = int(s.integers(3, 7))
    pad = s.uniform(3, 5)
    inner = 1.4 * n / 2 + 1
    reach = max(inner + 4, n * pad * 0.7 + s.uniform(0, 2))
    ox, oy = v.uniform(-1.5, 1.5, 2)
    for side in range(4 if s.random() < 0.6 else 2):
        c, n_ = np.cos(side * np.pi / 2), np.sin(side * np.pi / 2)
        turn = np.array([[c, -n_], [n_, c]])
        for k in range(n):
            offset = k - (n - 1) / 2
            end = offset * pad * 1.35
            lead = np.array(
                [
                    (inner, offset * 2 - 0.5),
                    (inner + 3, offset * 2 - 0.5),
                    (reach, end - 0.5),
                    (reach + 30, end - 0.5),
                    (reach + 30, end + 0.5),
                    (reach, end + 0.5),
                    (inner + 3, offset * 2 + 0.5),
                    (inner, offset * 2 + 0.5),
                ]
            )
            layout.polygon(lead @ turn.T + (ox, oy))
            square = np.array(
                [
                    (reach, end - pad / 2),
                    (reach + pad, end - pad / 2),
                    (reach + pad, end + pad / 2),
                    (reach, end + pad / 2),
                ]
            )
            layout.polygon(square @ turn.T + (ox, oy))
    facts.dimension, facts.arrangement = "lead width", "ordered"
    facts.spacing_nm = 2.0


def _beams(layout: Layout, s, v, facts: Facts) -> None:
    """Cantilevers that reach over a trench from an anchor."""
    gap = s.uniform(0.8, 2.5)
    lengths = s.uniform(5, 12) * np.linspace(1, s.uniform(0.4, 1), 5)
    ox, oy = v.uniform(-2, 2, 2)
    layout.box(-99, oy - 40, 99, oy - 5)
    for k in range(-14, 15):
        x = ox + k * (1 + gap)
        layout.box(x - 0.5, oy - 5.2, x + 0.5, oy - 5 + lengths[k % 5])
    far = lengths.max() + s.uniform(2, 5)
    layout.box(-99, oy - 5 + far, 99, oy + 60)
    facts.dimension, facts.arrangement = "beam width", "ordered"
    facts.spacing_nm = 1 + gap
    facts.length_nm = float(lengths.max())


def _serpentine(layout: Layout, s, v, facts: Facts) -> None:
    """One wire folded back and forth between two pads, a heater or a spring."""
    gap = s.uniform(0.8, 2)
    turns = int(s.integers(5, 10))
    length = s.uniform(7, 13)
    pitch = 1 + gap
    ox, oy = v.uniform(-1, 1, 2)
    left = -turns * pitch / 2
    for k in range(turns + 1):
        x = ox + left + k * pitch
        layout.box(x - 0.5, oy - length / 2, x + 0.5, oy + length / 2)
        if k < turns:
            y = oy + (length / 2 if k % 2 else -length / 2)
            layout.box(x - 0.5, y - 0.5, x + pitch + 0.5, y + 0.5)
    for sign, x in ((-1, ox + left), (1, ox + left + turns * pitch)):
        y = oy + (length / 2 if sign < 0 or turns % 2 else -length / 2)
        ends = sorted((x - sign * 0.5, x + sign * 3))
        layout.box(ends[0], y - 0.5, ends[1], y + 0.5)
        pad = sorted((x + sign * 2.5, x + sign * 40))
        layout.box(pad[0], y - 4, pad[1], y + 4)
    facts.dimension, facts.arrangement = "wire width", "ordered"
    facts.spacing_nm = pitch


def _gap(layout: Layout, s, v, facts: Facts) -> None:
    """Two electrodes that taper toward each other and leave a narrow gap."""
    blunt = s.uniform(0.4, 3)
    slope = s.uniform(0.3, 1.2)
    ox, oy = v.uniform(-1.5, 1.5, 2)
    for sign in (1, -1):
        layout.polygon(
            [
                (ox + sign * 0.5, oy - blunt / 2),
                (ox + sign * 0.5, oy + blunt / 2),
                (ox + sign * 40, oy + blunt / 2 + 40 * slope),
                (ox + sign * 40, oy - blunt / 2 - 40 * slope),
            ]
        )
    facts.dimension, facts.arrangement = "gap width", "single"
    facts.angle_deg = float(np.rad2deg(2 * np.arctan(slope)))


def _plate(layout: Layout, s, v, facts: Facts) -> None:
    """A plate hung on four folded springs, with a grid of release holes."""
    side, hole = s.uniform(7, 11), s.uniform(0.9, 1.2)
    ox, oy = v.uniform(-1.5, 1.5, 2)
    layout.box(ox - side, oy - side, ox + side, oy + side)
    pitch = s.uniform(2.4, 3.4)
    n = int((side - 1) / pitch)
    for i in range(-n, n + 1):
        for j in range(-n, n + 1):
            x, y = ox + i * pitch, oy + j * pitch
            layout.box(x - hole / 2, y - hole / 2, x + hole / 2, y + hole / 2, fill=0)
    for sx in (1, -1):
        for sy in (1, -1):
            x, y = ox + sx * side, oy + sy * (side - 1)
            a = sorted((x, x + sx * 4))
            layout.box(a[0], y - 0.4, a[1], y + 0.4)
            b = sorted((y, y + sy * 5))
            c = sorted((x + sx * 4, x + sx * 3.2))
            layout.box(c[0], b[0], c[1], b[1])
            p = sorted((x + sx * 2.2, x + sx * 5.2))
            q = sorted((y + sy * 4.5, y + sy * 8))
            layout.box(p[0], q[0], p[1], q[1])
    facts.dimension, facts.arrangement = "hole width", "ordered"
    facts.spacing_nm, facts.size_mean_nm = pitch, hole


_LAYOUTS = {
    "comb": (_comb, 26.0),
    "pads": (_pads, 44.0),
    "beams": (_beams, 22.0),
    "serpentine": (_serpentine, 26.0),
    "electrode_gap": (_gap, 14.0),
    "plate": (_plate, 30.0),
}


def devices(stage: Stage) -> Specimen:
    """Comb drives, electrodes with pads, cantilevers, serpentines, gaps, suspended plates."""
    s, v = stage.specimen, stage.view
    kind = choose(s, dict.fromkeys(_LAYOUTS, 1.0))
    draw, units = _LAYOUTS[kind]
    unit_nm = log_uniform(s, 80, 20_000)
    thin = kind in ("pads", "electrode_gap") or s.random() < 0.3
    tone, etched = s.uniform(1.2, 1.8) if thin else s.uniform(0.9, 1.25), s.random() < 0.6
    facts = Facts(kind)
    tilt_deg = tilt(v, 0.5, 20, 55)
    canvas = stage.canvas(unit_nm * units * v.uniform(0.75, 1.3), tilt_deg)
    facts.tilt_deg = tilt_deg
    unit = unit_nm / canvas.nm
    height = unit * (s.uniform(0.1, 0.3) if thin else s.uniform(0.6, 2.0))
    plane = canvas.plane(height)
    turn = v.normal(0, 0.05) + (v.choice([0, np.pi / 2]) if v.random() < 0.7 else v.uniform(0, 3.1))
    layout = Layout(plane, unit, turn)
    layout.layer(height, tone)
    draw(layout, np.random.default_rng(s.integers(2**32)), v, facts)
    (mask,) = layout.masks()
    ground = 0.15 + (0.5 if etched else 0.1) * s.random()
    walls = 0.08 * noise(v, plane.shape, GRAINY)
    plane.z = height * mask + ground * noise(v, plane.shape, GRAINY) * (1 - mask) + walls
    plane.owner = (mask > 0.5).astype(np.int32)
    plane.sizes, plane.drawn, plane.yields = [0.0, unit], [0, 1], [1.0, tone]
    shown = plane.owner[: int(canvas.depth)] > 0
    canvas.view(plane)
    for name in ("spacing_nm", "length_nm"):  # which the layouts give in units
        value = getattr(facts, name)
        setattr(facts, name, None if value is None else value * unit_nm)
    measure_sizes(np.array([unit_nm * (facts.size_mean_nm or 1.0)]), facts)
    facts.coverage = float(shown.mean())
    labels, n = ndimage.label(shown)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    facts.count = int((area > 40).sum())
    facts.touching = 0.0
    facts.rough = ground > 0.4
    if tone > 1.2:
        facts.two_materials = "brighter"
    facts.debris = sprinkle(canvas, v, stage.difficulty)
    return Specimen(canvas, facts, mottle(canvas, v, 0.03))
