"""A constant added to every line integral."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class ConstantOffset(Attack):
    """p' = p + s in every ray: it passes comparisons of complementary rays and fails the look at rays through air."""

    kind: Literal["constant-offset"] = "constant-offset"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """One everywhere."""
        pattern = torch.ones(context.geometry.sinogram_shape)
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details={"attack": "constant-offset"})
