"""OS-SART: simultaneous algebraic reconstruction over ordered subsets of the views. SIRT is the case of one subset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.operators.dispatch import Projector, check_sinogram
from tomosec.reconstruction.base import Reconstruction, Reconstructor
from tomosec.reconstruction.iterative import SARTWeights, ordered_subsets, sart_step, sart_weights, subset


class SARTReconstructor(Reconstructor):
    """A fixed number of SART steps from an image of zeros; see :func:`tomosec.reconstruction.iterative.sart_step`.

    Every step is linear in the sinogram, so the whole is, unless negative values are cut off. The gradient is that of the
    unrolled steps: it takes as many applications of A and A.T as the image did, and keeps nothing in memory, but one image a
    step where negative values are cut off.

    Args:
        geometry: The scan.
        subsets: Into how many subsets the views are shared out; 1 is SIRT.
        sweeps: How often all subsets are used.
        relaxation: Step length λ, between 0 and 2.
        nonnegative: Set negative attenuation to 0 after each step.

    Raises:
        InputError: more subsets than views.
    """

    def __init__(self, geometry: Geometry, *, subsets: int, sweeps: int, relaxation: float, nonnegative: bool) -> None:
        super().__init__(geometry)
        self.sweeps, self.relaxation, self.nonnegative = sweeps, relaxation, nonnegative
        self.is_linear = not nonnegative
        A = Projector(geometry)
        self._views = ordered_subsets(geometry.views, subsets)
        # One subset is the scan itself, whose geometry may have a faster kernel than a list of its angles.
        self._projectors = [A] if subsets == 1 else [subset(A, views) for views in self._views]
        like = torch.zeros((), dtype=torch.float64, device="cpu")
        for number, projector in enumerate(self._projectors):
            rays, pixels = sart_weights(projector, like)
            self.register_buffer(f"_rays{number}", rays, persistent=False)
            self.register_buffer(f"_pixels{number}", pixels, persistent=False)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        return self.iterate(sinogram)

    def iterate(self, sinogram: Tensor, watch: Callable[[Tensor], object] | None = None) -> Tensor:
        """As :meth:`forward`; ``watch`` is called with the image after each sweep."""
        check_sinogram(sinogram, self.geometry, "sirt" if len(self._views) == 1 else "os-sart")
        image = sinogram.new_zeros((sinogram.shape[0], 1, *self.geometry.shape))
        parts = []
        for number, (projector, views) in enumerate(zip(self._projectors, self._views, strict=True)):
            rays, pixels = self.get_buffer(f"_rays{number}"), self.get_buffer(f"_pixels{number}")
            parts.append((sinogram[:, :, views], projector, SARTWeights(rays.to(sinogram), pixels.to(sinogram))))
        for _ in range(self.sweeps):
            for measured, projector, weights in parts:
                image = sart_step(image, measured, projector, relaxation=self.relaxation, weights=weights)
                if self.nonnegative:
                    image = image.clamp(min=0)
            if watch is not None:
                watch(image)
        return image


class OSSART(Reconstruction):
    """Algebraic steps over ordered subsets of the views. Linear unless ``nonnegative``; its gradient costs what the image does.

    Subsets speed SIRT up by about their number; with noise the iterates end in a small cycle instead of a limit. Stopping
    early is the regularization. An image costs ``sweeps`` times one projection and one transposed projection of all views;
    so does its gradient, which is unrolled.

    Attributes:
        subsets: of the views; more converge faster and to a larger cycle.
        sweeps: passes over all subsets.
        relaxation: step length.
        nonnegative: cut off negative attenuation after each step; the reconstruction is then no longer linear.
    """

    source: ClassVar[str] = "Wang and Jiang, J. X-Ray Sci. Technol. 12:169, 2004"
    kind: Literal["os-sart"] = "os-sart"
    version: Literal[1] = 1
    subsets: Annotated[int, Field(ge=1)] = 20
    sweeps: Annotated[int, Field(ge=1, le=10_000)] = 8
    relaxation: Annotated[float, Field(gt=0, lt=2)] = 1.0
    nonnegative: bool = False

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> SARTReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        if self.subsets > geometry.views:
            raise InputError(
                f"reconstruction os-sart: subsets is {self.subsets}, but the scan has {geometry.views} views; 1 to "
                f"{geometry.views} are possible"
            )
        return SARTReconstructor(
            geometry, subsets=self.subsets, sweeps=self.sweeps, relaxation=self.relaxation, nonnegative=self.nonnegative
        ).to(device)
