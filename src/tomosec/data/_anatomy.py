"""The patients of the chest phantom: what differs between them, and where their organs are.

Everything is a signed distance in mm, negative inside, as a function of a position (x, y) in the patient's own frame (x to the
image's right, which is the patient's left; y anterior; origin in the middle of the body) and of the level ``s``: 0 at the lung
apex, 1 at the bottom of the lungs. Distances are exact for discs and approximate elsewhere, which is enough for soft edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from tomosec.randomness import generator

Array = NDArray[np.float32]

#: Radius in mm of the circle about the isocenter that holds every patient and table.
SCAN_RADIUS_MM = 176.0

_LEVELS = np.array([0.0, 0.15, 0.3, 0.5, 0.7, 1.0])
_CAGE_WIDTH = np.array([0.45, 0.72, 0.88, 0.97, 1.0, 0.97])
_CAGE_DEPTH = np.array([0.50, 0.70, 0.86, 0.97, 1.0, 0.96])
_BODY_WIDTH = np.array([1.0, 1.0, 1.0, 0.99, 0.97, 0.94])
_BODY_DEPTH = np.array([0.80, 0.86, 0.92, 0.98, 1.0, 1.0])


def _profile(values: NDArray[np.float64], s: Array) -> Array:
    return np.interp(s, _LEVELS, values).astype(np.float32)


def _length(dx: NDArray[np.floating], dy: NDArray[np.floating]) -> Array:
    return np.asarray(np.sqrt(dx * dx + dy * dy), dtype=np.float32)  # five times as fast as hypot, and nothing here overflows


def disc(x: Array, y: Array, cx: float | Array, cy: float, radius: float | Array) -> Array:
    """Signed distance in mm to a disc."""
    return np.asarray(_length(x - np.float32(cx), y - np.float32(cy)) - np.float32(radius), dtype=np.float32)


def ellipse(x: Array, y: Array, cx: float, cy: float, a: float | Array, b: float | Array, angle: float = 0.0) -> Array:
    """Radial distance in mm to an ellipse with half-axes ``a`` and ``b``, the first ``angle`` rad counter-clockwise from x."""
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    if angle:
        c, sn = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = c * dx + sn * dy, c * dy - sn * dx
    long, short = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    return np.asarray((_length(dx / long, dy / short) - 1) * np.minimum(long, short), dtype=np.float32)


Point = tuple[float, float]


def capsule(x: Array, y: Array, start: Point, end: Point, r0: float | Array, r1: float | Array) -> Array:
    """Signed distance in mm to a stroke from ``start`` (radius ``r0``) to ``end`` (radius ``r1``)."""
    ex, ey = np.asarray(end[0] - start[0], dtype=np.float32), np.asarray(end[1] - start[1], dtype=np.float32)
    dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
    t = (dx * ex + dy * ey) / (ex * ex + ey * ey + np.float32(1e-9))
    t = np.asarray(np.minimum(np.maximum(t, 0), 1), dtype=np.float32)
    first, change = np.asarray(r0, dtype=np.float32), np.asarray(np.subtract(r1, r0), dtype=np.float32)
    return np.asarray(_length(dx - t * ex, dy - t * ey) - (first + t * change), dtype=np.float32)


def _if(s: Array, where: NDArray[np.bool_], shape: Callable[[], Array], otherwise: Array | None = None) -> Array:
    # Where an organ is absent the distance is large; when it is absent from the whole slice it is not worked out at all.
    rest = np.full(1, 99, dtype=np.float32) if otherwise is None else otherwise
    if s.ndim == 0:
        return shape() if where else rest
    return np.asarray(np.where(where, shape(), rest), dtype=np.float32)


def join(a: Array, b: Array, k: float) -> Array:
    """Union of two shapes whose seam is rounded over ``k`` mm."""
    h = np.maximum(k - np.abs(a - b), 0) / np.float32(k)
    return np.asarray(np.minimum(a, b) - h * h * np.float32(k / 4), dtype=np.float32)


def cap(value: Array) -> Array:
    """Half-width, 0 to 1, of a ball at ``value`` half-heights from its middle."""
    return np.asarray(np.sqrt(np.clip(1 - value * value, 0, 1)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Organs:
    """Signed distances in mm, negative inside; an absent organ is one large number.

    Attributes:
        cage: the inside of the ribs.
        heart: the heart.
        great: aorta, pulmonary trunk, venae cavae.
        airways: the air in the trachea and the main bronchi.
        right: what the right dome of the diaphragm covers.
        left: what the left dome covers.
        middle: everything between the lungs, the spine and the domes included.
        lungs: the lungs, with rounded edges where they are thin.
    """

    cage: Array
    heart: Array
    great: Array
    airways: Array
    right: Array
    left: Array
    middle: Array
    lungs: Array


@dataclass(frozen=True)
class Vessels:
    """A tree of vessel segments: (n, 3) ends in mm (x, y, depth below the apex) and (n,) radii in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius: NDArray[np.float64]


@dataclass(frozen=True)
class Patient:
    """What differs between patients. Lengths in mm, angles in rad, levels ``s`` without unit."""

    seed: int
    number: int
    shift: tuple[float, float]
    tilt: float
    height: float
    width: float
    depth: float
    squareness: float
    fat: float
    bulge: float
    cage_width: float
    cage_depth: float
    cage_y: float
    cage_squareness: float
    spine_x: float
    vertebra: tuple[float, float]
    rib_pitch: float
    rib_drop: float
    rib_phase: tuple[float, float]
    heart: tuple[float, float, float, float, float]
    heart_level: float
    mediastinum: float
    aorta: float
    dome: tuple[float, float]

    @classmethod
    def draw(cls, seed: int, number: int) -> Patient:
        """Draw patient ``number`` of the population ``seed``; the disease has no part in it."""
        rng = generator(seed, "phantom", number, "anatomy")

        def u(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        width = u(136, 163)
        depth = width * u(0.64, 0.75)
        fat = u(4, 11) + (width - 136) * u(0.1, 0.35)
        cage_depth = depth - 0.75 * fat - u(19, 24)
        cage_width = width - fat - u(14, 21)
        cage_y = u(5, 9)
        s = cage_width / 125
        return cls(
            seed=seed,
            number=number,
            shift=(u(-6, 6), u(-6, 6)),
            tilt=u(-0.05, 0.05),
            height=u(215, 265),
            width=width,
            depth=depth,
            squareness=u(2.2, 2.7),
            fat=fat,
            bulge=u(0, 9),
            cage_width=cage_width,
            cage_depth=cage_depth,
            cage_y=cage_y,
            cage_squareness=u(2.1, 2.6),
            spine_x=u(-3, 3),
            vertebra=(u(15.5, 19), u(12.5, 15)),
            rib_pitch=u(23, 28),
            rib_drop=u(85, 115),
            rib_phase=(u(0, 1), u(-0.08, 0.08)),
            heart=(s * u(16, 27), s * u(2, 12), s * u(52, 66), s * u(40, 49), u(0.3, 0.75)),
            heart_level=u(0.64, 0.72),
            mediastinum=u(0.85, 1.3),
            aorta=u(11, 15),
            dome=(u(0.76, 0.88), u(0.03, 0.07)),
        )

    # --- the trunk ---------------------------------------------------------------------------------------------------

    @property
    def spine_y(self) -> float:
        """Height of the vertebral bodies' centers, mm."""
        return self.cage_y - self.cage_depth + 24

    def body(self, x: Array, y: Array, s: Array) -> Array:
        """Signed distance to the skin, mm."""
        a, b = self.width * _profile(_BODY_WIDTH, s), self.depth * _profile(_BODY_DEPTH, s)
        out = _oval(x, y, a, b, self.squareness)
        out = out + np.float32(4) * np.exp(-((x / np.float32(13)) ** 2))  # the furrows over the spine and the breastbone
        return np.asarray(out - self.bulge * np.exp(-(((np.abs(x) - 72) / 34) ** 2)) * (y > 0), dtype=np.float32)

    def cage(self, x: Array, y: Array, s: Array) -> Array:
        """Signed distance to the inside of the ribs, mm."""
        a, b = self.cage_width * _profile(_CAGE_WIDTH, s), self.cage_depth * _profile(_CAGE_DEPTH, s)
        return _oval(x, y - np.float32(self.cage_y), a, b, self.cage_squareness)

    def front(self, s: Array) -> float:
        """Height of the breastbone's inner face at the level ``s``, mm."""
        return self.cage_y + self.cage_depth * float(_profile(_CAGE_DEPTH, s))

    # --- what keeps the lungs apart ----------------------------------------------------------------------------------

    def organs(self, x: Array, y: Array, s: Array) -> Organs:
        """Signed distances to the organs, for one level or for one level per position, mm."""
        cage, heart, great, airways = self.cage(x, y, s), self._heart(x, y, s), self._great(x, y, s), self._airways(x, y, s)
        right, left = self._dome(x, y, s, -1), self._dome(x, y, s, 1)
        middle = self._middle(x, y, s, heart, great, airways)
        middle = _if(s, s > self.dome[0], lambda: join(join(middle, right, 6), left, 6), middle)
        lungs = -join(-(cage + np.float32(1.5)), middle, 9)
        return Organs(cage, heart, great, airways, right, left, middle, lungs)

    def _heart(self, x: Array, y: Array, s: Array) -> Array:
        cx, cy, a, b, angle = self.heart
        m = cap((s - self.heart_level) / np.float32(0.25))

        def shape() -> Array:
            cavity = ellipse(x, y, cx, self.cage_y + cy, a * m + 1e-3, b * m + 1e-3, angle)
            atrium = disc(x, y, cx - 0.62 * a, self.cage_y + cy - 2, 0.55 * b * m)  # the right atrium makes it less of an egg
            return join(cavity, atrium, 10)

        return _if(s, m > 0.05, shape)

    def _dome(self, x: Array, y: Array, s: Array, side: int) -> Array:
        top = self.dome[0] + (self.dome[1] if side > 0 else 0)
        m = cap(np.clip(1 - (s - top) / np.float32(0.3), 0, 1))
        a, b = 0.47 * self.cage_width * m + 1e-3, 0.78 * self.cage_depth * m + 1e-3
        return _if(s, m > 0.05, lambda: ellipse(x, y, side * 0.45 * self.cage_width, self.cage_y + 2, a, b))

    def _great(self, x: Array, y: Array, s: Array) -> Array:
        # The aorta, the pulmonary trunk, the venae cavae and what leaves the arch toward the neck.
        r, yc, ys = self.aorta, self.cage_y, self.spine_y
        ascending, descending = (-11.0, yc + 20), (self.spine_x + 22, ys + 9)
        arch_end = (descending[0] - 3, descending[1] + 8)

        def trunk() -> Array:
            out = np.minimum(disc(x, y, 17, yc + 22, r * 1.05), capsule(x, y, (14, yc + 16), (31, yc - 6), r * 0.8, r * 0.6))
            return np.minimum(out, capsule(x, y, (12, yc + 8), (-33, yc - 5), r * 0.7, r * 0.55))

        def neck() -> Array:
            out = np.minimum(disc(x, y, 8, yc + 22, r * 0.6), disc(x, y, 14, yc + 2, r * 0.42))
            return np.minimum(out, disc(x, y, -12, yc + 18, r * 0.5))

        parts = [
            _if(
                s,
                np.abs(s - 0.285) < 0.035,
                lambda: capsule(x, y, (ascending[0] - 1, ascending[1] - 2), arch_end, r * 0.95, r * 0.85),
            ),
            _if(s, (s > 0.28) & (s < 0.56), lambda: disc(x, y, *ascending, r * 1.12)),
            _if(s, s > 0.28, lambda: disc(x, y, *descending, r * (1.0 - 0.15 * s))),
            _if(s, s < 0.56, lambda: disc(x, y, -29, yc + 10, 8.0)),
            _if(s, np.abs(s - 0.44) < 0.04, trunk),
            _if(s, s < 0.27, neck),
        ]
        return reduce(np.minimum, parts)

    def _airways(self, x: Array, y: Array, s: Array) -> Array:
        yc = self.cage_y - 10
        below = np.clip((s - 0.38) / np.float32(0.12), 0, 1)

        def split() -> Array:
            right = disc(x + 5 + 26 * below, y, 0, yc - 4, 6.5 - 2.0 * below)
            return np.minimum(right, disc(x - 5 - 29 * below, y, 0, yc - 4, 5.8 - 2.0 * below))

        return np.minimum(_if(s, s < 0.38, lambda: disc(x, y, 0, yc, 8.5)), _if(s, (s >= 0.38) & (s < 0.5), split))

    def _middle(self, x: Array, y: Array, s: Array, heart: Array, great: Array, airways: Array) -> Array:
        w, yc, ys = self.mediastinum, self.cage_y, self.spine_y
        out = disc(x, y, self.spine_x, ys - 13, 29.0)
        out = join(out, ellipse(x, y, self.spine_x, ys, self.vertebra[0] + 3, self.vertebra[1] + 3), 8)
        low = np.clip((s - 0.25) / np.float32(0.4), 0, 1)
        wide = w * (21 - 9 * low)
        out = join(out, capsule(x, y, (self.spine_x, ys), (0, yc), wide, wide), 10)
        out = join(out, capsule(x, y, (0, yc), (4, yc + self.cage_depth), wide, w * (9 - 4 * low)), 10)
        out = join(out, great - np.float32(3.5), 8)
        out = _if(s, s < 0.5, lambda: join(out, airways - np.float32(5), 6), out)
        hilum = cap((s - 0.46) / np.float32(0.1))

        def roots() -> Array:
            right = capsule(x, y, (0, yc - 8), (-37, yc - 8), 11 * hilum, 6 * hilum)
            return join(join(out, right, 8), capsule(x, y, (0, yc - 8), (37, yc - 8), 11 * hilum, 6 * hilum), 8)

        return join(_if(s, hilum > 0.05, roots, out), heart - np.float32(5), 10)

    # --- vessels -----------------------------------------------------------------------------------------------------

    @cached_property
    def vessels(self) -> Vessels:
        """Arteries and veins of both lungs as one forest."""
        rng = generator(self.seed, "phantom", self.number, "vessels")
        parts = [self._tree(rng, side, 650) for side in (-1, 1)]
        return Vessels(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("start", "end", "radius")))

    def _tree(self, rng: np.random.Generator, side: int, count: int) -> Vessels:
        # Points of the lung, nearest to its root first, each joined to the nearest branch: the way real trees fill a volume.
        n = 12 * count
        x = side * rng.uniform(0, self.cage_width, n).astype(np.float32)
        y = (self.cage_y + rng.uniform(-1, 1, n) * self.cage_depth).astype(np.float32)
        s = rng.uniform(0.05, 1.05, n).astype(np.float32)
        inside = np.flatnonzero(self.organs(x, y, s).lungs < -2.5)[:count]
        points = np.stack([x, y, s * self.height], 1)[inside].astype(np.float64)
        root = np.array([side * 30.0, self.cage_y - 7, 0.45 * self.height])
        nodes = np.concatenate([root[None], points[np.argsort(np.linalg.norm(points - root, axis=1), kind="stable")]])
        path = np.zeros(len(nodes))
        parent = np.zeros(len(nodes), dtype=np.int64)
        for i in range(1, len(nodes)):
            reach = np.sqrt(((nodes[:i] - nodes[i]) ** 2).sum(1))
            parent[i] = int(np.argmin(reach + 0.25 * path[:i]))
            path[i] = path[parent[i]] + reach[parent[i]]
        load = np.full(len(nodes), 0.46**2.3)  # Murray: the radii's powers 2.3 add up at a branching
        for i in range(len(nodes) - 1, 0, -1):
            load[parent[i]] += load[i]
        return Vessels(nodes[parent[1:]], nodes[1:], np.minimum(load[1:] ** (1 / 2.3), 6.0))


def _oval(x: Array, y: Array, a: Array, b: Array, n: float) -> Array:
    """Radial distance to a superellipse with half-axes ``a``, ``b`` and exponent ``n``, mm."""
    rho = _length(x, y) + np.float32(1e-3)
    k = (np.abs(x / a) ** np.float32(n) + np.abs(y / b) ** np.float32(n) + np.float32(1e-9)) ** np.float32(1 / n)
    return np.asarray(rho - rho / k, dtype=np.float32)


@lru_cache(maxsize=8)
def patient(seed: int, number: int) -> Patient:
    """Return patient ``number`` of the population ``seed``; a few are kept, as slices are read patient by patient."""
    return Patient.draw(seed, number)
