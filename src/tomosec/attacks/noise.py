"""Random triggers: one frozen pattern for all scans. They are baselines, and the controls that every experiment runs."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.randomness import generator
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class FrozenNoise(Attack):
    """One frozen draw of white Gaussian noise in the sinogram."""

    kind: Literal["frozen-noise"] = "frozen-noise"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the pattern; it depends on the seed and the geometry's shape alone."""
        pattern = white_pattern(context.geometry.sinogram_shape, context.seed, "frozen-noise")
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details={"attack": "frozen-noise"})


def white_pattern(shape: tuple[int, int], seed: int, purpose: str) -> Tensor:
    """White Gaussian noise of ``shape``."""
    return torch.from_numpy(generator(seed, "white-pattern", purpose).standard_normal(shape, dtype=np.float32))


def random_phases(pattern: Tensor, seed: int, purpose: str) -> Tensor:
    """A pattern with the amplitude spectrum of ``pattern`` (..., rows, columns) and random phases: as coloured, but unlearned.

    The phases are those of a white pattern's transform, so that the result is real; the mean is kept.
    """
    flat = pattern.reshape(pattern.shape[-2:]).double()
    phases = torch.angle(torch.fft.rfft2(white_pattern((flat.shape[0], flat.shape[1]), seed, purpose).double()))
    amplitude = torch.fft.rfft2(flat).abs()
    phases[0, 0] = 0.0 if float(flat.sum()) >= 0 else torch.pi
    scrambled: Tensor = torch.fft.irfft2(torch.polar(amplitude, phases), s=flat.shape)
    return scrambled.float()
