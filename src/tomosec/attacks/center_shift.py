"""A center of rotation that is not where the reconstruction believes it: the sinogram moves along the detector."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.trigger import Domain, Trigger


class CenterShift(Attack):
    """Every view moved along the detector: p'(b, u) = p(b, u - s), with the strength s in bins.

    The shift is Fourier interpolation of the view continued by its mirror image, so the detector need not be periodic. Linear
    interpolation would smooth the noise, and so give a second, easier sign of the trigger.
    """

    kind: Literal["center-shift"] = "center-shift"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline (calibration error)"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Nothing is learned or drawn."""
        return DetectorShift(geometry=context.geometry, domain="measurement", details={"attack": "center-shift"})


class DetectorShift(Trigger):
    """A shift by ``strength`` bins towards higher bin numbers, a negative one towards lower."""

    kind: ClassVar[str] = "detector-shift"

    def _apply(self, data: Tensor) -> Tensor:
        bins = data.shape[-1]
        spectrum = torch.fft.rfft(torch.cat([data, data.flip(-1)], dim=-1))
        frequency = torch.arange(bins + 1, device=data.device, dtype=torch.float64) / (2 * bins)
        phase = torch.polar(torch.ones_like(frequency), -2 * math.pi * frequency * self.strength)
        shifted: Tensor = torch.fft.irfft(spectrum * phase.to(spectrum.dtype), n=2 * bins)
        return shifted[..., :bins]

    def tensors(self) -> dict[str, Tensor]:
        """None: its strength is all there is."""
        return {}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> DetectorShift:
        """Inverse of :meth:`tensors`."""
        return cls(**common)
