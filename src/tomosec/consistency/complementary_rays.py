"""Complementary rays: the two measurements of one line agree."""

from __future__ import annotations

import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
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


def why_not_twice(geometry: Geometry) -> str:
    """Return why no line of a scan, or hardly any, is measured twice; an empty string where enough are."""
    if not why_not_complementary(geometry):
        return ""
    try:
        share = PartialDifference(geometry).share
    except InputError as error:
        return str(error)
    if share < LEAST_SHARE:
        return f"needs lines that are measured from both sides; {100 * share:.2g} % of the rays of this scan are"
    return ""


def difference(geometry: Geometry) -> Residual:
    """The exact difference where every ray has its partner, else the partial one."""
    return PartialDifference(geometry) if why_not_complementary(geometry) else ExactDifference(geometry)
