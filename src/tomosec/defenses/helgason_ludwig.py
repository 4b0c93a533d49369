"""Helgason-Ludwig conditions: the moments of the views of an object are trigonometric polynomials of low degree."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from pydantic import Field
from torch import Tensor

from tomosec.defenses.residuals import Residual, ResidualDetector
from tomosec.geometry import FanBeam, Geometry, ParallelBeam


class ForbiddenMoments(Residual):
    """Moments M(n, k) that vanish for every object, real and imaginary parts, (B, number)."""

    def __init__(self, geometry: Geometry, orders: int, frequencies: int) -> None:
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


class HelgasonLudwig(ResidualDetector):
    """Helgason-Ludwig moments, of parallel rays or in fan coordinates: those that vanish for every object must vanish.

    With θ the direction and s the distance of a ray, and P_n Legendre's polynomials on the detector's width S,

        M(n, k) = Σ p P_n(s / S) exp(−i k θ) Δs Δθ = 0    where |k| > n or n − k is odd.

    In fan coordinates θ = β + γ, s = R sin γ and ds dθ = R cos γ dγ dβ, so nothing is rebinned. The score is the mean of the
    squared forbidden moments, each in units of its clean spread. Needs a whole turn (parallel rays: half a turn) in equal steps,
    and objects that are not truncated. Moments of low order see little of fine patterns in noise.

    Attributes:
        orders: largest n.
        frequencies: largest k, or a quarter of the views of a turn where that is less.
    """

    kind: Literal["helgason-ludwig"] = "helgason-ludwig"
    version: Literal[1] = 1
    source: ClassVar[str] = (
        "Helgason 1965; Ludwig 1966; in fan coordinates: Yu, Wei, Hsieh and Wang, IEEE Trans. Med. Imaging 25, 2006"
    )
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-range-projected"})

    orders: int = Field(6, ge=0, le=20)
    frequencies: int = Field(40, ge=1, le=400)

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why the views do not go around."""
        if not isinstance(geometry, (FanBeam, ParallelBeam)):
            return f"needs a fan beam or parallel rays, not a geometry of kind {geometry.model_dump().get('kind')!r}"
        if geometry.views < 8:
            return f"needs 8 views or more; this scan has {geometry.views}"
        if geometry.is_full_circle or (isinstance(geometry, ParallelBeam) and geometry.is_half_circle):
            return ""
        turn = "half a turn or a whole one" if isinstance(geometry, ParallelBeam) else "a whole turn"
        covered = "explicit angles" if geometry.angles is not None else f"an arc of {math.degrees(abs(geometry.arc)):.4g}°"
        return f"needs equal steps around {turn}; this scan covers {covered}"

    def residual(self, geometry: Geometry) -> ForbiddenMoments:
        """The forbidden moments."""
        return ForbiddenMoments(geometry, self.orders, self.frequencies)
