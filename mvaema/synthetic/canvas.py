"""The height field of a scene, and the shapes drawn on it.

What is special about it:
- heights are measured along the beam. A tilted specimen is rotated before it is drawn, so
  occlusion, foreshortening and the angle between surface and beam follow without further work;
- it is a z-buffer that records which object owns each pixel, so counts, coverage and contacts
  describe what is visible, not what was drawn;
- a transparent canvas also sums the thickness of all that the beam passes, hidden or not;
- all lengths are canvas pixels; only `nm` (nanometres per canvas pixel) has a unit.
"""

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import fft
from scipy.spatial import Voronoi

SUBSTRATE = 0
_TILE = 1024
# Exponents of the noise spectra in use.
WHITE, GRAINY, CLOUDY = 0.0, 2.0, 3.0


@lru_cache
def _noise_tile(exponent: float) -> np.ndarray:
    """A random field (1024, 1024) with power spectrum k^-exponent, unit variance."""
    white = np.random.default_rng(20211).standard_normal((_TILE, _TILE), dtype=np.float32)
    k = np.hypot(fft.fftfreq(_TILE)[:, None], fft.rfftfreq(_TILE)[None]).astype(np.float32)
    # Beyond a sixth of the tile a field would look like a gradient across the whole image.
    spectrum = fft.rfft2(white) * np.maximum(k, 6 / _TILE) ** (-exponent / 2)
    spectrum[0, 0] = 0
    tile = fft.irfft2(spectrum, s=(_TILE, _TILE))
    return (tile / tile.std()).astype(np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, int], exponent: float, scale: float = 1.0):
    """A random field (height, width) of about unit variance: a random window of a fixed tile,
    mirrored at random. It may be a read-only view.

    `exponent` is one of WHITE, GRAINY, CLOUDY. `scale` enlarges the features of the tile.
    """
    # A field too large for the tile is stretched to it.
    scale = max(scale, max(shape) / (_TILE - 2))
    height, width = (min(int(np.ceil(n / scale)) + 1, _TILE - 1) for n in shape)
    y, x = rng.integers(_TILE - height), rng.integers(_TILE - width)
    window = _noise_tile(exponent)[y : y + height, x : x + width]
    window = window[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
    if scale == 1.0:
        return window[: shape[0], : shape[1]]
    box = (0, 0, shape[1] / scale, shape[0] / scale)
    image = Image.fromarray(np.ascontiguousarray(window))
    return np.asarray(image.resize(shape[::-1], Image.BICUBIC, box=box))


def bumps(rng: np.random.Generator, shape: tuple[int, int], length: float) -> np.ndarray:
    """A smooth random field (height, width) of about unit variance, whose hills are about `length`
    pixels wide."""
    return 1.5 * noise(rng, shape, WHITE, max(1.01, length))


def resize(field: np.ndarray, shape: tuple[int, int], resample=Image.BICUBIC) -> np.ndarray:
    """A float field resampled to `shape` (height, width)."""
    return np.asarray(Image.fromarray(field).resize(shape[::-1], resample))


def smooth(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, mirrored at the border; large blurs are computed on a smaller copy."""
    shape = field.shape
    step = max(1, int(sigma / 2.5))
    if step > 1:
        field = resize(field, (max(8, shape[0] // step), max(8, shape[1] // step)), Image.BOX)
    sigma /= step
    height, width = field.shape
    pad = int(np.ceil(2.5 * sigma)) + 1
    size = [fft.next_fast_len(n + 2 * pad, real=True) for n in (height, width)]
    extra = [(pad, n - m - pad) for n, m in zip(size, (height, width), strict=True)]
    fy, fx = (
        np.exp(-2 * (np.pi * sigma * f) ** 2) for f in (fft.fftfreq(size[0]), fft.rfftfreq(size[1]))
    )
    kernel = fy.astype(np.float32)[:, None] * fx.astype(np.float32)
    spectrum = fft.rfft2(np.pad(field, extra, mode="symmetric"))
    spectrum *= kernel
    out = fft.irfft2(spectrum, s=size, overwrite_x=True)[pad : pad + height, pad : pad + width]
    return resize(out, shape) if step > 1 else out


class Canvas:
    """Height `z` and owner of every pixel, both (height, width), seen along the beam.

    Args:
        width, height: size in canvas pixels.
        nm: nanometres per canvas pixel.
        tilt: tilt of the specimen about the horizontal axis, in radians. A point (x, y, z) of the
            specimen appears at (x, y cos t - z sin t), at height y sin t + z cos t.
        transparent: keep `mass` (height, width): thickness times density of everything drawn, in
            canvas pixels. It is None otherwise.
    """

    def __init__(
        self, width: int, height: int, nm: float, tilt: float = 0.0, transparent: bool = False
    ):
        self.width, self.height, self.nm, self.tilt = width, height, nm, tilt
        self.cos, self.sin = float(np.cos(tilt)), float(np.sin(tilt))
        self.xs = np.arange(width, dtype=np.float32)[None]
        self.ys = np.arange(height, dtype=np.float32)[:, None]
        self.z = np.broadcast_to(self.ys * (self.sin / self.cos), (height, width)).copy()
        self.owner = np.zeros((height, width), np.int32)
        self.mass = np.zeros((height, width), np.float32) if transparent else None
        self.sizes: list[float] = [0.0]  # the nominal size of each object, in canvas pixels
        self.drawn: list[int] = [0]  # pixels of each object, including hidden ones
        self.yields: list[float] = [1.0]  # of each object: relative yield, or density

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def depth(self) -> float:
        """Length, in the plane of the specimen, that the foreshortened height shows."""
        return self.height / self.cos

    def begin(self, size: float, material: float = 1.0) -> int:
        """Start an object: what is drawn until the next call belongs to it."""
        self.sizes.append(float(size))
        self.drawn.append(0)
        self.yields.append(float(material))
        return len(self.sizes) - 1

    def project(self, x, y, z):
        """Specimen coordinates to canvas coordinates (x, y, height), all in pixels."""
        return x, y * self.cos - z * self.sin, y * self.sin + z * self.cos

    def rotate(self, vectors: np.ndarray) -> np.ndarray:
        """Directions (..., 3) of the specimen in canvas coordinates."""
        x, y, z = np.moveaxis(np.asarray(vectors, np.float32), -1, 0)
        return np.stack(self.project(x, y, z), axis=-1)

    def window(self, x0, x1, y0, y1):
        """Slices (rows, columns) of a box, cut at the border; None when it lies outside."""
        rows = slice(max(0, int(y0)), min(self.height, int(y1) + 2))
        cols = slice(max(0, int(x0)), min(self.width, int(x1) + 2))
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None

    def paint(self, window, top: np.ndarray, inside: np.ndarray, half=None) -> None:
        """Draw a surface `top` where `inside`, behind anything that is higher; `half` is half the
        thickness along the beam."""
        self.drawn[-1] += int(np.count_nonzero(inside))
        if self.mass is not None and half is not None:
            mass = self.mass[window]
            np.add(mass, half * np.float32(2 * self.yields[-1]), out=mass, where=inside)
        z = self.z[window]
        seen = inside & (top > z)
        np.copyto(z, top, where=seen)
        np.copyto(self.owner[window], len(self.sizes) - 1, where=seen)

    def sphere(self, x, y, z, radius, relief: np.ndarray | None = None) -> None:
        """A sphere around a canvas point; `relief` (the canvas's shape) roughens it."""
        # Python floats keep arrays float32; NumPy's float64 would not.
        x, y, z, radius = float(x), float(y), float(z), float(radius)
        window = self.window(x - radius, x + radius, y - radius, y + radius)
        if window is None:
            return
        h2 = radius * radius - (self.xs[:, window[1]] - x) ** 2 - (self.ys[window[0]] - y) ** 2
        if relief is not None:
            h2 += relief[window] * (radius * radius)
        half = np.sqrt(np.maximum(h2, 0))
        self.paint(window, z + half, h2 > 0, half)

    def spheres(self, x, y, z, radius, material=None) -> None:
        """Many small spheres of one object each: canvas points and radii, all (n,).

        Far faster than one `sphere` after another if the radii are much alike.
        """
        x, y, z, radius = (np.asarray(a, np.float32) for a in (x, y, z, radius))
        material = np.ones_like(x) if material is None else np.asarray(material, np.float32)
        first = len(self.sizes)
        reach = int(np.ceil(radius.max()))
        offset = np.arange(-reach, reach + 1, dtype=np.int32)
        column, row = np.round(x).astype(np.int32), np.round(y).astype(np.int32)
        columns = column[:, None, None] + offset
        rows = row[:, None, None] + offset[:, None]
        # Integers less float32 would be float64.
        dx, dy = ((column - x)[:, None, None] + offset).astype(np.float32), row - y
        dy = (dy[:, None, None] + offset[:, None]).astype(np.float32)
        h2 = (radius * radius)[:, None, None] - dx * dx - dy * dy
        inside = (h2 > 0) & (columns >= 0) & (columns < self.width)
        inside &= (rows >= 0) & (rows < self.height)
        which, *_ = np.nonzero(inside)
        half = np.sqrt(h2[inside])
        flat = (rows * self.width + columns)[inside]
        top = z[which] + half
        heights, owner = self.z.reshape(-1), self.owner.reshape(-1)
        np.maximum.at(heights, flat, top)
        seen = top >= heights[flat]
        owner[flat[seen]] = first + which[seen]
        if self.mass is not None:
            np.add.at(self.mass.reshape(-1), flat, 2 * half * material[which])
        self.sizes.extend((2 * radius).tolist())
        self.drawn.extend(np.bincount(which, minlength=len(x)).tolist())
        self.yields.extend(material.tolist())

    def ellipsoid(self, x, y, z, axes, rotation, relief: np.ndarray | None = None) -> None:
        """An ellipsoid with semi-`axes` (3,) along the columns of `rotation` (3, 3)."""
        shape = rotation * (1 / np.asarray(axes)) @ rotation.T
        a = shape @ shape  # surface: p' a p = 1
        inverse = rotation * np.square(axes) @ rotation.T
        rx, ry = np.sqrt(inverse[0, 0]), np.sqrt(inverse[1, 1])
        window = self.window(x - rx, x + rx, y - ry, y + ry)
        if window is None:
            return
        dx, dy = self.xs[:, window[1]] - np.float32(x), self.ys[window[0]] - np.float32(y)
        a = a.astype(np.float32)
        half_b = a[0, 2] * dx + a[1, 2] * dy
        c = a[0, 0] * dx * dx + 2 * a[0, 1] * dx * dy + a[1, 1] * dy * dy - 1
        if relief is not None:
            c = c - relief[window]
        root = half_b * half_b - a[2, 2] * c
        half = np.sqrt(np.maximum(root, 0)) / a[2, 2]
        self.paint(window, z + half - half_b / a[2, 2], root > 0, half)

    def polyhedron(
        self, x, y, z, normals, offsets, relief=None, reach: float | None = None
    ) -> None:
        """The convex body n_i . p <= d_i around a canvas point; `normals` (faces, 3), canvas frame.

        `reach` bounds the body; by default it is twice the distance of the farthest face.
        """
        normals = np.asarray(normals, np.float32)
        offsets = np.asarray(offsets, np.float32)
        reach = reach or 2.0 * float(offsets.max())
        window = self.window(x - reach, x + reach, y - reach, y + reach)
        if window is None:
            return
        dx, dy = self.xs[:, window[1]] - float(x), self.ys[window[0]] - float(y)
        # Every face as a height over (dx, dy); the body lies below the upper ones, above the rest.
        tilt = normals[:, 2]
        top = self._heights(normals[tilt > 1e-3], offsets[tilt > 1e-3], dx, dy).min(axis=0)
        bottom = self._heights(normals[tilt < -1e-3], offsets[tilt < -1e-3], dx, dy).max(axis=0)
        inside = top > bottom
        upright = np.abs(tilt) <= 1e-3
        for (nx, ny, _), d in zip(normals[upright], offsets[upright], strict=True):
            inside &= nx * dx + ny * dy <= d
        if relief is not None:
            top = top + relief[window]
        self.paint(window, top + np.float32(z), inside, (top - bottom) / 2)

    @staticmethod
    def _heights(normals, offsets, dx, dy) -> np.ndarray:
        """Heights (faces, y, x) of the planes n . p = d over the points (dx, dy)."""
        a, b, c = (np.stack([offsets, normals[:, 0], normals[:, 1]]) / normals[:, 2])[
            ..., None, None
        ]
        return (a - b * dx) - c * dy

    def rod(self, start, end, radius0, radius1) -> None:
        """A round, tapered rod between two canvas points (x, y, height), open at both ends."""
        x0, y0, z0, x1, y1, z1 = map(float, (*start, *end))
        radius0, radius1 = float(radius0), float(radius1)
        wide, high = abs(x1 - x0), abs(y1 - y0)
        length2 = wide * wide + high * high
        if length2 < 1e-6:
            return
        reach = max(radius0, radius1)
        ux, uy = (x1 - x0) / length2, (y1 - y0) / length2
        # A rod that climbs along the beam is cut by it at a slant.
        slant = (1 + (z1 - z0) ** 2 / length2) ** 0.5
        # A slanting rod fills little of its bounding box, so it is drawn in pieces.
        pieces = 1 + int(min(wide, high) / (2 * reach + 20))
        for k in range(pieces):
            t0, t1 = k / pieces, (k + 1) / pieces
            xa, xb = sorted((x0 + (x1 - x0) * t0, x0 + (x1 - x0) * t1))
            ya, yb = sorted((y0 + (y1 - y0) * t0, y0 + (y1 - y0) * t1))
            window = self.window(xa - reach, xb + reach, ya - reach, yb + reach)
            if window is None:
                continue
            dx, dy = self.xs[:, window[1]] - x0, self.ys[window[0]] - y0
            t = dx * ux + dy * uy
            across = dx * uy - dy * ux
            radius = radius0 + (radius1 - radius0) * t
            h2 = radius * radius - across * across * length2
            half = slant * np.sqrt(np.maximum(h2, 0))
            inside = (h2 > 0) & (t >= t0) & (t <= t1)
            self.paint(window, z0 + (z1 - z0) * t + half, inside, half)

    def capsule(self, start, end, radius: float) -> None:
        """A rod with round ends that lies across the beam, between two canvas points (x, y,
        height), as one body whose thickness counts once."""
        x0, y0, z0, x1, y1, z1 = map(float, (*start, *end))
        radius = float(radius)
        xs, ys = sorted((x0, x1)), sorted((y0, y1))
        window = self.window(xs[0] - radius, xs[1] + radius, ys[0] - radius, ys[1] + radius)
        if window is None:
            return
        dx, dy = self.xs[:, window[1]] - x0, self.ys[window[0]] - y0
        length2 = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
        t = np.clip((dx * (x1 - x0) + dy * (y1 - y0)) / length2, 0, 1)
        h2 = radius * radius - (dx - t * (x1 - x0)) ** 2 - (dy - t * (y1 - y0)) ** 2
        half = np.sqrt(np.maximum(h2, 0))
        self.paint(window, z0 + (z1 - z0) * t + half, h2 > 0, half)

    def strand(
        self, path, height, radius: float, steep: bool, flat: float = 1.0, first: int = 0
    ) -> None:
        """A round strand: `path` gives y for each column from `first` on (x for each row when
        `steep`), `height` its axis, both (n,); `flat` < 1 makes a ribbon."""
        length, breadth = self.shape if steep else self.shape[::-1]
        skip = max(0, -first)
        path = np.asarray(path, np.float32)[skip : length - first]
        height = np.asarray(height, np.float32)[skip : length - first]
        if len(path) < 2:
            return
        slope = np.gradient(path)
        cosine = 1 / np.sqrt(1 + slope * slope)
        reach = int(np.ceil(radius / cosine.min())) + 1
        middle = np.round(path)
        offset = np.arange(-reach, reach + 1, dtype=np.float32)[:, None]
        across = (offset + (middle - path)) * cosine
        h2 = np.float32(radius * radius) - across * across
        rows = middle.astype(np.int32) + offset.astype(np.int32)
        inside = (h2 > 0) & (rows >= 0) & (rows < breadth)
        self.drawn[-1] += int(np.count_nonzero(inside))
        half = np.float32(flat) * np.sqrt(np.maximum(h2, 0))
        top = height + half
        columns = np.arange(max(0, first), max(0, first) + len(path), dtype=np.int32)
        flat_index = columns * breadth + rows if steep else rows * length + columns
        flat_index, top = flat_index[inside], top[inside]
        if self.mass is not None:  # each pixel is met once
            self.mass.reshape(-1)[flat_index] += half[inside] * np.float32(2 * self.yields[-1])
        z, owner = self.z.reshape(-1), self.owner.reshape(-1)
        seen = top > z[flat_index]
        z[flat_index[seen]] = top[seen]
        owner[flat_index[seen]] = len(self.sizes) - 1

    def cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Voronoi cells of `points` (n, 2), some of which should lie beyond the border: for each
        pixel the distance to its cell's nearest edge (height, width), and the index of its point
        (height, width)."""
        # Mirrored points close the outermost cells, out of sight.
        low, high = points.min(0) - 1, points.max(0) + 1
        mirrors = [points * (1, -1) + (0, 2 * low[1]), points * (1, -1) + (0, 2 * high[1])]
        mirrors += [points * (-1, 1) + (2 * low[0], 0), points * (-1, 1) + (2 * high[0], 0)]
        everything = np.concatenate([points, *mirrors])
        diagram = Voronoi(everything)
        pairs = np.concatenate([diagram.ridge_points, diagram.ridge_points[:, ::-1]])
        pairs = pairs[pairs[:, 0] < len(points)]
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        starts = np.searchsorted(pairs[:, 0], np.arange(len(points) + 1))
        middle = (everything[pairs[:, 0]] + everything[pairs[:, 1]]) / 2
        normal = everything[pairs[:, 1]] - everything[pairs[:, 0]]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        offset = (middle * normal).sum(1).astype(np.float32)
        normal = normal.astype(np.float32)
        edge = np.full(self.shape, -np.inf, np.float32)
        index = np.zeros(self.shape, np.int32)
        for i in range(len(points)):
            mine = slice(starts[i], starts[i + 1])
            corners = diagram.vertices[diagram.regions[diagram.point_region[i]]]
            (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
            window = self.window(x0 - 1, x1 + 1, y0 - 1, y1 + 1)
            if window is None:
                continue
            xs, ys = self.xs[:, window[1]], self.ys[window[0]]
            nx, ny, d = normal[mine, 0, None, None], normal[mine, 1, None, None], offset[mine]
            inner = ((d[:, None, None] - nx * xs) - ny * ys).min(axis=0)
            target = edge[window]
            nearer = inner > target
            np.copyto(target, inner, where=nearer)
            np.copyto(index[window], i, where=nearer)
        return edge, index

    def plane(self, relief: float = 0.0) -> "Canvas":
        """An untilted canvas that covers all of the specimen that this one can show, if nothing
        on it is higher than `relief`. Draw on it, then `view` it."""
        height = int(np.ceil((self.height + relief * self.sin) / self.cos)) + 3
        return Canvas(self.width, height, self.nm)

    def view(self, plane: "Canvas") -> np.ndarray:
        """Show the height field and the owners of an untilted canvas at this canvas's tilt.

        The ray of each pixel is followed down along its column from the highest level it can
        meet; the pixel shows the first surface that the ray hits.

        Returns:
            int (height, width): the row of `plane` that each pixel shows.
        """
        self.sizes, self.drawn, self.yields = plane.sizes, plane.drawn, plane.yields
        rows = np.broadcast_to(np.arange(self.height)[:, None], self.shape)
        if self.sin < 1e-3:
            self.z, self.owner = plane.z[: self.height], plane.owner[: self.height]
            return rows
        # A point at height z appears z sin t higher up than its foot: at height z, pixel y sees
        # the foot y + z sin t, and neighbouring feet are 1 / sin t apart in height.
        low = float(plane.z.min())
        steps = int(np.ceil((float(plane.z.max()) - low) * self.sin)) + 1
        source = np.arange(self.height + steps, dtype=np.float32) / self.cos
        source = np.minimum(source, plane.height - 1.001)
        lower = source.astype(np.int64)
        part = (source - lower)[:, None]
        surface = plane.z[lower] * (1 - part) + plane.z[lower + 1] * part - low
        shift = np.full(self.shape, -1, np.int64)
        for step in range(steps - 1, -1, -1):
            hit = surface[step : step + self.height] >= step / self.sin - 1e-3
            np.copyto(shift, step, where=hit & (shift < 0))
        foot = rows + shift
        top = np.take_along_axis(surface, foot, axis=0)
        level = (shift / self.sin).astype(np.float32)
        # Where the surface rises far above the ray, the ray has met a wall.
        height = np.where(top - level < 1.2 / self.sin, top, level) + low
        self.z = self.ys * (self.sin / self.cos) + height / self.cos
        shown = np.round(source).astype(np.int64)[foot]
        self.owner = np.take_along_axis(plane.owner, shown, axis=0)
        return shown
