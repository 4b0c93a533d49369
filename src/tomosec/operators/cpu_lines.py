"""The inner loops of the CPU operators: one image line in one view, eight lanes at a time.

A line of n pixels has n + 1 edges. ``offset`` holds, per edge, the scalar index of its bin's lanes; ``fraction`` its position
inside the bin; ``weight``, per pixel, FBP's weight. Bin d of a view has its eight lanes at ``8 d``. These functions are
inlined into the kernels that call them.
"""

from __future__ import annotations

import numba as nb

from tomosec.operators.cpu_simd import LANES, add, load, multiply, multiply_add, splat, store, subtract

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


@inlined
def scatter_steps(source, target, offset, fraction, edges):  # type: ignore[no-untyped-def]
    """Add each step of an image line to the two bins beside its edge: the sums along the bins are the overlaps."""
    for i in range(edges):
        step = load(source, i * LANES)
        right = multiply(step, splat(fraction[i]))
        cell = nb.intp(offset[i])
        store(target, cell, add(load(target, cell), subtract(step, right)))
        store(target, cell + LANES, add(load(target, cell + LANES), right))


@inlined
def scatter_weighted(source, target, offset, fraction, weight, pixels, zero):  # type: ignore[no-untyped-def]
    """Do the same with pixel values that are weighted first; their steps are formed on the way."""
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
def gather_line(source, target, offset, fraction, weight, pixels, weighted):  # type: ignore[no-untyped-def]
    """Add to each pixel the difference of the sums from the right at its two edges: its overlaps with all bins."""
    cell = nb.intp(offset[0])
    here = load(source, cell)
    left = multiply_add(subtract(load(source, cell + LANES), here), splat(fraction[0]), here)
    for i in range(pixels):
        cell = nb.intp(offset[i + 1])
        here = load(source, cell)
        right = multiply_add(subtract(load(source, cell + LANES), here), splat(fraction[i + 1]), here)
        share = subtract(left, right)
        left = right
        if weighted:
            share = multiply(share, splat(weight[i]))
        store(target, i * LANES, add(load(target, i * LANES), share))
