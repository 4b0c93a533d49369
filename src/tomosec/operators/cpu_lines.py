"""The inner loops of the CPU operators: one image line in one view, eight lanes at a time.

A line of n pixels has n + 1 edges. ``offset`` holds, per edge, the scalar index of its bin's lanes; ``fraction`` its position
inside the bin; ``weight``, per pixel, FBP's weight. Bin d of a view has its eight lanes at ``8 d``. These functions are
inlined into the kernels that call them.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from tomosec.operators.cpu_simd import (
    LANES,
    add,
    clamp,
    divide,
    load,
    multiply,
    multiply_add,
    ramp,
    splat,
    store,
    store_offsets,
    subtract,
    whole,
)

# NaN and infinity keep their meaning: a broken image must give a broken sinogram, not a plausible one.
_OPTIONS = {
    "nogil": True,
    "cache": True,
    "fastmath": {"contract", "reassoc", "arcp", "nsz"},
    "error_model": "numpy",
    "boundscheck": False,
}
kernel = nb.njit(**_OPTIONS)
inlined = nb.njit(**_OPTIONS, inline="always")

#: Image lines whose geometry is computed at once; the tables then stay in the first-level cache.
LINES = 16

#: First entry of ``scan``: which rays :func:`locate_edges` deals with.
PARALLEL, FLAT, CURVED = 0.0, 1.0, 2.0


@inlined
def _horner(curve, square):  # type: ignore[no-untyped-def]
    """Return the polynomial with these coefficients, highest power first."""
    value = splat(curve[0])
    for k in range(1, len(curve)):
        value = multiply_add(value, square, splat(curve[k]))
    return value


@kernel
def locate_edges(first, last, lines, pixels, bins, view, scan, curves, weighted, offset, fraction, weight):  # type: ignore[no-untyped-def]
    """Find the bins of the pixel edges of some image lines in one base view.

    The place of an edge on the detector is a quotient of two affine functions of its number. The fraction has to be measured on
    the driving axis, where the bin is not divided evenly. For a flat detector the ratio of the two fractions is a factor of the
    bin's far edge times one of the ray, both affine (differences on two lines seen from one point are related so); for a
    curved one it follows from sines of angles inside the bin. So no table is looked up, and the loops are vector code.

    Args:
        first: First line.
        last: One after the last.
        lines: Lines of the copy.
        pixels: Pixels of a line.
        bins: Bins of the detector.
        view: (3,) Cosine and sine of the base view's angle, and how much of a bin's length on the driving axis is lost from
            one bin to the next (flat). Where the cosine is negative, cells count the bins from the other end.
        scan: (8,) kind; pixel side; R; τ; bins per mm (parallel) or per unit of the tangent of the fan angle (flat); bin at
            which the central ray arrives; the tangents of the outermost rays (curved).
        curves: Three polynomials for a curved detector, coefficients in the working precision, highest power first: bins per
            tangent v as a function of v²; sin(zΔ) / (z sin Δ) and (cos(zΔ) − cos Δ) / (2 (1 − z²) sin Δ) as functions of z²,
            where Δ is the angle of a bin.
        weighted: Whether ``weight`` is wanted.
        offset: Receives, line by line, per edge, the index of its cell's eight lanes.
        fraction: Receives, likewise, the position inside that cell on the driving axis.
        weight: Receives, per pixel, FBP's distance weight over the pixel's length on the driving axis. A line takes as many
            places as for edges. All three have room for seven more at their end.
    """
    real = fraction.dtype.type
    kind, pixel, radius, axis_offset, scale, middle = scan[0], scan[1], scan[2], scan[3], scan[4], scan[5]
    cos, sin, bend = view[0], view[1], view[2]
    side = 1.0 if cos >= 0 else -1.0
    center = middle if side > 0 else bins - middle
    source_x, source_y = -radius * sin - axis_offset * cos, radius * cos - axis_offset * sin
    left = -pixel * pixels / 2
    edges = pixels + 1
    zero, one, two, count = real(0), real(1), real(2), real(bins)
    per_tangent, origin = real(scale), real(center)
    edge, next_edge = real(1 - bend * (1 - center)), real(-bend)
    next_along, next_depth = real(side * pixel * cos), real(pixel * sin)
    for line in range(first, last):
        at = (line - first) * edges
        cell_of, inside, share = offset[at:], fraction[at:], weight[at:]
        y = (lines / 2 - line - 0.5) * pixel
        along = side * (left * cos + y * sin + axis_offset)
        per_below = 1 / (source_y - y)
        first_along, first_depth = real(along), real(radius + left * sin - y * cos)
        if kind == PARALLEL:
            start, step = real(along * scale + center), real(side * pixel * cos * scale)
            for i in range(edges):
                position = min(max(start + real(nb.int32(i)) * step, zero), count)
                cell = np.int32(position)
                inside[i] = position - real(cell)
                cell_of[i] = cell * np.int32(LANES)
        elif kind == FLAT:
            ray = real(cos * (radius + left * sin - y * cos) * per_below)
            next_ray = real(cos * pixel * sin * per_below)
            for i in range(edges):
                index = real(nb.int32(i))
                tangent = (first_along + index * next_along) / (first_depth + index * next_depth)
                position = min(max(tangent * per_tangent + origin, zero), count)
                cell = np.int32(position)
                place = real(cell)
                inside[i] = (position - place) * ((edge + place * next_edge) * (ray + index * next_ray))
                cell_of[i] = cell * np.int32(LANES)
        else:
            # Explicit vectors: loops over coefficients are inside, which no compiler turns inside out.
            low, high = (real(scan[6]), real(scan[7])) if side > 0 else (real(-scan[7]), real(-scan[6]))
            a0, a1 = splat(first_along), splat(next_along)
            m0, m1 = splat(first_depth), splat(next_depth)
            tilt0, tilt1 = splat(real(side * (left - source_x) * per_below)), splat(real(side * pixel * per_below))
            middles, ones, half = splat(origin), splat(one), splat(one / two)
            for i in range(0, edges, LANES):
                index = ramp(real(i))
                tangents = clamp(divide(multiply_add(index, a1, a0), multiply_add(index, m1, m0)), low, high)
                per_tangents = _horner(curves[0], multiply(tangents, tangents))
                positions = clamp(multiply_add(tangents, per_tangents, middles), zero, count)
                cells = whole(positions)
                z = subtract(multiply(splat(two), subtract(positions, cells)), ones)
                square = multiply(z, z)
                even = multiply(half, multiply_add(z, _horner(curves[1], square), ones))
                odd = multiply(subtract(ones, square), _horner(curves[2], square))
                tilt = multiply_add(index, tilt1, tilt0)
                store(inside, i, clamp(subtract(even, multiply(tilt, odd)), zero, one))
                store_offsets(cell_of, i, cells)
        if weighted:
            if kind == PARALLEL:
                for i in range(pixels):
                    share[i] = real(1 / pixel)
            else:
                # A pixel's length on the axis is the same all along the line.
                numerator = real(radius * radius / (per_below * source_y * pixel))
                aside = one if kind == CURVED else zero
                for i in range(pixels):
                    index = real(nb.int32(i)) + one / two
                    far = first_depth + index * next_depth
                    away = aside * (first_along + index * next_along)
                    share[i] = numerator / (far * far + away * away)


@inlined
def scatter_steps(source, target, offset, fraction, edges, lanes):  # type: ignore[no-untyped-def]
    """Add each step of an image line to the two bins beside its edge: the sums along the bins are the overlaps."""
    if lanes == 1:
        for i in range(edges):
            step = source[i]
            right = multiply(step, fraction[i])
            cell = nb.uint32(offset[i]) // LANES
            target[cell] = add(target[cell], subtract(step, right))
            target[cell + 1] = add(target[cell + 1], right)
        return
    for i in range(edges):
        step = load(source, i * LANES)
        right = multiply(step, splat(fraction[i]))
        cell = nb.intp(offset[i])
        store(target, cell, add(load(target, cell), subtract(step, right)))
        store(target, cell + LANES, add(load(target, cell + LANES), right))


@inlined
def scatter_weighted(source, target, offset, fraction, weight, pixels, lanes, zero):  # type: ignore[no-untyped-def]
    """Do the same with pixel values that are weighted first; their steps are formed on the way."""
    if lanes == 1:
        before = zero
        for i in range(pixels + 1):
            now = multiply(source[i], weight[i]) if i < pixels else zero
            step = subtract(now, before)
            before = now
            right = multiply(step, fraction[i])
            cell = nb.uint32(offset[i]) // LANES
            target[cell] = add(target[cell], subtract(step, right))
            target[cell + 1] = add(target[cell + 1], right)
        return
    previous = splat(zero)
    for i in range(pixels):
        value = multiply(load(source, i * LANES), splat(weight[i]))
        step = subtract(value, previous)
        previous = value
        right = multiply(step, splat(fraction[i]))
        cell = nb.intp(offset[i])
        store(target, cell, add(load(target, cell), subtract(step, right)))
        store(target, cell + LANES, add(load(target, cell + LANES), right))
    right = multiply(previous, splat(fraction[pixels]))
    cell = nb.intp(offset[pixels])
    store(target, cell, subtract(load(target, cell), subtract(previous, right)))
    store(target, cell + LANES, subtract(load(target, cell + LANES), right))


@inlined
def gather_line(source, target, offset, fraction, weight, pixels, weighted, lanes):  # type: ignore[no-untyped-def]
    """Add to each pixel the difference of the sums from the right at its two edges: its overlaps with all bins."""
    if lanes == 1:
        cell = nb.uint32(offset[0]) // LANES
        left = multiply_add(subtract(source[cell + 1], source[cell]), fraction[0], source[cell])
        for i in range(pixels):
            cell = nb.uint32(offset[i + 1]) // LANES
            right = multiply_add(subtract(source[cell + 1], source[cell]), fraction[i + 1], source[cell])
            share = subtract(left, right)
            left = right
            if weighted:
                share = multiply(share, weight[i])
            target[i] = add(target[i], share)
        return
    here = load(source, nb.intp(offset[0]))
    near = multiply_add(subtract(load(source, nb.intp(offset[0]) + LANES), here), splat(fraction[0]), here)
    for i in range(pixels):
        at = nb.intp(offset[i + 1])
        here = load(source, at)
        far = multiply_add(subtract(load(source, at + LANES), here), splat(fraction[i + 1]), here)
        shares = subtract(near, far)
        near = far
        if weighted:
            shares = multiply(shares, splat(weight[i]))
        store(target, i * LANES, add(load(target, i * LANES), shares))
