"""Which views of a scan are the same view of turned or mirrored images, so that one traversal serves up to eight of them.

The view at angle q · 90° + t of an image equals the view at t of the image turned back by q · 90°; the view at
q · 90° − t equals, with the detector reversed, the view at t of that turned image's mirror image. So views of one image
become one *base view* of several copies of it, which are the lanes of a vector register. A full circle of 8 n views around a
square image with nothing off center needs only its views between 0 and 45°, of eight copies. A shifted detector takes
the mirror images away, an image that is not square the quarter turns, an odd number of views or a short scan both; whatever
is left is used.

All base views have image rows as lines; views that are driven by columns are views of a turned image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tomosec.geometry import FanBeam, Floats, Geometry
from tomosec.operators.cpu_simd import LANES
from tomosec.operators.reference import row_driven

_SAME_ANGLE = 1e-9  # rad: 1e-6 of a bin at the rim of a large scan; further apart, two views are two views
_QUARTER = math.pi / 2


@dataclass(frozen=True)
class Copy:
    """One copy of the image: mirrored left to right if ``mirrored``, then turned by ``turns`` quarter turns."""

    turns: int
    mirrored: bool


@dataclass(frozen=True)
class Pass:
    """Base views that share a stack of copies.

    Attributes:
        copies: The copies; a vector of eight lanes holds all copies of ``8 // len(copies)`` images.
        angles: Angle of each base view, rad, shape (n,).
        view_of: Number of the view that is this copy's, −1 where there is none, shape (n, copies).
        reversed_of: Whether that view has its detector the other way round than the base view, shape (n, copies).
    """

    copies: tuple[Copy, ...]
    angles: Floats
    view_of: NDArray[np.int64]
    reversed_of: NDArray[np.bool_]


@dataclass(frozen=True)
class _Symmetry:
    """Maps of view angles: θ → θ + 90° r for each of ``turns``, θ → 90° j − θ for each of ``mirrors``."""

    turns: tuple[int, ...] = (0,)
    mirrors: tuple[int, ...] = ()

    @property
    def swaps_axes(self) -> bool:
        """Whether some map turns views driven by rows into views driven by columns."""
        return any(step % 2 for step in self.turns + self.mirrors)

    def copies(self, first: int) -> tuple[Copy, ...]:
        """Return the images of the copy that is turned ``first`` times."""
        return tuple(Copy((first + turn) % 4, False) for turn in self.turns) + tuple(
            Copy((mirror - first) % 4, True) for mirror in self.mirrors
        )


#: The subgroups of the square's symmetries, and the halves of two of them that half a turn of parallel rays has use for.
_SYMMETRIES = (
    _Symmetry((0, 1, 2, 3), (0, 1, 2, 3)),
    _Symmetry((0, 1, 2, 3)),
    _Symmetry((0, 1), (0, 1)),
    _Symmetry((0, 1)),
    _Symmetry((0, 2), (0, 2)),
    _Symmetry((0, 2), (1, 3)),
    _Symmetry((0, 2)),
    *(_Symmetry((0,), (mirror,)) for mirror in range(4)),
    _Symmetry(),
)


@lru_cache(maxsize=64)
def passes(geometry: Geometry) -> tuple[Pass, ...]:
    """Return the passes that do the least work, with equal regard for large batches and for one image.

    The choice does not depend on the batch, so that a result does not depend on the company an image is in.
    """
    square = geometry.shape[0] == geometry.shape[1]
    centered = geometry.detector_offset_bins == 0 and not (isinstance(geometry, FanBeam) and geometry.axis_offset_mm != 0)
    allowed = [symmetry for symmetry in _SYMMETRIES if (square or not symmetry.swaps_axes) and (centered or not symmetry.mirrors)]

    def work(symmetry: _Symmetry) -> int:
        # A large batch fills every lane, so an image costs as many lanes as there are; one image costs whole vectors.
        return sum((len(copies) + LANES) * _base_views(*places[:2]) for copies, _, places in _arrange(geometry, symmetry))

    best = min(allowed, key=work)
    return tuple(_collect(copies, views, *places) for copies, views, places in _arrange(geometry, best))


_Places = tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]


def _arrange(geometry: Geometry, symmetry: _Symmetry) -> list[tuple[tuple[Copy, ...], NDArray[np.int64], _Places]]:
    """Return, per pass, its copies, the views that belong to it, and their places."""
    by_rows = row_driven(geometry.view_angles)
    # Parallel rays from the other side are the same rays.
    other_side = not isinstance(geometry, FanBeam) and geometry.detector_offset_bins == 0
    parts = []
    for first in (0,) if symmetry.swaps_axes else (0, 1):
        copies = symmetry.copies(first)
        views = np.arange(geometry.views) if symmetry.swaps_axes else np.flatnonzero(by_rows == (first == 0))
        if len(views):
            parts.append((copies, views, _places(geometry.view_angles[views], by_rows[views], copies, other_side)))
    return parts


def _places(angles: Floats, by_rows: NDArray[np.bool_], copies: tuple[Copy, ...], other_side: bool) -> _Places:
    """Return base angle, copy number and "is the detector reversed?" of every view."""
    options = list(product((False, True) if other_side else (False,), range(len(copies))))
    turned = np.empty((len(options), len(angles)))
    rank = np.empty(turned.shape, dtype=np.int64)
    for k, (opposite, number) in enumerate(options):
        copy = copies[number]
        angle = angles - copy.turns * _QUARTER - opposite * math.pi
        angle = np.remainder((-angle if copy.mirrored else angle) + math.pi, 2 * math.pi) - math.pi
        turned[k] = np.where(angle + math.pi < _SAME_ANGLE, math.pi, angle)
        # The rays closest to the vertical; then from the left; then the first copy.
        steps = np.rint(np.abs(turned[k]) / _SAME_ANGLE).astype(np.int64)
        rank[k] = (steps * 2 + (turned[k] < -_SAME_ANGLE)) * len(options) + k
        # On the diagonals, only copies with the driving axis that the reference takes.
        rank[k, by_rows != (copy.turns % 2 == 0)] = np.iinfo(np.int64).max
    best = rank.argmin(axis=0)
    number = np.array([number for _, number in options])[best]
    sides = np.array([opposite != copies[number].mirrored for opposite, number in options])[best]
    return np.take_along_axis(turned, best[None, :], axis=0)[0], number, sides


def _base_views(angles: Floats, copy_of: NDArray[np.int64]) -> int:
    """Return how many base views :func:`_collect` will make."""
    order = np.argsort(angles, kind="stable")
    group = np.cumsum(np.diff(angles[order], prepend=angles[order[0]]) > _SAME_ANGLE)
    occupied, times = np.unique(group * LANES + copy_of[order], return_counts=True)
    most = np.zeros(int(group[-1]) + 1, dtype=np.int64)
    np.maximum.at(most, occupied // LANES, times)
    return int(most.sum())


def _collect(
    copies: tuple[Copy, ...],
    views: NDArray[np.int64],
    angles: Floats,
    copy_of: NDArray[np.int64],
    reversed_of: NDArray[np.bool_],
) -> Pass:
    """Put views with the same base angle together, each in its copy's lane; a second one for a lane starts a new base view."""
    base_angles: list[float] = []
    view_of: list[list[int]] = []
    sides: list[list[bool]] = []
    group = 0  # where the base views of the present angle begin
    for k in np.argsort(angles, kind="stable"):
        if group == len(base_angles) or angles[k] - base_angles[group] > _SAME_ANGLE:
            group = len(base_angles)
        lane = int(copy_of[k])
        base = next((n for n in range(group, len(base_angles)) if view_of[n][lane] < 0), len(base_angles))
        if base == len(base_angles):
            base_angles.append(float(angles[k]))
            view_of.append([-1] * len(copies))
            sides.append([False] * len(copies))
        view_of[base][lane], sides[base][lane] = int(views[k]), bool(reversed_of[k])
    return Pass(copies, np.array(base_angles), np.array(view_of, dtype=np.int64), np.array(sides, dtype=np.bool_))
