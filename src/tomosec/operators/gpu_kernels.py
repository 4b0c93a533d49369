"""Triton kernels of the four operators: see :mod:`tomosec.operators.gpu` for the idea, the tables and the caller.

Two kernels, each in two forms: ``to_sinogram`` is P, or Bᵀ where ``WEIGHTED``; ``to_image`` is Pᵀ, or B. Every output value is
gathered by one program in a fixed order, without atomics, so results are the same bits every time.

The shares are computed from the same numbers in the same order on both ways. Where a product feeds a sum that decides them,
the fused multiply-add is written out, so that a compiler has no choice to make differently in the other kernel.

Shapes: B images, V views of one driving axis, D bins; lines × pixels is the image, or its transpose for views driven by
columns. Per view and bin edge the tables hold, each (V, D + 1) and one after the other in ``edges``: high part of the start,
high part of the slope, low part of the start, low part of the slope.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# Triton reads the types from the arguments of a launch.

from __future__ import annotations

import triton
import triton.language as tl

#: Columns of the table ``views``, (V, 9), and of ``numbers``, (V, 5): what a kernel needs to know of a view.
VIEWS = ("across", "across per pixel", "across per line", "depth", "depth per pixel", "depth per line", "bin", "bins", "line 0")
NUMBERS = ("view", "bin of the first place", "step from place to place", "rounds over pixels", "rounds over bins")

#: Values of ``KIND``: what turns a slope from the source into a detector coordinate.
PARALLEL, FLAT, CURVED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _edge(edges, plane, index, line):
    """Return where a bin edge crosses a line, as an exact part and a small rest, in pixels.

    The high parts are so short that start + slope · line is exact, and stays so when a nearby pixel's number is subtracted.
    """
    start, slope = tl.load(edges + index), tl.load(edges + plane + index)
    rest = tl.fma(tl.load(edges + 3 * plane + index), line, tl.load(edges + 2 * plane + index))
    return tl.fma(slope, line, start), rest


@triton.jit
def _overlap(left, left_rest, right, right_rest, pixel):
    """Return the length that a pixel and the bin between two edges share on a line, in pixels; 0 or less where none."""
    return tl.minimum((right - pixel) + right_rest, 1.0) - tl.maximum((left - pixel) + left_rest, 0.0)


@triton.jit
def _distance_weight(across, across_step, depth, depth_step, pixel, KIND: tl.constexpr):
    """Return FBP's weight at a pixel's center; ``across`` and ``depth`` are in units of the source's radius."""
    at = pixel + 0.5
    depth = tl.fma(depth_step, at, depth)
    square = depth * depth
    if KIND == CURVED:
        across = tl.fma(across_step, at, across)
        square = tl.fma(across, across, square)
    return 1.0 / square


@triton.jit
def _arc(slope):
    """Return the arc tangent to 1.2e-5, of slopes limited to ±1 (Abramowitz and Stegun, 4.4.49)."""
    slope = tl.minimum(tl.maximum(slope, -1.0), 1.0)
    square = slope * slope
    series = ((0.0208351 * square - 0.0851330) * square + 0.1801410) * square - 0.3302995
    return slope * (series * square + 0.9998660)


@triton.jit
def _pixels(
    sums, source, exists, left, left_rest, right, right_rest, first, inside, pixels,
    across, across_step, depth, depth_step,
    WEIGHTED: tl.constexpr, KIND: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Add the shares of the ``TAPS`` pixels from ``first`` on of one line: (IMAGES, BLOCK)."""
    for tap in tl.static_range(TAPS):
        index = first + tap
        pixel = index.to(left.dtype)
        share = _overlap(left, left_rest, right, right_rest, pixel)
        used = inside & (index < pixels) & (share > 0)
        if WEIGHTED and KIND != PARALLEL:
            share *= _distance_weight(across, across_step, depth, depth_step, pixel, KIND)
        values = tl.load(source + index[None, :], mask=exists & used[None, :], other=0.0)
        sums += tl.where(used, share, 0.0)[None, :] * values
    return sums


@triton.jit(do_not_specialize=["images"])
def to_sinogram(
    image, out, edges, scale, spans, views, numbers,
    images, lines, pixels, count, out_views, bins,
    WEIGHTED: tl.constexpr, KIND: tl.constexpr, TAPS: tl.constexpr, ROUNDS: tl.constexpr,
    IMAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """P, or Bᵀ where ``WEIGHTED``: one program is a block of bins in one view of up to ``IMAGES`` images.

    Args:
        image: (B, lines, pixels).
        out: (B, out_views, D); the views of this direction are written.
        edges: (4, V, D + 1), see the module.
        scale: (V, D) Pixel side over mean ray cosine; read by P.
        spans: (2, V, D) First line that a bin meets inside the image, and the one after the last.
        views: (V, 9), see ``VIEWS``.
        numbers: (V, 5), see ``NUMBERS``.
        images: B.
        lines: Lines of the image.
        pixels: Pixels of a line.
        count: V.
        out_views: Views of the whole sinogram.
        bins: D.
        WEIGHTED: Bᵀ instead of P.
        KIND: The detector.
        TAPS: Pixels handled in one round.
        ROUNDS: Whether some bin needs more than one round a line.
        IMAGES: Images that share a program's geometry.
        BLOCK: Bins of a program.
    """
    blocks = tl.cdiv(bins, BLOCK)
    job = tl.program_id(0)
    place = (job % blocks) * BLOCK + tl.arange(0, BLOCK)
    view = (job // blocks) % count
    images_here = (job // blocks // count).to(tl.int64) * IMAGES + tl.arange(0, IMAGES)[:, None]
    exists = images_here < images
    inside = place < bins

    long = view.to(tl.int64)
    plane = tl.cast(bins + 1, tl.int64) * count
    numbers += long * 5
    views += long * 9
    spans += long * bins
    begin = tl.min(tl.load(spans + place, mask=inside, other=2147483647))
    end = tl.max(tl.load(spans + tl.cast(bins, tl.int64) * count + place, mask=inside, other=0))
    start_left = edges + long * (bins + 1) + tl.minimum(place, bins - 1)
    a0, a1, b0, b1 = tl.load(start_left), tl.load(start_left + plane), tl.load(start_left + 1), tl.load(start_left + plane + 1)
    start_left += 2 * plane
    a2, a3, b2, b3 = tl.load(start_left), tl.load(start_left + plane), tl.load(start_left + 1), tl.load(start_left + plane + 1)
    across_0, across_step, across_line = tl.load(views), tl.load(views + 1), tl.load(views + 2)
    depth_0, depth_step, depth_line = tl.load(views + 3), tl.load(views + 4), tl.load(views + 5)
    line_0 = tl.load(views + 8)
    source = image + images_here * (tl.cast(lines, tl.int64) * pixels)
    if not WEIGHTED:
        factor = tl.load(scale + long * bins + place, mask=inside, other=0.0)
    if ROUNDS:
        rounds = tl.load(numbers + 3)

    total = tl.zeros([IMAGES, BLOCK], out.dtype.element_ty)
    for index in range(begin, end):
        line = index + line_0
        left, left_rest = tl.fma(a1, line, a0), tl.fma(a3, line, a2)
        right, right_rest = tl.fma(b1, line, b0), tl.fma(b3, line, b2)
        first = tl.minimum(tl.maximum(tl.floor(left + left_rest), 0.0), pixels).to(tl.int32)
        across, depth = tl.fma(across_line, line, across_0), tl.fma(depth_line, line, depth_0)
        row = source + tl.cast(index, tl.int64) * pixels
        sums = tl.zeros([IMAGES, BLOCK], out.dtype.element_ty)
        if ROUNDS:
            for n in range(rounds):
                sums = _pixels(
                    sums, row, exists, left, left_rest, right, right_rest, first + n * TAPS, inside, pixels,
                    across, across_step, depth, depth_step, WEIGHTED, KIND, TAPS,
                )  # fmt: skip
        else:
            sums = _pixels(
                sums, row, exists, left, left_rest, right, right_rest, first, inside, pixels,
                across, across_step, depth, depth_step, WEIGHTED, KIND, TAPS,
            )  # fmt: skip
        if WEIGHTED:
            total += sums
        else:
            width = (right - left) + (right_rest - left_rest)
            total += tl.where(width > 0, factor / width, 0.0)[None, :] * sums  # no width where the source is on the line

    bin_here = tl.load(numbers + 1) + tl.load(numbers + 2) * place
    target = out + (images_here * out_views + tl.load(numbers)) * bins + bin_here[None, :]
    tl.store(target, total, mask=exists & inside[None, :])


@triton.jit
def _bins(
    sums, source, exists, edges, plane, scale, left, left_rest, line, pixel, first, inside, begin, step, bins,
    WEIGHTED: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Add the shares of the ``TAPS`` bins from ``first`` on of one view: (IMAGES, BLOCK); returns the last edge too."""
    for tap in tl.static_range(TAPS):
        place = first + tap
        right, right_rest = _edge(edges, plane, tl.minimum(place + 1, bins), line)
        share = _overlap(left, left_rest, right, right_rest, pixel)
        used = inside & (place < bins) & (share > 0)
        if not WEIGHTED:
            factor = tl.load(scale + place, mask=used, other=0.0)
            share *= factor / ((right - left) + (right_rest - left_rest))
        values = tl.load(source + (begin + step * place)[None, :], mask=exists & used[None, :], other=0.0)
        sums += tl.where(used, share, 0.0)[None, :] * values
        left, left_rest = right, right_rest
    return sums, left, left_rest


@triton.jit
def _all_views(
    total, source, exists, edges, scale, views, numbers, line, pixel, inside, view_begin, view_end, count, bins,
    WEIGHTED: tl.constexpr, KIND: tl.constexpr, TAPS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Add views of one direction to a block of pixels, (IMAGES, BLOCK), each on its own line."""
    plane = tl.cast(bins + 1, tl.int64) * count
    for view in range(view_begin, view_end):
        long = tl.cast(view, tl.int64)
        number, detail = numbers + long * 5, views + long * 9
        at = line + tl.load(detail + 8)
        across, across_step = tl.fma(tl.load(detail + 2), at, tl.load(detail)), tl.load(detail + 1)
        depth, depth_step = tl.fma(tl.load(detail + 5), at, tl.load(detail + 3)), tl.load(detail + 4)
        # The bin at the pixel's first edge, or the one before: the exact place comes from the table.
        place = tl.fma(across_step, pixel, across)
        if KIND != PARALLEL:
            place = place / tl.fma(depth_step, pixel, depth)
        if KIND == CURVED:
            place = _arc(place)
        place = tl.floor(tl.fma(place, tl.load(detail + 7), tl.load(detail + 6)))
        first = tl.minimum(tl.maximum(place, 0.0), bins).to(tl.int32)

        begin, step = tl.load(number + 1), tl.load(number + 2)
        here = edges + long * (bins + 1)
        row = source + tl.load(number).to(tl.int64) * bins
        factors = scale + long * bins
        left, left_rest = _edge(here, plane, first, at)
        sums = tl.zeros_like(total)
        if ROUNDS:
            for n in range(tl.load(number + 4)):
                sums, left, left_rest = _bins(
                    sums, row, exists, here, plane, factors, left, left_rest, at, pixel, first + n * TAPS, inside, begin, step,
                    bins, WEIGHTED, TAPS,
                )  # fmt: skip
        else:
            sums, left, left_rest = _bins(
                sums, row, exists, here, plane, factors, left, left_rest, at, pixel, first, inside, begin, step,
                bins, WEIGHTED, TAPS,
            )  # fmt: skip
        if WEIGHTED and KIND != PARALLEL:
            sums *= _distance_weight(across, across_step, depth, depth_step, pixel, KIND)[None, :]
        total += sums
    return total


@triton.jit(do_not_specialize=["images"])
def to_image(
    sinogram, out, row_edges, row_scale, row_views, row_numbers, column_edges, column_scale, column_views, column_numbers,
    images, rows, columns, row_count, column_count, bins, parts,
    WEIGHTED: tl.constexpr, KIND: tl.constexpr, TAPS: tl.constexpr, ROUNDS: tl.constexpr,
    IMAGES: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pᵀ, or B where ``WEIGHTED``: one program is a tile of pixels of up to ``IMAGES`` images and a part of the views.

    Args:
        sinogram: (B, V of rows + V of columns, D).
        out: (parts, B, rows, columns); the sum over the parts is the result.
        row_edges: (4, V, D + 1) of the views driven by rows; the other ``row_`` and ``column_`` tables as in ``to_sinogram``.
        row_scale: Read by Pᵀ.
        row_views: See ``VIEWS``.
        row_numbers: See ``NUMBERS``.
        column_edges: The same for the views driven by columns.
        column_scale: Read by Pᵀ.
        column_views: See ``VIEWS``.
        column_numbers: See ``NUMBERS``.
        images: B.
        rows: Rows of the image.
        columns: Columns of the image.
        row_count: Views driven by rows.
        column_count: Views driven by columns.
        bins: D.
        parts: Into how many parts the views are divided.
        WEIGHTED: B instead of Pᵀ.
        KIND: The detector.
        TAPS: Bins handled in one round.
        ROUNDS: Whether some pixel needs more than one round a view.
        IMAGES: Images that share a program's geometry.
        TILE_ROWS: Rows of a tile, a multiple of 4.
        TILE_COLUMNS: Columns of a tile, a multiple of 8.
    """
    tiles_across = tl.cdiv(columns, TILE_COLUMNS)
    tiles = tiles_across * tl.cdiv(rows, TILE_ROWS)
    job = tl.program_id(0)
    tile, part = job % tiles, (job // tiles) % parts
    images_here = (job // tiles // parts).to(tl.int64) * IMAGES + tl.arange(0, IMAGES)[:, None]
    exists = images_here < images

    # A warp is 4 rows of 8 pixels: whichever way the rays come, few bins and few cache lines serve it.
    lane = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    warp, lane = lane // 32, lane % 32
    row = (tile // tiles_across) * TILE_ROWS + (warp // (TILE_COLUMNS // 8)) * 4 + lane // 8
    column = (tile % tiles_across) * TILE_COLUMNS + (warp % (TILE_COLUMNS // 8)) * 8 + lane % 8
    inside = (row < rows) & (column < columns)

    real = out.dtype.element_ty
    y, x = row.to(real), column.to(real)
    source = sinogram + images_here * (tl.cast(row_count + column_count, tl.int64) * bins)
    total = tl.zeros([IMAGES, TILE_ROWS * TILE_COLUMNS], real)
    total = _all_views(
        total, source, exists, row_edges, row_scale, row_views, row_numbers, y, x, inside,
        row_count * part // parts, row_count * (part + 1) // parts, row_count, bins, WEIGHTED, KIND, TAPS, ROUNDS,
    )  # fmt: skip
    total = _all_views(
        total, source, exists, column_edges, column_scale, column_views, column_numbers, x, y, inside,
        column_count * part // parts, column_count * (part + 1) // parts, column_count, bins, WEIGHTED, KIND, TAPS, ROUNDS,
    )  # fmt: skip

    target = out + ((part * tl.cast(images, tl.int64) + images_here) * rows + row[None, :]) * columns + column[None, :]
    tl.store(target, total, mask=exists & inside[None, :])


#: Whether these kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET decides when this module is imported.
INTERPRETED = not isinstance(to_image, triton.JITFunction)
