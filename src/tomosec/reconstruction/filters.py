"""The ramp filter: its taps under a window, and the product with a symmetric Toeplitz matrix at half the multiplications."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tomosec.geometry import FanBeam, Floats, Geometry

Window = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

# Values that are filtered at once. Memory that is used again costs less than new memory; but every block waits some times for
# all threads, which is slow where other programs hold the cores, so blocks are few.
_BLOCK = 1 << 21


def ramp_taps(count: int, window: Window = "ram-lak") -> Floats:
    """Return the taps of the band-limited ramp under a window, for bins of unit pitch.

    The filter's frequency response is |ν| W(ν) up to half the sampling frequency, and the taps are its inverse Fourier
    transform in closed form: sampling the ramp on a discrete grid of frequencies instead would shift the image's mean.
    With r(s) the transform of the bare ramp at s, a window that is a sum of cosines is a sum of shifted r's.

    Args:
        count: Number of taps on one side, the middle one included.
        window: ``ram-lak`` W = 1; ``shepp-logan`` sin(πν)/(πν); ``cosine`` cos(πν); ``hamming`` 0.54 + 0.46 cos(2πν);
            ``hann`` 0.5 + 0.5 cos(2πν).

    Returns:
        Shape (count,): taps 0, 1, …, count − 1; the filter is symmetric.
    """
    n = np.arange(count, dtype=np.float64)
    if window == "ram-lak":
        return _ramp(n)
    if window == "shepp-logan":
        return np.asarray(2 / math.pi**2 / (1 - 4 * n**2), dtype=np.float64)
    if window == "cosine":
        return (_ramp(n + 0.5) + _ramp(n - 0.5)) / 2
    mean = {"hamming": 0.54, "hann": 0.5}[window]
    return mean * _ramp(n) + (1 - mean) / 2 * (_ramp(n + 1) + _ramp(n - 1))


def _ramp(s: Floats) -> Floats:
    """Return ∫ |ν| cos(2πνs) dν over −½ < ν < ½."""
    safe = np.where(s == 0, 1.0, s)
    value = np.sinc(s) / 2 + (np.cos(np.pi * s) - 1) / (2 * (np.pi * safe) ** 2)
    return np.where(s == 0, 0.25, value)


def detector_taps(geometry: Geometry, window: Window = "ram-lak") -> Floats:
    """Return the taps that filter a line of this detector: :func:`ramp_taps` over the pitch at the isocenter.

    On a curved detector a tap at the angle γ is (γ / sin γ)² times as large (Kak and Slaney 1988, eq. 3.4.2).

    Returns:
        Shape (bins,), in 1/mm: taps 0, 1, …, bins − 1 of a symmetric filter.
    """
    taps = ramp_taps(geometry.bins, window)
    if isinstance(geometry, FanBeam) and geometry.detector == "curved":
        angle = np.arange(geometry.bins) * (geometry.bin_mm / geometry.source_to_detector_mm)
        taps[1:] *= (angle[1:] / np.sin(angle[1:])) ** 2
    return taps / geometry.bin_at_isocenter_mm


def toeplitz(taps: Floats) -> Floats:
    """Return the symmetric matrix that convolves a zero-padded line with these taps, shape (bins, bins)."""
    n = np.arange(len(taps))
    return np.asarray(taps[np.abs(n[:, None] - n[None, :])])


def half_matrices(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the two matrices by which :func:`multiply` multiplies.

    Args:
        matrix: (D, D) and centrosymmetric, M[i, j] = M[D − 1 − i, D − 1 − j]; for example ``w[:, None] * toeplitz(t)`` with
            a symmetric w.

    Returns:
        For the even and the odd parts of a line, each of shape (h, h) with h = ⌈D / 2⌉.
    """
    size = len(matrix)
    half = (size + 1) // 2
    top, bottom = matrix[:half, :half], matrix[size - half :, :half][::-1]
    even, odd = (top + bottom) / 2, (top - bottom) / 2
    if size % 2:  # the middle bin is its own mirror image and is counted twice on the way in and on the way out
        even[-1, :] /= 2
        even[:, -1] /= 2
    return even, odd


def multiply(x: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    """Multiply lines by the centrosymmetric matrix whose :func:`half_matrices` are given.

    Such a matrix maps even lines to even ones and odd to odd, and half a line says all about either. So two products of
    half the size, which is half the multiplications, replace the whole one.

    Args:
        x: (…, D), any number of other axes.
        even: See :func:`half_matrices`; type and device of ``x``.
        odd: Likewise.

    Returns:
        (…, D); differentiable in ``x`` any number of times, and mappable by ``torch.func.vmap``.
    """
    if torch.compiler.is_compiling():  # the compiler plans its own memory
        half = even.shape[0]
        rest = x.shape[-1] - half
        left, right = x[..., :half], x[..., rest:].flip(-1)  # a middle bin is in both
        plus, minus = (left + right) @ even, (left - right) @ odd
        left, right = plus + minus, (plus - minus).flip(-1)
        return torch.cat([left[..., :rest], 2 * left[..., rest:], right[..., half - rest :]], dim=-1)
    out: Tensor = _Product.apply(x, even, odd)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """:func:`multiply` block by block in the same memory; its gradient is the product with the transposed matrices."""

    @staticmethod
    def forward(x: Tensor, even: Tensor, odd: Tensor) -> Tensor:
        size, half = x.shape[-1], even.shape[0]
        lines = x.reshape(-1, size)
        out = torch.empty_like(lines)
        rows = min(len(lines), max(1, _BLOCK // size))
        parts, products = lines.new_empty((2, rows, half)), lines.new_empty((2, rows, half))
        for first in range(0, len(lines), rows or 1):
            block, target = lines[first : first + rows], out[first : first + rows]
            (plus, minus), (even_part, odd_part) = parts[:, : len(block)], products[:, : len(block)]
            left, right = block[:, :half], block[:, size - half :].flip(-1)
            torch.mm(torch.add(left, right, out=plus), even, out=even_part)
            torch.mm(torch.sub(left, right, out=minus), odd, out=odd_part)
            target[:, size - half :] = torch.sub(even_part, odd_part, out=plus).flip(-1)
            torch.add(even_part, odd_part, out=target[:, :half])
            if size % 2:
                target[:, half - 1] *= 2
        return out.view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        even, odd = ctx.saved_tensors
        return multiply(gradients[0], even.T, odd.T), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], x: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, int]:
        return multiply(x.movedim(in_dims[0], 0), even, odd), 0
