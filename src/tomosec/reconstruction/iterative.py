"""Steps of iterative reconstruction on A and A.T: SIRT and SART, ordered subsets of views, and CGLS.

A step is a function from tensors to tensors and can be differentiated, so an iteration that is unrolled is one too. Images are
(B, 1, H, W) in 1/mm, sinograms (B, 1, views, bins); samples of a batch do not influence each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tomosec.errors import InputError
from tomosec.operators.dispatch import Projector, check_image, check_sinogram

_UNSEEN = 1e-9  # sums below this part of the largest are rounding: a ray that misses the image, a pixel that no ray meets


class SARTWeights(NamedTuple):
    """The inverse sums of A's rows and columns, 0 where a sum is 0.

    Attributes:
        rays: One over the length of each ray in the image, 1/mm, shape (1, 1, views, bins).
        pixels: One over the sum of each pixel's weights in all rays, 1/mm, shape (1, 1, H, W).
    """

    rays: Tensor
    pixels: Tensor


def subset(A: Projector, views: Sequence[int] | slice) -> Projector:
    """Return the projector at some views of its scan; see :meth:`tomosec.geometry.Geometry.views_at`."""
    return Projector(A.geometry.views_at(views))


def ordered_subsets(views: int, count: int) -> list[slice]:
    """Return ``count`` disjoint subsets of the views, each spread evenly over the arc, in an order that keeps neighbors apart.

    Each subset starts about 0.38 ``count`` views (the golden section) after the one before, so that every step brings
    directions that the last ones lacked; Herman and Meyer (IEEE Trans. Med. Imaging 12:600, 1993) show what that is worth.

    Raises:
        InputError: ``count`` is less than 1 or more than the views.
    """
    if not 1 <= count <= views:
        raise InputError(f"ordered_subsets: {count} subsets of {views} views; 1 to {views} are possible")
    stride = min((k for k in range(1, count + 1) if math.gcd(k, count) == 1), key=lambda k: abs(k - 0.381966 * count))
    return [slice(number * stride % count, None, count) for number in range(count)]


def sart_weights(A: Projector, like: Tensor) -> SARTWeights:
    """Return the weights of :func:`sart_step` for one projector, to be computed once for many steps.

    Args:
        A: The projector.
        like: A tensor of the type and device that the weights shall have.
    """

    def inverse(sums: Tensor) -> Tensor:
        seen = sums > _UNSEEN * sums.max()
        return torch.where(seen, 1 / torch.where(seen, sums, 1), 0).to(like.dtype)

    with torch.no_grad():
        ones = torch.ones((1, 1, *A.geometry.shape), dtype=torch.float64, device=like.device)
        rows = A.unchecked(ones)
        columns = A.T.unchecked(torch.ones_like(rows))
        return SARTWeights(inverse(rows), inverse(columns))


def sart_step(
    x: Tensor,
    p: Tensor,
    A: Projector,
    *,
    relaxation: float | Tensor = 1.0,
    views: Sequence[int] | slice | None = None,
    weights: SARTWeights | None = None,
) -> Tensor:
    """Take one step of SIRT, or of SART with an ordered subset of the views: x + λ C Aᵀ R (p − A x).

    R and C hold the inverse row and column sums of A. With all views this is SIRT (Gregor and Benson, IEEE Trans. Med. Imaging
    27:918, 2008), which for 0 < λ < 2 converges to a minimum of (p − A x)ᵀ R (p − A x); with one view at a time it is SART
    (Andersen and Kak, Ultrason. Imaging 6:81, 1984). Pixels that no ray meets keep their values.

    Args:
        x: Images to improve, (B, 1, H, W), float32 or float64.
        p: Measured line integrals of all views, (B, 1, views, bins), type and device of ``x``.
        A: The projector of the scan.
        relaxation: λ, between 0 and 2. As a tensor that broadcasts to (B, 1, 1, 1) it may be learned and is not checked.
        views: The views of this step; None takes all.
        weights: :func:`sart_weights` of A, or of ``subset(A, views)``; None computes them, at the price of one more step.

    Returns:
        (B, 1, H, W), differentiable in x, p and λ.

    Raises:
        InputError: shapes, types or devices that do not fit, or λ outside its range.
    """
    _check(x, p, A, "sart_step")
    if not isinstance(relaxation, Tensor) and not 0 < relaxation < 2:
        raise InputError(f"sart_step: relaxation is {relaxation:g}; steps converge only between 0 and 2")
    if views is not None:
        A, p = subset(A, views), p[:, :, views]
    if weights is None:
        weights = sart_weights(A, x)
    for name, table, shape in zip(SARTWeights._fields, weights, (A.geometry.sinogram_shape, A.geometry.shape), strict=True):
        if tuple(table.shape) != (1, 1, *shape):
            raise InputError(
                f"sart_step: weights.{name} has shape {tuple(table.shape)}, but the views of this step want (1, 1, "
                f"{shape[0]}, {shape[1]}); compute sart_weights(subset(A, views), x)"
            )
    update: Tensor = weights.pixels * A.T.unchecked(weights.rays * (p - A.unchecked(x)))
    return x + relaxation * update


class CGLSState(NamedTuple):
    """Where CGLS stands.

    Attributes:
        x: Images, (B, 1, H, W), 1/mm.
        residual: p − A x, (B, 1, views, bins).
        direction: Next search direction, (B, 1, H, W).
        gradient_square: |Aᵀ (p − A x)|² of each sample, float64, shape (B,); 0 at a least-squares solution.
    """

    x: Tensor
    residual: Tensor
    direction: Tensor
    gradient_square: Tensor


def cgls_start(p: Tensor, A: Projector, *, x0: Tensor | None = None) -> CGLSState:
    """Return the state before the first step.

    Args:
        p: Measured line integrals, (B, 1, views, bins), float32 or float64.
        A: The projector of the scan.
        x0: Images to start from, (B, 1, H, W); None starts from 0.

    Raises:
        InputError: shapes, types or devices that do not fit.
    """
    if x0 is None:
        check_sinogram(p, A.geometry, "cgls")
        x0, residual = p.new_zeros((p.shape[0], 1, *A.geometry.shape)), p
    else:
        _check(x0, p, A, "cgls")
        residual = p - A.unchecked(x0)
    direction = A.T.unchecked(residual)
    return CGLSState(x0, residual, direction, _dot(direction, direction))


def cgls_step(state: CGLSState, A: Projector) -> CGLSState:
    """Take one step of conjugate gradients on the normal equations (Björck, 1996, algorithm 7.4.1).

    Every sample has its own step length. The new gradient is orthogonal to the last direction, up to rounding. Where rounding
    has become the most of it, near the solution, the sample starts anew along the gradient, as Powell (Math. Program. 12:241,
    1977) does: the plain recurrence would amplify rounding without bound from there. A sample whose gradient is 0 stays.
    """
    ahead = A.unchecked(state.direction)
    length = _quotient(state.gradient_square, _dot(ahead, ahead)).to(ahead.dtype)[:, None, None, None]
    x, residual = state.x + length * state.direction, state.residual - length * ahead
    gradient = A.T.unchecked(residual)
    square = _dot(gradient, gradient)
    turn = _quotient(square, state.gradient_square)
    turn = torch.where(turn * _dot(gradient, state.direction).abs() <= square / 2, turn, 0).to(gradient.dtype)
    return CGLSState(x, residual, gradient + turn[:, None, None, None] * state.direction, square)


def cgls(p: Tensor, A: Projector, *, steps: int, x0: Tensor | None = None) -> Tensor:
    """Minimize |p − A x|² by ``steps`` steps of CGLS (Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49:409, 1952).

    Few steps are a regularization: noise comes in with the late ones. From x0 = 0 the limit is the solution of least norm.

    Args:
        p: Measured line integrals, (B, 1, views, bins), float32 or float64.
        A: The projector of the scan.
        steps: Number of steps, 0 or more.
        x0: Images to start from, (B, 1, H, W); None starts from 0.

    Returns:
        (B, 1, H, W) in 1/mm, differentiable in p and x0.

    Raises:
        InputError: shapes, types or devices that do not fit, or a negative number of steps.
    """
    if steps < 0:
        raise InputError(f"cgls: steps is {steps}; 0 or more are possible")
    state = cgls_start(p, A, x0=x0)
    for _ in range(steps):
        state = cgls_step(state, A)
    return state.x


def _check(x: Tensor, p: Tensor, A: Projector, who: str) -> None:
    check_image(x, A.geometry, who)
    check_sinogram(p, A.geometry, who)
    if x.shape[0] != p.shape[0] or x.dtype != p.dtype or x.device != p.device:
        raise InputError(
            f"{who}: {x.shape[0]} image(s) of {x.dtype} on {x.device} do not fit {p.shape[0]} sinogram(s) of {p.dtype} on "
            f"{p.device}; number, type and device must be the same"
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, float64, shape (B,)."""
    return (a.double() * b.double()).sum((1, 2, 3))


def _quotient(top: Tensor, bottom: Tensor) -> Tensor:
    """Quotient of sums of squares; 0, with gradient 0, where the denominator is 0."""
    positive = bottom > 0
    return torch.where(positive, top / torch.where(positive, bottom, 1), 0)
