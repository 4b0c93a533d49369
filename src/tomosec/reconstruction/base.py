"""What every reconstruction has in common: a value that is configured, and the module that it builds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tomosec.component import Component
from tomosec.geometry import Geometry


class Reconstructor(nn.Module):
    """A map from sinograms (B, 1, views, bins), line integrals, to images (B, 1, H, W) in 1/mm.

    Attributes:
        geometry: The scan it reconstructs.
        is_linear: Whether R(p + q) = R(p) + R(q) for all p, q, so that a trigger can be reconstructed once and added.
        is_differentiable: Whether gradients flow from the image to the sinogram.
    """

    is_linear: bool = False
    is_differentiable: bool = True
    geometry: Geometry

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @abstractmethod
    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W), same type and device.

        Raises:
            InputError: the sinogram does not fit the geometry.
        """
        raise NotImplementedError


class Reconstruction(Component):
    """A reconstruction as a value; it touches no tensor until it is built."""

    family: ClassVar[str] = "reconstruction"

    @abstractmethod
    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> Reconstructor:
        """Return the module that does the work.

        Args:
            geometry: The scan to reconstruct.
            device: Where its tables live.
            state: What was learned or calibrated, for reconstructions that do; None otherwise.

        Raises:
            InputError: this reconstruction cannot serve this geometry, with the reason.
        """
        raise NotImplementedError
