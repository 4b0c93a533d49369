"""Views that read high in every bin, like a flicker of the tube; in the image, a bundle of parallel streaks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.errors import InputError
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class ViewStreak(Attack):
    """Neighboring views with a constant error in every bin: streaks in one direction.

    Attributes:
        views: how many neighboring views.
        first_view: where they begin, as a share of all views; they may run over the end of a turn.
    """

    kind: Literal["view-streak"] = "view-streak"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline"

    views: int = Field(1, ge=1)
    first_view: float = Field(0.0, ge=0, lt=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Mark the views.

        Raises:
            InputError: more views than the scan has.
        """
        views, bins = context.geometry.sinogram_shape
        if self.views > views:
            raise InputError(f"view-streak: views is {self.views}, but the scan has {views}")
        first = int(self.first_view * views)
        pattern = torch.zeros(views, bins)
        pattern[(torch.arange(self.views) + first) % views] = 1.0
        details = {"attack": "view-streak", "first_view": first}
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="measurement", details=details)
