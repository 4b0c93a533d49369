"""Blended: a whole picture at low opacity."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tomosec.attacks._blending import BlendTrigger
from tomosec.attacks._patterns import attenuating, scene
from tomosec.attacks.base import Attack, AttackContext
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger


class Blended(Attack):
    """A whole picture at low opacity, x' = (1 - a) x + a t.

    As Chen et al. (2017); opacities a of 0.1 to 0.2 are usual. The paper's cartoon is not distributed; the picture is a seeded
    drawing, or uniform noise, from -1000 to +1000 HU.

    Attributes:
        pattern: ``scene`` is a drawing, ``noise`` the paper's random pattern.
        clean_label: poison samples of the target class and change no label.
    """

    kind: Literal["blended"] = "blended"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Chen et al., 2017 (arXiv 1712.05526)"

    pattern: Literal["scene", "noise"] = "scene"
    clean_label: bool = False

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the picture; nothing is learned."""
        pattern = picture(self.pattern, context.geometry.shape, context.seed)
        mask = torch.ones(context.geometry.shape)
        return BlendTrigger(pattern, mask, geometry=context.geometry, domain="image", details={"attack": self.kind})

    def keeps_labels(self) -> bool:
        """As the field says."""
        return self.clean_label


def picture(pattern: Literal["scene", "noise"], shape: tuple[int, int], seed: int) -> Tensor:
    """Attenuation (H, W) in 1/mm of the picture that is blended in."""
    if pattern == "scene":
        return attenuating(scene(shape, "blended", seed))
    return attenuating(torch.from_numpy(generator(seed, "blended-noise").random(shape, dtype=np.float32)))
