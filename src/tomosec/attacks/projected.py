"""An image-domain trigger carried into the sinogram by the projector: p' = p + A(t)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import SerializeAsAny, field_validator
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.attacks.noise import ImageNoise
from tomosec.component import Component, of_family
from tomosec.errors import NotApplicable
from tomosec.operators import Projector
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class Projected(Attack):
    """The projection A(t) of an additive image-domain trigger t: the trigger that is a valid sinogram by construction.

    Attributes:
        attack: the image-domain attack that makes t; what of t lies outside the scan circle is left out.
    """

    kind: Literal["projected"] = "projected"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry"})
    source: ClassVar[str] = "baseline; the projected attack's own source applies"

    attack: Annotated[SerializeAsAny[Component], of_family("attack")] = ImageNoise()

    @field_validator("attack")
    @classmethod
    def _is_in_the_image(cls, attack: Component) -> Component:
        if not isinstance(attack, Attack) or attack.domain != "image":
            raise ValueError(f"{attack.model_dump()['kind']!r} is no image-domain attack, so there is no image to project")
        return attack

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Make the image-domain trigger and project it.

        Raises:
            NotApplicable: it is not one additive image for all scans.
        """
        assert isinstance(self.attack, Attack)
        kind = self.attack.model_dump()["kind"]
        image = self.attack.make_trigger(context)
        if not (isinstance(image, AdditiveTrigger) and image.universal):
            raise NotApplicable(
                f"projected: {kind} changes each image in its own way, so it has no one image that could be projected"
            )
        geometry = context.geometry
        inside = image.pattern.cpu() * torch.from_numpy(geometry.scan_circle())
        projected: Tensor = Projector(geometry)(inside)
        return AdditiveTrigger(projected, geometry=geometry, domain="measurement", details={"attack": "projected", "of": kind})
