"""Helgason-Ludwig conditions: the moments of the views of an object are trigonometric polynomials of low degree."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.geometry import FanBeam, Geometry, ParallelBeam

#: Largest n, and largest k (or a quarter of the views of a turn where that is less), that are looked at if nothing is said.
ORDERS, FREQUENCIES = 6, 40


class ForbiddenMoments(Residual):
    """Moments M(n, k) that vanish for every object, real and imaginary parts, (B, number)."""

    def __init__(self, geometry: Geometry, orders: int = ORDERS, frequencies: int = FREQUENCIES) -> None:
        angles = geometry.view_angles
        if isinstance(geometry, FanBeam):
            gamma, radius, offset = geometry.fan_angles, geometry.source_to_isocenter_mm, geometry.axis_offset_mm
            s = radius * np.sin(gamma) - offset * np.cos(gamma)
            # ds of one bin: the Jacobian of (view, fan angle) to (angle, distance) times the bin's own width.
            width = np.diff(_edge_angles(geometry)) * (radius * np.cos(gamma) + offset * np.sin(gamma))
        else:
            gamma, s = np.zeros(geometry.bins), geometry.bin_centers_mm
            width = np.full(geometry.bins, geometry.bin_mm)
        half_turn = isinstance(geometry, ParallelBeam) and geometry.is_half_circle
        degree = np.arange(orders + 1)
        # Fan angles are differences of directions: θ = β + γ.
        k = np.arange(min(frequencies, geometry.views // (2 if half_turn else 4)) + 1)
        self._polynomials = torch.from_numpy(legvander(s / np.abs(s).max(), orders) * (width / np.abs(s).max())[:, None])
        self._turn = torch.from_numpy(np.exp(-1j * k[:, None] * angles[None, :]) / geometry.views)
        self._fan = torch.from_numpy(np.exp(-1j * k[:, None] * gamma[None, :]))
        forbidden = (k[None, :] > degree[:, None]) | ((degree[:, None] - k[None, :]) % 2 != 0)
        if half_turn:  # the other half turn is p(θ + π, s) = p(θ, −s), which makes n − k odd vanish by itself
            forbidden &= (degree[:, None] - k[None, :]) % 2 == 0
        self.forbidden = torch.from_numpy(forbidden)
        self._views = geometry.views

    def moments(self, p: Tensor) -> Tensor:
        """All M(n, k), complex, (B, orders + 1, frequencies + 1)."""
        turned = self._turn.to(p.device) @ p[:, 0].double().to(torch.complex128)
        return torch.einsum("bkg,gn->bnk", turned * self._fan.to(p.device), self._polynomials.to(p.device).to(torch.complex128))

    def values(self, p: Tensor) -> Tensor:
        """The forbidden ones."""
        found = self.moments(p)[:, self.forbidden.to(p.device)]
        return torch.cat([found.real, found.imag], dim=1)

    def nominal(self, variance: Tensor) -> Tensor:
        """E |M|² = Σ v w², half of it in each part; it does not depend on k, but for the real k = 0."""
        squares = variance[:, 0].sum(1) @ self._polynomials.square().to(variance.device) / self._views**2
        spread = (squares[:, :, None] / 2).expand(-1, -1, self.forbidden.shape[1])[:, self.forbidden.to(variance.device)]
        return torch.cat([spread, spread], dim=1)


def _edge_angles(geometry: FanBeam) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Fan angle of each bin edge, rad, (bins + 1,)."""
    ratio = geometry.bin_edges_mm / geometry.source_to_detector_mm
    return np.arctan(ratio) if geometry.detector == "flat" else ratio


def why_not_moments(geometry: Geometry) -> str:
    """Return why no moments of a scan must vanish; an empty string where some must."""
    if not isinstance(geometry, (FanBeam, ParallelBeam)):
        return f"needs a fan beam or parallel rays, not a geometry of kind {geometry.model_dump().get('kind')!r}"
    if geometry.views < 8 or geometry.bins < 2:
        return f"needs 8 views and 2 bins or more; this scan has {geometry.views} and {geometry.bins}"
    if geometry.is_full_circle or (isinstance(geometry, ParallelBeam) and geometry.is_half_circle):
        return ""
    turn = "half a turn or a whole one" if isinstance(geometry, ParallelBeam) else "a whole turn"
    covered = "explicit angles" if geometry.angles is not None else f"an arc of {math.degrees(abs(geometry.arc)):.4g}°"
    return f"needs equal steps around {turn}; this scan covers {covered}"
