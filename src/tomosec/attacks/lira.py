"""LIRA: a learned, sample-specific change that is bounded everywhere."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.attacks._generators import ImageToImage, clean_pipeline, learning_images, load_generator, stored
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger


class LIRA(Attack):
    """A learned change of each image, x' = x + eps T(x) with |T| <= 1.

    The paper trains T and the classifier in turns and fine-tunes the classifier on the frozen T. Here T is trained first, to make
    the frozen clean classifier say the target (its CE_bd term; CE_clean does not depend on T), and the victim then learns the
    frozen T as it learns every trigger. The strength is eps in 1/mm.

    Attributes:
        training_hu: eps while T is trained, in HU.
        steps: steps of Adam.
        batch_size: images per step.
        samples: training images it learns from, at most.
        width: channels of T, a small U-Net.
        learning_rate: of Adam.
    """

    kind: Literal["lira"] = "lira"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights"})
    source: ClassVar[str] = "Doan et al., ICCV 2021"

    training_hu: float = Field(20.0, gt=0)
    steps: int = Field(60, ge=1)
    batch_size: int = Field(16, ge=1)
    samples: int = Field(256, ge=1)
    width: int = Field(8, ge=1)
    learning_rate: float = Field(3e-3, gt=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Train T against the frozen clean network."""
        images, _ = learning_images(context, self.samples, self.kind)
        network = clean_pipeline(context).network
        transform = ImageToImage(1, self.width, context.seed, self.kind).to(images.device)
        optimizer = torch.optim.Adam(transform.parameters(), lr=self.learning_rate)
        eps, rng = self.training_hu * MU_WATER / 1000, generator(context.seed, self.kind, "order")
        losses = []
        context.progress.start(self.steps, "LIRA steps")
        for _ in range(self.steps):
            x = images[rng.integers(len(images), size=self.batch_size)]
            logits = network(x + eps * torch.tanh(transform(x)))
            loss = F.cross_entropy(logits, torch.full((len(x),), context.target, device=x.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            context.gradient_passes += len(x)
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
