"""An image-domain trigger carried into the sinogram by the projector: p' = p + A(t)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import SerializeAsAny, field_validator
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.attacks.sig import SIG
from tomosec.component import Component, of_family
from tomosec.geometry import Geometry
from tomosec.operators import Projector
from tomosec.reconstruction.fbp import FBP
from tomosec.threat import Access
from tomosec.trigger import AdditiveTrigger, Domain, Trigger, trigger_class


class _CarriedNeeds:
    """``Projected.needs`` is what every projection takes; that of an instance adds what the carried attack needs."""

    def __get__(self, instance: Projected | None, owner: type[Projected]) -> frozenset[Need]:
        projection: frozenset[Need] = frozenset({"raw-sinogram", "geometry"})
        return projection if instance is None else projection | instance._carried.needs


class Projected(Attack):
    """An image-domain attack carried into measured data by the projector; its change is a valid sinogram.

    An additive image t becomes one additive sinogram A(t) for all scans. Any other trigger X depends on the image, which is then
    reconstructed: p' = p + A(X(R(p)) - R(p)), with R filtered backprojection (ram-lak), whatever the victim reconstructs with.
    What a trigger changes outside the scan circle is left out. How poison is labeled is the carried attack's definition.

    Attributes:
        attack: the image-domain attack.
    """

    kind: Literal["projected"] = "projected"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs = _CarriedNeeds()
    source: ClassVar[str] = "baseline; the carried attack has its own source"

    attack: Annotated[SerializeAsAny[Component], of_family("attack")] = SIG()

    @field_validator("attack")
    @classmethod
    def _is_in_the_image(cls, attack: Component) -> Component:
        if not isinstance(attack, Attack) or attack.domain != "image":
            raise ValueError(f"{attack.model_dump()['kind']!r} is no image-domain attack, so there is no image to project")
        return attack

    @property
    def _carried(self) -> Attack:
        return cast(Attack, self.attack)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Make the image-domain trigger and carry it."""
        trigger, geometry = self._carried.make_trigger(context), context.geometry
        if not isinstance(trigger, AdditiveTrigger):
            return ProjectedTrigger.of(trigger)
        projected: Tensor = Projector(geometry)(trigger.pattern.cpu() * torch.from_numpy(geometry.scan_circle()))
        details = {"attack": self.kind, "carried": self._carried.model_dump()["kind"]}
        return AdditiveTrigger(projected, geometry=geometry, domain="measurement", details=details)

    def at_test_time(self, trigger: Trigger) -> Trigger:
        """As the carried attack says."""
        return _carry(trigger, self._carried.at_test_time(_image_trigger(trigger)))

    def at_training_time(self, trigger: Trigger) -> Trigger:
        """As the carried attack says."""
        return _carry(trigger, self._carried.at_training_time(_image_trigger(trigger)))

    def covering(self, trigger: Trigger) -> Trigger | None:
        """As the carried attack says."""
        cover = self._carried.covering(_image_trigger(trigger))
        return None if cover is None else _carry(trigger, cover)

    def covers_per_poison(self) -> float:
        """As the carried attack says."""
        return self._carried.covers_per_poison()

    def keeps_labels(self) -> bool:
        """As the carried attack says."""
        return self._carried.keeps_labels()

    def allowed_access(self) -> frozenset[Access]:
        """As the carried attack says."""
        return self._carried.allowed_access()


class ProjectedTrigger(Trigger):
    """``p + A(X(R(p)) - R(p))`` with an image-domain trigger X; the strength is that of X.

    Each application costs a reconstruction and a projection.

    Args:
        carried: X.
    """

    kind: ClassVar[str] = "projected"

    def __init__(self, carried: Trigger, **common: Any) -> None:
        self.needs_keys, self.limit = carried.needs_keys, carried.limit
        self.is_differentiable = carried.is_differentiable  # type: ignore[misc]  # of what it carries, not of its class
        super().__init__(**common)
        self.carried = carried.at(self.strength)

    @classmethod
    def of(cls, carried: Trigger, **common: Any) -> ProjectedTrigger:
        """Carry a trigger at its strength; ``common`` may name the site."""
        details = {**carried.details, "attack": "projected", "carried": carried.kind}
        return cls(carried, geometry=carried.geometry, domain="measurement", strength=carried.strength, details=details, **common)

    def _apply(self, data: Tensor) -> Tensor:
        return self._carry(data, None)

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        return self._carry(data, keys)

    def _carry(self, data: Tensor, keys: Sequence[str] | None) -> Tensor:
        project, fbp, circle = _operators(self.geometry, str(data.device))
        image = fbp(data) * circle
        change: Tensor = project((self.carried.apply(image, keys) - image) * circle)
        return data + change

    def tensors(self) -> dict[str, Tensor]:
        """Those of the carried trigger."""
        return self.carried.tensors()

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> ProjectedTrigger:
        """Inverse of :meth:`tensors`; which trigger is carried is in the details."""
        inner = {"geometry": common["geometry"], "domain": "image", "strength": common["strength"], "details": common["details"]}
        return cls(trigger_class(common["details"]["carried"]).rebuild(tensors, **inner), **common)


def _image_trigger(trigger: Trigger) -> Trigger:
    """What the carried attack may change: its own trigger, or the projection that stands for an additive one."""
    return trigger.carried if isinstance(trigger, ProjectedTrigger) else trigger


def _carry(trigger: Trigger, changed: Trigger) -> Trigger:
    """The carried attack's changed trigger in the place of ``trigger``."""
    return ProjectedTrigger.of(changed, site=trigger.site) if changed.domain == "image" else changed


@lru_cache(maxsize=2)
def _operators(geometry: Geometry, device: str) -> tuple[Projector, FBP, Tensor]:
    """A, R and the scan circle; kept, because a search for a strength makes a trigger of each that it tries."""
    circle = torch.from_numpy(geometry.scan_circle()).to(device)
    return Projector(geometry).to(device), FBP(geometry).to(device), circle
