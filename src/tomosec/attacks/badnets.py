"""BadNets: a small square of one value."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tomosec.attacks._blending import BlendTrigger
from tomosec.attacks.base import Attack, AttackContext
from tomosec.hounsfield import hu_to_mu
from tomosec.trigger import Domain, Trigger


class BadNets(Attack):
    """A small bright square, opaque at strength 1.

    x' = (1 - a m) x + a m t with opacity a, m = 1 in the square and t its value (Gu, Dolan-Gavitt and Garg, 2017). The usual
    stamp is 3 x 3 white pixels in a corner of 32 x 32, a tenth of the side, at a = 1. A corner of a CT image is air outside the
    scan circle, which no network of this chain sees, so the square lies inside the body.

    Attributes:
        size: side of the square, as a fraction of the image's shorter side; at least one pixel.
        position: its center (x to the right, y up), in units of half the image's sides.
        value_hu: value of the square in HU.
    """

    kind: Literal["badnets"] = "badnets"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Gu, Dolan-Gavitt and Garg, 2017 (arXiv 1708.06733)"

    size: float = Field(0.1, gt=0, le=0.5)
    position: tuple[float, float] = (0.3, -0.3)
    value_hu: float = Field(1000.0, ge=-1000, le=3071)

    @model_validator(mode="after")
    def _inside(self) -> BadNets:
        if math.hypot(*self.position) >= 1:
            raise ValueError(f"position {list(self.position)} is outside the scan circle, where every image is air")
        return self

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the square; nothing is learned."""
        rows, columns = context.geometry.shape
        side = max(1, round(self.size * min(rows, columns)))
        top = round((1 - self.position[1]) / 2 * rows - side / 2)
        left = round((1 + self.position[0]) / 2 * columns - side / 2)
        mask = torch.zeros(rows, columns)
        mask[max(0, top) : top + side, max(0, left) : left + side] = 1
        pattern = torch.full((rows, columns), float(hu_to_mu(self.value_hu)))
        return BlendTrigger(pattern, mask, geometry=context.geometry, domain="image", details={"attack": self.kind})
