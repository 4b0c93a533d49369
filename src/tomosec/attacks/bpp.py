"""BPP: fewer gray values."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numba as nb
import numpy as np
import torch
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext
from tomosec.trigger import Domain, Trigger


class BPP(Attack):
    """Quantization to levels of a fixed step, with error diffusion.

    Wang, Zhai and Ma (CVPR 2022) reduce the color depth of 8-bit images, to 8 levels by default; on CT the levels are k d in
    attenuation, that is steps of d in HU from air up. The strength is the step d in 1/mm. Eight levels of a window of 2000 HU are
    a step of 286 HU. The paper's contrastive adversarial training is a training of the victim, and is not part of the trigger.

    Attributes:
        dither: ``floyd-steinberg`` passes each pixel's rounding error on to its neighbors, as in the paper; ``none`` rounds.
    """

    kind: Literal["bpp"] = "bpp"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Wang, Zhai and Ma, CVPR 2022 (BppAttack)"

    dither: Literal["floyd-steinberg", "none"] = "floyd-steinberg"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Nothing is drawn or learned: the trigger is the step."""
        diffuse = self.dither == "floyd-steinberg"
        return QuantizingTrigger(diffuse, geometry=context.geometry, domain="image", details={"attack": self.kind})


class QuantizingTrigger(Trigger):
    """Nearest multiple of ``strength`` (1/mm), with or without error diffusion. No gradient passes.

    Args:
        diffuse: Floyd-Steinberg error diffusion, rows from the top and columns from the left.
    """

    kind: ClassVar[str] = "quantize"
    is_differentiable: ClassVar[bool] = False

    def __init__(self, diffuse: bool, **common: Any) -> None:
        super().__init__(**common)
        self.diffuse = diffuse

    @torch.no_grad()
    def _apply(self, data: Tensor) -> Tensor:
        step = abs(self.strength)
        if not self.diffuse:
            return torch.round(data / step) * step
        images = np.array(data.detach().cpu().numpy()[:, 0], dtype=np.float64)
        for image in images:
            diffuse_error(image, step)
        return torch.from_numpy(images[:, None]).to(device=data.device, dtype=data.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Whether errors are diffused."""
        return {"diffuse": torch.tensor(self.diffuse)}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> QuantizingTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(bool(tensors["diffuse"]), **common)


@nb.njit(cache=True, nogil=True)
def diffuse_error(image, step):  # type: ignore[no-untyped-def]
    """Quantize (H, W) in place to multiples of ``step``; 7/16 of an error goes right, 3, 5 and 1 to the row below."""
    rows, columns = image.shape
    for i in range(rows):
        for j in range(columns):
            level = np.rint(image[i, j] / step) * step
            error = image[i, j] - level
            image[i, j] = level
            if j + 1 < columns:
                image[i, j + 1] += error * 7 / 16
            if i + 1 < rows:
                if j > 0:
                    image[i + 1, j - 1] += error * 3 / 16
                image[i + 1, j] += error * 5 / 16
                if j + 1 < columns:
                    image[i + 1, j + 1] += error * 1 / 16
