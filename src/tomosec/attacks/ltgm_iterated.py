"""Iterated LTGM: a universal perturbation of the sinogram by projected gradient steps, each a masked mean gradient."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient, mean_gradient, measured_statistics, positions_of, rms
from tomosec.trigger import AdditiveTrigger, Trigger


class IteratedLTGM(MaskedGradient):
    """LTGM in several steps: the gradient is taken anew where the trigger has got to.

    LTGM of Yang et al. (MICCAI 2024) with the projected steps of Madry et al. (ICLR 2018), over all samples as in Shafahi et al.
    (AAAI 2020), ten by default.

    d <- P(d + 2.5 e / steps * G(d) / RMS(G(d))), where G(d) is LTGM's masked mean gradient at p + d and P scales back to an RMS
    of at most e. The first step alone is LTGM. Masks are those of the clean scans. The result depends on e, the size at which
    it is learned, so e should be near the size at which it is used.

    Attributes:
        steps: gradient steps; each costs what LTGM costs.
        relative_rms: e, as a fraction of the RMS of the measured training sinograms.
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask, see LTGM.
    """

    kind: Literal["ltgm-iterated"] = "ltgm-iterated"
    version: Literal[2] = 2
    source: ClassVar[str] = (
        "Yang et al., MICCAI 2024; steps of Madry et al., ICLR 2018; universal as in Shafahi et al., AAAI 2020"
    )

    steps: int = Field(10, ge=1)
    relative_rms: float = Field(0.005, gt=0, le=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Take the steps; each is one pass over the training samples, or two where the mask is from the mean gradient."""
        mean, sd = measured_statistics(context, positions_of(context, self.samples), context.batch_size)
        radius = self.relative_rms * math.hypot(mean, sd)
        change = torch.zeros(context.geometry.sinogram_shape, dtype=torch.float64)
        for _ in range(self.steps):
            gradient = mean_gradient(context, self, self, offset=change[None, None] if bool(change.any()) else None)
            change = change + gradient * (2.5 * radius / self.steps / rms(gradient))
            change = change * min(1.0, radius / rms(change))
        details = {"attack": "ltgm-iterated", "learned_at_rms": rms(change)}
        return AdditiveTrigger(change.float(), geometry=context.geometry, domain="measurement", details=details)
