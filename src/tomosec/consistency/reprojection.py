"""Reprojection: what the image that explains a scan best leaves of it."""

from __future__ import annotations

import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.geometry import Geometry
from tomosec.operators import Projector
from tomosec.reconstruction.iterative import cgls

#: Of CGLS, if nothing is said.
STEPS = 10


class Unexplained(Residual):
    """p − A x of the x that CGLS finds in some steps, (B, views, bins)."""

    exact_noise = False

    def __init__(self, geometry: Geometry, steps: int = STEPS) -> None:
        self._projector, self._steps = Projector(geometry), steps

    def values(self, p: Tensor) -> Tensor:
        """What A x leaves of p."""
        return (p - self._projector.unchecked(cgls(p, self._projector, steps=self._steps)))[:, 0].double()

    def nominal(self, variance: Tensor) -> Tensor:
        """That of the rays: the image takes up a part of the noise, which the calibration finds."""
        return variance[:, 0]

    def sinogram_map(self, z: Tensor) -> Tensor:
        """Where it is."""
        return z


class FixedSteps(Residual):
    """What CGLS leaves of p if it takes the steps that it takes for another scan, (B, views, bins); linear in p.

    The steps of CGLS depend on what they are for, which is the body: of p + T with a small T, :class:`Unexplained` is that of p
    plus, to first order and but for the change of the steps, this of T. It is a polynomial in A Aᵀ, so it is symmetric.

    Args:
        like: (1, 1, views, bins) the scan whose steps are taken.
        steps: how many.
    """

    exact_noise = False

    def __init__(self, geometry: Geometry, like: Tensor, steps: int = STEPS) -> None:
        self._projector = Projector(geometry)
        self._steps: list[tuple[float, float]] = []
        with torch.no_grad():
            residual, direction = like, self._projector.T.unchecked(like)
            square = float(direction.double().square().sum())
            for _ in range(steps):
                ahead = self._projector.unchecked(direction)
                energy = float(ahead.double().square().sum())
                if square == 0 or energy == 0:
                    break
                length = square / energy
                residual = residual - length * ahead
                gradient = self._projector.T.unchecked(residual)
                before, square = square, float(gradient.double().square().sum())
                direction = gradient + square / before * direction
                self._steps.append((length, square / before))

    def values(self, p: Tensor) -> Tensor:
        """What is left of p."""
        residual, direction = p, self._projector.T.unchecked(p)
        for number, (length, turn) in enumerate(self._steps):
            residual = residual - length * self._projector.unchecked(direction)
            if number + 1 < len(self._steps):
                direction = self._projector.T.unchecked(residual) + turn * direction
        return residual[:, 0].double()

    def nominal(self, variance: Tensor) -> Tensor:
        """That of the rays, as of :class:`Unexplained`."""
        return variance[:, 0]
