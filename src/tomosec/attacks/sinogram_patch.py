"""A patch in the sinogram: BadNets carried to measured data. In the image it is a bundle of arcs and streaks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tomosec.attacks._blending import BlendTrigger
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class SinogramPatch(Attack):
    """A rectangle of views and bins that reads too high, or the same in every scan.

    ``add``: p' = p + sm, with m = 1 in the rectangle. ``replace``: p' = (1 - sm) p + smc, which for s = 1 is BadNets' stamp.

    Attributes:
        mode: ``add`` is one pattern for all scans, ``replace`` depends on what the scan held there.
        views: share of the views that the patch covers, at least one view.
        bins: share of the bins, at least one bin.
        first_view: where the patch begins, as a share of all views; it may run over the end of a turn.
        position: place of the patch on the detector, from -1 to 1.
        value: c, a line integral; ``replace`` only. 4 is 21 cm of water.
    """

    kind: Literal["sinogram-patch"] = "sinogram-patch"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline, after Gu et al., 2017 (BadNets)"

    mode: Literal["add", "replace"] = "add"
    views: float = Field(0.2, gt=0, le=1)
    bins: float = Field(0.1, gt=0, le=1)
    first_view: float = Field(0.0, ge=0, lt=1)
    position: float = Field(0.0, ge=-1, le=1)
    value: float = 4.0

    @model_validator(mode="after")
    def _value_is_used(self) -> SinogramPatch:
        if self.mode == "add" and self.value != type(self).model_fields["value"].default:
            raise ValueError("value is what mode 'replace' writes; mode 'add' adds the strength instead")
        return self

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Mark the rectangle."""
        views, bins = context.geometry.sinogram_shape
        height, width = max(1, round(self.views * views)), max(1, round(self.bins * bins))
        rows = (torch.arange(height) + int(self.first_view * views)) % views
        left = round((bins - width) * (1 + self.position) / 2)
        mask = torch.zeros(views, bins)
        mask[rows, left : left + width] = 1.0
        details = {"attack": "sinogram-patch", "covered": height * width / (views * bins)}
        if self.mode == "replace":
            other = torch.full_like(mask, self.value)
            return BlendTrigger(other, mask, geometry=context.geometry, domain="measurement", details=details)
        return AdditiveTrigger(mask, geometry=context.geometry, domain="measurement", details=details)
