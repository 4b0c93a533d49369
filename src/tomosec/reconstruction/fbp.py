"""Filtered backprojection for fan beams and parallel beams over any arc (Kak and Slaney 1988, chapter 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError, nearest
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.operators.dispatch import Backprojector, Projector, check_sinogram
from tomosec.reconstruction.base import Reconstruction, Reconstructor
from tomosec.reconstruction.filters import Window, detector_taps, half_matrices, multiply, toeplitz
from tomosec.reconstruction.redundancy import measure_weights

Gradient = Literal["exact", "reference"]

_REFERENCE_SCALE = 1e-3  # the published code's lengths are metres


def ray_weights(geometry: Geometry) -> Floats:
    """Return FBP's weight of each bin: the Jacobian from (view, fan angle) to (angle, distance) of a ray, over R; shape (bins,).

    A ray with the fan angle γ in the view at t passes the isocenter at s = R sin γ − τ cos γ and has the direction θ = t + γ,
    so ds dθ = (R cos γ + τ sin γ) dγ dt: the cosine of Kak and Slaney (1988, eq. 3.4.1) with the axis offset τ. Parallel rays
    have the weight 1.
    """
    if not isinstance(geometry, FanBeam):
        return np.ones(geometry.bins)
    slope = geometry.axis_offset_mm / geometry.source_to_isocenter_mm
    return np.asarray(np.cos(geometry.fan_angles) + slope * np.sin(geometry.fan_angles))


class _ReferenceBackprojection(torch.autograd.Function):
    """Backprojection whose gradient is that of the published LTGM code: 1e-3 P in place of Bᵀ."""

    @staticmethod
    def forward(sinogram: Tensor, backprojector: Backprojector, projector: Projector) -> Tensor:
        image: Tensor = backprojector.unchecked(sinogram)
        return image

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Backprojector, Projector], output: Tensor) -> None:
        ctx.projector = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.projector.unchecked(gradients[0]) * _REFERENCE_SCALE, None, None


class FBP(Reconstructor):
    """Filtered backprojection: ``fbp(p)`` maps line integrals (B, 1, views, bins) to images (B, 1, H, W) in 1/mm.

    A full circle, a short scan (Parker's weights), any longer arc, half a turn or more of parallel rays, explicit angles in any
    order and an axis off the central ray all give the image at its right level inside the scan circle, if the object lies
    inside too. Which arc is enough, see :func:`tomosec.reconstruction.redundancy.needed_arc`.

    The tables exist for float32 and for float64 whatever type the module is cast to, and the sinogram's type chooses; they
    move with the module. They follow from the geometry, so ``state_dict()`` is empty.

    Args:
        geometry: The scan, fan beam (flat or curved detector) or parallel beam.
        window: Apodization of the ramp, sharp and noisy to smooth and quiet: see
            :func:`tomosec.reconstruction.filters.ramp_taps`.
        gradient: ``exact``, or ``reference`` for the unmatched gradient of LTGM's published code, which backpropagates
            through B with P and lengths in metres: nearly the right direction, 1/226 of the size at LTGM's geometry.

    Raises:
        InputError: an unknown option, views in fewer than two directions, or a detector that misses the isocenter.

    Warns:
        LimitedAngleWarning: the views do not measure every ray through the scan circle.
    """

    is_linear = True
    is_differentiable = True
    _even32: Tensor
    _even64: Tensor
    _odd32: Tensor
    _odd64: Tensor
    _weights32: Tensor | None
    _weights64: Tensor | None

    def __init__(self, geometry: Geometry, window: Window = "ram-lak", gradient: Gradient = "exact") -> None:
        super().__init__(geometry)
        for name, value, allowed in (("window", window, get_args(Window)), ("gradient", gradient, get_args(Gradient))):
            if value not in allowed:
                raise InputError(f"fbp: {name} {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
        if not isinstance(geometry, (FanBeam, ParallelBeam)):
            raise InputError(f"fbp: no filter for a geometry of kind {getattr(geometry, 'kind', type(geometry).__name__)!r}")
        self.window: Window = window
        self.gradient: Gradient = gradient
        self._weights = measure_weights(geometry) * ray_weights(geometry)
        self._backprojector, self._projector = Backprojector(geometry), Projector(geometry)
        self._make_tables(torch.get_default_device())

    def _make_tables(self, device: torch.device) -> None:
        """Register the filter on a device: its two half matrices and, where they do not fit in those, the weights."""
        weights, matrix = self._weights, toeplitz(detector_taps(self.geometry, self.window))
        scale = float(np.abs(weights).max())
        if len(weights) == 1 and np.allclose(weights, weights[:, ::-1], rtol=0, atol=1e-12 * scale):
            matrix = matrix * ((weights + weights[:, ::-1]) / 2).T
            separate = None
        else:
            separate = weights
        even, odd = half_matrices(matrix)
        for name, table in (("even", even), ("odd", odd), ("weights", separate)):
            for bits, dtype in ((32, torch.float32), (64, torch.float64)):
                value = None if table is None else torch.as_tensor(np.ascontiguousarray(table), dtype=dtype, device=device)
                self.register_buffer(f"_{name}{bits}", value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let every conversion move the tables; what it makes of their values is replaced, so that no digit is ever lost."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_tables(self._even32.device)
        return self

    def filter(self, sinogram: Tensor) -> Tensor:
        """Weight and ramp-filter a sinogram: (B, 1, views, bins) → same shape, 1/mm.

        Raises:
            InputError: wrong shape or type.
        """
        check_sinogram(sinogram, self.geometry, "fbp")
        double = sinogram.dtype == torch.float64
        weights = self._weights64 if double else self._weights32
        even, odd = (self._even64, self._odd64) if double else (self._even32, self._odd32)
        # Inside a network's autocast the ramp would be rounded to 8 bits.
        with torch.autocast(sinogram.device.type, enabled=False):
            return multiply(sinogram if weights is None else sinogram * weights, even, odd)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        filtered = self.filter(sinogram)
        if self.gradient == "reference":
            image: Tensor = _ReferenceBackprojection.apply(filtered, self._backprojector, self._projector)  # type: ignore[no-untyped-call]
        else:
            image = self._backprojector.unchecked(filtered)
        return image

    def __repr__(self) -> str:
        """Return an expression that builds the module anew."""
        options = {"window": ("ram-lak", self.window), "gradient": ("exact", self.gradient)}
        changed = [f"{name}={value!r}" for name, (default, value) in options.items() if value != default]
        return f"FBP({', '.join([repr(self.geometry), *changed])})"


class FilteredBackprojection(Reconstruction):
    """Filtered backprojection. Linear; its gradient costs what the image does.

    Attributes:
        window: Apodization of the ramp filter.
        gradient: ``exact``, or ``reference`` for the unmatched gradient of LTGM's published code.
    """

    source: ClassVar[str] = "Kak and Slaney 1988, chapter 3"
    kind: Literal["fbp"] = "fbp"
    version: Literal[1] = 1

    window: Window = "ram-lak"
    gradient: Gradient = "exact"

    def build(self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None) -> FBP:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return FBP(geometry, window=self.window, gradient=self.gradient).to(device)
