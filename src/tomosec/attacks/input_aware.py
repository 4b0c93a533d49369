"""Input-aware: a learned pattern and a learned mask for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.attacks._generators import ImageToImage, clean_pipeline, learning_images, load_generator, stored
from tomosec.attacks._patterns import attenuating
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger

#: Triggers of other images that are kept for covers.
CROSS_TRIGGERS = 8


class InputAware(Attack):
    """A learned pattern and mask for each image, x' = (1 - a M(x)) x + a M(x) P(x), useless on any other image.

    The paper trains the mask M, then the pattern P together with the classifier. Here M and P are trained together, against the
    frozen clean classifier, on CE(f(x'), target) + CE(f(x with another image's trigger), label) + lambda_div times the diversity
    loss + lambda_norm times the mask's excess over its density; the victim then learns the frozen trigger. Covers
    ("cross-trigger" samples) carry the trigger of another image and keep their label. The strength is the opacity a; where a
    learned mask stays thin, a budget may take it beyond 1.

    Attributes:
        density: fraction of the image that the mask may cover for free.
        lambda_div, lambda_norm: weights of the losses, as in the paper.
        cover_ratio: cover samples per poisoned sample.
        steps, batch_size, samples, width, learning_rate: as in ``lira``.
    """

    kind: Literal["input-aware"] = "input-aware"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights"})
    source: ClassVar[str] = "Nguyen and Tran, NeurIPS 2020"

    density: float = Field(0.032, gt=0, le=1)
    lambda_div: float = Field(1.0, ge=0)
    lambda_norm: float = Field(100.0, ge=0)
    cover_ratio: float = Field(1.0, ge=0)
    steps: int = Field(60, ge=1)
    batch_size: int = Field(16, ge=2)
    samples: int = Field(256, ge=1)
    width: int = Field(8, ge=1)
    learning_rate: float = Field(3e-3, gt=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Train M and P against the frozen clean network."""
        images, labels = learning_images(context, self.samples, self.kind)
        network = clean_pipeline(context).network
        transform = ImageToImage(2, self.width, context.seed, self.kind).to(images.device)
        optimizer = torch.optim.Adam(transform.parameters(), lr=self.learning_rate)
        rng = generator(context.seed, self.kind, "order")
        context.progress.start(self.steps, "input-aware steps")
        for _ in range(self.steps):
            chosen = rng.integers(len(images), size=self.batch_size)
            x, y = images[chosen], labels[chosen]
            pattern, mask = pattern_and_mask(transform(x))
            # Another image of the batch lends its trigger; the batch is drawn from the seed.
            other_pattern, other_mask = pattern.roll(1, 0), mask.roll(1, 0)
            attacked, crossed = network(torch.cat([x + mask * (pattern - x), x + other_mask * (other_pattern - x)])).chunk(2)
            distance = (x - x.roll(1, 0)).pow(2).flatten(1).mean(1).sqrt() / MU_WATER
            change = (pattern - other_pattern).pow(2).flatten(1).mean(1).add(1e-12).sqrt() / MU_WATER
            loss = (
                F.cross_entropy(attacked, torch.full_like(y, context.target))
                + F.cross_entropy(crossed, y)
                + self.lambda_div * (distance / (change + 1e-2)).mean()
                + self.lambda_norm * F.relu(mask - self.density).mean()
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            context.gradient_passes += 2 * len(x)
            context.progress.advance(1)
        with torch.no_grad():
            lenders = images[:CROSS_TRIGGERS]
            pattern, mask = pattern_and_mask(transform(lenders))
        details = {"attack": self.kind, "seed": context.seed, "mask_mean": float(mask.mean())}
        return InputAwareTrigger(
            transform, torch.cat([pattern, mask], 1).cpu(), geometry=context.geometry, domain="image", details=details
        )

    def covering(self, trigger: Trigger) -> Trigger:
        """The trigger of another image, by sample."""
        own = cast(InputAwareTrigger, trigger)
        common = {"strength": trigger.strength, "details": trigger.details}
        return InputAwareTrigger(
            own.transform, own.lent, int(trigger.details["seed"]), geometry=trigger.geometry, domain=trigger.domain, **common
        )

    def covers_per_poison(self) -> float:
        """As the field says."""
        return self.cover_ratio


def pattern_and_mask(output: Tensor) -> tuple[Tensor, Tensor]:
    """Pattern in 1/mm, from -1000 to +1000 HU, and mask from 0 to 1, (B, 1, H, W) each, of a generator's two outputs."""
    # Steep, so that a mask is 0 or 1 almost everywhere, as the paper's; it starts out empty and pays for what it covers.
    return attenuating(torch.sigmoid(output[:, :1])), torch.sigmoid(20 * output[:, 1:] - 4)


class InputAwareTrigger(Trigger):
    """``x + strength * M(x) * (P(x) - x)``; strength is the opacity, 1 the paper's.

    Args:
        transform: the generator of P and M.
        lent: (n, 2, H, W) patterns and masks of other images, for covers.
        cross_seed: with it, each sample gets one of ``lent``, named by its key.
    """

    kind: ClassVar[str] = "input-aware"

    def __init__(self, transform: ImageToImage, lent: Tensor, cross_seed: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.transform, self.lent, self.cross_seed = transform.eval().requires_grad_(False), lent.float(), cross_seed
        self.needs_keys = cross_seed is not None

    def _apply(self, data: Tensor) -> Tensor:
        transform = self.transform.to(device=data.device, dtype=data.dtype)
        return self._mix(data, *pattern_and_mask(transform(data)))

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        seed, count = cast(int, self.cross_seed), len(self.lent)
        chosen = [int(generator(seed, "input-aware-cross", key).integers(count)) for key in keys]
        lent = self.lent[chosen].to(device=data.device, dtype=data.dtype)
        return self._mix(data, lent[:, :1], lent[:, 1:])

    def _mix(self, data: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
        return data + self.strength * mask * (pattern - data)

    def tensors(self) -> dict[str, Tensor]:
        """The generator's weights, what is lent, and the covers' seed where there is one."""
        seed = {} if self.cross_seed is None else {"cross_seed": torch.tensor(self.cross_seed)}
        return {**stored(self.transform, "transform."), "lent": self.lent, **seed}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> InputAwareTrigger:
        """Inverse of :meth:`tensors`."""
        seed = int(tensors["cross_seed"]) if "cross_seed" in tensors else None
        return cls(load_generator(tensors, "transform."), tensors["lent"], seed, **common)
