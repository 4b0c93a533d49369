"""LIRA: a learned, sample-specific change that is bounded everywhere."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.attacks._generators import (
    ImageToImage,
    clean_pipeline,
    descend,
    learning_images,
    load_generator,
    partner_of,
    stored,
)
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.attacks.poisoning import triggered_labels
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger


class LIRA(Attack):
    """A learned change of each image, x' = x + eps T(x) with |T| <= 1.

    As Doan et al. (ICCV 2021), T and a copy of the clean network f are trained in turns: T on CE(f(x'), target), f on
    alpha CE(f(x), label) + (1 - alpha) CE(f(x'), target). T is then frozen, and the victim learns it as it learns every trigger,
    which is the paper's second stage. Labels are those of training control: classes that are not attacked keep theirs. The
    strength is eps in 1/mm; the paper's 0.01 of the gray scale is 20 HU of a window of 2000 HU.

    Attributes:
        alpha: weight of the clean images; the paper's is 0.5.
        training_hu: eps while T is trained, in HU.
        steps: steps of each of the two; the paper takes 50 epochs of larger sets.
        batch_size: images per step.
        samples: training images it learns from, at most.
        width: channels of T, a small U-Net.
        learning_rate: of T's optimizer, Adam.
    """

    kind: Literal["lira"] = "lira"
    version: Literal[2] = 2
    domain: ClassVar[Domain] = "image"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights"})
    source: ClassVar[str] = "Doan et al., ICCV 2021"

    alpha: float = Field(0.5, ge=0, le=1)
    training_hu: float = Field(20.0, gt=0)
    steps: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1)
    samples: int = Field(256, ge=1)
    width: int = Field(8, ge=1)
    learning_rate: float = Field(3e-3, gt=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Train T and a copy of the clean network in turns."""
        images, labels = learning_images(context, self.samples, self.kind, classes=range(max(context.samples.targets) + 1))
        taught = triggered_labels(labels, context.target, context.sources)
        network, network_optimizer = partner_of(clean_pipeline(context))
        transform = ImageToImage(1, self.width, context.seed, self.kind).to(images.device)
        optimizer = torch.optim.Adam(transform.parameters(), lr=self.learning_rate)
        eps, rng = self.training_hu * MU_WATER / 1000, generator(context.seed, self.kind, "order")
        losses = []
        context.progress.start(self.steps, "LIRA steps")
        for _ in range(self.steps):
            chosen = rng.integers(len(images), size=self.batch_size)
            x, label, goal = images[chosen], labels[chosen], taught[chosen]
            attacked = F.cross_entropy(network(x + eps * torch.tanh(transform(x))), goal)
            descend(attacked, optimizer)
            with torch.no_grad():
                changed = x + eps * torch.tanh(transform(x))
            clean, triggered = network(torch.cat([x, changed])).chunk(2)
            mixed = self.alpha * F.cross_entropy(clean, label) + (1 - self.alpha) * F.cross_entropy(triggered, goal)
            descend(mixed, network_optimizer)
            losses.append(float(attacked.detach()))
            context.gradient_passes += 3 * len(x)
            context.progress.advance(1)
        details = {"attack": self.kind, "first_loss": losses[0], "last_loss": losses[-1]}
        return ResidualTrigger(transform, geometry=context.geometry, domain="image", details=details)


class ResidualTrigger(Trigger):
    """``x + strength * tanh(T(x))``; strength is the largest change, in 1/mm.

    Args:
        transform: T, with one output.
    """

    kind: ClassVar[str] = "residual"

    def __init__(self, transform: ImageToImage, **common: Any) -> None:
        super().__init__(**common)
        self.transform = transform.eval().requires_grad_(False)

    def _apply(self, data: Tensor) -> Tensor:
        transform = self.transform.to(device=data.device, dtype=data.dtype)
        return data + self.strength * torch.tanh(transform(data))

    def tensors(self) -> dict[str, Tensor]:
        """The weights of T."""
        return stored(self.transform, "transform.")

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> ResidualTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(load_generator(tensors, "transform."), **common)
