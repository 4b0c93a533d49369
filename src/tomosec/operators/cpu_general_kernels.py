"""Numba kernels for any geometry: see :mod:`tomosec.operators.cpu_general` for the idea and the caller.

Eight images are the lanes of a vector. Lines are the image's rows or its columns, and a line's pixels are numbered so that
their shadows on the driving axis ascend: rows from the left, columns from the bottom. Bins are numbered along that axis too,
``flipped`` where the detector runs the other way. Compiled on first use, for float32 and float64, and cached on disk.

B: images; G: groups of eight images; V: views; D: bins.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from tomosec.operators.cpu_lines import LINES, gather_line, inlined, kernel, scatter_steps, scatter_weighted
from tomosec.operators.cpu_simd import LANES


@inlined
def _locate_edges(along, ray, marks, per_length, guess, pixel, pixels, weighted, offset, fraction, weight):  # type: ignore[no-untyped-def]
    """Find the bins of the pixel edges of one image line in one view.

    Shadows of points on a line are an affine function of the place, so no ray needs a division. A table over equal steps of
    the axis, none wider than a bin, says which bin it is, or the one before.

    Args:
        along: The line's y (rows) or x (columns).
        ray: (11,) The view; see ``_Plan`` in the caller.
        marks: (D + 1,) Ascending bin edges on the driving axis.
        per_length: (D,) One over each bin's length there.
        guess: The bin at the start of each step of the axis.
        pixel: Side of a pixel.
        pixels: Pixels of the line.
        weighted: Whether ``weight`` is wanted.
        offset: Receives, per edge, the index of its bin's eight lanes.
        fraction: Receives, per edge, the position inside that bin.
        weight: Receives, per pixel, FBP's distance weight over the pixel's length on the axis.
    """
    real = fraction.dtype.type
    last = np.int32(len(marks) - 2)
    scale = 1.0 / (ray[0] + ray[2] * along)
    start = -pixel * pixels / 2
    shadow = (ray[0] * start + ray[1] * along) * scale
    length = ray[0] * pixel * scale
    steps = len(guess)
    origin, per_step = marks[0], ray[9]
    for i in range(pixels + 1):
        place = shadow + nb.int32(i) * length
        step = min(max((place - origin) * per_step, 0.0), steps - 1.0)
        cell = guess[nb.uint32(step)]
        cell = min(cell + np.int32(marks[nb.uint32(cell + 1)] <= place), last)
        # Rounding may leave an edge in the bin beside it; at the bin's end that is the same place.
        inside = (place - marks[nb.uint32(cell)]) * per_length[nb.uint32(cell)]
        fraction[i] = real(min(max(inside, 0.0), 1.0))
        offset[i] = cell * np.int32(LANES)
    if weighted:
        for i in range(pixels):
            across = start + (i + 0.5) * pixel
            depth = ray[3] + ray[4] * across + ray[5] * along
            aside = ray[6] * across + ray[7] * along + ray[10]
            weight[i] = real(ray[8] / ((depth * depth + aside * aside) * length))


@kernel
def stack_image(image, stack, by_rows, as_steps, first, last):  # type: ignore[no-untyped-def]
    """Write images (B, H, W) as lanes (G, lines, 8 (pixels + 1)), for lines ``first`` to ``last``; absent images are 0.

    As steps, a line leads from 0 over its values back to 0; otherwise it holds the values and a 0.
    """
    images = image.shape[0]
    groups, _, width = stack.shape
    pixels = width // LANES - 1
    zero = image.dtype.type(0)
    for g in range(groups):
        for line in range(first, last):
            target = stack[g, line]
            for lane in range(LANES):
                b = g * LANES + lane
                previous = zero
                for i in range(pixels):
                    value = zero
                    if b < images:
                        value = image[b, line, i] if by_rows else image[b, pixels - 1 - i, line]
                    if as_steps:
                        target[i * LANES + lane] = value - previous
                        previous = value
                    else:
                        target[i * LANES + lane] = value
                target[pixels * LANES + lane] = -previous


@kernel
def unstack_image(rows, columns, image, first, last):  # type: ignore[no-untyped-def]
    """Add lanes by rows (G, H, 8 W) and by columns (G, W, 8 H) up to images (B, H, W), for rows ``first`` to ``last``."""
    images, H, W = image.shape
    for b in range(images):
        by_rows, by_columns, lane = rows[b // LANES], columns[b // LANES], b % LANES
        for r in range(first, last):
            for c in range(W):
                image[b, r, c] = by_rows[r, c * LANES + lane] + by_columns[c, (H - 1 - r) * LANES + lane]


@kernel
def stack_sinogram(sinogram, sums, flipped, scale, first, last):  # type: ignore[no-untyped-def]
    """Write scaled sums from the far end, for views ``first`` to ``last``, as lanes (G, V, 8 (D + 2)).

    Args:
        sinogram: (B, V, D).
        sums: Receives the sums; cells D and D + 1 are 0.
        flipped: (V,) whether a view's bins descend along the driving axis.
        scale: (V, D) factors.
        first: First view.
        last: One after the last.
    """
    images, _, D = sinogram.shape
    zero = sinogram.dtype.type(0)
    total = np.empty(LANES, np.float64)  # hundreds of terms; the differences of these sums are what counts
    for g in range(len(sums)):
        present = min(LANES, images - g * LANES)
        for v in range(first, last):
            target = sums[g, v]
            total[:] = 0
            target[D * LANES :] = zero
            for cell in range(D - 1, -1, -1):
                d = D - 1 - cell if flipped[v] else cell
                for lane in range(present):
                    total[lane] += sinogram[g * LANES + lane, v, d] * scale[v, d]
                for lane in range(LANES):
                    target[cell * LANES + lane] = total[lane]


@kernel
def scatter(stack, sinogram, cells, chosen, lines, rays, marks, per_length, guess, flipped, scale, pixel, weighted, first, last):  # type: ignore[no-untyped-def]
    """Project ``stack`` into the views ``chosen[first:last]`` and write those of the sinogram.

    Args:
        stack: (G, lines, 8 (pixels + 1)) steps, or values where ``weighted``.
        sinogram: (B, V, D), receives the result.
        cells: (G, at least last − first, 8 (D + 2)) scratch.
        chosen: Views that take these lines.
        lines: Place of each line.
        rays: (V, 11).
        marks: (V, D + 1).
        per_length: (V, D).
        guess: (V, steps).
        flipped: (V,).
        scale: (V, D) factors on the result.
        pixel: Side of a pixel.
        weighted: Whether pixels carry FBP's distance weight: the transpose of backprojection, not the projection.
        first: First place in ``chosen``.
        last: One after the last.
    """
    images, _, D = sinogram.shape
    groups, _, width = stack.shape
    edges = width // LANES
    real = cells.dtype.type
    offsets = np.empty(LINES * edges, np.int32)
    fractions = np.empty(LINES * edges, cells.dtype)
    weights = np.empty(LINES * edges, cells.dtype)
    cells[:groups, : last - first] = real(0)
    for first_line in range(0, len(lines), LINES):
        last_line = min(first_line + LINES, len(lines))
        for place in range(first, last):
            v = chosen[place]
            for line in range(first_line, last_line):
                at = (line - first_line) * edges
                _locate_edges(
                    lines[line], rays[v], marks[v], per_length[v], guess[v], pixel, edges - 1, weighted,
                    offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges],
                )  # fmt: skip
            for g in range(groups):
                target = cells[g, place - first]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    source = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    if weighted:
                        scatter_weighted(source, target, offset, fraction, weight, edges - 1, real(0))
                    else:
                        scatter_steps(source, target, offset, fraction, edges)
    for g in range(groups):
        for place in range(first, last):
            v = chosen[place]
            contents = cells[g, place - first]
            for lane in range(min(LANES, images - g * LANES)):
                total = 0.0
                target = sinogram[g * LANES + lane, v]
                for cell in range(D):
                    total += nb.float64(contents[cell * LANES + lane])
                    d = D - 1 - cell if flipped[v] else cell
                    target[d] = real(total) * scale[v, d]


@kernel
def gather(sums, stack, chosen, lines, rays, marks, per_length, guess, pixel, weighted, first, last):  # type: ignore[no-untyped-def]
    """Backproject the views ``chosen`` onto lines ``first`` to ``last``.

    Args:
        sums: (G, V, 8 (D + 2)) from :func:`stack_sinogram`.
        stack: (G, lines, 8 pixels), receives the result.
        chosen: Views that take these lines.
        lines: Place of each line.
        rays: (V, 11).
        marks: (V, D + 1).
        per_length: (V, D).
        guess: (V, steps).
        pixel: Side of a pixel.
        weighted: Whether pixels carry FBP's distance weight: backprojection, not the transpose of the projection.
        first: First line.
        last: One after the last.
    """
    groups, _, width = stack.shape
    pixels = width // LANES
    edges = pixels + 1
    offsets = np.empty(LINES * edges, np.int32)
    fractions = np.empty(LINES * edges, stack.dtype)
    weights = np.empty(LINES * edges, stack.dtype)
    stack[:, first:last] = stack.dtype.type(0)
    for first_line in range(first, last, LINES):
        last_line = min(first_line + LINES, last)
        for v in chosen:
            for line in range(first_line, last_line):
                at = (line - first_line) * edges
                _locate_edges(
                    lines[line], rays[v], marks[v], per_length[v], guess[v], pixel, pixels, weighted,
                    offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges],
                )  # fmt: skip
            for g in range(groups):
                source = sums[g, v]
                for line in range(first_line, last_line):
                    at = (line - first_line) * edges
                    target = stack[g, line]
                    offset, fraction, weight = offsets[at : at + edges], fractions[at : at + edges], weights[at : at + edges]
                    gather_line(source, target, offset, fraction, weight, pixels, weighted)
