"""The CPU path for every geometry without the symmetry of :mod:`tomosec.operators.cpu_fan`.

Eight images of a batch are the lanes of a vector register, so batches of eight or more cost about as much an image as on the
symmetric path, and smaller ones proportionally more. Positions are found in a table of bin edges, in
float64, so that flat, curved and parallel detectors differ only in its contents. The arithmetic is otherwise that of
:mod:`tomosec.operators.reference`: one interpolation a pixel edge.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomosec.geometry import FanBeam, Floats, Geometry
from tomosec.operators import cpu_general_kernels as kernels
from tomosec.operators.cpu_lines import LINES
from tomosec.operators.cpu_simd import LANES
from tomosec.operators.cpu_threads import aligned, share
from tomosec.operators.reference import row_driven

_GROUPS = 2  # of eight images handled together; more share the geometry's arithmetic further but leave the caches
_VIEWS = 4  # a scatter job; their cells are reused while an image line is in the cache


class _Plan:
    """Tables of one geometry in one precision. Read-only after construction, so threads may share it.

    Attributes:
        by_rows: Views whose lines are image rows.
        by_columns: The others.
        rays: (views, 11) The shadow of a point at ``a`` along its line and ``l`` across the lines is
            ``(r₀ a + r₁ l) / (r₀ + r₂ l)``; FBP's weight there is ``r₈ / ((r₃ + r₄ a + r₅ l)² + (r₆ a + r₇ l + r₁₀)²)``;
            r₉ is the number of steps of ``guess`` a mm.
        marks: (views, bins + 1) Ascending bin edges on the driving axis.
        per_length: (views, bins) One over the distance of two of them.
        guess: (views, steps) The bin at the start of each equal step of the axis; no step is longer than a bin.
        flipped: (views,) Whether bins descend along it.
        ray_scale: (views, bins) Pixel side over mean ray cosine: the factors of P.
        bin_length: (views, bins) Length of a bin on the axis: the factors of B.
    """

    def __init__(self, geometry: Geometry, dtype: np.dtype[Any]) -> None:
        self.geometry = geometry
        self.dtype = dtype
        angles = geometry.view_angles
        rows = row_driven(angles)
        self.by_rows: NDArray[np.int64] = np.flatnonzero(rows).astype(np.int64)
        self.by_columns: NDArray[np.int64] = np.flatnonzero(~rows).astype(np.int64)
        cos, sin = np.cos(angles), np.sin(angles)
        # Along a row a = x and l = y; along a column a = y and l = x.
        main, cross = np.where(rows, cos, sin), np.where(rows, sin, cos)
        side = np.where(rows, -1.0, 1.0)
        zero, one = np.zeros_like(cos), np.ones_like(cos)
        edges = geometry.isocenter_edges_mm[None, :]
        at, height = edges * main[:, None], edges * cross[:, None]
        if isinstance(geometry, FanBeam):
            radius = geometry.source_to_isocenter_mm
            curved = float(geometry.detector == "curved")
            source_x, source_y = geometry.source_positions_mm.T
            # The source along the lines and across them.
            source_at, source_height = np.where(rows, source_x, source_y), np.where(rows, source_y, source_x)
            shadow = [-side * source_height, side * source_at, side]
            weight = [radius * one, -side * cross, side * main, curved * main, curved * cross, radius**2 * one]
            aside = curved * geometry.axis_offset_mm
            marks = (shadow[0][:, None] * at + shadow[1][:, None] * height) / (shadow[0][:, None] + side[:, None] * height)
            cosines = np.abs(source_height)[:, None] / np.hypot(marks - source_at[:, None], source_height[:, None])
        else:
            shadow, weight, aside = [main, cross, zero], [one, zero, zero, zero, zero, one], 0.0
            marks = edges / main[:, None]
            cosines = np.broadcast_to(np.abs(main)[:, None], marks.shape)
        self.flipped = marks[:, 0] > marks[:, -1]
        self.marks: Floats = np.ascontiguousarray(np.where(self.flipped[:, None], marks[:, ::-1], marks))
        lengths = np.diff(self.marks, axis=1)
        self.per_length = 1 / lengths
        per_step = 1 / lengths.min(axis=1)
        self.rays = np.stack([*shadow, *weight, per_step, aside * one], axis=1)
        self.guess = self._guesses(per_step)
        self.ray_scale = (2 * geometry.pixel_mm / (cosines[:, 1:] + cosines[:, :-1])).astype(dtype)
        self.bin_length = np.abs(np.diff(marks, axis=1)).astype(dtype)
        height_px, width_px = geometry.shape
        self.row_places: Floats = np.asarray((height_px / 2 - 0.5 - np.arange(height_px)) * geometry.pixel_mm, dtype=np.float64)
        self.column_places: Floats = np.asarray((np.arange(width_px) - width_px / 2 + 0.5) * geometry.pixel_mm, dtype=np.float64)

    def _guesses(self, per_step: Floats) -> NDArray[np.int32]:
        steps = int(np.ceil((self.marks[:, -1] - self.marks[:, 0]) * per_step).max()) + 1
        guess = np.empty((len(per_step), steps), dtype=np.int32)
        for row, marks, density in zip(guess, self.marks, per_step, strict=True):
            row[:] = np.searchsorted(marks, marks[0] + np.arange(steps) / density, side="right") - 1
        return np.clip(guess, 0, self.geometry.bins - 1)

    def _directions(self) -> tuple[tuple[bool, NDArray[np.int64], Floats, int], ...]:
        """Return, for rows and for columns: which it is, its views, the places of its lines, and their pixels."""
        rows, columns = self.geometry.shape
        return (True, self.by_rows, self.row_places, columns), (False, self.by_columns, self.column_places, rows)

    def scatter(self, image: Tensor, *, weighted: bool) -> Tensor:
        """P, or Bᵀ where ``weighted``: (B, 1, H, W) → (B, 1, views, bins)."""
        images = image.shape[0]
        views, bins = self.geometry.sinogram_shape
        source = image.detach().reshape(images, *self.geometry.shape).contiguous().numpy()
        out = torch.empty((images, views, bins), dtype=image.dtype)
        target = out.numpy()
        scale = self.bin_length if weighted else self.ray_scale
        threads = torch.get_num_threads()
        groups = min(_GROUPS, -(-images // LANES))
        for by_rows, chosen, places, pixels in self._directions():
            if not len(chosen):
                continue
            stack = aligned((groups, len(places), (pixels + 1) * LANES), self.dtype)
            together = max(1, min(_VIEWS, len(chosen) // (2 * threads)))
            for first in range(0, images, groups * LANES):
                some, part = source[first : first + groups * LANES], target[first : first + groups * LANES]
                lanes = stack[: -(-len(some) // LANES)]

                def lay_out(start: int, stop: int, _: None, some: Any = some, lanes: Any = lanes, rows: bool = by_rows) -> None:
                    kernels.stack_image(some, lanes, rows, not weighted, start, stop)

                def project(
                    start: int,
                    stop: int,
                    cells: Any,
                    lanes: Any = lanes,
                    part: Any = part,
                    chosen: Any = chosen,
                    places: Any = places,
                ) -> None:
                    kernels.scatter(
                        lanes, part, cells, chosen, places, self.rays, self.marks, self.per_length, self.guess,
                        self.flipped, scale, self.geometry.pixel_mm, weighted, start, stop,
                    )  # fmt: skip

                def scratch(together: int = together) -> Any:
                    return aligned((groups, together, (bins + 2) * LANES), self.dtype)

                share(lay_out, len(places), LINES, threads)
                share(project, len(chosen), together, threads, scratch)
        return out[:, None]

    def gather(self, sinogram: Tensor, *, weighted: bool) -> Tensor:
        """Pᵀ, or B where ``weighted``: (B, 1, views, bins) → (B, 1, H, W)."""
        images = sinogram.shape[0]
        views, bins = self.geometry.sinogram_shape
        rows, columns = self.geometry.shape
        source = sinogram.detach().reshape(images, views, bins).contiguous().numpy()
        out = torch.empty((images, rows, columns), dtype=sinogram.dtype)
        target = out.numpy()
        scale = self.bin_length if weighted else self.ray_scale
        threads = torch.get_num_threads()
        groups = min(_GROUPS, -(-images // LANES))
        sums = aligned((groups, views, (bins + 2) * LANES), self.dtype)
        stacks = [aligned((groups, len(places), pixels * LANES), self.dtype) for _, _, places, pixels in self._directions()]
        for first in range(0, images, groups * LANES):
            some, part = source[first : first + groups * LANES], target[first : first + groups * LANES]
            used = -(-len(some) // LANES)
            cells, lanes = sums[:used], [stack[:used] for stack in stacks]

            def lay_out(start: int, stop: int, _: None, some: Any = some, cells: Any = cells) -> None:
                kernels.stack_sinogram(some, cells, self.flipped, scale, start, stop)

            def collect(start: int, stop: int, _: None, lanes: Any = lanes, part: Any = part) -> None:
                kernels.unstack_image(lanes[0], lanes[1], part, start, stop)

            share(lay_out, views, 2 * _VIEWS, threads)
            for (_, chosen, places, _), stack in zip(self._directions(), lanes, strict=True):

                def backproject(
                    start: int,
                    stop: int,
                    _: None,
                    stack: Any = stack,
                    cells: Any = cells,
                    chosen: Any = chosen,
                    places: Any = places,
                ) -> None:
                    kernels.gather(
                        cells, stack, chosen, places, self.rays, self.marks, self.per_length, self.guess,
                        self.geometry.pixel_mm, weighted, start, stop,
                    )  # fmt: skip

                share(backproject, len(places), max(1, min(LINES, len(places) // (2 * threads))), threads)
            share(collect, rows, LINES, threads)
        return out[:, None]


@lru_cache(maxsize=8)  # tens of MB each at full size
def _plan(geometry: Geometry, dtype: torch.dtype) -> _Plan:
    return _Plan(geometry, np.dtype(np.float32 if dtype == torch.float32 else np.float64))


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project`, for CPU tensors."""
    return _plan(geometry, image.dtype).scatter(image, weighted=False)


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project_t`, for CPU tensors."""
    return _plan(geometry, sinogram.dtype).gather(sinogram, weighted=False)


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject`, for CPU tensors."""
    return _plan(geometry, sinogram.dtype).gather(sinogram, weighted=True)


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject_t`, for CPU tensors."""
    return _plan(geometry, image.dtype).scatter(image, weighted=True)
