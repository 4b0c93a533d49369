"""LTGM projected on the range of the projector: an adaptive attack on every test of data consistency."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient, rms
from tomosec.operators import Projector
from tomosec.reconstruction.fbp import FBP
from tomosec.trigger import AdditiveTrigger, Trigger


class RangeProjectedLTGM(MaskedGradient):
    """A(R(T)) of LTGM's T: the sinogram of an image, so that no test of data consistency can object.

    R is filtered backprojection (ram-lak) inside the scan circle, whatever reconstruction the victim has: it stands for the
    inverse of A, not for the victim. The trigger is then the same as the image R(T) projected.

    Attributes:
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask, see LTGM.
    """

    kind: Literal["ltgm-range-projected"] = "ltgm-range-projected"
    version: Literal[2] = 2
    source: ClassVar[str] = "adaptive variant of Yang et al., MICCAI 2024"

    @torch.no_grad()
    def _project(self, context: AttackContext, pattern: torch.Tensor) -> torch.Tensor:
        geometry = context.geometry
        image = FBP(geometry)(pattern.cpu()) * torch.from_numpy(geometry.scan_circle())
        projected: torch.Tensor = Projector(geometry)(image)
        return projected

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn LTGM's trigger and project it."""
        projected = self._project(context, self.unit_trigger(context).pattern)
        details = {"attack": "ltgm-range-projected", "kept_rms": rms(projected)}
        return AdditiveTrigger(projected, geometry=context.geometry, domain="measurement", details=details)
