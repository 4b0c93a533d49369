"""The fast path on CPU: a flat fan beam whose views are eight symmetric copies of those between 0 and 45°.

On a full circle of 8 n views around a square image, the view at angle t of an image equals the view at t of its rotation by
−90°, taken 90° further, and the mirrored view of its mirror image, taken at −t. So the views {k · 90° ± t} of one image are
one view of eight images. Those eight are the lanes of a vector register: a single image fills it, only 1/8 of the views is
traversed, all of them along image rows, and the geometry is computed once for eight views and up to eight images.

The arithmetic is that of :mod:`tomosec.operators.reference`: one interpolation a pixel edge, not an overlap per bin.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomosec.geometry import FanBeam, Geometry
from tomosec.operators import cpu_fan_kernels as kernels
from tomosec.operators.cpu_lines import LINES
from tomosec.operators.cpu_simd import LANES
from tomosec.operators.cpu_threads import aligned, share

_IMAGES = 8  # handled together; more share the geometry's arithmetic further but leave the caches
_BASE_VIEWS = 4  # a scatter job; their cells are reused while an image line is in the cache


def unmet_precondition(geometry: Geometry) -> str | None:
    """Return why this path cannot serve ``geometry``, or None when it can. Every assumption of the kernels is here."""
    if not isinstance(geometry, FanBeam):
        return "not a fan beam"
    if geometry.detector != "flat":
        return "the detector is not flat"
    if geometry.detector_offset_bins != 0:
        return "the detector is shifted, so a mirrored view is not a view"
    if geometry.axis_offset_mm != 0:
        return "the rotation axis is off the central ray, so a mirrored view is not a view"
    if geometry.shape[0] != geometry.shape[1]:
        return "the image is not square, so a rotated image is not an image"
    if geometry.views % 8:
        return "views is not a multiple of 8"
    if not geometry.is_full_circle:
        return "the views are not equal steps around a full circle"
    if _view_at_step(geometry) is None:
        return "no view is at angle 0, so a mirrored view is not a view"
    if geometry.bins * LANES >= 2**31:
        return "too many bins for 32-bit offsets"
    return None


def _view_at_step(geometry: Geometry) -> NDArray[np.int64] | None:
    """Return which view is at angle 2π n / views, for every n, whatever the start, direction and order; None if one is not."""
    position = geometry.view_angles * (geometry.views / (2 * math.pi))
    step = np.rint(position)
    if np.abs(position - step).max() > 1e-6:  # of a step: invisible in float64 results, more would not be
        return None
    view_at = np.full(geometry.views, -1, dtype=np.int64)
    view_at[step.astype(np.int64) % geometry.views] = np.arange(geometry.views)
    return None if (view_at < 0).any() else view_at


class _Plan:
    """Tables of one geometry in one precision. Read-only after construction, so threads may share it."""

    def __init__(self, geometry: FanBeam, dtype: np.dtype[Any]) -> None:
        views = geometry.views
        radius = geometry.source_to_isocenter_mm
        self.geometry = geometry
        self.dtype = dtype
        self.base_views = views // 8 + 1
        angles = np.arange(self.base_views) * (2 * math.pi / views)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        at_isocenter = geometry.isocenter_edges_mm[None, :]
        on_axis = radius * at_isocenter / (radius * cos - at_isocenter * sin)
        cosines = radius * cos / np.hypot(on_axis + radius * sin, radius * cos)
        self.cosines, self.sines = (np.ascontiguousarray(table[:, 0], dtype=dtype) for table in (cos, sin))
        # The same factors as in the reference: of P, pixel side over ray cosine; of B, the bin's length on the axis.
        self.ray_scale = (2 * geometry.pixel_mm / (cosines[:, 1:] + cosines[:, :-1])).astype(dtype)
        self.bin_length = np.diff(on_axis, axis=1).astype(dtype)
        self.lengths = np.array([geometry.pixel_mm, geometry.bin_at_isocenter_mm, radius], dtype=dtype)
        self.view_of = self._copies(views)

    def _copies(self, views: int) -> NDArray[np.int64]:
        view_at = _view_at_step(self.geometry)
        assert view_at is not None
        quarter = views // 4
        base = np.arange(self.base_views)[:, None]
        turns = quarter * np.arange(4)[None, :]
        rotated, mirrored = view_at[(base + turns) % views], view_at[(turns - base) % views]
        mirrored[0] = mirrored[-1] = -1  # views at 0 and 45° are their own mirrors
        return np.ascontiguousarray(np.concatenate([rotated, mirrored], axis=1))

    def scatter(self, image: Tensor, *, weighted: bool) -> Tensor:
        """P, or Bᵀ where ``weighted``: (B, 1, N, N) → (B, 1, views, bins)."""
        images, n = image.shape[0], image.shape[-1]
        views, bins = self.geometry.sinogram_shape
        source = image.detach().reshape(images, n, n).contiguous().numpy()
        out = torch.empty((images, views, bins), dtype=image.dtype)
        target = out.numpy()
        group = min(images, _IMAGES)
        stack = aligned((group, n, (n + 1) * LANES), self.dtype)
        scale = self.bin_length if weighted else self.ray_scale
        threads = torch.get_num_threads()
        together = max(1, min(_BASE_VIEWS, self.base_views // (2 * threads)))
        for first in range(0, images, group):
            some, part = source[first : first + group], target[first : first + group]
            lanes = stack[: len(some)]

            def lay_out(start: int, stop: int, _: None, some: Any = some, lanes: Any = lanes) -> None:
                kernels.stack_image(some, lanes, not weighted, start, stop)

            def project(start: int, stop: int, cells: Any, lanes: Any = lanes, part: Any = part) -> None:
                kernels.scatter(
                    lanes, part, cells, self.view_of, self.cosines, self.sines, scale, self.lengths, weighted, start, stop
                )  # fmt: skip

            share(lay_out, n, LINES, threads)
            share(project, self.base_views, together, threads, lambda: aligned((group, together, (bins + 2) * LANES), self.dtype))
        return out[:, None]

    def gather(self, sinogram: Tensor, *, weighted: bool) -> Tensor:
        """Pᵀ, or B where ``weighted``: (B, 1, views, bins) → (B, 1, N, N)."""
        images, n = sinogram.shape[0], self.geometry.shape[0]
        views, bins = self.geometry.sinogram_shape
        source = sinogram.detach().reshape(images, views, bins).contiguous().numpy()
        out = torch.empty((images, n, n), dtype=sinogram.dtype)
        target = out.numpy()
        group = min(images, _IMAGES)
        sums = aligned((group, self.base_views, (bins + 2) * LANES), self.dtype)
        stack = aligned((group, n, n * LANES), self.dtype)
        scale = self.bin_length if weighted else self.ray_scale
        threads = torch.get_num_threads()
        lines = max(1, min(LINES, n // (2 * threads)))
        for first in range(0, images, group):
            some, part = source[first : first + group], target[first : first + group]
            lanes, cells = stack[: len(some)], sums[: len(some)]

            def lay_out(start: int, stop: int, _: None, some: Any = some, cells: Any = cells) -> None:
                kernels.stack_sinogram(some, cells, self.view_of, scale, start, stop)

            def backproject(start: int, stop: int, _: None, lanes: Any = lanes, cells: Any = cells) -> None:
                kernels.gather(cells, lanes, self.cosines, self.sines, bins, self.lengths, weighted, start, stop)

            def collect(start: int, stop: int, _: None, lanes: Any = lanes, part: Any = part) -> None:
                kernels.unstack_image(lanes, part, start, stop)

            share(lay_out, self.base_views, 2 * _BASE_VIEWS, threads)
            share(backproject, n, lines, threads)
            share(collect, n, LINES, threads)
        return out[:, None]


@lru_cache(maxsize=32)  # a few MB each
def _plan(geometry: FanBeam, dtype: np.dtype[Any]) -> _Plan:
    return _Plan(geometry, dtype)


def _plan_for(tensor: Tensor, geometry: Geometry) -> _Plan:
    assert isinstance(geometry, FanBeam)
    return _plan(geometry, np.dtype(np.float32 if tensor.dtype == torch.float32 else np.float64))


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project`, for CPU tensors and geometries without an unmet precondition."""
    return _plan_for(image, geometry).scatter(image, weighted=False)


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project_t`, with the conditions of :func:`project`."""
    return _plan_for(sinogram, geometry).gather(sinogram, weighted=False)


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject`, with the conditions of :func:`project`."""
    return _plan_for(sinogram, geometry).gather(sinogram, weighted=True)


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject_t`, with the conditions of :func:`project`."""
    return _plan_for(image, geometry).scatter(image, weighted=True)
