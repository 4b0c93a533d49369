"""A tube whose output drifts away from its air scan: every view is offset by one constant."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class I0Drift(Attack):
    """Counts N exp(-c) against an unchanged air scan, with c a function of the view alone: p'[b, :] = p[b, :] + c(b).

    Attributes:
        profile: ``linear``: the output falls exponentially with time, so c grows from 0 in the first view; ``constant``: it was
            another one from the start, the same in every view.
    """

    kind: Literal["i0-drift"] = "i0-drift"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline (calibration error)"

    profile: Literal["linear", "constant"] = "linear"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """One constant per view, in the order of the views; of one view alone a drift is a constant."""
        views, bins = context.geometry.sinogram_shape
        drift = torch.linspace(0, 1, views) if self.profile == "linear" and views > 1 else torch.ones(views)
        pattern = drift[:, None].expand(views, bins)
        details = {"attack": "i0-drift", "profile": self.profile}
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details=details)
