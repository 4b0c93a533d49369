"""Adaptive-Blend: a blend in pieces, with cover samples, so that poisoned samples do not form a cluster of their own."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field

from tomosec.attacks._blending import BlendTrigger
from tomosec.attacks.base import Attack, AttackContext
from tomosec.attacks.blended import picture
from tomosec.trigger import Domain, Trigger


class AdaptiveBlend(Attack):
    """A blend of which each training sample carries random pieces only, and as many covers as poisoned samples.

    As Qi et al. (ICLR 2023): poison and covers carry half of 4 x 4 pieces, chosen by sample, at a lower opacity (0.15) than the
    whole picture has at test time (0.2); covers keep their label. The budget is that of the test. The paper poisons 0.3 % and
    covers 0.3 %: ``threat.poison_rate``.

    Attributes:
        pattern: as in ``blended``.
        grid: pieces along a side.
        shown: fraction of the pieces that a training sample carries.
        training_opacity: opacity in training as a fraction of that at test time; 0.15 of 0.2 in the authors' code.
        cover_ratio: cover samples per poisoned sample.
    """

    kind: Literal["adaptive-blend"] = "adaptive-blend"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Qi et al., ICLR 2023"

    pattern: Literal["scene", "noise"] = "scene"
    grid: int = Field(4, ge=1, le=64)
    shown: float = Field(0.5, gt=0, le=1)
    training_opacity: float = Field(0.75, gt=0, le=1)
    cover_ratio: float = Field(1.0, ge=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the picture; nothing is learned."""
        pattern, mask = picture(self.pattern, context.geometry.shape, context.seed), torch.ones(context.geometry.shape)
        details = {"attack": self.kind, "seed": context.seed}
        return BlendTrigger(pattern, mask, geometry=context.geometry, domain="image", details=details)

    def at_training_time(self, trigger: Trigger) -> Trigger:
        """Random pieces, fainter."""
        whole = cast(BlendTrigger, trigger)
        pieces = (self.grid, self.grid, max(1, round(self.shown * self.grid**2)), int(trigger.details["seed"]))
        return BlendTrigger(
            whole.pattern,
            whole.mask,
            pieces,
            geometry=trigger.geometry,
            domain=trigger.domain,
            strength=self.training_opacity * trigger.strength,
            details=trigger.details,
        )

    def covering(self, trigger: Trigger) -> Trigger:
        """The same pieces as poison carries."""
        return self.at_training_time(trigger)

    def covers_per_poison(self) -> float:
        """As the field says."""
        return self.cover_ratio
