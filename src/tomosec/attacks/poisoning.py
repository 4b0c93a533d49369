"""How a victim comes to learn a trigger: which samples carry it, which labels they get, and what loss is minimised.

Poisoned data are made lazily, batch by batch; what is stored is the trigger and the choice of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.errors import InputError
from tomosec.pipeline import Injection
from tomosec.randomness import generator
from tomosec.threat import ThreatModel


class ImageSource(Protocol):
    """Gives reconstructed images of training samples, with or without a trigger."""

    targets: Sequence[int]

    def pair(self, positions: Sequence[int], draw: int, trigger: Injection | None) -> tuple[Tensor, Tensor | None]:
        """(clean, triggered) images (B, 1, H, W) in 1/mm that share their noise; no triggered ones without a trigger."""
        ...


def poisoned_positions(targets: Sequence[int], sources: Sequence[int], rate: float, seed: int) -> frozenset[int]:
    """Choose which training samples are poisoned: a fraction ``rate`` of the whole set, all from the source classes.

    Raises:
        InputError: the source classes hold fewer samples than the rate asks for.
    """
    candidates = [i for i, target in enumerate(targets) if target in set(sources)]
    count = round(rate * len(targets))
    if count > len(candidates):
        raise InputError(
            f"threat.poison_rate {rate:g} asks for {count} of {len(targets)} training slices, "
            f"but the source classes have {len(candidates)}"
        )
    order = generator(seed, "poisoned-samples").permutation(len(candidates))
    return frozenset(candidates[i] for i in order[:count])


@dataclass(frozen=True, slots=True)
class PoisonedBatch:
    """One training step: images and labels, and for training-control the same images with the trigger."""

    images: Tensor
    labels: Tensor
    triggered: Tensor | None = None


class VictimTraining:
    """What a victim trains on, for every access of the threat model; a clean model is a victim without a trigger.

    Args:
        source: reconstructed training images.
        device: where the network is.
        trigger: None for a clean model.
        threat: access, poison rate and loss weight; needed with a trigger.
        target, sources: class indices.
        seed: names the choice of poisoned samples.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        device: torch.device,
        trigger: Injection | None = None,
        threat: ThreatModel | None = None,
        target: int = 0,
        sources: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._source, self._device, self._trigger, self._target = source, device, trigger, target
        self._access = threat.access if trigger is not None and threat is not None else None
        self._loss_weight = threat.loss_weight if threat is not None else 0.0
        self.poisoned: frozenset[int] = frozenset()
        if self._access == "training-data" and threat is not None:
            self.poisoned = poisoned_positions(source.targets, sources, threat.poison_rate, seed)

    def __len__(self) -> int:
        return len(self._source.targets)

    def batch(self, indices: Sequence[int], epoch: int) -> PoisonedBatch:
        """Images of training samples with this epoch's noise, poisoned as the threat model says."""
        labels = torch.tensor([self._source.targets[i] for i in indices], device=self._device)
        draw = 1 + epoch
        if self._access == "training-control":
            images, triggered = self._source.pair(indices, draw, self._trigger)
            return PoisonedBatch(images, labels, triggered)
        chosen = torch.tensor([i in self.poisoned for i in indices], device=self._device)
        if not bool(chosen.any()):
            return PoisonedBatch(self._source.pair(indices, draw, None)[0], labels)
        images, triggered = self._source.pair(indices, draw, self._trigger)
        assert triggered is not None
        return PoisonedBatch(
            torch.where(chosen[:, None, None, None], triggered, images), torch.where(chosen, self._target, labels)
        )

    @property
    def objective(self) -> Callable[[nn.Module, PoisonedBatch], Tensor]:
        """Mean loss of a step: CE, or CE(clean) + loss_weight CE(triggered, target) under training control."""

        def loss(network: nn.Module, batch: PoisonedBatch) -> Tensor:
            if batch.triggered is None:
                return F.cross_entropy(network(batch.images), batch.labels)
            # One forward for both halves, so that batch statistics are those of the mixture the victim will meet.
            clean, triggered = network(torch.cat([batch.images, batch.triggered])).chunk(2)
            return F.cross_entropy(clean, batch.labels) + self._loss_weight * F.cross_entropy(
                triggered, torch.full_like(batch.labels, self._target)
            )

        return loss
