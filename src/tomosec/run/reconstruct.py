"""The experiment's reconstruction, ready to use; a learned one is trained first, once per data, split, scan and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomosec.acquisition import Scanner
from tomosec.data.prepared import PreparedSet
from tomosec.data.splits import SplitAssignment
from tomosec.geometry import Geometry
from tomosec.progress import Progress
from tomosec.randomness import torch_seed
from tomosec.reconstruction.base import FitContext, Reconstruction, Reconstructor
from tomosec.reconstruction.saved import load_reconstruction, save_reconstruction
from tomosec.run.artifacts import Artifact, Artifacts


@dataclass(frozen=True, slots=True)
class ScannedSlices:
    """Some slices of the prepared data and noisy scans of them.

    Attributes:
        prepared: the data on the grid.
        indices: which slices.
        scanner: measures them.
        seed: names the noise.
    """

    prepared: PreparedSet
    indices: tuple[int, ...]
    scanner: Scanner
    seed: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.indices)

    @torch.no_grad()
    def pair(self, positions: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Measured line integrals (B, 1, views, bins) and ground truth (B, 1, H, W) in 1/mm."""
        chosen = [self.indices[i] for i in positions]
        attenuation = self.prepared.images(chosen).to(self.device)
        keys = [self.prepared.entries[i].key for i in chosen]
        return self.scanner.measure(self.scanner(attenuation), keys, seed=self.seed, draw=draw), attenuation


def fit_reconstruction(
    reconstruction: Reconstruction,
    geometry: Geometry,
    scanner: Scanner,
    prepared: PreparedSet,
    split: SplitAssignment,
    *,
    key: dict[str, Any],
    artifacts: Artifacts,
    progress: Progress,
    device: torch.device,
) -> tuple[Reconstructor, Artifact | None]:
    """Build the reconstruction, trained on the training part of the split where it learns.

    Args:
        reconstruction: the value.
        geometry: the scan.
        scanner: the acquisition, calibrated.
        prepared: the data on the grid.
        split: its training part is learned from, its validation part only reported on.
        key: what identifies data, split, geometry, acquisition and reconstruction, whose seed is a field of it.
        artifacts: where the trained state is kept.
        progress: where progress goes.
        device: where to train and where the module is wanted.

    Returns:
        The module, and the artifact of its training where there was one.
    """
    if not reconstruction.is_learned:
        return reconstruction.build(geometry, device=device), None

    def scanned(indices: Sequence[int]) -> ScannedSlices:
        seed = torch_seed(getattr(reconstruction, "seed", 0), "reconstruction-training")
        return ScannedSlices(prepared, tuple(indices), scanner, seed, device)

    def make(folder: Path) -> dict[str, Any]:
        checkpoint = folder / "checkpoint.safetensors"
        context = FitContext(geometry, scanned(split.train), scanned(split.validation), device, checkpoint, progress)
        fitted = reconstruction.fit(context)
        save_reconstruction(folder / "reconstruction.safetensors", reconstruction, geometry, fitted.state, fitted.facts)
        checkpoint.unlink(missing_ok=True)
        return fitted.facts

    artifact = artifacts.get("reconstruction", key, make)
    state = load_reconstruction(artifact.folder / "reconstruction.safetensors")[2]
    return reconstruction.build(geometry, device=device, state=state), artifact
