"""LTGM shaped like the noise: an adaptive attack on tests of noise statistics."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient, pipeline_of, positions_of, rms
from tomosec.errors import NotApplicable
from tomosec.trigger import AdditiveTrigger, Trigger


class NoiseShapedLTGM(MaskedGradient):
    """LTGM's T weighted with the sd of the noise and limited to some sd, so that it hides where the scan is noisy.

    w = sd^(power - 1) T, T' = sd * clip(w / RMS(w), -limit, limit), where sd is the noise of a line integral (first order,
    quantum and electronic), root mean square over the training scans. T' is in units of sd what w is, hence flat.

    Attributes:
        power: 1 weights T with sd; 2 with its square, the steepest ascent for a given energy in units of the noise.
        limit: largest change of a ray in sd, relative to the RMS over all rays; None for no limit.
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask, see LTGM.
    """

    kind: Literal["ltgm-noise-shaped"] = "ltgm-noise-shaped"
    version: Literal[2] = 2
    source: ClassVar[str] = "adaptive variant of Yang et al., MICCAI 2024; noise model of Whiting et al., Med. Phys. 2006"

    power: Literal[1, 2] = 1
    limit: float | None = Field(3.0, gt=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn LTGM's trigger and shape it.

        Raises:
            NotApplicable: the scan has no noise to hide in.
        """
        if not pipeline_of(context, self).imaging.scanner.is_noisy:
            raise NotApplicable("ltgm-noise-shaped: needs noise to hide in, and this scan has none (acquisition.dose)")
        learned, sd = self.unit_trigger(context).pattern[0, 0].double(), self.noise_sd(context)
        whitened = sd ** (self.power - 1) * learned
        whitened = whitened / rms(whitened)
        if self.limit is not None:
            whitened = whitened.clamp(-self.limit, self.limit)
        details = {"attack": "ltgm-noise-shaped", "noise_sd_rms": rms(sd)}
        return AdditiveTrigger((sd * whitened).float(), geometry=context.geometry, domain="measurement", details=details)

    @torch.no_grad()
    def noise_sd(self, context: AttackContext) -> Tensor:
        """Sd of the line integrals, root mean square over the training samples, (views, bins), float64."""
        scanner, positions = pipeline_of(context, self).imaging.scanner, positions_of(context, self.samples)
        variance = torch.zeros(context.geometry.sinogram_shape, dtype=torch.float64)
        for batch in context.samples.batches(positions, context.batch_size):
            variance += scanner.noise_sd(batch.integrals.double()).pow(2).sum((0, 1)).cpu()
        return (variance / max(1, len(positions))).sqrt()
