"""Complementary rays: the two measurements of one line must agree."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from tomosec.defenses.residuals import Residual, ResidualDetector
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.operators.complementary import SecondLook, complementary, complementary_variance, why_not_complementary

#: Rays of a scan, in parts of all, that must be measured twice for a test to be worth its name.
LEAST_SHARE = 0.01


class ExactDifference(Residual):
    """p − C p of a centered whole turn, (B, views, bins); C by exact shifts of the views' Fourier series."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def values(self, p: Tensor) -> Tensor:
        """The difference."""
        p = p.double()
        return (p - complementary(self._geometry, p))[:, 0]

    def nominal(self, variance: Tensor) -> Tensor:
        """The variances of both measurements; they are independent."""
        return (variance + complementary_variance(self._geometry, variance))[:, 0]

    def sinogram_map(self, z: Tensor) -> Tensor:
        """Where it is."""
        return z


class PartialDifference(Residual):
    """p − its second measurement where there is one, (B, rays)."""

    def __init__(self, geometry: Geometry) -> None:
        self._second = SecondLook(geometry)
        self.share = float(self._second.valid.double().mean())

    def values(self, p: Tensor) -> Tensor:
        """The differences of the rays that are measured twice."""
        return (p.double() - self._second(p))[:, 0, self._second.valid.to(p.device)]

    def nominal(self, variance: Tensor) -> Tensor:
        """The variances of both measurements."""
        return (variance + self._second.variance(variance))[:, 0, self._second.valid.to(variance.device)]

    def sinogram_map(self, z: Tensor) -> Tensor:
        """Zero where a line is measured once."""
        out = torch.zeros(len(z), *self._second.valid.shape, dtype=z.dtype, device=z.device)
        out[:, self._second.valid.to(z.device)] = z
        return out


class ComplementaryRays(ResidualDetector):
    """Complementary rays: a line measured from both sides must read the same, p(β, γ) = p(β + π + 2γ, −γ).

    The residual is r = p − C p, and the score is the mean of r²/(v + C v + e), or of its largest values. A centered whole turn is
    shifted exactly, and every ray has its partner. A short scan is judged where it measures lines twice, a scan with an offset
    detector or axis by interpolation. Half a turn of parallel rays measures every line once: not applicable.

    It misses whatever is the same from both sides: a constant, an object that is not there, a symmetrized trigger.
    """

    kind: Literal["complementary-rays"] = "complementary-rays"
    version: Literal[1] = 1
    source: ClassVar[str] = "Parker, Med. Phys. 9:254, 1982 (complementary rays); test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-symmetrized", "ltgm-range-projected"})

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why no line, or hardly any, is measured twice."""
        if not why_not_complementary(geometry):
            return ""
        try:
            share = PartialDifference(geometry).share
        except InputError as error:
            return str(error)
        if share < LEAST_SHARE:
            return f"needs lines that are measured from both sides; {100 * share:.2g} % of the rays of this scan are"
        return ""

    def residual(self, geometry: Geometry) -> Residual:
        """The exact difference where every ray has its partner, else the partial one."""
        return PartialDifference(geometry) if why_not_complementary(geometry) else ExactDifference(geometry)
