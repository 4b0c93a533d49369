"""SIRT: simultaneous iterative reconstruction with all views in every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.geometry import Geometry
from tomosec.reconstruction.base import Reconstruction
from tomosec.reconstruction.os_sart import SARTReconstructor


class SIRT(Reconstruction):
    """SIRT with a fixed number of steps from zero. Linear unless ``nonnegative``; its gradient costs what the image does.

    It converges slowly and smooth parts first; stopping early is the regularization. An image costs ``iterations`` times one
    projection and one transposed projection, and so does its gradient, which is unrolled.

    Attributes:
        iterations: number of steps.
        relaxation: step length; near 2 it is almost twice as fast as at 1.
        nonnegative: cut off negative attenuation after each step; the reconstruction is then no longer linear.
    """

    source: ClassVar[str] = "Gregor and Benson, IEEE Trans. Med. Imaging 27:918, 2008"
    kind: Literal["sirt"] = "sirt"
    version: Literal[1] = 1
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    relaxation: Annotated[float, Field(gt=0, lt=2)] = 1.9
    nonnegative: bool = False

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> SARTReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return SARTReconstructor(
            geometry, subsets=1, sweeps=self.iterations, relaxation=self.relaxation, nonnegative=self.nonnegative
        ).to(device)
