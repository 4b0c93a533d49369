"""Numba kernels of the four operators: see :mod:`tomosec.operators.cpu` for the idea and the caller.

All arrays are contiguous. "Lanes" are neighbors that go through the same base view: copies of one or several images
(:mod:`tomosec.operators.cpu_symmetry`). There are eight, or one where eight would be mostly empty; a line of n values takes
n times as many scalars. Lines are rows of the copies, cells are bins numbered so that they ascend along a line. The kernels are
compiled on first use, for float32 and for float64, and cached on disk.

B: images; G: vectors of lanes; C: copies of an image in a vector; V: base views of the pass; D: bins.
"""

from __future__ import annotations

import numpy as np

from tomosec.operators.cpu_lines import LINES, gather_line, kernel, locate_edges, scatter_steps, scatter_weighted
from tomosec.operators.cpu_simd import LANES


@kernel
def stack_image(image, stack, lanes, walks, as_steps, first, last):  # type: ignore[no-untyped-def]
    """Write copies of images as lanes, for lines ``first`` to ``last`` of the copies; lanes of absent images are 0.

    Args:
        image: (B, H · W).
        stack: (G, lines, lanes (pixels + 1)) receives them. As steps, a line leads from 0 over its values back to 0; otherwise it
            holds the values and a 0.
        lanes: Of a vector, 8 or 1.
        walks: (C, 3) per copy: where its first pixel is in the image, the step to the next line, the step to the next pixel.
        as_steps: See ``stack``.
        first: First line.
        last: One after the last.
    """
    groups, _, width = stack.shape
    copies = len(walks)
    pixels = width // lanes - 1
    zero = image.dtype.type(0)
    for g in range(groups):
        for line in range(first, last):
            target = stack[g, line]
            for lane in range(lanes):
                b = (g * lanes + lane) // copies
                if b >= len(image):
                    for i in range(pixels + 1):
                        target[i * lanes + lane] = zero
                    continue
                walk = walks[(g * lanes + lane) % copies]
                source = image[b]
                at = walk[0] + line * walk[1]
                step = walk[2]
                previous = zero
                for i in range(pixels):
                    value = source[at]
                    at += step
                    if as_steps:
                        target[i * lanes + lane] = value - previous
                        previous = value
                    else:
                        target[i * lanes + lane] = value
                target[pixels * lanes + lane] = -previous


@kernel
def unstack_image(stack, lanes, image, walks, first, last):  # type: ignore[no-untyped-def]
    """Add the copies (G, lines, lanes pixels) to images (B, H, W), for rows ``first`` to ``last``.

    Args:
        stack: The lanes.
        lanes: Of a vector, 8 or 1.
        image: What they are added to.
        walks: (C, 3) per copy: which of its pixels is the image's first, and the steps to the next row and to the next column.
        first: First row.
        last: One after the last.
    """
    copies = len(walks)
    width = image.shape[2]
    at, step = np.empty(copies, np.int64), lanes * walks[:, 2]
    flat, size = stack.ravel(), stack.shape[1] * stack.shape[2]
    for b in range(len(image)):
        for row in range(first, last):
            target = image[b, row]
            for copy in range(copies):
                place = b * copies + copy
                at[copy] = place // lanes * size + place % lanes + lanes * (walks[copy, 0] + row * walks[copy, 1])
            for column in range(width):
                total = target[column]
                for copy in range(copies):
                    total += flat[at[copy] + column * step[copy]]
                target[column] = total


@kernel
def stack_sinogram(sinogram, sums, lanes, view_of, reversed_of, scale, first, last):  # type: ignore[no-untyped-def]
    """Write scaled sums from the far end, for base views ``first`` to ``last``, as lanes (G, V, lanes (D + 2)).

    Args:
        sinogram: (B, views, D).
        sums: Receives the sums; cells D and D + 1 are 0.
        lanes: Of a vector, 8 or 1.
        view_of: (V, C) numbers of the views that are the copies of a base view; −1 where there is none.
        reversed_of: (V, C) whether that view's bins descend.
        scale: (V, D) factors.
        first: First base view.
        last: One after the last.
    """
    images, _, D = sinogram.shape
    copies = view_of.shape[1]
    zero = sinogram.dtype.type(0)
    total = np.empty(lanes, np.float64)  # hundreds of terms; the differences of these sums are what counts
    lines = np.empty((lanes, D), sinogram.dtype)
    for g in range(len(sums)):
        for base in range(first, last):
            for lane in range(lanes):
                b, copy = (g * lanes + lane) // copies, (g * lanes + lane) % copies
                view = view_of[base, copy] if b < images else -1
                if view < 0:
                    lines[lane, :] = zero
                elif reversed_of[base, copy]:
                    for d in range(D):
                        lines[lane, d] = sinogram[b, view, D - 1 - d]
                else:
                    for d in range(D):
                        lines[lane, d] = sinogram[b, view, d]
            target = sums[g, base]
            total[:] = 0
            target[D * lanes :] = zero
            if lanes == 1:
                sum_ = 0.0
                for d in range(D - 1, -1, -1):
                    sum_ += lines[0, d] * scale[base, d]
                    target[d] = sum_
            else:
                for d in range(D - 1, -1, -1):
                    for lane in range(LANES):  # a number that the compiler knows
                        total[lane] += lines[lane, d] * scale[base, d]
                        target[d * LANES + lane] = total[lane]


@kernel
def scatter(stack, lanes, sinogram, cells, view_of, reversed_of, scale, views, scan, curves, weighted, first, last):  # type: ignore[no-untyped-def]
    """Project the copies in ``stack`` into base views ``first`` to ``last`` and write their views of the sinogram.

    Args:
        stack: (G, lines, lanes (pixels + 1)) steps, or values where ``weighted``.
        lanes: Of a vector, 8 or 1.
        sinogram: (B, views, D), receives the result.
        cells: (at least G, at least last − first, lanes (D + 2)) scratch.
        view_of: As for :func:`stack_sinogram`.
        reversed_of: As for :func:`stack_sinogram`.
        scale: (V, D) factors on the result.
        views: (V, 3) see :func:`locate_edges`.
        scan: See :func:`locate_edges`.
        curves: See :func:`locate_edges`.
        weighted: Whether pixels carry FBP's distance weight: the transpose of backprojection, not the projection.
        first: First base view.
        last: One after the last.
    """
    images, _, D = sinogram.shape
    copies = view_of.shape[1]
    groups, rows, width = stack.shape
    edges = width // lanes
    real = cells.dtype.type
    offsets = np.empty(LINES * edges + 64, np.int32)
    fractions = np.empty(LINES * edges + 64, cells.dtype)
    weights = np.empty(LINES * edges + 64, cells.dtype)
    cells[:groups, : last - first] = real(0)
    for first_line in range(0, rows, LINES):
        last_line = min(first_line + LINES, rows)
        for base in range(first, last):
            locate_edges(
                first_line, last_line, rows, edges - 1, D, views[base], scan, curves, weighted, offsets, fractions, weights
            )
            for g in range(groups):
                target = cells[g, base - first]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    # Slices, not sums of indices: they spare Numba's test for negative indices in the inner loop.
                    source = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    if weighted:
                        scatter_weighted(source, target, offset, fraction, weight, edges - 1, lanes, real(0))
                    else:
                        scatter_steps(source, target, offset, fraction, edges, lanes)
    total = np.empty(lanes, np.float64)
    lines = np.empty((lanes, D), cells.dtype)
    for g in range(groups):
        for base in range(first, last):
            contents = cells[g, base - first]
            total[:] = 0
            if lanes == 1:
                sum_ = 0.0
                for d in range(D):
                    sum_ += contents[d]
                    lines[0, d] = sum_ * scale[base, d]
            else:
                for d in range(D):
                    for lane in range(LANES):
                        total[lane] += contents[d * LANES + lane]
                        lines[lane, d] = total[lane] * scale[base, d]
            for lane in range(lanes):
                b, copy = (g * lanes + lane) // copies, (g * lanes + lane) % copies
                view = view_of[base, copy] if b < images else -1
                if view < 0:
                    continue
                if reversed_of[base, copy]:
                    for d in range(D):
                        sinogram[b, view, D - 1 - d] = lines[lane, d]
                else:
                    for d in range(D):
                        sinogram[b, view, d] = lines[lane, d]


@kernel
def gather(sums, stack, lanes, D, views, scan, curves, weighted, first, last):  # type: ignore[no-untyped-def]
    """Backproject all base views onto lines ``first`` to ``last`` of the copies.

    Args:
        sums: (G, V, lanes (D + 2)) from :func:`stack_sinogram`.
        stack: (G, lines, lanes pixels), receives the result.
        lanes: Of a vector, 8 or 1.
        D: Bins.
        views: (V, 3) see :func:`locate_edges`.
        scan: See :func:`locate_edges`.
        curves: See :func:`locate_edges`.
        weighted: Whether pixels carry FBP's distance weight: backprojection, not the transpose of the projection.
        first: First line.
        last: One after the last.
    """
    groups, rows, width = stack.shape
    pixels = width // lanes
    edges = pixels + 1
    offsets = np.empty(LINES * edges + 64, np.int32)
    fractions = np.empty(LINES * edges + 64, stack.dtype)
    weights = np.empty(LINES * edges + 64, stack.dtype)
    stack[:, first:last] = stack.dtype.type(0)
    for first_line in range(first, last, LINES):
        last_line = min(first_line + LINES, last)
        for base in range(len(views)):
            locate_edges(first_line, last_line, rows, pixels, D, views[base], scan, curves, weighted, offsets, fractions, weights)
            for g in range(groups):
                source = sums[g, base]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    target = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    gather_line(source, target, offset, fraction, weight, pixels, weighted, lanes)


ALL = (stack_image, unstack_image, stack_sinogram, scatter, gather, locate_edges)
