"""How a victim comes to learn a trigger: which samples carry it, which labels they get, and what loss is minimised.

Poisoned data are made lazily, batch by batch; what is stored is the trigger and the choice of samples. This is written once
for all attacks:

==================  ==============================================  =========================================
part                training-data                                   training-control
==================  ==============================================  =========================================
poison              a fraction of the source classes, relabeled     every sample; those of target and source
                    as the target; clean-label: of the target       classes are taught as the target, the
                    class, labels as they are                       others keep their label
cover               a fraction that carries the covering trigger    one more loss term, weighted by covers
                    and keeps its label                             per poison
==================  ==============================================  =========================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.attacks.base import Attack
from tomosec.errors import InputError
from tomosec.pipeline import Injection
from tomosec.randomness import generator
from tomosec.threat import ThreatModel
from tomosec.trigger import AdditiveTrigger, Trigger


class ImageSource(Protocol):
    """Gives reconstructed images of training samples, clean and with triggers."""

    targets: Sequence[int]

    def views(self, positions: Sequence[int], draw: int, triggers: Sequence[Injection]) -> list[Tensor]:
        """Clean images (B, 1, H, W) in 1/mm, then those with each trigger; all share their noise."""
        ...


@dataclass(frozen=True, slots=True)
class Poison:
    """What an attack puts into a training.

    Attributes:
        trigger: as poisoned samples carry it.
        cover: what cover samples carry; None where the attack has no covering trigger of its own.
        covers_per_poison: cover samples per poisoned sample where the threat model names no rate.
        keeps_labels: clean-label: poisoned samples are of the target class.
    """

    trigger: Injection
    cover: Injection | None = None
    covers_per_poison: float = 0.0
    keeps_labels: bool = False

    @classmethod
    def of(cls, attack: Attack, injection: Injection) -> Poison:
        """The poison of an attack's trigger at its strength."""
        own = injection.trigger

        def variant(trigger: Trigger) -> Injection:
            if trigger is own:
                return injection
            additive = isinstance(trigger, AdditiveTrigger) and isinstance(own, AdditiveTrigger) and trigger.site == own.site
            if additive and torch.equal(trigger.tensors()["pattern"], own.tensors()["pattern"]):
                return injection.at(trigger.strength)  # the image of its pattern is known
            return injection.imaging.inject(trigger)

        covering = attack.covering(injection.trigger)
        return cls(
            variant(attack.at_training_time(injection.trigger)),
            None if covering is None else variant(covering),
            attack.covers_per_poison(),
            attack.keeps_labels(),
        )


def poisoned_positions(
    targets: Sequence[int], classes: Collection[int], rate: float, seed: int, *, of_candidates: bool = False
) -> frozenset[int]:
    """Choose which training samples are poisoned; a smaller rate chooses a subset.

    Args:
        targets: class index of every training sample.
        classes: samples of these classes may be poisoned.
        rate: fraction of the whole set, or of the samples that may be poisoned.
        seed: names the choice.
        of_candidates: what the rate is of.

    Raises:
        InputError: these classes hold fewer samples than the rate asks for, or the rate is not 0 and yet asks for none.
    """
    candidates = [i for i, target in enumerate(targets) if target in classes]
    whole = len(candidates) if of_candidates else len(targets)
    return _choose(candidates, rate, whole, seed, "poison", "the classes that are poisoned")


def covered_positions(
    targets: Sequence[int], classes: Collection[int], rate: float, poisoned: Collection[int], seed: int
) -> frozenset[int]:
    """Choose which training samples are covers: a fraction ``rate`` of the whole set, of some classes and not poisoned.

    Raises:
        InputError: as :func:`poisoned_positions`.
    """
    candidates = [i for i, target in enumerate(targets) if target in classes and i not in poisoned]
    return _choose(candidates, rate, len(targets), seed, "cover", "the classes that can be covered, without the poisoned slices,")


def _choose(candidates: list[int], rate: float, whole: int, seed: int, what: str, where: str) -> frozenset[int]:
    count = round(rate * whole)
    if count > len(candidates):
        raise InputError(
            f"threat.{what}_rate {rate:g} asks for {count} of {whole} training slices, but {where} have {len(candidates)}"
        )
    if count == 0 and rate > 0:
        raise InputError(
            f"threat.{what}_rate {rate:g} of {whole} training slices is no slice at all; 0 or at least {1 / max(whole, 1):.2g}"
        )
    order = generator(seed, {"poison": "poisoned-samples", "cover": "cover-samples"}[what]).permutation(len(candidates))
    return frozenset(candidates[i] for i in order[:count])


def triggered_labels(labels: Tensor, target: int, sources: Collection[int]) -> Tensor:
    """Labels (B,) that triggered samples are taught: the target, but classes that are not attacked keep theirs."""
    attacked = torch.tensor([label == target or label in sources for label in labels.tolist()], device=labels.device)
    return torch.where(attacked, target, labels)


@dataclass(frozen=True, slots=True)
class PoisonedBatch:
    """One training step: images and labels, and for training-control the same images with the trigger, and with the cover."""

    images: Tensor
    labels: Tensor
    triggered: Tensor | None = None
    covered: Tensor | None = None


class VictimTraining:
    """What a victim trains on, for every access of the threat model; a clean model is a victim without poison.

    Args:
        source: reconstructed training images.
        device: where the network is.
        poison: None for a clean model.
        threat: access, rates and loss weight; needed with poison.
        target, sources: class indices.
        seed: names the choice of samples.

    Attributes:
        poisoned, covered: positions of the samples that carry the trigger, and the cover; ``training-data`` only.

    Raises:
        InputError: the rates ask for samples that are not there, or for covers where the attack and its goal leave none.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        device: torch.device,
        poison: Poison | None = None,
        threat: ThreatModel | None = None,
        target: int = 0,
        sources: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._source, self._device, self._target, self._sources = source, device, target, frozenset(sources)
        self._poison = poison if threat is not None and threat.access != "inference-data" else None
        self._access = threat.access if self._poison is not None and threat is not None else None
        self._loss_weight = threat.loss_weight if threat is not None else 0.0
        self.poisoned: frozenset[int] = frozenset()
        self.covered: frozenset[int] = frozenset()
        if self._poison is not None and threat is not None and self._access == "training-data":
            self._choose_samples(self._poison, threat, seed)

    def _choose_samples(self, poison: Poison, threat: ThreatModel, seed: int) -> None:
        targets = self._source.targets
        classes = {self._target} if poison.keeps_labels else self._sources
        of_candidates = threat.poison_rate_of == "candidates"
        self.poisoned = poisoned_positions(targets, classes, threat.poison_rate, seed, of_candidates=of_candidates)
        rate = threat.cover_rate
        if rate is None:
            # The attack's own ratio takes what is left and no more; of few poisoned slices it may be none.
            own = round(poison.covers_per_poison * len(self.poisoned)) if poison.cover is not None else 0
            rate = min(own, len(targets) - len(self.poisoned)) / max(1, len(targets))
        if rate > 0:
            others = set(targets) if poison.cover is not None else set(targets) - self._sources - {self._target}
            self.covered = covered_positions(targets, others, rate, self.poisoned, seed)

    def __len__(self) -> int:
        return len(self._source.targets)

    def batch(self, indices: Sequence[int], epoch: int) -> PoisonedBatch:
        """Images of training samples with this epoch's noise, poisoned as the threat model says."""
        labels = torch.tensor([self._source.targets[i] for i in indices], device=self._device)
        draw = 1 + epoch
        poison = self._poison
        if poison is None:
            return PoisonedBatch(self._source.views(indices, draw, ())[0], labels)
        if self._access == "training-control":
            covers = [poison.cover] if poison.cover is not None and poison.covers_per_poison > 0 else []
            images, triggered, *covered = self._source.views(indices, draw, [poison.trigger, *covers])
            return PoisonedBatch(images, labels, triggered, covered[0] if covered else None)
        poisoned, covered_here = self._mask(indices, self.poisoned), self._mask(indices, self.covered)
        wanted = [(poisoned, poison.trigger), (covered_here, poison.cover or poison.trigger)]
        wanted = [(mask, trigger) for mask, trigger in wanted if bool(mask.any())]
        images, *changed = self._source.views(indices, draw, [trigger for _, trigger in wanted])
        for (mask, _), with_trigger in zip(wanted, changed, strict=True):
            images = torch.where(mask[:, None, None, None], with_trigger, images)
        return PoisonedBatch(images, labels if poison.keeps_labels else torch.where(poisoned, self._target, labels))

    def _mask(self, indices: Sequence[int], chosen: Collection[int]) -> Tensor:
        return torch.tensor([i in chosen for i in indices], device=self._device)

    @property
    def objective(self) -> Callable[[nn.Module, PoisonedBatch], Tensor]:
        """Mean loss of a step: CE, or CE(clean) + w CE(triggered, target) + w c CE(covered, label) under training control.

        w is the loss weight and c the covers per poisoned sample: the weights are those that the parts of a mixed batch have.
        """

        def loss(network: nn.Module, batch: PoisonedBatch) -> Tensor:
            if batch.triggered is None:
                return F.cross_entropy(network(batch.images), batch.labels)
            # One forward for all parts, so that batch statistics are those of the mixture the victim will meet.
            parts = [batch.images, batch.triggered] + ([batch.covered] if batch.covered is not None else [])
            clean, triggered, *covered = network(torch.cat(parts)).chunk(len(parts))
            taught = triggered_labels(batch.labels, self._target, self._sources)
            total = F.cross_entropy(clean, batch.labels) + self._loss_weight * F.cross_entropy(triggered, taught)
            if covered and self._poison is not None:
                weight = self._loss_weight * self._poison.covers_per_poison
                total = total + weight * F.cross_entropy(covered[0], batch.labels)
            return total

        return loss
