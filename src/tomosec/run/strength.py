"""Scaling a trigger to the budget, and choosing among several budgets on the validation split."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tomosec.attacks.strength import fixed_strength, strength_for
from tomosec.hounsfield import HU_PER_MU
from tomosec.pipeline import Injection
from tomosec.run.chain import BATCH, Chain


@dataclass(frozen=True, slots=True)
class Scaled:
    """A trigger at a budget: ``rmse_hu`` is its image RMSE over the body, mean over non-target training samples."""

    injection: Injection
    budget: float
    rmse_hu: float


class Scaler:
    """Scales triggers of one experiment and seed; its measure is the noiseless chain on non-target training samples."""

    def __init__(self, chain: Chain, seed: int) -> None:
        self._chain = chain
        self._samples = chain.samples("train", seed)
        self._positions = [i for i, target in enumerate(self._samples.targets) if target != chain.target]
        self._noiseless: np.ndarray[Any, np.dtype[np.float32]] | None = None

    def to_budget(self, injection: Injection, value: float) -> Scaled:
        """Scale to the experiment's budget ``value``, in the unit of its threat model."""
        unit = self._chain.experiment.threat.budget.unit
        effect = self._effect(injection)
        if unit == "hu":
            strength, reached = strength_for(effect, value, guess=1e-3, limit=injection.trigger.limit)
        else:
            raw = injection.trigger.details.get("raw_rms")
            strength = fixed_strength(unit, value, sinogram_rms=self.sinogram_rms(), raw_rms=raw)
            reached = effect(strength)
        return Scaled(injection.at(strength), value, reached)

    def to_rmse(self, injection: Injection, rmse_hu: float) -> Scaled:
        """Scale to an image RMSE in HU: how a control gets the same size as the trigger it is compared with."""
        strength, reached = strength_for(self._effect(injection), rmse_hu, guess=1e-3, limit=injection.trigger.limit)
        return Scaled(injection.at(strength), rmse_hu, reached)

    def sinogram_rms(self) -> float:
        """RMS of the noiseless training sinograms."""
        total, count = 0.0, 0
        for start in range(0, len(self._samples), BATCH):
            integrals = self._samples.integrals(range(start, min(start + BATCH, len(self._samples)))).double()
            total, count = total + float(integrals.pow(2).sum()), count + integrals.numel()
        return math.sqrt(total / count)

    @torch.no_grad()
    def _effect(self, injection: Injection) -> Callable[[float], float]:
        """Mean over samples of the RMSE in HU that a strength gives."""
        if injection.effect is not None:
            unit = self._mean_rmse(lambda positions: injection.effect)
            return lambda strength: abs(strength) * unit
        return lambda strength: self._mean_rmse(lambda positions: self._difference(injection.at(strength), positions))

    def _difference(self, injection: Injection, positions: list[int]) -> torch.Tensor:
        """R(p') - R(p) of the noiseless chain, (B, 1, H, W) in 1/mm."""
        imaging, keys = injection.imaging, self._samples.keys(positions)
        clean = self._clean(positions)
        if injection.trigger.domain == "image":
            return imaging.image_triggered(clean, injection.trigger, keys) - clean
        triggered = imaging.noiseless_integrals(self._samples.integrals(positions), injection.trigger, keys)
        return imaging.reconstruct(triggered) - clean

    @torch.no_grad()
    def _clean(self, positions: list[int]) -> torch.Tensor:
        """R(p) of the noiseless chain: made once for all strengths, in a file without a name, because it may be gigabytes."""
        place = {position: row for row, position in enumerate(self._positions)}
        if self._noiseless is None:
            shape = (len(self._positions), *self._chain.imaging.geometry.shape)
            with tempfile.TemporaryFile() as file:
                self._noiseless = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
            for start in range(0, len(self._positions), BATCH):
                batch = self._positions[start : start + BATCH]
                imaging = self._chain.imaging
                images = imaging.reconstruct(imaging.noiseless_integrals(self._samples.integrals(batch)))
                self._noiseless[start : start + len(batch)] = images[:, 0].cpu().numpy()
        rows = self._noiseless[[place[position] for position in positions]]
        return torch.from_numpy(np.asarray(rows))[:, None].to(self._chain.device)

    @torch.no_grad()
    def _mean_rmse(self, difference: Callable[[list[int]], torch.Tensor | None]) -> float:
        total, count = 0.0, 0
        for start in range(0, len(self._positions), BATCH):
            positions = self._positions[start : start + BATCH]
            body = self._samples.body(positions).double().flatten(1)
            change = difference(positions)
            assert change is not None
            pixels = body.sum(1)
            rmse = ((change.double().flatten(1).pow(2) * body).sum(1) / pixels.clamp_min(1)).sqrt()
            # A slice without a body says nothing about the size of a change in one.
            total, count = total + float(rmse[pixels > 0].sum()), count + int((pixels > 0).sum())
        return HU_PER_MU * total / max(1, count)
