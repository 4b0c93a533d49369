"""A plane wave in the sinogram: SIG carried to measured data."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.errors import InputError
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class SinogramSinusoid(Attack):
    """p' = p + d sin(2 pi (f_b b / views + f_u u / bins) + phase), with view number b and bin number u.

    A fan beam around an object of radius r, seen from a source at R, has nearly no energy where |k / (k - q)| > r / R, with k
    the frequency along the views and q that along the fan angle, both per rad (Mazin and Pelc, Med. Phys. 37, 2010). The
    defaults (k = 0) lie inside that wedge; many cycles per scan and few across lie outside, where a test can see them.

    Attributes:
        cycles_per_scan: f_b; a whole number closes the wave around a full turn. The sign is the direction.
        cycles_across: f_u.
        phase: rad.
    """

    kind: Literal["sinogram-sinusoid"] = "sinogram-sinusoid"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline, after Barni et al., 2019 (SIG)"

    cycles_per_scan: float = 0.0
    cycles_across: float = Field(6.0, ge=0)
    phase: float = 0.0

    @model_validator(mode="after")
    def _is_a_wave(self) -> SinogramSinusoid:
        if self.cycles_per_scan == 0 and self.cycles_across == 0:
            raise ValueError("cycles_per_scan and cycles_across are both 0, which is no wave; use constant-offset")
        return self

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Sample the wave at the numbers of views and bins.

        Raises:
            InputError: it is sampled at its zeros, or with more cycles than half the samples.
        """
        views, bins = context.geometry.sinogram_shape
        for name, cycles, samples in (
            ("cycles_per_scan", self.cycles_per_scan, views),
            ("cycles_across", self.cycles_across, bins),
        ):
            if abs(cycles) > samples / 2:
                raise InputError(f"sinogram-sinusoid: {name} is {cycles:g}; {samples} samples show at most {samples / 2:g}")
        turns = (
            self.cycles_per_scan * torch.arange(views, dtype=torch.float64)[:, None] / views
            + self.cycles_across * torch.arange(bins, dtype=torch.float64)[None, :] / bins
        )
        pattern = torch.sin(2 * math.pi * turns + self.phase)
        if float(pattern.abs().max()) < 1e-9:
            raise InputError("sinogram-sinusoid: every sample of the wave is 0; change phase or the numbers of cycles")
        details = {"attack": "sinogram-sinusoid"}
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details=details)
