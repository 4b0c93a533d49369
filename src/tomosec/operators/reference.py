"""The four operators in plain torch: any device, any geometry, computed in float64. Slow, and the judge of the fast paths.

Distance-driven weights (De Man and Basu, Phys. Med. Biol. 49:2463, 2004) as in CTLIB. Every view has a driving axis, x or y,
the one that its rays cross more steeply. Pixel edges of an image line and bin edges are mapped along the rays onto that
axis; a pixel and a bin share weight in proportion to the overlap of their shadows there.

The overlaps are never formed one by one. Let C(b) be the sum of bin contents left of the axis position b, linear inside a
bin. A pixel's sum over bins is then C at its right edge minus C at its left edge: one interpolation per pixel edge. The
transpose scatters the image's steps from pixel to pixel to two bins each and sums along the detector once per view. Both
use the same positions, so each is the other's exact transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam

_CHUNK = 1 << 21  # pixel edges, times images, handled at once: 16 MB a table
_TIE = 1e-9  # rad; angles this close to a diagonal count as on it


@dataclass(frozen=True)
class _Views:
    """Some views with the same driving axis, as tables in float64.

    Attributes:
        index: Numbers of the views, shape (n,).
        by_rows: Whether image rows are the lines (driving axis x); otherwise columns are (driving axis y).
        cell: Bin that holds each pixel edge, shape (n, lines, edges).
        fraction: Position of the edge inside that bin, 0..1, same shape.
        ray_scale: ± pixel side over the mean ray cosine, shape (n, bins): the weights of P. The sign is that of the
            detector's direction along the line.
        bin_length: ± length of each bin on the axis, shape (n, bins): the weights of B.
        pixel_weight: Distance weight over the pixel's length on the axis, shape (n, lines, pixels); None without B.
    """

    index: Tensor
    by_rows: bool
    cell: Tensor
    fraction: Tensor
    ray_scale: Tensor
    bin_length: Tensor
    pixel_weight: Tensor | None


def row_driven(angles: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which views take image rows as lines: those within 45° of the y axis.

    Of the diagonals, 45° and 225° go by rows, 135° and 315° by columns, whatever their last digit: so a turn of the
    image by 90° is a shift of the views, exactly.
    """
    folded = np.mod(np.asarray(angles) + math.pi / 4, math.pi)
    return cast("np.ndarray[tuple[int], np.dtype[np.bool_]]", (folded > _TIE) & (folded <= math.pi / 2 + _TIE))


def _views(geometry: Geometry, images: int, device: torch.device, *, weighted: bool) -> Iterator[_Views]:
    rows, columns = geometry.shape
    angles = geometry.view_angles
    by_rows = row_driven(angles)
    for rows_are_lines in (True, False):
        chosen = np.flatnonzero(by_rows == rows_are_lines)
        lines, pixels = (rows, columns) if rows_are_lines else (columns, rows)
        step = max(1, _CHUNK // (lines * (pixels + 1) * images))
        for first in range(0, len(chosen), step):
            index = chosen[first : first + step]
            yield _tables(geometry, index, angles[index], rows_are_lines, device, weighted)


def _tables(
    geometry: Geometry,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    angles: Floats,
    by_rows: bool,
    device: torch.device,
    weighted: bool,
) -> _Views:
    rows, columns = geometry.shape
    pixel = geometry.pixel_mm

    def tensor(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=device)

    cos, sin = (tensor(values)[:, None, None] for values in (np.cos(angles), np.sin(angles)))
    y_centers = tensor((rows / 2 - 0.5 - np.arange(rows)) * pixel)
    x_centers = tensor((np.arange(columns) - columns / 2 + 0.5) * pixel)
    y_edges = tensor((rows / 2 - np.arange(rows + 1)) * pixel)
    x_edges = tensor((np.arange(columns + 1) - columns / 2) * pixel)
    if by_rows:
        x, y = x_edges[None, None, :], y_centers[None, :, None]
    else:
        x, y = x_centers[None, :, None], y_edges[None, None, :]

    bin_edges = tensor(geometry.isocenter_edges_mm)[None, None, :]
    position = _bin_position(geometry, x * cos + y * sin, x * sin - y * cos)
    cell = position.floor_().clamp_(0, geometry.bins - 1).to(torch.int64)
    on_axis = _on_axis(geometry, x, y, cos, sin, by_rows)
    edges = _on_axis(geometry, bin_edges * cos, bin_edges * sin, cos, sin, by_rows)[:, 0, :]
    lengths = edges[:, 1:] - edges[:, :-1]
    flat_cell = cell.flatten(1)
    left, length = (table.gather(1, flat_cell).view_as(cell) for table in (edges, lengths))
    fraction = ((on_axis - left) / length).clamp_(0, 1)

    # Column lines are traversed downwards, against y; row lines along x.
    direction = (cos if by_rows else -sin)[:, 0, :].sign()
    weight = None
    if weighted:
        pixel_lengths = (on_axis[..., 1:] - on_axis[..., :-1]).abs()
        x_mid, y_mid = (x_centers[None, None, :], y) if by_rows else (x, y_centers[None, None, :])
        weight = _distance_weight(geometry, x_mid, y_mid, cos, sin) / pixel_lengths
    return _Views(
        index=torch.as_tensor(index, device=device),
        by_rows=by_rows,
        cell=cell,
        fraction=fraction,
        ray_scale=direction * pixel / _ray_cosines(geometry, edges, cos[:, 0], sin[:, 0], by_rows),
        bin_length=direction * lengths.abs(),
        pixel_weight=weight,
    )


def _on_axis(geometry: Geometry, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, by_rows: bool) -> Tensor:
    """Map points along their rays onto the driving axis (the line y = 0 by rows, x = 0 by columns)."""
    along = x * cos + y * sin
    if isinstance(geometry, FanBeam):
        source_x, source_y = _source(geometry, cos, sin)
        across = x * source_y - source_x * y
        return across / (source_y - y) if by_rows else across / (x - source_x)
    return along / (cos if by_rows else sin)


def _source(geometry: FanBeam, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y of the source in the views with these cosines and sines."""
    radius, offset = geometry.source_to_isocenter_mm, geometry.axis_offset_mm
    return -radius * sin - offset * cos, radius * cos - offset * sin


def _bin_position(geometry: Geometry, along: Tensor, beyond: Tensor) -> Tensor:
    """Return the detector coordinate of points, in bins: 0 at the first edge, ``bins`` at the last."""
    first = float(geometry.bin_edges_mm[0])
    if isinstance(geometry, FanBeam):
        slope = (along + geometry.axis_offset_mm) / (geometry.source_to_isocenter_mm + beyond)
        on_detector = geometry.source_to_detector_mm * (slope if geometry.detector == "flat" else slope.atan())
    else:
        on_detector = along
    return (on_detector - first) / geometry.bin_mm


def _distance_weight(geometry: Geometry, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the pixel weight of FBP: R² over the squared distance to the source, measured as the detector asks for."""
    if not isinstance(geometry, FanBeam):
        return torch.ones_like(x * cos + y * sin)
    radius = geometry.source_to_isocenter_mm
    depth = radius + x * sin - y * cos
    if geometry.detector == "flat":
        return (radius / depth) ** 2
    return radius**2 / (depth**2 + (x * cos + y * sin + geometry.axis_offset_mm) ** 2)


def _ray_cosines(geometry: Geometry, edges: Tensor, cos: Tensor, sin: Tensor, by_rows: bool) -> Tensor:
    """Return each bin's mean cosine between its two edge rays and the normal of the driving axis."""
    if not isinstance(geometry, FanBeam):
        return (cos if by_rows else sin).abs().expand(-1, geometry.bins)
    source_x, source_y = _source(geometry, cos, sin)
    across, height = (source_x, source_y) if by_rows else (source_y, source_x)
    cosines = height.abs() / torch.hypot(edges - across, height)
    return (cosines[:, 1:] + cosines[:, :-1]) / 2


def _scatter(image: Tensor, geometry: Geometry, *, weighted: bool) -> Tensor:
    """P (unweighted) or Bᵀ (weighted): (B, 1, H, W) → (B, 1, views, bins)."""
    check_supported(geometry)
    batch, bins = image.shape[0], geometry.bins
    by_rows = image[:, 0].to(torch.float64)
    by_columns = by_rows.transpose(1, 2)
    out = image.new_empty((batch, geometry.views, bins))
    for views in _views(geometry, batch, image.device, weighted=weighted):
        lines = (by_rows if views.by_rows else by_columns)[:, None]
        if views.pixel_weight is not None:
            lines = lines * views.pixel_weight
        steps = torch.diff(lines, dim=-1, prepend=torch.zeros_like(lines[..., :1]), append=torch.zeros_like(lines[..., :1]))
        right = steps * views.fraction
        cells = torch.zeros((batch, len(views.index), bins + 1), dtype=torch.float64, device=image.device)
        where = views.cell.flatten(1).expand(batch, -1, -1)
        cells.scatter_add_(2, where, (steps - right).flatten(2))
        cells.scatter_add_(2, where + 1, right.flatten(2))
        sums = cells.cumsum(2)[..., :bins]
        scale = views.bin_length if weighted else views.ray_scale
        out[:, views.index] = (sums * scale).to(image.dtype)
    return out[:, None]


def _gather(sinogram: Tensor, geometry: Geometry, *, weighted: bool) -> Tensor:
    """Pᵀ (unweighted) or B (weighted): (B, 1, views, bins) → (B, 1, H, W)."""
    check_supported(geometry)
    batch = sinogram.shape[0]
    rows, columns = geometry.shape
    by_rows = torch.zeros((batch, rows, columns), dtype=torch.float64, device=sinogram.device)
    by_columns = torch.zeros((batch, columns, rows), dtype=torch.float64, device=sinogram.device)
    for views in _views(geometry, batch, sinogram.device, weighted=weighted):
        scale = views.bin_length if weighted else views.ray_scale
        content = sinogram[:, 0, views.index].to(torch.float64) * scale
        sums = torch.nn.functional.pad(content.cumsum(2), (1, 0))
        where = views.cell.flatten(1).expand(batch, -1, -1)
        at_edges = sums.gather(2, where) + views.fraction.flatten(1) * content.gather(2, where)
        at_edges = at_edges.view(batch, *views.cell.shape)
        shares = at_edges[..., 1:] - at_edges[..., :-1]
        if views.pixel_weight is not None:
            shares = shares * views.pixel_weight
        (by_rows if views.by_rows else by_columns).add_(shares.sum(1))
    return (by_rows + by_columns.transpose(1, 2)).to(sinogram.dtype)[:, None]


def check_supported(geometry: Geometry) -> None:
    """Raise TypeError for a geometry class that these operators have no rays for."""
    if not isinstance(geometry, (FanBeam, ParallelBeam)):
        raise TypeError(f"no operators for geometries of type {type(geometry).__name__}; there are FanBeam and ParallelBeam")


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """Line integrals P x of images (B, 1, H, W) in 1/mm, as (B, 1, views, bins) without unit."""
    return _scatter(image, geometry, weighted=False)


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """Exact transpose of :func:`project`: (B, 1, views, bins) → (B, 1, H, W)."""
    return _gather(sinogram, geometry, weighted=False)


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """Sum over views of the average over each pixel's shadow, times FBP's distance weight: (B, 1, views, bins) → (B, 1, H, W)."""
    return _gather(sinogram, geometry, weighted=True)


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """Exact transpose of :func:`backproject`: (B, 1, H, W) → (B, 1, views, bins)."""
    return _scatter(image, geometry, weighted=True)
