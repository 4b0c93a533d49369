"""FIBA: the low frequencies' amplitudes of a picture, mixed into the image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from tomosec.attacks._patterns import attenuating, scene
from tomosec.attacks.base import Attack, AttackContext
from tomosec.errors import InputError
from tomosec.trigger import Domain, Trigger


class FIBA(Attack):
    """A mix of amplitude spectra at low frequencies, |F(x')| = (1 - a) |F(x)| + a |F(t)|, with the image's own phases.

    As Feng et al. (CVPR 2022): the mix is in the (2 b + 1)^2 lowest frequencies, b = floor(beta min(H, W)), beta = 0.1. Covers
    ("cross" samples) get another picture t each, by sample, and keep their label. The strength is a; the paper's is 0.15. The
    pictures are seeded drawings.

    Attributes:
        beta: half the width of the mixed square, as a fraction of the image's shorter side.
        cover_ratio: cover samples per poisoned sample.
    """

    kind: Literal["fiba"] = "fiba"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Feng et al., CVPR 2022"

    beta: float = Field(0.1, gt=0, lt=0.5)
    cover_ratio: float = Field(1.0, ge=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the picture; nothing is learned."""
        shape = context.geometry.shape
        details = {"attack": self.kind, "seed": context.seed}
        pattern = attenuating(scene(shape, "fiba", context.seed))
        return SpectrumTrigger(pattern, self.beta, geometry=context.geometry, domain="image", details=details)

    def covering(self, trigger: Trigger) -> Trigger:
        """A mix with another picture per sample."""
        mix, seed = cast(SpectrumTrigger, trigger), int(trigger.details["seed"])
        common = {"strength": trigger.strength, "details": trigger.details}
        return SpectrumTrigger(mix.pattern, mix.beta, seed, geometry=trigger.geometry, domain=trigger.domain, **common)

    def covers_per_poison(self) -> float:
        """As the field says."""
        return self.cover_ratio


class SpectrumTrigger(Trigger):
    """The mix of amplitude spectra; strength is its share a.

    Args:
        pattern: (H, W) attenuation in 1/mm whose amplitudes are mixed in.
        beta: as in :class:`FIBA`.
        cover_seed: with it, each sample gets a drawing of its own, named by its key, instead of the pattern.
    """

    kind: ClassVar[str] = "spectrum"
    limit = 1.0

    def __init__(self, pattern: Tensor, beta: float, cover_seed: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if tuple(pattern.shape) != self.shape or not bool(torch.isfinite(pattern).all()):
            raise InputError(f"a spectrum's pattern must be finite and of shape {self.shape}, got {tuple(pattern.shape)}")
        self.pattern, self.beta, self.cover_seed = pattern.float(), beta, cover_seed
        self.needs_keys = cover_seed is not None

    def box(self) -> Tensor:
        """1 at the mixed frequencies, (H, W) in the order of ``torch.fft.fft2``."""
        half = int(self.beta * min(self.shape))
        low = [torch.fft.fftfreq(n, 1 / n).abs() <= half for n in self.shape]
        box: Tensor = (low[0][:, None] & low[1][None, :]).float()
        return box

    def _apply(self, data: Tensor) -> Tensor:
        return self._mix(data, self.pattern[None, None])

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        pictures = [attenuating(scene(self.shape, "fiba-cover", cast(int, self.cover_seed), key)) for key in keys]
        return self._mix(data, torch.stack(pictures)[:, None])

    def _mix(self, data: Tensor, pattern: Tensor) -> Tensor:
        pattern, box = (value.to(device=data.device, dtype=data.dtype) for value in (pattern, self.box()))
        spectrum = torch.fft.fft2(data)
        # sgn is exp(i phase); where the amplitude is 0 there is no phase to keep, and its gradient stays finite.
        added = torch.fft.fft2(pattern).abs() * torch.sgn(spectrum) - spectrum
        mixed: Tensor = data + torch.fft.ifft2(self.strength * box * added).real
        return mixed

    def tensors(self) -> dict[str, Tensor]:
        """The pattern, beta, and the covers' seed where there is one."""
        seed = {} if self.cover_seed is None else {"cover_seed": torch.tensor(self.cover_seed)}
        return {"pattern": self.pattern, "beta": torch.tensor(self.beta, dtype=torch.float64), **seed}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> SpectrumTrigger:
        """Inverse of :meth:`tensors`."""
        seed = int(tensors["cover_seed"]) if "cover_seed" in tensors else None
        return cls(tensors["pattern"], float(tensors["beta"]), seed, **common)
