"""Numba kernels of the symmetric fan beam: see :mod:`tomosec.operators.cpu_fan` for the idea and the caller.

All arrays are contiguous. "Lanes" means that eight symmetric copies of one scalar are neighbors, so that a line of n values
takes 8 n scalars. The kernels are compiled on first use, for float32 and for float64, and cached on disk.

N: rows and columns; D: bins; G: images handled together, which share the geometry's arithmetic.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from tomosec.operators.cpu_lines import LINES, gather_line, inlined, kernel, scatter_steps, scatter_weighted
from tomosec.operators.cpu_simd import LANES


@inlined
def _source_pixel(N, copy, row, column):  # type: ignore[no-untyped-def]
    """Return where pixel (row, column) of a symmetric copy is in the image: four rotations, then the mirrored four."""
    if copy >= 4:
        column = N - 1 - column
        copy -= 4
    if copy == 0:
        return row, column
    if copy == 1:
        return N - 1 - column, row
    if copy == 2:
        return N - 1 - row, N - 1 - column
    return column, N - 1 - row


@inlined
def _locate_edges(line, cos, sin, lengths, N, D, weighted, offset, fraction, weight):  # type: ignore[no-untyped-def]
    """Find the bins of the pixel edges of one image line in one view between 0 and 45°.

    Args:
        line: Row of the image.
        cos: Cosine of the view's angle.
        sin: Its sine.
        lengths: (pixel, bin pitch at the isocenter, source to isocenter), in any one unit.
        N: Columns.
        D: Bins.
        weighted: Whether ``weight`` is wanted.
        offset: Receives, per edge, the index of its bin's eight lanes.
        fraction: Receives, per edge, the position inside that bin, measured on the driving axis.
        weight: Receives, per pixel, FBP's distance weight over the pixel's length on the driving axis.
    """
    real = fraction.dtype.type
    zero, one, two = real(0), real(1), real(2)
    pixel, pitch, radius = lengths[0], lengths[1], lengths[2]
    count = real(D)
    half = count / two
    left = real(N) * pixel / two
    y = left - (real(line) + one / two) * pixel
    depth = radius - y * cos
    across = y * sin
    per_bin = one / pitch
    # Inside a bin, detector and driving axis are not proportional. The ratio of the two fractions is exactly a factor of
    # the bin's right edge times a factor of the ray, so that one division an edge is enough.
    edge_factor = pitch * sin / (radius * cos)
    ray_factor = sin / (radius * cos - y)
    for i in range(N + 1):
        x = real(nb.int32(i)) * pixel - left
        along = x * cos + across
        inverse = one / (depth + x * sin)
        position = radius * along * inverse * per_bin + half
        position = min(max(position, zero), count)
        cell = np.int32(position)
        whole = real(cell)
        fraction[i] = (position - whole) * ((one - edge_factor * (whole + one - half)) * (one + ray_factor * along))
        offset[i] = cell * np.int32(LANES)
    if weighted:
        # Lengths on the axis are those on the image line times radius cos / (radius cos − y), at every pixel.
        scale = (radius * cos - y) / (radius * cos * pixel) * radius * radius
        first = depth + (pixel / two - left) * sin
        for i in range(N):
            center = first + real(nb.int32(i)) * pixel * sin
            weight[i] = scale / (center * center)


@kernel
def stack_image(image, stack, as_steps, first, last):  # type: ignore[no-untyped-def]
    """Write eight copies of images (G, N, N) as lanes (G, N, 8 (N + 1)), for rows ``first`` to ``last`` of the copies.

    As steps, a row leads from 0 over its N values back to 0; otherwise it holds the values and a 0.
    """
    images, N, _ = image.shape
    zero = image.dtype.type(0)
    for g in range(images):
        for copy in range(LANES):
            for row in range(first, last):
                target = stack[g, row]
                previous = zero
                for column in range(N):
                    source_row, source_column = _source_pixel(N, copy, row, column)
                    value = image[g, source_row, source_column]
                    if as_steps:
                        target[column * LANES + copy] = value - previous
                        previous = value
                    else:
                        target[column * LANES + copy] = value
                target[N * LANES + copy] = -previous


@kernel
def unstack_image(stack, image, first, last):  # type: ignore[no-untyped-def]
    """Add the eight copies (G, N, 8 N) up, for rows ``first`` to ``last`` of images (G, N, N)."""
    images, N, _ = image.shape
    zero = image.dtype.type(0)
    for g in range(images):
        lanes = stack[g]
        for row in range(first, last):
            flipped = N - 1 - row
            target = image[g, row]
            for column in range(N):
                mirrored = N - 1 - column
                # The inverse of _source_pixel, copy by copy.
                total = zero
                total += lanes[row, column * LANES] + lanes[column, flipped * LANES + 1]
                total += lanes[flipped, mirrored * LANES + 2] + lanes[mirrored, row * LANES + 3]
                total += lanes[row, mirrored * LANES + 4] + lanes[column, row * LANES + 5]
                total += lanes[flipped, column * LANES + 6] + lanes[mirrored, flipped * LANES + 7]
                target[column] = total


@kernel
def stack_sinogram(sinogram, sums, view_of, scale, first, last):  # type: ignore[no-untyped-def]
    """Write scaled sums from the right end, for base views ``first`` to ``last``, as lanes (G, base views, 8 (D + 2)).

    Args:
        sinogram: (G, views, D).
        sums: Receives the sums; cells D and D + 1 are 0.
        view_of: (base views, 8) numbers of the views that are the copies of a base view; −1 where a copy repeats another.
        scale: (base views, D) factors.
        first: First base view.
        last: One after the last.
    """
    images, _, D = sinogram.shape
    zero = sinogram.dtype.type(0)
    total = np.empty(LANES, np.float64)  # hundreds of terms; the differences of these sums are what counts
    lines = np.empty((LANES, D), sinogram.dtype)
    for g in range(images):
        for base in range(first, last):
            for copy in range(LANES):
                view = view_of[base, copy]
                if view < 0:
                    lines[copy, :] = zero
                elif copy < 4:
                    for d in range(D):
                        lines[copy, d] = sinogram[g, view, d]
                else:
                    for d in range(D):
                        lines[copy, d] = sinogram[g, view, D - 1 - d]
            target = sums[g, base]
            total[:] = 0
            target[D * LANES :] = zero
            for d in range(D - 1, -1, -1):
                for copy in range(LANES):
                    total[copy] += lines[copy, d] * scale[base, d]
                    target[d * LANES + copy] = total[copy]


@kernel
def scatter(stack, sinogram, cells, view_of, cosines, sines, scale, lengths, weighted, first, last):  # type: ignore[no-untyped-def]
    """Project the copies in ``stack`` into base views ``first`` to ``last`` and write their views of the sinogram.

    Args:
        stack: (G, N, 8 (N + 1)) steps, or values where ``weighted``.
        sinogram: (G, views, D), receives the result.
        cells: (G, at least last − first, 8 (D + 2)) scratch.
        view_of: As for :func:`stack_sinogram`.
        cosines: (base views,).
        sines: (base views,).
        scale: (base views, D) factors on the result.
        lengths: As for ``_locate_edges``.
        weighted: Whether pixels carry FBP's distance weight: the transpose of backprojection, not the projection.
        first: First base view.
        last: One after the last.
    """
    images, N, _ = stack.shape
    D = sinogram.shape[2]
    edges = N + 1
    real = cells.dtype.type
    offsets = np.empty(LINES * edges, np.int32)
    fractions = np.empty(LINES * edges, cells.dtype)
    weights = np.empty(LINES * edges, cells.dtype)
    cells[:, : last - first] = real(0)
    for first_line in range(0, N, LINES):
        last_line = min(first_line + LINES, N)
        for base in range(first, last):
            for line in range(first_line, last_line):
                at = (line - first_line) * edges
                _locate_edges(
                    line, cosines[base], sines[base], lengths, N, D, weighted,
                    offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges],
                )  # fmt: skip
            for g in range(images):
                target = cells[g, base - first]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    # Slices, not sums of indices: they spare Numba's test for negative indices in the inner loop.
                    source = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    if weighted:
                        scatter_weighted(source, target, offset, fraction, weight, N, real(0))
                    else:
                        scatter_steps(source, target, offset, fraction, edges)
    total = np.empty(LANES, np.float64)
    lines = np.empty((LANES, D), cells.dtype)
    for g in range(images):
        for base in range(first, last):
            contents = cells[g, base - first]
            total[:] = 0
            for d in range(D):
                for copy in range(LANES):
                    total[copy] += contents[d * LANES + copy]
                    lines[copy, d] = total[copy] * scale[base, d]
            for copy in range(LANES):
                view = view_of[base, copy]
                if view < 0:
                    continue
                if copy < 4:
                    for d in range(D):
                        sinogram[g, view, d] = lines[copy, d]
                else:
                    for d in range(D):
                        sinogram[g, view, D - 1 - d] = lines[copy, d]


@kernel
def gather(sums, stack, cosines, sines, D, lengths, weighted, first, last):  # type: ignore[no-untyped-def]
    """Backproject all base views onto lines ``first`` to ``last`` of the copies.

    Args:
        sums: (G, base views, 8 (D + 2)) from :func:`stack_sinogram`.
        stack: (G, N, 8 N), receives the result.
        cosines: (base views,).
        sines: (base views,).
        D: Bins.
        lengths: As for ``_locate_edges``.
        weighted: Whether pixels carry FBP's distance weight: backprojection, not the transpose of the projection.
        first: First line.
        last: One after the last.
    """
    images, N, _ = stack.shape
    edges = N + 1
    offsets = np.empty(LINES * edges, np.int32)
    fractions = np.empty(LINES * edges, stack.dtype)
    weights = np.empty(LINES * edges, stack.dtype)
    stack[:, first:last] = stack.dtype.type(0)
    for first_line in range(first, last, LINES):
        last_line = min(first_line + LINES, last)
        for base in range(len(cosines)):
            for line in range(first_line, last_line):
                at = (line - first_line) * edges
                _locate_edges(
                    line, cosines[base], sines[base], lengths, N, D, weighted,
                    offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges],
                )  # fmt: skip
            for g in range(images):
                source = sums[g, base]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    target = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    gather_line(source, target, offset, fraction, weight, N, weighted)
