"""The parts of an experiment that do not depend on the attack: data on the grid, split, scanner, reconstruction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from tomosec.acquisition import Acquisition, Calibration
from tomosec.attacks.base import TrainingBatch
from tomosec.data.base import Dataset, OpenDataset
from tomosec.data.files import remembered_digests
from tomosec.data.prepared import PreparedSet, load_prepared, prepare
from tomosec.data.splits import Split, SplitAssignment
from tomosec.errors import InputError, nearest
from tomosec.experiment import Experiment, digest
from tomosec.geometry import Geometry
from tomosec.pipeline import ImagingChain, Injection
from tomosec.progress import Progress
from tomosec.reconstruction.base import Reconstruction
from tomosec.reconstruction.fbp import FBP
from tomosec.record import Store
from tomosec.run.artifacts import Artifact, Artifacts
from tomosec.run.reconstruct import fit_reconstruction

#: Slices that are projected, measured and reconstructed together.
BATCH = 32


@dataclass(frozen=True, slots=True)
class Chain:
    """An experiment's data and scanner, ready to use.

    Attributes:
        key: what identifies everything in here; artifact keys start from it.
        target, sources: class indices of the attacker's goal.
        reconstruction_fit: the training of the reconstruction, where it is a learned one.
    """

    experiment: Experiment
    manifest: str
    classes: tuple[str, ...]
    prepared: PreparedSet
    split: SplitAssignment
    imaging: ImagingChain
    calibration: Calibration
    target: int
    sources: tuple[int, ...]
    device: torch.device
    key: dict[str, Any]
    reconstruction_fit: Artifact | None

    def samples(self, part: str, seed: int) -> MeasuredSamples:
        """The slices of ``train``, ``validation`` or ``test``, with one seed's noise."""
        return MeasuredSamples(self, getattr(self.split, part), seed)


def open_data(experiment: Experiment, root: Path | None) -> OpenDataset:
    """Open the experiment's dataset.

    Raises:
        InputError: the folder cannot be used, or the goal names a class that the data do not have.
    """
    opened = cast(Dataset, experiment.data).open(root)
    _check_goal(experiment, opened)
    return opened


def _check_goal(experiment: Experiment, opened: OpenDataset) -> None:
    for name in (experiment.threat.goal.target, *experiment.threat.goal.sources):
        if name not in opened.classes:
            raise InputError(
                f"threat.goal: no class {name!r} in this dataset{nearest(name, opened.classes)}; "
                f"there are {', '.join(opened.classes)}"
            )


@dataclass(frozen=True, slots=True)
class Identified:
    """An experiment with its opened data and its identity, which follows from both."""

    experiment: Experiment
    opened: OpenDataset
    identity: str


def identify(experiments: Sequence[Experiment], root: Path | None, store: Store) -> list[Identified]:
    """Open the data of experiments, each dataset once, and identify them; content digests are kept in the store.

    Raises:
        InputError: as :func:`open_data`, for any of them.
    """
    known: dict[str, tuple[OpenDataset, str]] = {}
    out = []
    with remembered_digests(store.artifacts / "digests.json"):
        for experiment in experiments:
            name = digest(experiment.data)
            if name not in known:
                opened = cast(Dataset, experiment.data).open(root)
                known[name] = opened, opened.manifest_hash()
            opened, manifest = known[name]
            _check_goal(experiment, opened)
            out.append(Identified(experiment, opened, experiment.identity(manifest)))
    return out


def build_chain(
    experiment: Experiment, opened: OpenDataset, artifacts: Artifacts, progress: Progress, device: torch.device
) -> Chain:
    """Prepare the data, cut the split, calibrate the dose, build scanner and reconstruction; train the latter if it learns."""
    geometry = cast(Geometry, experiment.geometry)
    manifest = opened.manifest_hash()
    grid = {"shape": list(geometry.shape), "pixel_mm": geometry.pixel_mm, "circle_mm": geometry.scan_radius_mm}

    def make_data(folder: Path) -> dict[str, Any]:
        prepare(opened, geometry, folder, progress)
        return {"slices": len(opened.entries)}

    prepared = load_prepared(artifacts.get("data", {"data": manifest, "grid": grid}, make_data).folder)
    split = cast(Split, experiment.split).assign(prepared.entries)
    calibration = calibrate(experiment, artifacts, progress)
    scanner = cast(Acquisition, experiment.acquisition).build(calibration, geometry, device=device)
    target, sources = experiment.threat.goal.indices(opened.classes)
    key = {
        "data": manifest,
        "split": experiment.split,
        "geometry": experiment.geometry,
        "acquisition": experiment.acquisition,
        "reconstruction": experiment.reconstruction,
    }
    reconstructor, fit = fit_reconstruction(
        cast(Reconstruction, experiment.reconstruction),
        geometry,
        scanner,
        prepared,
        split,
        key=key,
        artifacts=artifacts,
        progress=progress,
        device=device,
    )
    return Chain(
        experiment,
        manifest,
        opened.classes,
        prepared,
        split,
        ImagingChain(scanner, reconstructor).to(device),
        calibration,
        target,
        sources,
        device,
        key,
        fit,
    )


def calibrate(experiment: Experiment, artifacts: Artifacts, progress: Progress) -> Calibration:
    """I0 of the experiment's dose on its geometry; measured once per geometry and dose."""
    geometry, acquisition = cast(Geometry, experiment.geometry), cast(Acquisition, experiment.acquisition)

    def make(folder: Path) -> dict[str, Any]:
        progress.message("Calibrating the dose on a water disc")
        found = acquisition.fit(geometry, FBP(geometry, window="ram-lak"))
        return {
            "i0": found.i0 if math.isfinite(found.i0) else None,
            "target_hu": found.target_hu,
            "predicted_hu": found.predicted_hu,
        }

    facts = artifacts.get("dose", {"geometry": geometry, "acquisition": acquisition}, make).facts
    return Calibration(math.inf if facts["i0"] is None else facts["i0"], facts["target_hu"], facts["predicted_hu"])


class MeasuredSamples:
    """Some slices of a chain, scanned with one seed's noise. Serves attacks, training and evaluation alike.

    Args:
        chain: the chain.
        indices: which slices of the prepared set.
        seed: names the noise.
        reconstructed: images of draw 0 where they are already at hand, (N, H, W) in the order of ``indices``.
    """

    def __init__(
        self, chain: Chain, indices: Sequence[int], seed: int, reconstructed: np.ndarray[Any, np.dtype[np.float32]] | None = None
    ) -> None:
        self._chain, self.indices, self.seed, self._reconstructed = chain, tuple(indices), seed, reconstructed
        self.entries = tuple(chain.prepared.entries[i] for i in self.indices)
        self.targets: Sequence[int] = tuple(entry.target for entry in self.entries)

    def __len__(self) -> int:
        return len(self.indices)

    def keys(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Sample keys."""
        return tuple(self.entries[i].key for i in positions)

    def attenuation(self, positions: Sequence[int]) -> Tensor:
        """(B, 1, H, W) ground truth, 1/mm."""
        return self._chain.prepared.images([self.indices[i] for i in positions]).to(self._chain.device)

    def body(self, positions: Sequence[int]) -> Tensor:
        """(B, 1, H, W) body masks inside the scan circle."""
        return self._chain.prepared.body([self.indices[i] for i in positions]).to(self._chain.device)

    def integrals(self, positions: Sequence[int]) -> Tensor:
        """(B, 1, views, bins) noiseless line integrals."""
        out: Tensor = self._chain.imaging.scanner(self.attenuation(positions))
        return out

    def batches(self, positions: Sequence[int], size: int) -> Iterator[TrainingBatch]:
        """What an attacker sees of these samples; the noise is draw 0."""
        for start in range(0, len(positions), size):
            chosen = list(positions[start : start + size])
            keys, attenuation = self.keys(chosen), self.attenuation(chosen)
            integrals: Tensor = self._chain.imaging.scanner(attenuation)
            measured = self._chain.imaging.measure_integrals(integrals, keys, seed=self.seed, draw=0)
            targets = torch.tensor([self.targets[i] for i in chosen], device=self._chain.device)
            yield TrainingBatch(attenuation, integrals, measured, targets, keys)

    def pair(self, positions: Sequence[int], draw: int, trigger: Injection | None) -> tuple[Tensor, Tensor | None]:
        """(clean, triggered) images (B, 1, H, W) in 1/mm that share their noise."""
        clean, *triggered = self.views(positions, draw, [] if trigger is None else [trigger])
        return clean, triggered[0] if triggered else None

    @torch.no_grad()
    def views(self, positions: Sequence[int], draw: int, triggers: Sequence[Injection]) -> list[Tensor]:
        """Clean images (B, 1, H, W) in 1/mm, then those with each trigger; all share their noise."""
        positions, keys = list(positions), self.keys(positions)
        integrals: Tensor | None = None

        def line_integrals() -> Tensor:
            return self.integrals(positions) if integrals is None else integrals

        if draw == 0 and self._reconstructed is not None:
            clean = torch.from_numpy(self._reconstructed[positions])[:, None].to(self._chain.device)
        else:
            integrals = self.integrals(positions)
            clean = self._chain.imaging.image(integrals, keys, seed=self.seed, draw=draw)
        return [clean, *(trigger.triggered(clean, line_integrals, keys, seed=self.seed, draw=draw) for trigger in triggers)]


def reconstructed_samples(chain: Chain, part: str, seed: int, artifacts: Artifacts, progress: Progress) -> MeasuredSamples:
    """The slices of a part with their draw-0 images made once and kept, so that a sweep over strengths reconstructs nothing."""
    plain = chain.samples(part, seed)

    def make(folder: Path) -> dict[str, Any]:
        images = open_memmap(
            folder / "images.npy", mode="w+", dtype=np.float32, shape=(len(plain), *chain.imaging.geometry.shape)
        )
        progress.start(len(plain), f"Scanning the {part} slices")
        for start in range(0, len(plain), BATCH):
            chosen = list(range(start, min(start + BATCH, len(plain))))
            images[start : start + len(chosen)] = plain.pair(chosen, 0, None)[0][:, 0].cpu().numpy()
            progress.advance(len(chosen))
        images.flush()
        return {"slices": len(plain)}

    folder = artifacts.get("reconstructed", {**chain.key, "part": part, "seed": seed}, make).folder
    return MeasuredSamples(chain, plain.indices, seed, np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False))
