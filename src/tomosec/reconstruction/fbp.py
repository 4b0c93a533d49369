"""Filtered backprojection for full fan-beam circles and for parallel beams (Kak and Slaney 1988, chapter 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError, nearest
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.operators.dispatch import backproject, check_sinogram, project
from tomosec.reconstruction.base import Reconstruction, Reconstructor

Window = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]
Gradient = Literal["exact", "reference"]

_REFERENCE_SCALE = 1e-3  # the published code's lengths are metres


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


def filter_matrix(geometry: Geometry, window: Window = "ram-lak") -> Floats:
    """Return FBP's filter with all its weights as one matrix F, so that the filtered sinogram is ``p @ F``.

    The product with a matrix is the fastest form here: a convolution with 2 D − 1 taps takes hundreds of times longer.

    Args:
        geometry: A full fan-beam circle, or a parallel beam over half or whole a turn.
        window: See :func:`ramp_taps`.

    Returns:
        Shape (bins, bins), in 1/mm: cosine weight, ramp and the angle that each view stands for.

    Raises:
        InputError: views that do not see every ray equally often.
    """
    bins = geometry.bins
    taps = ramp_taps(bins, window)
    weight = np.ones(bins)
    if isinstance(geometry, FanBeam):
        if not geometry.is_full_circle:
            raise InputError(
                "fbp: a fan beam needs equal steps around a full circle (arc = ±2π); a short scan needs Parker weights, "
                "which are not available yet"
            )
        weight = np.cos(geometry.fan_angles)
        if geometry.detector == "curved":
            angle = np.arange(bins) * (geometry.bin_mm / geometry.source_to_detector_mm)
            taps = taps * np.where(angle == 0, 1.0, angle / np.where(angle == 0, 1.0, np.sin(angle))) ** 2
    elif isinstance(geometry, ParallelBeam):
        if not (geometry.is_half_circle or geometry.is_full_circle):
            raise InputError("fbp: a parallel beam needs equal steps around half a turn or a whole one (arc = ±π or ±2π)")
    else:
        raise InputError(f"fbp: no filter for a geometry of kind {getattr(geometry, 'kind', type(geometry).__name__)!r}")
    distance = np.abs(np.arange(bins)[:, None] - np.arange(bins)[None, :])
    # Each view stands for an angle of π / views: a full circle sees every ray twice.
    return np.asarray(weight[:, None] * taps[distance] * (math.pi / geometry.views / geometry.bin_at_isocenter_mm))


class _ReferenceBackprojection(torch.autograd.Function):
    """Backprojection whose gradient is that of the published LTGM code: 1e-3 P in place of Bᵀ."""

    @staticmethod
    def forward(ctx: Any, sinogram: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        return backproject(sinogram, geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return project(gradients[0], ctx.geometry) * _REFERENCE_SCALE, None


class FBP(Reconstructor):
    """Filtered backprojection: ``fbp(p)`` maps line integrals (B, 1, views, bins) to images (B, 1, H, W) in 1/mm.

    The tables follow the sinogram's device and type (float32 or float64).

    Args:
        geometry: A full fan-beam circle (flat or curved detector), or a parallel beam over half or whole a turn.
        window: Apodization of the ramp, sharp and noisy to smooth and quiet: see :func:`ramp_taps`.
        gradient: ``exact``, or ``reference`` for the unmatched gradient of LTGM's published code, which backpropagates
            through B with P and lengths in metres: nearly the right direction, 1/226 of the size at LTGM's geometry.

    Raises:
        InputError: an unknown option, or views that do not see every ray equally often.
    """

    is_linear = True
    is_differentiable = True

    def __init__(self, geometry: Geometry, window: Window = "ram-lak", gradient: Gradient = "exact") -> None:
        super().__init__(geometry)
        for name, value, allowed in (("window", window, get_args(Window)), ("gradient", gradient, get_args(Gradient))):
            if value not in allowed:
                raise InputError(f"fbp: {name} {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
        self.window = window
        self.gradient = gradient
        self._filter = filter_matrix(geometry, window)
        self._filters: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def filter(self, sinogram: Tensor) -> Tensor:
        """Weight and ramp-filter a sinogram: (B, 1, views, bins) → same shape, 1/mm.

        Raises:
            InputError: wrong shape or type.
        """
        check_sinogram(sinogram, self.geometry, "fbp")
        key = (sinogram.device, sinogram.dtype)
        if key not in self._filters:
            self._filters[key] = torch.as_tensor(self._filter, dtype=sinogram.dtype, device=sinogram.device)
        # Inside a network's autocast the ramp would be rounded to 8 bits.
        with torch.autocast(sinogram.device.type, enabled=False):
            return sinogram @ self._filters[key]

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        filtered = self.filter(sinogram)
        if self.gradient == "reference":
            image: Tensor = _ReferenceBackprojection.apply(filtered, self.geometry)  # type: ignore[no-untyped-call]
            return image
        return backproject(filtered, self.geometry)

    def extra_repr(self) -> str:
        """Show the options and the geometry."""
        return f"window={self.window!r}, gradient={self.gradient!r}, {self.geometry!r}"


class FilteredBackprojection(Reconstruction):
    """Filtered backprojection.

    Attributes:
        window: Apodization of the ramp filter.
        gradient: ``exact``, or ``reference`` for the unmatched gradient of LTGM's published code.
    """

    kind: Literal["fbp"] = "fbp"
    version: Literal[1] = 1

    window: Window = "ram-lak"
    gradient: Gradient = "exact"

    def build(self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None) -> FBP:
        """Return the module; nothing is learned, so ``state`` is not used, and tables follow the data's device."""
        return FBP(geometry, window=self.window, gradient=self.gradient).to(device)
