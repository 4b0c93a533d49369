"""Detector bins that read high in every view, like badly calibrated elements; in the image, faint rings."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.errors import InputError
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class DetectorStreak(Attack):
    """Neighboring detector bins with a constant error in every view: a ring in the image.

    Attributes:
        bins: how many neighboring bins.
        position: their place on the detector, from -1 to 1.
    """

    kind: Literal["detector-streak"] = "detector-streak"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline"

    bins: int = Field(1, ge=1)
    position: float = Field(0.3, ge=-1, le=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Mark the bins.

        Raises:
            InputError: more bins than the detector has.
        """
        views, bins = context.geometry.sinogram_shape
        if self.bins > bins:
            raise InputError(f"detector-streak: bins is {self.bins}, but the detector has {bins}")
        first = round((bins - self.bins) * (1 + self.position) / 2)
        pattern = torch.zeros(views, bins)
        pattern[:, first : first + self.bins] = 1.0
        details = {"attack": "detector-streak", "first_bin": first}
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details=details)
