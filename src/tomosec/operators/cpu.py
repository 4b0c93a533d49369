"""The operators on CPU, for every geometry: Numba kernels whose lanes are symmetric copies of an image, and images.

Three ideas make them fast. Symmetry: what the views of a scan have in common is worked out once
(:mod:`tomosec.operators.cpu_symmetry`), so that one traversal serves up to eight views of an image, and the vectors are filled up
with other images of the batch. Steps: as in :mod:`tomosec.operators.reference`, one interpolation a pixel edge and one sum
along the detector take the place of an overlap per pixel and bin. Vectors: places on the detector are computed eight edges
at a time in closed form (:func:`tomosec.operators.cpu_lines.locate_edges`), and contents are moved eight lanes at a time.

Nothing is kept between calls but read-only tables, so any number of threads may call; a call uses as many threads as
``torch.get_num_threads()`` says. Results do not depend on the number of threads, nor on the rest of the batch.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial, chebyshev
from numpy.typing import NDArray
from torch import Tensor

from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.operators import cpu_kernels as kernels
from tomosec.operators.cpu_lines import CURVED, FLAT, LINES, PARALLEL
from tomosec.operators.cpu_simd import LANES
from tomosec.operators.cpu_symmetry import Copy, Pass, passes
from tomosec.operators.cpu_threads import aligned, share

_log = logging.getLogger(__name__)

_VECTORS = 8  # handled together; more share the geometry's arithmetic further but leave the caches
_ALONE = 2  # copies of all images together; so few are faster one by one than in the lanes of a vector
_BASE_VIEWS = 4  # a scatter job; their cells are reused while an image line is in the cache


class _Tables:
    """One pass of one geometry in one precision. Read-only after construction, so threads may share it.

    Attributes:
        lines: Rows of the copies.
        pixels: Columns of the copies.
        copies: Copies of an image in a vector.
        views: (n, 3) See :func:`tomosec.operators.cpu_lines.locate_edges`.
        view_of: See :class:`Pass`.
        reversed_of: The same, for cells, which ascend along a line.
        ray_scale: (n, bins) Pixel side over mean ray cosine: the factors of P.
        bin_length: (n, bins) Length of a bin on the driving axis: the factors of B.
        to_copies: Walks of :func:`kernels.stack_image`.
        from_copies: Walks of :func:`kernels.unstack_image`.
    """

    def __init__(self, geometry: Geometry, part: Pass, dtype: np.dtype[Any]) -> None:
        turned = part.copies[0].turns % 2 == 1
        self.lines, self.pixels = geometry.shape[::-1] if turned else geometry.shape
        self.copies = len(part.copies)
        cos, sin = np.cos(part.angles), np.sin(part.angles)
        bend = np.tan(part.angles) * np.sign(cos) * geometry.bin_mm
        if isinstance(geometry, FanBeam):
            bend /= geometry.source_to_detector_mm
        self.views = np.stack([cos, sin, bend], axis=1)
        upside_down = cos < 0
        self.view_of = part.view_of
        self.reversed_of = part.reversed_of != upside_down[:, None]
        marks, cosines = _bins_on_axis(geometry, part.angles)
        scale = 2 * geometry.pixel_mm / (cosines[:, 1:] + cosines[:, :-1])
        length = np.abs(np.diff(marks, axis=1))
        self.ray_scale, self.bin_length = (
            np.ascontiguousarray(np.where(upside_down[:, None], table[:, ::-1], table), dtype=dtype) for table in (scale, length)
        )
        self.to_copies = np.array([_walk(copy, *geometry.shape) for copy in part.copies], dtype=np.int64)
        self.from_copies = np.array([_walk_back(copy, *geometry.shape, self.pixels) for copy in part.copies], dtype=np.int64)


def _bins_on_axis(geometry: Geometry, angles: Floats) -> tuple[Floats, Floats]:
    """Return where the bin edges are on the x axis, and the cosines of their rays against the y axis, both (n, bins + 1)."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    edges = geometry.isocenter_edges_mm[None, :]
    if not isinstance(geometry, FanBeam):
        return edges / cos, np.broadcast_to(np.abs(cos), (len(angles), geometry.bins + 1))
    source_x, source_y = (part[:, None] for part in geometry.source_at(angles).T)
    x, y = edges * cos, edges * sin
    marks = (x * source_y - source_x * y) / (source_y - y)
    return marks, np.abs(source_y) / np.hypot(marks - source_x, source_y)


def _frame(copy: Copy, rows: int, columns: int) -> NDArray[np.int64]:
    """Return the (row, column) in the image of a copy's first pixel, and the steps to its next line and to its next pixel."""
    first, line, pixel = {
        0: ((0, 0), (1, 0), (0, 1)),
        1: ((rows - 1, 0), (0, 1), (-1, 0)),
        2: ((rows - 1, columns - 1), (-1, 0), (0, -1)),
        3: ((0, columns - 1), (0, -1), (1, 0)),
    }[copy.turns]
    frame = np.array([first, line, pixel], dtype=np.int64)
    if copy.mirrored:
        frame[0] += ((rows if copy.turns % 2 else columns) - 1) * frame[2]
        frame[2] *= -1
    return frame


def _walk(copy: Copy, rows: int, columns: int) -> NDArray[np.int64]:
    """Return a walk through the image, copy line by copy line: first index, step to the next line, to the next pixel."""
    return np.asarray(_frame(copy, rows, columns) @ np.array([columns, 1]), dtype=np.int64)


def _walk_back(copy: Copy, rows: int, columns: int, pixels: int) -> NDArray[np.int64]:
    """Return a walk through a copy, image row by image row: its first pixel, the steps to the next row and to the next column."""
    first, line, pixel = _frame(copy, rows, columns)
    # Line and pixel of the image's place (r, c) are line · ((r, c) − first) and pixel · ((r, c) − first).
    index = line * pixels + pixel
    return np.array([-index @ first, *index], dtype=np.int64)


@lru_cache(maxsize=16)  # up to ten MB each
def _tables(geometry: Geometry, dtype: np.dtype[Any]) -> tuple[_Tables, ...]:
    return tuple(_Tables(geometry, part, dtype) for part in passes(geometry))


Curves = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


@lru_cache(maxsize=64)
def _scan(geometry: Geometry, dtype: np.dtype[Any]) -> tuple[Floats, Curves]:
    """Return ``scan`` and ``curves`` of :func:`tomosec.operators.cpu_lines.locate_edges`."""
    middle = geometry.bins / 2 - geometry.detector_offset_bins
    unused = np.zeros(1, dtype=dtype)
    if not isinstance(geometry, FanBeam):
        scan = [PARALLEL, geometry.pixel_mm, 1.0, 0.0, 1 / geometry.bin_mm, middle, 0.0, 0.0]
        return np.array(scan), (unused, unused, unused)
    per_tangent = geometry.source_to_detector_mm / geometry.bin_mm
    low, high = np.tan(geometry.bin_edges_mm[[0, -1]] / geometry.source_to_detector_mm)
    kind = FLAT if geometry.detector == "flat" else CURVED
    scan = [kind, geometry.pixel_mm, geometry.source_to_isocenter_mm, geometry.axis_offset_mm, per_tangent, middle, low, high]
    if kind == FLAT:
        return np.array(scan), (unused, unused, unused)
    return np.array(scan), _curves(1 / per_tangent, max(abs(low), abs(high)), dtype)


def _curves(bin_angle: float, widest: float, dtype: np.dtype[Any]) -> Curves:
    """Return the polynomials of a curved detector with bins of ``bin_angle`` and fan angles of tangents up to ``widest``."""
    sine = math.sin(bin_angle)

    def bins_per_tangent(square: Floats) -> Floats:
        v = np.sqrt(square)
        return np.asarray(np.arctan(v) / v / bin_angle)

    def odd_part(square: Floats) -> Floats:
        z = np.sqrt(square)
        return np.asarray(np.sin(z * bin_angle) / (z * sine))

    def even_part(square: Floats) -> Floats:
        # cos(zΔ) − cos Δ as a product of sines, which does not cancel.
        z = np.sqrt(square)
        return np.asarray(np.sin((1 + z) * bin_angle / 2) * np.sin((1 - z) * bin_angle / 2) / ((1 - square) * sine))

    return (
        _polynomial(bins_per_tangent, widest**2, dtype),
        _polynomial(odd_part, 1.0, dtype),
        _polynomial(even_part, 1.0, dtype),
    )


def _polynomial(function: Callable[[Floats], Floats], top: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the shortest polynomial, highest power first, that is ``function`` on (0, top) to rounding in ``dtype``.

    It interpolates at Chebyshev's points, which is within a small factor of the best there is.
    """
    allowed = 1e-9 if dtype == np.float32 else 2e-15
    grid = (np.arange(1000) + 0.5) / 1000 * top
    exact = function(grid)
    for terms in range(1, 21):
        fit = chebyshev.Chebyshev.interpolate(function, terms - 1, domain=(0.0, top)).convert(kind=Polynomial)
        coefficients = np.zeros(terms)
        coefficients[: len(fit.coef)] = fit.coef
        if np.abs(np.polyval(coefficients[::-1], grid) / exact - 1).max() < allowed:
            break
    return np.ascontiguousarray(coefficients[::-1], dtype=dtype)


@dataclass(frozen=True)
class Preparation:
    """What it took to have the kernels of one precision ready in this process.

    Attributes:
        seconds: Time to compile them, or to load them from Numba's cache.
        compiled: Whether some had to be compiled.
    """

    seconds: float
    compiled: bool


_prepared: dict[np.dtype[Any], Preparation] = {}
_preparing = threading.RLock()


def prepare(dtype: np.dtype[Any]) -> Preparation:
    """Make the kernels ready for float32 or float64: the first call of an operator does it too, and says so in the log.

    Returns:
        What it took, in whichever call it was.
    """
    with _preparing:
        if dtype not in _prepared:
            tiny = ParallelBeam(views=1, bins=1, bin_mm=1.0, shape=(1, 1), pixel_mm=1.0)
            _prepared[dtype] = Preparation(0.0, False)  # for the calls below
            start, misses = time.perf_counter(), _cache_misses()
            image = torch.zeros((1, 1, 1, 1), dtype=torch.float32 if dtype == np.float32 else torch.float64)
            _Run(tiny, image).scatter(weighted=False)
            _Run(tiny, image).gather(weighted=False)
            _prepared[dtype] = done = Preparation(time.perf_counter() - start, _cache_misses() > misses)
            if done.compiled:
                _log.info("Compiled the CT operators for %s in %.1f s; the next process finds them.", dtype, done.seconds)
        return _prepared[dtype]


def _cache_misses() -> int:
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels.ALL)


class _Run:
    """One call: one geometry, one precision, so many images."""

    def __init__(self, geometry: Geometry, tensor: Tensor) -> None:
        self.geometry = geometry
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if tensor.dtype == torch.float32 else np.float64)
        self.images = tensor.shape[0]
        self.source = tensor.detach().reshape(self.images, *tensor.shape[2:]).contiguous().numpy()
        if self.dtype not in _prepared:
            prepare(self.dtype)
        self.tables = _tables(geometry, self.dtype)
        self.scan, self.curves = _scan(geometry, self.dtype)
        self.threads = torch.get_num_threads()

    def _lanes(self, tables: _Tables) -> int:
        """Return how many lanes a vector has: one where eight would be mostly empty."""
        return LANES if self.images * tables.copies > _ALONE else 1

    def _groups(self, tables: _Tables) -> tuple[int, list[slice]]:
        """Return how many vectors are handled together, and which images those are, group by group."""
        lanes = self._lanes(tables)
        vectors = min(_VECTORS, -(-self.images * tables.copies // lanes))
        step = vectors * lanes // tables.copies
        return vectors, [slice(first, min(first + step, self.images)) for first in range(0, self.images, step)]

    def scatter(self, *, weighted: bool) -> Tensor:
        """P, or Bᵀ where ``weighted``: (B, 1, H, W) → (B, 1, views, bins)."""
        target = np.empty((self.images, *self.geometry.sinogram_shape), dtype=self.dtype)
        for tables in self.tables:
            count, groups = self._groups(tables)
            stack = aligned((count, tables.lines, (tables.pixels + 1) * self._lanes(tables)), self.dtype)
            for some in groups:
                self._scatter(tables, stack, self.source[some], target[some], weighted)
        return torch.from_numpy(target)[:, None]

    def _scatter(self, tables: _Tables, stack: NDArray[Any], source: NDArray[Any], target: NDArray[Any], weighted: bool) -> None:
        lanes = self._lanes(tables)
        copies = stack[: -(-len(source) * tables.copies // lanes)]
        flat = source.reshape(len(source), -1)
        scale = tables.bin_length if weighted else tables.ray_scale
        together = max(1, min(_BASE_VIEWS, len(tables.views) // (2 * self.threads)))

        def lay_out(start: int, stop: int, _: None) -> None:
            kernels.stack_image(flat, copies, lanes, tables.to_copies, not weighted, start, stop)

        def project(start: int, stop: int, cells: Any) -> None:
            kernels.scatter(
                copies, lanes, target, cells, tables.view_of, tables.reversed_of, scale, tables.views, self.scan, self.curves,
                weighted, start, stop,
            )  # fmt: skip

        def scratch() -> NDArray[Any]:
            return aligned((len(copies), together, (self.geometry.bins + 2) * lanes), self.dtype)

        share(lay_out, tables.lines, LINES, self.threads)
        share(project, len(tables.views), together, self.threads, scratch)

    def gather(self, *, weighted: bool) -> Tensor:
        """Pᵀ, or B where ``weighted``: (B, 1, views, bins) → (B, 1, H, W)."""
        # Not torch.zeros: its OpenMP threads would spin beside ours.
        target = np.zeros((self.images, *self.geometry.shape), dtype=self.dtype)
        for tables in self.tables:
            count, groups = self._groups(tables)
            lanes = self._lanes(tables)
            sums = aligned((count, len(tables.views), (self.geometry.bins + 2) * lanes), self.dtype)
            stack = aligned((count, tables.lines, tables.pixels * lanes), self.dtype)
            for some in groups:
                self._gather(tables, sums, stack, self.source[some], target[some], weighted)
        return torch.from_numpy(target)[:, None]

    def _gather(
        self,
        tables: _Tables,
        sums: NDArray[Any],
        stack: NDArray[Any],
        source: NDArray[Any],
        target: NDArray[Any],
        weighted: bool,
    ) -> None:
        lanes = self._lanes(tables)
        vectors = -(-len(source) * tables.copies // lanes)
        cells, copies = sums[:vectors], stack[:vectors]
        scale = tables.bin_length if weighted else tables.ray_scale

        def lay_out(start: int, stop: int, _: None) -> None:
            kernels.stack_sinogram(source, cells, lanes, tables.view_of, tables.reversed_of, scale, start, stop)

        def backproject(start: int, stop: int, _: None) -> None:
            kernels.gather(cells, copies, lanes, self.geometry.bins, tables.views, self.scan, self.curves, weighted, start, stop)

        def collect(start: int, stop: int, _: None) -> None:
            kernels.unstack_image(copies, lanes, target, tables.from_copies, start, stop)

        lines = max(1, min(LINES, tables.lines // (2 * self.threads)))
        share(lay_out, len(tables.views), 2 * _BASE_VIEWS, self.threads)
        share(backproject, tables.lines, lines, self.threads)
        share(collect, self.geometry.shape[0], LINES, self.threads)


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project`, for CPU tensors."""
    return _Run(geometry, image).scatter(weighted=False)


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project_t`, for CPU tensors."""
    return _Run(geometry, sinogram).gather(weighted=False)


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject`, for CPU tensors."""
    return _Run(geometry, sinogram).gather(weighted=True)


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject_t`, for CPU tensors."""
    return _Run(geometry, image).scatter(weighted=True)
