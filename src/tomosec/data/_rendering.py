"""Slices of the chest phantom: tissues painted over each other with soft edges, textures, and lesions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tomosec.data._anatomy import SCAN_RADIUS_MM, Array, Organs, Patient, cap, capsule, disc, ellipse
from tomosec.randomness import generator

LesionKind = Literal["ground-glass", "consolidation", "nodule"]

#: Levels of the first and the last slice: from below the clavicles to the lower lobes.
FIRST_LEVEL, LAST_LEVEL = 0.24, 0.84
#: Textures are drawn on planes this far apart and interpolated between, so that neighboring slices resemble each other.
TEXTURE_STEP_MM = 6.0
_COARSE_MM = 6.0
_LESION_HU: dict[LesionKind, tuple[float, float]] = {
    "ground-glass": (-580, -400),
    "consolidation": (-50, 30),
    "nodule": (-100, 40),
}
_LESION_RADIUS_MM: dict[LesionKind, tuple[float, float]] = {
    "ground-glass": (20, 33),
    "consolidation": (14, 24),
    "nodule": (3.5, 7),
}


class _Paint(Protocol):
    def __call__(self, cover: Array, value: float | Array) -> None: ...


def _smooth(value: NDArray[np.floating]) -> Array:
    t = np.asarray(np.clip(value, 0, 1), dtype=np.float32)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion: a ball stretched along the patient axis. Lengths in mm, angle in rad."""

    kind: LesionKind
    center: tuple[float, float, float]
    radius: float
    half_height: float
    aspect: float
    angle: float
    hu: float


@dataclass(frozen=True, slots=True)
class Scan:
    """How a patient was scanned and what the tissue looks like, whatever the class.

    Attributes:
        table: whether the table is in the image.
        gap: mm between the back and the table.
        blur: full width at half maximum of the in-plane blur in mm.
        air: HU of healthy lung, in the middle of the chest.
        gravity: HU between the front and the back of the lungs.
        dependent: HU of the grey rim that lying causes at the back.
        lung_sd: texture of the parenchyma, HU.
        soft_sd: texture of soft tissue, HU.
        marbling: how little fat there is between the muscles; no unit.
    """

    table: bool
    gap: float
    blur: float
    air: float
    gravity: float
    dependent: float
    lung_sd: float
    soft_sd: float
    marbling: float

    @classmethod
    def draw(cls, seed: int, number: int) -> Scan:
        """Draw the scan of patient ``number`` of the population ``seed``."""
        rng = generator(seed, "phantom", number, "scan")
        table = bool(rng.random() < 0.6)
        ranges = ((3, 7), (0.6, 2.4), (-865, -800), (40, 100), (0, 110), (14, 28), (4, 8), (-0.3, 1.2))
        return cls(table, *(float(rng.uniform(low, high)) for low, high in ranges))


def draw_lesions(person: Patient, kinds: tuple[LesionKind, ...], load: float) -> list[Lesion]:
    """Place lesions so that every level between the first and the last slice cuts at least one of the largest kind allowed."""
    rng = generator(person.seed, "phantom", person.number, "lesions")
    n = 6000
    x = (rng.uniform(-1, 1, n) * person.cage_width).astype(np.float32)
    y = (person.cage_y + rng.uniform(-1, 1, n) * person.cage_depth).astype(np.float32)
    s = rng.uniform(FIRST_LEVEL, LAST_LEVEL + 0.05, n).astype(np.float32)
    organs = person.organs(x, y, s)
    depth, wall = -organs.lungs, -organs.cage
    z = s * person.height
    out: list[Lesion] = []

    def place(kind: LesionKind, at: float, radius: float, half_height: float, side: int) -> None:
        # Peripheral and posterior places are likelier, as in viral pneumonia.
        odds = np.where((depth > 0.3 * radius) & (side * x >= 0), np.exp(-((z - at) ** 2) / 50), 0)
        if kind != "nodule":
            odds = odds * np.exp(-np.abs(wall - 0.6 * radius) / 18) * (1 + 1.5 * (y < person.cage_y))
        if odds.sum() <= 0:  # a lesion too large for this part of the lung: the deepest place there is
            odds = (np.abs(z - at) < 8) * np.maximum(depth, 0) ** 4
        i = int(rng.choice(n, p=odds / odds.sum()))
        low, high = _LESION_HU[kind]
        aspect, angle, hu = (float(v) for v in rng.uniform((0.7, 0, low), (1.0, np.pi, high)))
        out.append(Lesion(kind, (float(x[i]), float(y[i]), at), radius, half_height, aspect, angle, hu))

    def size(kind: LesionKind) -> float:
        return float(rng.uniform(*_LESION_RADIUS_MM[kind])) * load

    main: list[LesionKind] = [kind for kind in kinds if kind != "nodule"] or ["nodule"]
    first, last = FIRST_LEVEL * person.height, LAST_LEVEL * person.height
    for side in (-1, 1):  # a chain of overlapping lesions in each lung, so that every slice cuts some
        at = first - float(rng.uniform(0, 8))
        while at < last:
            kind = main[int(rng.integers(len(main)))]
            radius = size(kind)
            half_height = radius * float(rng.uniform(1.0, 1.5))
            place(kind, at + 0.6 * half_height, radius, half_height, side)
            at += 1.2 * half_height
    for kind in kinds:
        for _ in range(int(rng.poisson((3.0 if kind == "nodule" else 2.0) * load))):
            radius = size(kind) * (1.0 if kind == "nodule" else 0.7)
            place(kind, float(rng.uniform(first, last)), radius, radius, int(rng.choice((-1, 1))))
    return out


def _between(z: float, step: float) -> list[tuple[int, np.float32]]:
    k = int(np.floor(z / step))
    angle = 0.5 * np.pi * (z / step - k)  # sine and cosine keep the variance of the mixture constant
    return [(k, np.float32(np.cos(angle))), (k + 1, np.float32(np.sin(angle)))]


class Renderer:
    """Draws slices of ``size`` by ``size`` pixels of ``pixel_mm``."""

    def __init__(self, size: int, pixel_mm: float) -> None:
        self.size, self.pixel = size, pixel_mm
        axis = ((np.arange(size) - (size - 1) / 2) * pixel_mm).astype(np.float32)
        self.columns, self.rows = np.meshgrid(axis, -axis)
        f = np.fft.fftfreq(size, pixel_mm).astype(np.float32)
        f2 = f[:, None] ** 2 + f[None, :] ** 2
        # Amplitude f^-1.1 above 1/60 mm, cut near 1/5 mm where a reconstruction kernel would cut it: the look of parenchyma.
        self.power = ((f2 + 1 / 60**2) ** np.float32(-0.55) * np.exp(-f2 * np.float32(2.2**2 * 4))).astype(np.float32)
        self.power[0, 0] = 0
        self.power *= np.float32(size / np.sqrt((self.power**2).sum()))
        self.cells = int(np.ceil(size * pixel_mm / _COARSE_MM)) + 2
        places = (axis - axis[0]) / np.float32(_COARSE_MM)
        self.first = places.astype(np.int64)
        self.rest = (places - self.first).astype(np.float32)

    def fine(self, person: Patient, z: float) -> tuple[Array, Array]:
        """Two independent power-law textures of unit variance at depth ``z`` mm."""
        total = np.zeros((self.size, self.size), dtype=np.complex64)
        for k, weight in _between(z, TEXTURE_STEP_MM):
            rng = generator(person.seed, "phantom", person.number, "texture", k)
            white = rng.standard_normal((self.size, 2 * self.size), dtype=np.float32).view(np.complex64)
            total += weight * white
        mixed = fft.ifft2(total * self.power, norm="ortho", overwrite_x=True)
        return np.ascontiguousarray(mixed.real), np.ascontiguousarray(mixed.imag)

    def coarse(self, person: Patient, z: float, name: str, sigma: float) -> Array:
        """A smooth texture of unit variance, ``sigma`` cells of 6 mm wide, at depth ``z`` mm."""
        total = np.zeros((self.cells, self.cells), dtype=np.float32)
        for k, weight in _between(z, 3 * TEXTURE_STEP_MM):
            white = generator(person.seed, "phantom", person.number, name, k).standard_normal((self.cells,) * 2, dtype=np.float32)
            total += weight * white
        smooth = ndimage.gaussian_filter(total, sigma, mode="wrap") * np.float32(2 * np.sqrt(np.pi) * sigma)
        # Linear interpolation by hand: a matrix product would give other last bits with another number of threads.
        tall = smooth[self.first] + self.rest[:, None] * (smooth[self.first + 1] - smooth[self.first])
        wide = tall[:, self.first] + self.rest * (tall[:, self.first + 1] - tall[:, self.first])
        return np.asarray(wide, dtype=np.float32)

    def cover(self, distance: Array) -> Array:
        """Fraction of each pixel inside a shape, softened as by a scanner's resolution."""
        inside = np.float32(0.5) - distance / np.float32(max(self.pixel, 1.6))
        return np.asarray(np.minimum(np.maximum(inside, np.float32(0)), np.float32(1)), dtype=np.float32)

    def render(self, person: Patient, z: float, lesions: tuple[Lesion, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Return the Hounsfield units and the lesion mask of the plane ``z`` mm below the apex."""
        scan = Scan.draw(person.seed, person.number)
        c, sn = np.float32(np.cos(person.tilt)), np.float32(np.sin(person.tilt))
        full = np.full(self.columns.shape, -1000, dtype=np.float32)
        if scan.table:
            self._table(full, person, scan.gap)
        box = self._box(person)
        dx, dy = self.columns[box] - np.float32(person.shift[0]), self.rows[box] - np.float32(person.shift[1])
        x, y = c * dx + sn * dy, c * dy - sn * dx
        level = np.asarray(z / person.height, dtype=np.float32)
        grain, tissue = (texture[box] for texture in self.fine(person, z))
        patches, edges = self.coarse(person, z, "patches", 1.2)[box], self.coarse(person, z, "edges", 1.0)[box]
        body, organs = person.body(x, y, level), person.organs(x, y, level)
        cage, lungs = organs.cage, organs.lungs
        hu = full[box]

        def paint(cover: Array, value: float | Array) -> None:
            hu[...] += cover * (value - hu)

        soft = tissue * np.float32(scan.soft_sd)
        paint(self.cover(body), -102 + soft)
        paint(self.cover(np.abs(body + 1) - 1), 10 + soft)
        self._muscles(paint, person, x, y, level, body, cage, 50 + soft, patches - np.float32(scan.marbling))
        paint(self.cover(np.maximum(cage, organs.middle)), -95 + soft + 12 * patches)
        self._organs(paint, person, x, y, organs, soft)
        self._bones(paint, person, x, y, z, level, cage, body, soft)

        inside = self.cover(lungs)
        down = np.clip((person.cage_y - y) / np.float32(person.cage_depth), -1, 1)
        parenchyma = scan.air + np.float32(scan.gravity / 2) * down + np.float32(scan.lung_sd) * grain
        # Dependent density: common in healthy lungs, so that a grey rim at the back says little about the class.
        rim = np.exp(cage / 7) * np.clip(down + np.float32(0.1), 0, 1)
        parenchyma += np.float32(scan.dependent) * rim * np.clip(1 + 0.5 * patches, 0, 2)
        parenchyma = np.clip(parenchyma, -960, -560)
        consolidated, mask = self._lesions(parenchyma, lesions, x, y, z, lungs, grain, patches, edges)
        self._vessels(parenchyma, person, x, y, z)
        paint(inside, np.maximum(parenchyma, consolidated))
        if organs.airways.ndim == 2:
            paint(self.cover(np.abs(organs.airways - 0.8) - 0.9), 20 + soft)
            paint(self.cover(organs.airways), -985.0)
        blurred = ndimage.gaussian_filter(full, scan.blur / (2.355 * self.pixel), truncate=3)
        lesion = np.zeros(full.shape, dtype=bool)
        lesion[box] = mask & (inside > 0.5)
        return np.clip(blurred, -1000, 1500), lesion

    def _box(self, person: Patient) -> tuple[slice, slice]:
        # The rows and columns that the body can reach; everything else in a slice is air and table.
        middle, sn = (self.size - 1) / 2, abs(np.sin(person.tilt))
        reach_x, reach_y = person.width + sn * person.depth + 4, person.depth + person.bulge + sn * person.width + 4
        out = []
        for center, reach in ((-person.shift[1], reach_y), (person.shift[0], reach_x)):
            low, high = middle + (center - reach) / self.pixel, middle + (center + reach) / self.pixel
            out.append(slice(max(int(low), 0), int(high) + 2))
        return out[0], out[1]

    def _table(self, hu: Array, person: Patient, gap: float) -> None:
        x, y = self.columns, self.rows
        top = person.shift[1] - person.depth - gap
        reach = min(95.0, np.sqrt(SCAN_RADIUS_MM**2 - (top - 10) ** 2) - 4)
        d = np.maximum(np.abs(y - (top - 6) - x * x * np.float32(1 / 1200)) - 5, np.abs(x) - np.float32(reach))
        cover = self.cover(d)
        hu += cover * 70
        hu += self.cover(np.abs(d + 0.7) - 0.7) * 420

    def _muscles(
        self,
        paint: _Paint,
        person: Patient,
        x: Array,
        y: Array,
        s: Array,
        body: Array,
        cage: Array,
        value: Array,
        marbling: Array,
    ) -> None:
        high = np.clip((0.62 - s) / np.float32(0.35), 0, 1)
        back = np.clip((person.cage_y - y) / np.float32(person.cage_depth), -0.6, 1)
        aside = np.clip((np.abs(x) - 20) / 60, 0, 1)
        thick = 9 + (5 + 17 * high) * aside * (0.75 + 0.4 * back)
        wall = np.maximum(cage - thick, body + np.float32(2 + 0.35 * person.fat))
        fibres = self.cover(2.5 * marbling + 2) * np.clip((cage - 9) / 4, 0, 1)  # fat between the muscles, not over the ribs
        paint(self.cover(wall) * (1 - np.float32(0.7) * fibres), value)
        ys = person.spine_y
        for side in (-1, 1):
            erector = ellipse(x, y, person.spine_x + side * 27, ys - 31, 21.0, 12.5, -0.25 * side)
            paint(self.cover(np.maximum(erector, body + np.float32(3))) * (1 - 0.4 * self.cover(marbling * 4 + 3)), value)

    def _organs(self, paint: _Paint, person: Patient, x: Array, y: Array, organs: Organs, soft: Array) -> None:
        inner, heart = organs.cage + 3, organs.heart
        for shape, value in ((organs.right + 1, 57), (organs.left + 1, 46), (organs.left + 16, 20), (organs.great, 42)):
            if shape.ndim == 2:
                paint(self.cover(np.maximum(shape, inner)), value + soft)
        if heart.ndim == 2:
            paint(
                self.cover(np.maximum(np.abs(heart - np.float32(3.5)) - np.float32(0.6), inner)), 20 + soft
            )  # the pericardium, outside its fat
            paint(self.cover(np.maximum(heart, inner)), 44 + soft)
            paint(self.cover(np.abs(heart + 9) - np.float32(0.5)) * np.float32(0.5), 54 + soft)
        paint(self.cover(disc(x, y, person.spine_x + 6, person.spine_y + 20, 7.0)), 36 + soft)  # the esophagus
        paint(self.cover(np.abs(organs.middle + 1) - 1) * (organs.cage < -2), 25 + soft)

    def _bones(
        self, paint: _Paint, person: Patient, x: Array, y: Array, z: float, s: Array, cage: Array, body: Array, soft: Array
    ) -> None:
        def bone(distance: Array, cortex: float, marrow: float, shell: float) -> None:
            paint(self.cover(distance), cortex + soft)
            paint(self.cover(distance + np.float32(shell)), marrow + 3 * soft)

        bone_rng = generator(person.seed, "phantom", person.number, "bone")
        cortex, marrow = float(bone_rng.uniform(700, 1000)), float(bone_rng.uniform(170, 280))
        sx, ys = person.spine_x, person.spine_y
        turn = z / person.rib_pitch + person.rib_phase[0]
        phase = turn - np.floor(turn)
        # Ribs: the cage's outline is the rail, a helix falling toward the front says where on it this slice cuts a rib.
        band = np.flatnonzero((np.abs(cage - 5) < 9) & (np.abs(x) > 12))
        bx, by, t = x.ravel()[band], y.ravel()[band], cage.ravel()[band] - np.float32(5)
        angle = np.arctan2(np.abs(bx - np.float32(sx)), person.cage_y - by)
        fall = np.float32(person.rib_drop) * (angle / np.float32(9) + np.float32(0.33) * (1 - np.cos(angle)))
        turns = (z - fall) / np.float32(person.rib_pitch) + np.float32(person.rib_phase[0])
        turns += np.sign(bx) * np.float32(person.rib_phase[1])
        off = (turns - np.round(turns)) * np.float32(person.rib_pitch)
        d = ellipse(off, t, 0, 0, 6.0, 4.2)
        front = np.clip((angle - 2.35) / 0.15, 0, 1)
        shell, core = np.zeros_like(x), np.zeros_like(x)
        shell.ravel()[band], core.ravel()[band] = self.cover(d), self.cover(d + np.float32(1.7))
        gristle = np.zeros_like(x)
        gristle.ravel()[band] = front  # ribs end in cartilage
        paint(shell, (cortex - 60) * (1 - gristle) + 110 * gristle + soft)
        paint(core, marrow * (1 - gristle) + 95 * gristle + 2 * soft)

        blade = np.clip((0.62 - float(s)) / 0.3, 0, 1)
        if blade > 0:  # the scapulae slide on the ribs, behind and beside them
            across = np.abs(np.abs(x) - np.float32((0.84 - 0.12 * blade) * person.cage_width)) - np.float32(4 + 19 * blade)
            d = np.maximum(np.maximum(np.abs(cage - 16) - 3, across), np.maximum(y - np.float32(person.cage_y - 8), body + 5))
            bone(d, cortex - 150, marrow, 1.6)
        if 0.2 < float(s) < 0.74:
            d = ellipse(x, y, 0.0, person.cage_y + person.cage_depth * person.front(s) + 6, 17.0, 5.5)
            bone(np.maximum(d, body + 4), cortex - 350, marrow - 60, 1.5)

        a, b = person.vertebra
        vertebra = ellipse(x, y, sx, ys, a, b)
        canal = disc(x, y, sx, ys - b - 7.5, 8.0)
        arch = np.abs(canal - 3) - np.float32(2.6)
        spinous = capsule(x, y, (sx, ys - b - 18), (sx, ys - b - 32), 3.4, 2.4)
        posterior = np.minimum(arch, spinous)
        if phase < 0.45:  # the level of the transverse processes, which carry the ribs
            for side in (-1, 1):
                process = capsule(x, y, (sx + side * 11, ys - b - 4), (sx + side * 36, ys - b - 14), 5.2, 4.2)
                posterior = np.minimum(posterior, process)
        posterior = np.maximum(np.maximum(posterior, -canal), body + 5)
        bone(posterior, cortex - 100, marrow + 60, 1.8)
        between = float(np.clip((abs(phase - 0.78) - 0.07) / 0.05, 0, 1))  # 0 in a disc, 1 in a vertebra
        bone(vertebra, 90 + (cortex - 190) * between, 80 + (marrow - 80) * between, 1.5)
        paint(self.cover(canal), 20 + soft)
        paint(self.cover(disc(x, y, sx, ys - b - 7.0, 4.2)), 40 + soft)

    def _lesions(
        self,
        lung: Array,
        lesions: tuple[Lesion, ...],
        x: Array,
        y: Array,
        z: float,
        depth: Array,
        grain: Array,
        patches: Array,
        edges: Array,
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Blend lesions into ``lung`` in place; return what hides the vessels, and the mask."""
        solid = np.full_like(lung, -1000)
        mask = np.zeros(lung.shape, dtype=bool)
        for lesion in lesions:
            radius = lesion.radius * float(cap(np.asarray((z - lesion.center[2]) / lesion.half_height, dtype=np.float32)))
            if radius < 1:
                continue
            cx, cy = self._into_lung(lesion, radius, x, y, depth)
            k = ellipse(x, y, cx, cy, radius, radius * lesion.aspect, lesion.angle) / np.float32(radius * lesion.aspect)
            if lesion.kind == "nodule":
                weight = self.cover(k * np.float32(radius * lesion.aspect))
                solid = np.maximum(solid, weight * (lesion.hu + 1000) - 1000)
            elif lesion.kind == "consolidation":
                weight = _smooth(np.float32(0.5) - (k + np.float32(0.22) * edges + np.float32(0.05) * grain) / np.float32(0.25))
                solid = np.maximum(solid, weight * (lesion.hu + 8 * grain + 1000) - 1000)
            else:
                weight = _smooth(np.float32(0.5) - (k + np.float32(0.25) * edges) / np.float32(0.45))
                weight = np.asarray(weight * np.clip(np.float32(0.85) + np.float32(0.2) * patches, 0.5, 1), dtype=np.float32)
                lung += weight * (np.float32(lesion.hu) + 30 * grain - lung)
            mask |= weight > 0.4
        return solid, mask

    def _into_lung(self, lesion: Lesion, radius: float, x: Array, y: Array, lungs: Array) -> tuple[float, float]:
        # A place that is lung at the lesion's middle may be heart or liver above or below: move to the nearest that is lung.
        same_side = np.sign(x) == np.sign(lesion.center[0])
        room = np.where(same_side, -lungs, np.float32(-99))
        deep = min(0.35 * radius, 0.8 * float(room.max()))
        distance = np.where(room >= deep, np.hypot(x - np.float32(lesion.center[0]), y - np.float32(lesion.center[1])), np.inf)
        i = int(np.argmin(distance))
        if distance.ravel()[i] < 1.5 * self.pixel:
            return lesion.center[0], lesion.center[1]
        return float(x.ravel()[i]), float(y.ravel()[i])

    def _vessels(self, lung: Array, person: Patient, x: Array, y: Array, z: float) -> None:
        tree, half = person.vessels, 2.5  # what a slice 5 mm thick shows of them
        top, bottom = np.minimum(tree.start[:, 2], tree.end[:, 2]), np.maximum(tree.start[:, 2], tree.end[:, 2])
        near = np.flatnonzero((top < z + half) & (bottom > z - half))
        start, step, radius = tree.start[near], tree.end[near] - tree.start[near], tree.radius[near]
        fall = np.where(np.abs(step[:, 2]) < 1e-6, 1e-6, step[:, 2])
        t = np.sort(np.clip(np.stack([z - half - start[:, 2], z + half - start[:, 2]]) / fall, 0, 1), axis=0)
        a, b = (start[:, :2] + t[k][:, None] * step[:, :2] for k in (0, 1))
        # Only the pixels around each, found through the patient's shift and tilt: x and y are affine in column and row.
        c, sn = np.cos(person.tilt), np.sin(person.tilt)
        column = [(c * (q[:, 0] - x[0, 0]) - sn * (q[:, 1] - y[0, 0])) / self.pixel for q in (a, b)]
        row = [-(sn * (q[:, 0] - x[0, 0]) + c * (q[:, 1] - y[0, 0])) / self.pixel for q in (a, b)]
        pad = (radius + 2) / self.pixel
        left, up = (np.maximum(np.minimum(*q) - pad, 0).astype(np.int64) for q in (column, row))
        right, down = (np.maximum(np.maximum(*q) + pad + 2, 0).astype(np.int64) for q in (column, row))
        # Vessels finer than a pixel fill it only in part.
        value = np.minimum(1, 2.2 * radius / max(self.pixel, 1.6)).astype(np.float32)
        for i in range(len(near)):
            window = slice(up[i], down[i]), slice(left[i], right[i])
            part = lung[window]
            if part.size:
                r = float(radius[i])
                d = capsule(x[window], y[window], (float(a[i, 0]), float(a[i, 1])), (float(b[i, 0]), float(b[i, 1])), r, r)
                part += self.cover(d) * value[i] * (np.float32(35) - part)
