"""The GPU path: Triton kernels for every geometry, in gather form, without atomics, the same bits every time.

On a line of the image (a row, or a column where those are the lines) the weights of :mod:`tomosec.operators.reference` become
simple. A bin edge's ray is a straight line in pixel coordinates, ``p(l) = start + slope · l``, whatever the detector; shadows of
points of one line are an affine map of the line; so with ``o`` the length that pixel and bin share there, in pixels, P weighs
with ``o / width of the bin there · ray scale`` and B with ``o · distance weight``. A bin gathers pixels (P, Bᵀ) and a pixel
gathers bins (Pᵀ, B), both with a number of taps that the host bounds from the geometry. No prefix sums: their differences would
cost float32 its last digits.

**Precision.** In float32 a position near pixel 500 is known to 3e-5 of a pixel, which is 1e-4 of a narrow bin. float64 would
help on data-center GPUs (half rate) and hurt on all others (1/32 or 1/64). So positions are two numbers of the data's type:
start and slope are split on the host, in float64, into a high part of so few bits that ``start + slope · l − pixel`` is exact,
and a low part whose rounding is below 1e-8 of a pixel. What is left is the rounding of a distance of about a pixel. The bin
that a pixel's edge lies in is first estimated by the geometry's formula, to about 0.01 of a bin; the estimate is moved down
by more than its error, so it is the bin or the one before, and the table decides.

**Layout.** Neighboring threads are neighboring bins; for views driven by columns they then read a transposed copy of the image,
one pass over memory, so that they still read neighboring pixels. Backward, a warp is 4 rows of 8 pixels, and sinograms need
no copy. Up to eight images share a program and its arithmetic of positions. Small images are too few pixels to fill a GPU, so
their views are divided into parts, summed at the end in a fixed order. The parts depend on the geometry only: an image's result
does not depend on its company.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Floats, Geometry
from tomosec.operators import gpu_kernels as kernels
from tomosec.operators.reference import row_driven

_BINS = 128  # a program of P: one bin a thread
_TILE = (8, 16)  # pixels of a program of B: four warps of 4 × 8
_WARPS = 4
_IMAGES = 8  # that share a program
_TAPS = 4  # unrolled
_THREADS = 1 << 18  # that B wants at least: about as many as a large GPU holds at once
_MOST_PARTS = 8
_ARC_ERROR = 1.2e-5  # rad; of the kernels' arc tangent


@dataclass(frozen=True)
class _Direction:
    """The views of one driving axis as tables on the device; V views, bins in ascending order along the lines' pixels.

    Attributes:
        edges: (4, V, bins + 1) High start, high slope, low start, low slope of each bin edge's line, in pixels.
        scale: (V, bins) Pixel side over mean ray cosine.
        spans: (2, V, bins) First line where a bin meets the image, and the one after the last, int32.
        views: (V, 9) See ``gpu_kernels.VIEWS``.
        numbers: (V, 5) See ``gpu_kernels.NUMBERS``, int32.
        pixel_taps: Most pixels that a bin meets on a line.
        bin_taps: Most bins that a pixel meets, and one for the estimate's error where it can matter.
    """

    edges: Tensor
    scale: Tensor
    spans: Tensor
    views: Tensor
    numbers: Tensor
    pixel_taps: int
    bin_taps: int

    @property
    def count(self) -> int:
        """V."""
        return self.edges.shape[1]


def _unroll(taps: int) -> tuple[int, bool]:
    """Return how many of the taps one round handles, and whether there are more rounds."""
    return min(taps, _TAPS), taps > _TAPS


def _split(start: Floats, slope: Floats, pixels: int, half_lines: float, dtype: torch.dtype) -> Floats:
    """Return (4, ...) the high and low parts of lines ``start + slope · l``, so that the high ones lose nothing.

    With lines at multiples of ½ up to ``half_lines``, every term and sum of the high part is a multiple of ½ quantum and below
    2^bits of them.
    """
    bits = 24 if dtype == torch.float32 else 53
    largest = np.abs(start) + np.abs(slope) * half_lines + pixels + 1
    quantum = np.exp2(np.ceil(np.log2(largest)) + 1 - bits)
    high_start, high_slope = np.rint(start / quantum) * quantum, np.rint(slope / quantum) * quantum
    return np.stack([high_start, high_slope, start - high_start, slope - high_slope])


def _spans(start: Floats, slope: Floats, pixels: int, half_lines: float) -> tuple[Floats, Floats]:
    """Return the first and last place of a line, within ± ``half_lines``, where each bin meets the image; first > last: nowhere.

    A bin meets it where its left edge is before the last pixel's end, and its right edge behind the first pixel's start: two
    half-lines.
    """
    first, last = np.full_like(start[:, 1:], -half_lines), np.full_like(start[:, 1:], half_lines)
    for sign, edge, end in ((1, np.s_[:, :-1], pixels), (-1, np.s_[:, 1:], 0)):
        ahead, room = sign * slope[edge], sign * (end - start[edge])  # ahead · l <= room
        with np.errstate(divide="ignore", invalid="ignore"):
            limit = room / ahead
        last = np.where(ahead > 0, np.minimum(last, limit), last)
        first = np.where(ahead < 0, np.maximum(first, limit), first)
        last = np.where((ahead == 0) & (room < 0), -np.inf, last)
    return first, last


def _direction(geometry: Geometry, by_rows: bool, dtype: torch.dtype, device: torch.device) -> _Direction:
    rows, columns = geometry.shape
    lines, pixels = (rows, columns) if by_rows else (columns, rows)
    half_lines = (lines - 1) / 2
    side, bins = geometry.pixel_mm, geometry.bins
    chosen = np.flatnonzero(row_driven(geometry.view_angles) == by_rows)
    angle = geometry.view_angles[chosen, None]
    cos, sin = np.cos(angle), np.sin(angle)
    edges = geometry.isocenter_edges_mm[None, :]

    def in_image(x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return pixels along the lines and across them, from the center: columns count to the right, rows down."""
        return (x / side, -y / side) if by_rows else (-y / side, x / side)

    offset = 0.0
    at_x, at_y, away_x, away_y = edges * cos, edges * sin, -sin, cos
    if isinstance(geometry, FanBeam):
        offset = geometry.axis_offset_mm
        source_x, source_y = (part[chosen, None] for part in geometry.source_positions_mm.T)
        away_x, away_y = source_x - at_x, source_y - at_y
    (along, across), (along_step, across_step) = in_image(at_x, at_y), in_image(away_x, away_y)
    slope = np.broadcast_to(along_step / across_step, along.shape)
    start = along - slope * across + pixels / 2
    flipped = start[:, 0] > start[:, -1]
    start, slope = (np.where(flipped[:, None], table[:, ::-1], table) for table in (start, slope))
    cosines = 1 / np.hypot(1, slope)
    scale = 2 * side / (cosines[:, 1:] + cosines[:, :-1])

    # Place along the detector and depth of a point, over the source's radius: affine in its pixel coordinates.
    radius, gain = 1.0, 1 / geometry.bin_mm
    if isinstance(geometry, FanBeam):
        radius, gain = geometry.source_to_isocenter_mm, geometry.source_to_detector_mm / geometry.bin_mm
    aside = np.stack([cos, -sin] if by_rows else [-sin, cos]) * (side / radius)
    depth = np.stack([sin, cos] if by_rows else [cos, sin]) * (side / radius)
    zero = bins / 2 - geometry.detector_offset_bins
    margin = (
        1e-3
        + 2e-6 * (bins + abs(geometry.detector_offset_bins))
        + (_ARC_ERROR * gain if _kind(geometry) == kernels.CURVED.value else 0.0)
    )
    first_bin, bin_step = np.where(flipped, bins - 1, 0), np.where(flipped, -1, 1)
    one = np.ones_like(cos)
    views = [
        offset / radius - aside[0] * (pixels / 2), aside[0], aside[1],
        1 - depth[0] * (pixels / 2), depth[0], depth[1],
        np.where(flipped[:, None], bins - zero, zero) - margin, bin_step[:, None] * gain, -half_lines * one,
    ]  # fmt: skip

    first, last = _spans(start, slope, pixels, half_lines)
    met = first <= last
    widths = [np.diff(start) + np.diff(slope) * place for place in (first, last)]
    widest, narrowest = (np.where(met, pick(*widths), rest) for pick, rest in ((np.maximum, 0.0), (np.minimum, np.inf)))
    with np.errstate(divide="ignore"):
        bin_taps = np.ceil(1 / narrowest.min(axis=1).clip(0) + 2 * margin) + 1
    pixel_taps = np.ceil(widest.max(axis=1)) + 1
    taps = np.stack([pixel_taps.clip(1, pixels), bin_taps.clip(1, bins)])
    most_pixels, most_bins = (int(most) for most in taps.max(axis=1, initial=1))
    rounds = [-(-taps[0] // _unroll(most_pixels)[0]), -(-taps[1] // _unroll(most_bins)[0])]
    # The rounding of an end must not lose a line.
    span = np.stack([np.floor(first + half_lines - 1e-6), np.ceil(last + half_lines + 1e-6) + 1])
    span = np.where(met, np.clip(span, 0, lines), [[[lines]], [[0]]])

    def tensor(values: NDArray[Any], kind: torch.dtype = dtype) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(device=device, dtype=kind)

    return _Direction(
        edges=tensor(_split(start, slope, pixels, half_lines, dtype)),
        scale=tensor(scale),
        spans=tensor(span, torch.int32),
        views=tensor(np.concatenate(views, axis=1)),
        numbers=tensor(np.stack([chosen, first_bin, bin_step, *rounds], axis=1), torch.int32),
        pixel_taps=most_pixels,
        bin_taps=most_bins,
    )


def _kind(geometry: Geometry) -> int:
    if not isinstance(geometry, FanBeam):
        return int(kernels.PARALLEL.value)
    return int((kernels.FLAT if geometry.detector == "flat" else kernels.CURVED).value)


class _Plan:
    """The two directions of a geometry in one precision on one device. Read-only after construction, so threads may share it."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.kind = _kind(geometry)
        self.by_rows = _direction(geometry, True, dtype, device)
        self.by_columns = _direction(geometry, False, dtype, device)

    def to_sinogram(self, image: Tensor, *, weighted: bool) -> Tensor:
        """P, or Bᵀ where ``weighted``: (B, 1, H, W) → (B, 1, views, bins)."""
        images = image.shape[0]
        views, bins = self.geometry.sinogram_shape
        out = image.new_empty((images, 1, views, bins))
        together = _together(images)
        for direction, lines in ((self.by_rows, image), (self.by_columns, image.transpose(2, 3))):
            if not direction.count or not images:
                continue
            source = lines.contiguous()
            taps, more = _unroll(direction.pixel_taps)
            jobs = triton.cdiv(bins, _BINS) * direction.count * triton.cdiv(images, together)
            kernels.to_sinogram[(jobs,)](
                source, out, direction.edges, direction.scale, direction.spans, direction.views, direction.numbers,
                images, *source.shape[2:], direction.count, views, bins,
                WEIGHTED=weighted, KIND=self.kind, TAPS=taps, ROUNDS=more, IMAGES=together, BLOCK=_BINS, num_warps=_WARPS,
            )  # fmt: skip
        return out

    def to_image(self, sinogram: Tensor, *, weighted: bool) -> Tensor:
        """Pᵀ, or B where ``weighted``: (B, 1, views, bins) → (B, 1, H, W)."""
        images = sinogram.shape[0]
        rows, columns = self.geometry.shape
        parts = max(1, min(_MOST_PARTS, _THREADS // (rows * columns), self.geometry.views))
        out = sinogram.new_empty((parts, images, 1, rows, columns))
        if images:
            together = _together(images)
            taps, more = _unroll(max(self.by_rows.bin_taps, self.by_columns.bin_taps))
            tables = [table for d in (self.by_rows, self.by_columns) for table in (d.edges, d.scale, d.views, d.numbers)]
            jobs = triton.cdiv(rows, _TILE[0]) * triton.cdiv(columns, _TILE[1]) * parts * triton.cdiv(images, together)
            kernels.to_image[(jobs,)](
                sinogram.contiguous(), out, *tables,
                images, rows, columns, self.by_rows.count, self.by_columns.count, self.geometry.bins, parts,
                WEIGHTED=weighted, KIND=self.kind, TAPS=taps, ROUNDS=more, IMAGES=together,
                TILE_ROWS=_TILE[0], TILE_COLUMNS=_TILE[1], num_warps=_WARPS,
            )  # fmt: skip
        if parts == 1:
            return out[0]
        total = out[0] + out[1]
        for part in out[2:]:  # one by one: the order of torch's sum depends on the shape
            total += part
        return total


def _together(images: int) -> int:
    """Return how many images share a program: a power of two."""
    return int(min(_IMAGES, triton.next_power_of_2(max(1, images))))


@lru_cache(maxsize=8)  # tens of MB each at full size, on the device
def _plan(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> _Plan:
    return _Plan(geometry, dtype, device)


def _run(name: Literal["to_sinogram", "to_image"], x: Tensor, geometry: Geometry, *, weighted: bool) -> Tensor:
    if not x.is_cuda and not kernels.INTERPRETED:
        raise InputError(f"the GPU operators got a tensor on {x.device}; move it to a CUDA device, or call tomosec.operators")
    # Triton launches on the current device, not on that of its arguments.
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        out: Tensor = getattr(_plan(geometry, x.dtype, x.device), name)(x.detach(), weighted=weighted)
        return out


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project`, for CUDA tensors."""
    return _run("to_sinogram", image, geometry, weighted=False)


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.project_t`, for CUDA tensors."""
    return _run("to_image", sinogram, geometry, weighted=False)


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject`, for CUDA tensors."""
    return _run("to_image", sinogram, geometry, weighted=True)


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """As :func:`tomosec.operators.reference.backproject_t`, for CUDA tensors."""
    return _run("to_sinogram", image, geometry, weighted=True)
