"""Reprojection: what the image that explains a scan best leaves of it."""

from __future__ import annotations

from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.geometry import Geometry
from tomosec.operators import Projector
from tomosec.reconstruction.iterative import cgls


class Unexplained(Residual):
    """p − A x of the x that CGLS finds in some steps, (B, views, bins)."""

    exact_noise = False

    def __init__(self, geometry: Geometry, steps: int) -> None:
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
