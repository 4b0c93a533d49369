"""Complementary rays: every line through the object, measured from its other side.

A whole turn measures each line twice. Of a fan beam p(t, γ) = p(t + π + 2γ, −γ) for either direction of rotation, of parallel
rays p(t, s) = p(t + π, −s) (Parker, Med. Phys. 9, 1982); C is the map from one side to the other. The views are periodic, so
they are shifted by a phase of their Fourier series, bin by bin, which is exact for what the views sample finely enough.

A scan that is not a whole turn, or whose detector is offset, still measures some lines twice: see :class:`SecondLook`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.operators.dispatch import check_sinogram


def why_not_complementary(geometry: Geometry) -> str:
    """Return why the bins of a scan have no complementary ones, or an empty string where all have.

    They have on equal steps, in order, around a whole turn, with a detector and an axis that are not offset (then −γ is a bin
    where γ is).
    """
    if not isinstance(geometry, (FanBeam, ParallelBeam)):
        return f"a geometry of kind {geometry.model_dump().get('kind')!r} has no known complementary rays"
    if not geometry.is_full_circle:
        return f"complementary rays need equal steps around a whole turn; this scan covers {_covered(geometry)}"
    steps = np.diff(geometry.view_angles)
    if len(steps) and not np.allclose(steps, math.copysign(2 * math.pi / geometry.views, steps[0]), rtol=1e-6, atol=0):
        return "complementary rays need the views in the order of the rotation; these explicit angles are in another"
    for name in ("detector_offset_bins", "axis_offset_mm"):
        if getattr(geometry, name, 0.0) != 0:
            return f"complementary rays need a bin at -γ for every bin at γ; {name} is {getattr(geometry, name):g}, not 0"
    return ""


def complementary(geometry: Geometry, sinogram: Tensor) -> Tensor:
    """Return C p: at every ray, what was measured along the same line from the other side.

    C is linear, its own inverse and its own transpose on what it keeps. With an even number of views the view frequency at half
    the sampling rate has no defined phase and is left out.

    Args:
        geometry: the scan.
        sinogram: (B, 1, views, bins), float32 or float64.

    Raises:
        InputError: wrong shape or type, or a scan without complementary bins (see :func:`why_not_complementary`).
    """
    check_sinogram(sinogram, geometry, "complementary")
    if reason := why_not_complementary(geometry):
        raise InputError(reason)
    spectrum = torch.fft.rfft(sinogram.flip(-1), dim=-2)
    factor = torch.from_numpy(_phase(geometry)).to(device=sinogram.device, dtype=spectrum.dtype)
    shifted: Tensor = torch.fft.irfft(spectrum * factor, n=geometry.views, dim=-2)
    return shifted


def complementary_variance(geometry: Geometry, variance: Tensor) -> Tensor:
    """Return the variance of C p for independent rays of the given variance, (B, 1, views, bins).

    Args and errors are those of :func:`complementary`.
    """
    check_sinogram(variance, geometry, "complementary_variance")
    if reason := why_not_complementary(geometry):
        raise InputError(reason)
    kernel = torch.fft.irfft(torch.from_numpy(_phase(geometry)).to(variance.device), n=geometry.views, dim=0)
    factor = torch.fft.rfft(kernel.square(), dim=0)
    spectrum = torch.fft.rfft(variance.double().flip(-1), dim=-2)
    spread: Tensor = torch.fft.irfft(spectrum * factor, n=geometry.views, dim=-2)
    return spread.clamp_min(0).to(variance.dtype)


def _phase(geometry: Geometry) -> NDArray[np.complex128]:
    """The factor of each view frequency and bin by which C shifts, shape (views // 2 + 1, bins)."""
    angles = geometry.view_angles
    direction = math.copysign(1.0, angles[1] - angles[0]) if geometry.views > 1 else 1.0
    fan = geometry.fan_angles if isinstance(geometry, FanBeam) else np.zeros(geometry.bins)
    shift = direction * (math.pi + 2 * fan)
    order = np.arange(geometry.views // 2 + 1)
    phase = np.exp(1j * order[:, None] * shift[None, :])
    if geometry.views % 2 == 0:
        phase[-1] = 0
    return np.asarray(phase)


def symmetrize(geometry: Geometry, sinogram: Tensor) -> Tensor:
    """Return (p + C p) / 2 of the views that C keeps: the part of a sinogram on which complementary rays agree.

    Args and errors are those of :func:`complementary`; C of the result is the result.
    """
    other = complementary(geometry, sinogram)
    return (other + complementary(geometry, other)) / 2


class SecondLook:
    """The second measurement of every line that a scan measures twice, by cubic interpolation between views and bins.

    Any arc in equal steps will do, centered or not. With γ₀ the fan angle of the ray through the isocenter, the ray (t, γ) is
    also (t + π + 2(γ − γ₀), 2γ₀ − γ); of parallel rays, (t, s) is also (t + π, −s). A short scan has such rays at its two ends
    (the wedge that Parker's weights share), half a turn of parallel rays has none.

    Attributes:
        valid: (views, bins) bool, which rays have a second measurement.
    """

    def __init__(self, geometry: Geometry) -> None:
        angles = geometry.view_angles
        if not isinstance(geometry, (FanBeam, ParallelBeam)):
            raise InputError(f"a geometry of kind {geometry.model_dump().get('kind')!r} has no known complementary rays")
        steps = np.diff(angles)
        if len(steps) < 3 or geometry.bins < 4 or not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
            raise InputError("complementary rays need four views or more, in equal steps and in the order of the rotation")
        step, count = float(steps[0]), geometry.views
        shift, place = self._partner(geometry)
        period = 2 * math.pi / abs(step)
        turn = round(period)
        closed = abs(period - turn) < 1e-6 * period and count >= turn
        position = np.mod(np.arange(count)[:, None] + shift[None, :] / step, turn if closed else period)
        seen = np.ones_like(position, dtype=bool) if closed else position <= count - 1 + 1e-9
        first = np.floor(position).astype(np.int64)
        if not closed:
            first = np.clip(first, 1, count - 3)
        taps = first[None] + np.arange(-1, 3)[:, None, None]
        self._views = torch.from_numpy(np.mod(taps, turn) if closed else taps)
        self._weights = torch.from_numpy(_lagrange(position - first))
        inside = (place >= -1e-9) & (place <= geometry.bins - 1 + 1e-9)
        left = np.clip(np.floor(place).astype(np.int64), 1, geometry.bins - 3)
        matrix = np.zeros((geometry.bins, geometry.bins))
        np.add.at(matrix, (left[None] + np.arange(-1, 3)[:, None], np.arange(geometry.bins)[None]), _lagrange(place - left))
        self._bins = torch.from_numpy(matrix * inside[None])
        self.valid = torch.from_numpy(seen & inside[None])

    @staticmethod
    def _partner(geometry: FanBeam | ParallelBeam) -> tuple[Floats, Floats]:
        """By bin: the angle to the other view, rad, and the place of the other ray in bins."""
        if isinstance(geometry, ParallelBeam):
            shift, other = np.full(geometry.bins, math.pi), -geometry.bin_centers_mm
        else:
            center = math.atan2(geometry.axis_offset_mm, geometry.source_to_isocenter_mm)
            shift = math.pi + 2 * (geometry.fan_angles - center)
            angle = 2 * center - geometry.fan_angles
            other = geometry.source_to_detector_mm * (np.tan(angle) if geometry.detector == "flat" else angle)
        return shift, other / geometry.bin_mm + (geometry.bins - 1) / 2 - geometry.detector_offset_bins

    def __call__(self, sinogram: Tensor) -> Tensor:
        """The other measurement of every ray, (B, 1, views, bins) → same shape, float64; 0 where there is none."""
        return self._gather(sinogram.double() @ self._bins.to(sinogram.device), self._weights)

    def variance(self, variance: Tensor) -> Tensor:
        """Variance of the other measurement, for independent rays of the given variance; same shape, float64."""
        return self._gather(variance.double() @ self._bins.square().to(variance.device), self._weights.square())

    def _gather(self, q: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(q)
        for views, weight in zip(self._views.to(q.device), weights.to(q.device), strict=True):
            total += weight * q.gather(-2, views.expand_as(q))
        return total * self.valid.to(q.device)


def _lagrange(f: Floats) -> Floats:
    """Weights of the samples at -1, 0, 1 and 2 for the cubic through them at f, shape (4, ...)."""
    return np.stack(
        [-f * (f - 1) * (f - 2) / 6, (f + 1) * (f - 1) * (f - 2) / 2, -(f + 1) * f * (f - 2) / 2, (f + 1) * f * (f - 1) / 6]
    )


def _covered(geometry: Geometry) -> str:
    return "explicit angles" if geometry.angles is not None else f"an arc of {math.degrees(abs(geometry.arc)):.4g}°"
