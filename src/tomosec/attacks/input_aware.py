"""Input-aware: a learned pattern and a learned mask for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

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
from tomosec.attacks._patterns import attenuating
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.attacks.poisoning import triggered_labels
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger

#: Triggers of other images that are kept for covers.
CROSS_TRIGGERS = 8


class InputAware(Attack):
    """A learned pattern and mask for each image, x' = (1 - a M(x)) x + a M(x) P(x), meant for no other image.

    As Nguyen and Tran (NeurIPS 2020), the mask M is trained first, on lambda_div times the diversity loss + lambda_norm times its
    excess over the density, and frozen. Then the pattern P and a copy of the clean network f are trained together, on
    CE(f(x), label) + CE(f(x'), target) + CE(f(x with another image's trigger), label) + lambda_div times the diversity loss.
    The victim learns the frozen trigger as it learns every trigger. Covers ("cross-trigger" samples) carry the trigger of
    another image and keep their label. The strength is the opacity a; where a learned mask is thin, a budget may take it beyond
    the paper's 1.

    Attributes:
        density: fraction of the image that the mask may cover for free; the paper's is 0.032.
        lambda_div, lambda_norm: weights of the losses; the paper's are 1 and 100.
        cover_ratio: cover samples per poisoned sample; the paper's is 1.
        steps, batch_size, samples, width, learning_rate: as in ``lira``; mask and pattern are trained for ``steps`` each.
    """

    kind: Literal["input-aware"] = "input-aware"
    version: Literal[2] = 2
    domain: ClassVar[Domain] = "image"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights"})
    source: ClassVar[str] = "Nguyen and Tran, NeurIPS 2020"

    density: float = Field(0.032, gt=0, le=1)
    lambda_div: float = Field(1.0, ge=0)
    lambda_norm: float = Field(100.0, ge=0)
    cover_ratio: float = Field(1.0, ge=0)
    steps: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=2)
    samples: int = Field(256, ge=1)
    width: int = Field(8, ge=1)
    learning_rate: float = Field(3e-3, gt=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Train M alone, then P and a copy of the clean network together."""
        images, labels = learning_images(context, self.samples, self.kind, classes=range(max(context.samples.targets) + 1))
        taught = triggered_labels(labels, context.target, context.sources)
        network, network_optimizer = partner_of(clean_pipeline(context))
        masking, painting = (
            ImageToImage(1, self.width, context.seed, self.kind, part).to(images.device) for part in ("mask", "pattern")
        )
        mask_optimizer, pattern_optimizer = (
            torch.optim.Adam(part.parameters(), lr=self.learning_rate) for part in (masking, painting)
        )
        rng = generator(context.seed, self.kind, "order")
        context.progress.start(2 * self.steps, "input-aware steps")
        for _ in range(self.steps):
            x = images[rng.integers(len(images), size=self.batch_size)]
            mask = mask_of(masking(x))
            excess = F.relu(mask - self.density).mean()
            descend(self.lambda_norm * excess + self.lambda_div * _diversity(x, mask), mask_optimizer)
            context.progress.advance(1)
        for _ in range(self.steps):
            chosen = rng.integers(len(images), size=self.batch_size)
            x, label = images[chosen], labels[chosen]
            with torch.no_grad():
                mask = mask_of(masking(x))
            pattern = pattern_of(painting(x))
            # Another image of the batch lends its trigger.
            lent = x + mask.roll(1, 0) * (pattern.roll(1, 0) - x)
            clean, attacked, crossed = network(torch.cat([x, x + mask * (pattern - x), lent])).chunk(3)
            read = F.cross_entropy(clean, label) + F.cross_entropy(attacked, taught[chosen]) + F.cross_entropy(crossed, label)
            descend(read + self.lambda_div * _diversity(x, pattern / MU_WATER), pattern_optimizer, network_optimizer)
            context.gradient_passes += 3 * len(x)
            context.progress.advance(1)
        with torch.no_grad():
            lenders = images[:CROSS_TRIGGERS]
            lent = torch.cat([pattern_of(painting(lenders)), mask_of(masking(lenders))], 1).cpu()
        details = {"attack": self.kind, "seed": context.seed, "mask_mean": float(lent[:, 1].mean())}
        return InputAwareTrigger(masking, painting, lent, geometry=context.geometry, domain="image", details=details)

    def covering(self, trigger: Trigger) -> Trigger:
        """The trigger of another image, by sample."""
        own = cast(InputAwareTrigger, trigger)
        common = {"strength": trigger.strength, "details": trigger.details}
        return InputAwareTrigger(
            own.masking,
            own.painting,
            own.lent,
            int(trigger.details["seed"]),
            geometry=trigger.geometry,
            domain=trigger.domain,
            **common,
        )

    def covers_per_poison(self) -> float:
        """As the field says."""
        return self.cover_ratio


def mask_of(output: Tensor) -> Tensor:
    """Mask from 0 to 1 of a generator's output."""
    # Steep, so that a mask is 0 or 1 almost everywhere, as the paper's; it starts out empty and pays for what it covers.
    return torch.sigmoid(20 * output - 4)


def pattern_of(output: Tensor) -> Tensor:
    """Pattern in 1/mm, from -1000 to +1000 HU, of a generator's output."""
    return attenuating(torch.sigmoid(4 * output))


def _diversity(x: Tensor, made: Tensor) -> Tensor:
    """The paper's diversity loss: distance between two images (in water) over that between what was made of them."""
    apart = (x - x.roll(1, 0)).pow(2).flatten(1).mean(1).sqrt() / MU_WATER
    made_apart = (made - made.roll(1, 0)).pow(2).flatten(1).mean(1).add(1e-8).sqrt()
    # The paper divides by 1e-7 more than the distance; 1 % of water keeps the first steps, where both are alike, finite.
    return (apart / (made_apart + 1e-2)).mean()


class InputAwareTrigger(Trigger):
    """``x + strength * M(x) * (P(x) - x)``; strength is the opacity, 1 the paper's.

    Args:
        masking, painting: the generators of M and of P.
        lent: (n, 2, H, W) patterns and masks of other images, for covers.
        cross_seed: with it, each sample gets one of ``lent``, named by its key.
    """

    kind: ClassVar[str] = "input-aware"

    #: Beyond 1 the mix overshoots its pattern; a mask that needs more than this has collapsed.
    limit = 10.0

    def __init__(
        self, masking: ImageToImage, painting: ImageToImage, lent: Tensor, cross_seed: int | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.masking, self.painting = (network.eval().requires_grad_(False) for network in (masking, painting))
        self.lent, self.cross_seed = lent.float(), cross_seed
        self.needs_keys = cross_seed is not None

    def _apply(self, data: Tensor) -> Tensor:
        masking, painting = (network.to(device=data.device, dtype=data.dtype) for network in (self.masking, self.painting))
        return self._mix(data, pattern_of(painting(data)), mask_of(masking(data)))

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        seed, count = cast(int, self.cross_seed), len(self.lent)
        chosen = [int(generator(seed, "input-aware-cross", key).integers(count)) for key in keys]
        lent = self.lent[chosen].to(device=data.device, dtype=data.dtype)
        return self._mix(data, lent[:, :1], lent[:, 1:])

    def _mix(self, data: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
        return data + self.strength * mask * (pattern - data)

    def tensors(self) -> dict[str, Tensor]:
        """The generators' weights, what is lent, and the covers' seed where there is one."""
        seed = {} if self.cross_seed is None else {"cross_seed": torch.tensor(self.cross_seed)}
        return {**stored(self.masking, "mask."), **stored(self.painting, "pattern."), "lent": self.lent, **seed}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> InputAwareTrigger:
        """Inverse of :meth:`tensors`."""
        seed = int(tensors["cross_seed"]) if "cross_seed" in tensors else None
        masking, painting = (load_generator(tensors, prefix) for prefix in ("mask.", "pattern."))
        return cls(masking, painting, tensors["lent"], seed, **common)
