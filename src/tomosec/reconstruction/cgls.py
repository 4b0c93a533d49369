"""CGLS: conjugate gradients on the normal equations, stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.geometry import Geometry
from tomosec.operators.dispatch import Projector
from tomosec.reconstruction.base import Reconstruction, Reconstructor
from tomosec.reconstruction.iterative import cgls


class CGLSReconstructor(Reconstructor):
    """A fixed number of CGLS steps from zero; see :func:`tomosec.reconstruction.iterative.cgls`.

    Not linear: its step lengths are quotients of the data, so R(p + q) is not R(p) + R(q); only R(cp) = c R(p) holds. The
    gradient is that of the unrolled steps: it takes as many applications of A and A.T as the image did, and keeps about
    nine images and five sinograms of float32 a step in memory, because inner products are taken in float64.

    Args:
        geometry: The scan.
        steps: Number of steps.
    """

    is_linear = False

    def __init__(self, geometry: Geometry, *, steps: int) -> None:
        super().__init__(geometry)
        self.steps = steps
        self._projector = Projector(geometry)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        return cgls(sinogram, self._projector, steps=self.steps)


class CGLS(Reconstruction):
    """Least squares by a few conjugate-gradient steps. Not linear; its gradient costs what the image does, and memory a step.

    Noise comes in with the late steps: few of them are the regularization. An image costs ``steps`` projections and one more
    transposed projection, and so does its gradient, which is unrolled.

    Attributes:
        steps: number of steps from zero.
    """

    source: ClassVar[str] = "Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49:409, 1952"
    kind: Literal["cgls"] = "cgls"
    version: Literal[1] = 1
    steps: Annotated[int, Field(ge=1, le=1000)] = 12

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> CGLSReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return CGLSReconstructor(geometry, steps=self.steps).to(device)
