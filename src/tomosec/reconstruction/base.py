"""What every reconstruction has in common: a value that is configured, and the module that it builds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from tomosec.component import Component
from tomosec.geometry import Geometry
from tomosec.progress import Progress, SilentProgress


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


class PairedScans(Protocol):
    """Scans whose ground truth is known: what a learned reconstruction is trained on."""

    def __len__(self) -> int:
        """How many slices."""
        ...

    def pair(self, positions: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Measured line integrals (B, 1, views, bins) and attenuation (B, 1, H, W) in 1/mm of the slices at ``positions``.

        The noise of a slice is a function of it and ``draw``.
        """
        ...


@dataclass(frozen=True, slots=True)
class FitContext:
    """What a reconstruction is fitted to.

    Attributes:
        geometry: the scan.
        scans: training slices; no others are seen by the weights.
        validation: held-out slices to report the loss on; None or none at all where there are none.
        device: where to train.
        checkpoint: file that an interrupted fit is continued from; the caller removes it when the state is safe.
        progress: where progress goes.
    """

    geometry: Geometry
    scans: PairedScans
    validation: PairedScans | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Path | None = None
    progress: Progress = field(default_factory=SilentProgress)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit gives.

    Attributes:
        state: tensors by name, on the CPU, for :meth:`Reconstruction.build`.
        facts: plain data about the fit: curves, seconds, gradient passes.
    """

    state: dict[str, Tensor]
    facts: dict[str, Any]


class Reconstruction(Component):
    """A reconstruction as a value; it touches no tensor until it is built.

    Attributes:
        source: publication it is from, for ``tomosec list reconstructions``, which also shows the docstring's first paragraph:
            whether it is linear, and what its gradient costs.
        is_learned: whether :meth:`fit` has to come before :meth:`build`.
    """

    family: ClassVar[str] = "reconstruction"
    source: ClassVar[str] = ""
    is_learned: ClassVar[bool] = False

    def fit(self, context: FitContext) -> Fitted:
        """Learn or calibrate from scans with known ground truth; nothing to do for a reconstruction that learns nothing."""
        return Fitted({}, {})

    @abstractmethod
    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> Reconstructor:
        """Return the module that does the work.

        Args:
            geometry: The scan to reconstruct.
            device: Where its tables live.
            state: What :meth:`fit` gave, for reconstructions that learn; others do not look at it.

        Raises:
            InputError: this reconstruction cannot serve this geometry, with the reason, or its state is missing.
        """
        raise NotImplementedError
