"""LTGM's mask alone: random signs on the rays on which the reconstruction depends least. What does the mask buy by itself?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import RayMask, positions_of
from tomosec.attacks.noise import white_pattern
from tomosec.errors import TomosecError
from tomosec.trigger import AdditiveTrigger, Trigger


class ReconstructionGradient(RayMask):
    """LTGM's mask with frozen random signs and no gradient of the network (its ablation).

    T = r * mean mask(|d MSE(R(p), x) / dp|), with r = +-1 per ray, one draw for all scans.

    Attributes:
        samples: training samples that the mask is the mean of: the source classes, or all.
        mask: ``erratum`` keeps the rays whose reconstruction gradient is below the quantile with one weight, ``released``
            weights them by that gradient, ``none`` leaves the random signs alone.
        quantile: the quantile of the mask.
        mask_input: sinogram of the reconstruction gradient.
        mask_scope: the mean of the samples' masks, or the mask of their mean gradient.
        mask_statistics: quantile and maximum per sample, or over the batch.
    """

    kind: Literal["reconstruction-gradient"] = "reconstruction-gradient"
    version: Literal[2] = 2
    source: ClassVar[str] = "ablation of Yang et al., MICCAI 2024"

    samples: Literal["source", "all"] = "source"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Take the mask in one pass over the training samples and draw the signs from the seed."""
        weights = self.mean_weights(context, positions_of(context, self.samples))[0, 0].cpu()
        if not bool(weights.any()):
            raise TomosecError(f"reconstruction-gradient: the mask of quantile {self.quantile:g} keeps no ray")
        signs = torch.where(
            white_pattern(context.geometry.sinogram_shape, context.seed, "reconstruction-gradient") < 0, -1.0, 1.0
        )
        return AdditiveTrigger(
            signs * weights, geometry=context.geometry, domain="measurement", details={"attack": "reconstruction-gradient"}
        )
