"""LTGM projected from inside the body: an adaptive attack on tests of consistency and of air rays at once."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient, rms
from tomosec.data.base import body_mask
from tomosec.errors import NotApplicable
from tomosec.operators import Projector
from tomosec.reconstruction.fbp import FBP
from tomosec.trigger import AdditiveTrigger, Trigger


class BodyConfinedLTGM(MaskedGradient):
    """A(m R(T)) of LTGM's T, where the mask m is the region that is inside the body in nearly all training samples.

    A(R(T)) fills the scan circle and is seen beside the body, where every ray should read air. Every ray that this one changes
    passes through the body of nearly all patients. It is the sinogram of an image, so no test of data consistency can object. R
    is filtered backprojection (ram-lak), whatever reconstruction the victim has; lungs belong to the body.

    Attributes:
        share: of the training samples that have their body at a pixel of m; with 1, no air ray of any of them is changed.
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask of rays, see LTGM.
    """

    kind: Literal["ltgm-body-confined"] = "ltgm-body-confined"
    version: Literal[1] = 1
    source: ClassVar[str] = "adaptive variant of Yang et al., MICCAI 2024"

    share: float = Field(0.95, gt=0, le=1)

    @torch.no_grad()
    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn LTGM's trigger, reconstruct it, keep what is in the body, and project that.

        Raises:
            NotApplicable: no pixel is in the body so often.
        """
        geometry, region = context.geometry, inside_bodies(context, self.share, "ltgm-body-confined")
        with torch.enable_grad():
            learned = self.unit_trigger(context).pattern.cpu()
        image = FBP(geometry)(learned) * torch.from_numpy(geometry.scan_circle())
        inside: Tensor = image * region
        projected = Projector(geometry)(inside)
        details = {
            "attack": "ltgm-body-confined",
            "kept_rms": rms(projected),
            "kept_energy": float(inside.double().square().sum() / image.double().square().sum()),
        }
        return AdditiveTrigger(projected, geometry=geometry, domain="measurement", details=details)


def inside_bodies(context: AttackContext, share: float, kind: str) -> Tensor:
    """(H, W) bool: the pixels inside the body in at least ``share`` of the training samples, and in the scan circle.

    Raises:
        NotApplicable: there is none.
    """
    count, total = torch.zeros(context.geometry.shape, dtype=torch.int64), len(context.samples)
    for batch in context.samples.batches(range(total), context.batch_size):
        for image in batch.attenuation[:, 0].cpu().numpy():
            count += torch.from_numpy(body_mask(image))
    inside: Tensor = (count >= share * total) & torch.from_numpy(context.geometry.scan_circle())
    if not bool(inside.any()):
        raise NotApplicable(f"{kind}: no pixel is inside the body in {100 * share:g} % of the training samples")
    return inside
