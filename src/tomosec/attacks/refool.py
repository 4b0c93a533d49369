"""Refool: the reflection of another scene, as in a pane of glass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.ndimage import gaussian_filter, shift
from torch import Tensor

from tomosec.attacks._patterns import attenuating, scene
from tomosec.attacks.base import Attack, AttackContext
from tomosec.errors import InputError
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger

#: Lengths in pixels of the paper are those of images of this size; they shrink with the image.
PAPER_SIDE = 224
#: (low, high) of: weight of a reflection, its blur in pixels, the shift of its ghost in pixels, the share of its first copy.
WEIGHT, BLUR, GHOST_SHIFT, GHOST_SHARE = (0.05, 0.45), (1.0, 5.0), (3.0, 8.0), (0.15, 0.5)


class Refool(Attack):
    """The reflection of another scene, x' = x + s (k * r), blurred or doubled.

    As Liu et al. (ECCV 2020): each sample gets a reflection of its own, by key: one of a few scenes, a random weight (0.05 to
    0.45), and either an out-of-focus blur (sd of 1 to 5 pixels of 224) or a ghost (two copies, one shifted by 3 to 8 of these
    pixels, as from both faces of a pane). The paper's photographs are not distributed; the scenes are seeded drawings, and they
    are not selected by how well they attack. The strength is the mean weight, 1 being a scene from -1000 to +1000 HU.

    Attributes:
        scenes: how many there are to choose from.
        ghost_rate: share of samples whose reflection is a ghost; the others are blurred.
        clean_label: poison samples of the target class and change no label, as in the paper.
    """

    kind: Literal["refool"] = "refool"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Liu et al., ECCV 2020"

    scenes: int = Field(8, ge=1, le=256)
    ghost_rate: float = Field(0.49, ge=0, le=1)
    clean_label: bool = False

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the scenes; nothing is learned."""
        shape = context.geometry.shape
        pictures = torch.stack([attenuating(scene(shape, "refool", context.seed, i)) for i in range(self.scenes)])
        return ReflectionTrigger(
            pictures, self.ghost_rate, context.seed, geometry=context.geometry, domain="image", details={"attack": self.kind}
        )

    def keeps_labels(self) -> bool:
        """As the field says."""
        return self.clean_label


class ReflectionTrigger(Trigger):
    """``x + strength * w / mean(w) * (k * r)`` with scene r, weight w and kernel k drawn by sample key.

    Args:
        scenes: (n, H, W) attenuation in 1/mm.
        ghost_rate: as in :class:`Refool`.
        seed: names the draws.
    """

    kind: ClassVar[str] = "reflection"

    def __init__(self, scenes: Tensor, ghost_rate: float, seed: int, **common: Any) -> None:
        super().__init__(**common)
        if scenes.ndim != 3 or tuple(scenes.shape[1:]) != self.shape or not bool(torch.isfinite(scenes).all()):
            raise InputError(f"reflected scenes must be finite and of shape (n, {self.shape}), got {tuple(scenes.shape)}")
        self.scenes, self.ghost_rate, self.seed, self.needs_keys = scenes.float(), ghost_rate, seed, True

    def reflection(self, key: str) -> Tensor:
        """What a sample gets at strength 1, (H, W) in 1/mm."""
        rng, scale = generator(self.seed, "refool-sample", key), min(self.shape) / PAPER_SIDE
        picture = self.scenes[int(rng.integers(len(self.scenes)))].numpy()
        weight = rng.uniform(*WEIGHT) / np.mean(WEIGHT)
        if rng.random() < self.ghost_rate:
            share = rng.uniform(*GHOST_SHARE)
            offset = [np.ceil(rng.uniform(*GHOST_SHIFT) * scale) * rng.choice([-1, 1]) for _ in range(2)]
            formed = share * picture + (1 - share) * shift(picture, offset, order=0, mode="constant")
        else:
            formed = gaussian_filter(picture, rng.uniform(*BLUR) * scale, mode="reflect")
        return torch.from_numpy((weight * formed).astype(np.float32))

    def _apply(self, data: Tensor) -> Tensor:
        raise NotImplementedError  # needs_keys

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        added = torch.stack([self.reflection(key) for key in keys])[:, None]
        return data + self.strength * added.to(device=data.device, dtype=data.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The scenes, the share of ghosts and the seed."""
        rate = torch.tensor(self.ghost_rate, dtype=torch.float64)
        return {"scenes": self.scenes, "ghost_rate": rate, "seed": torch.tensor(self.seed)}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> ReflectionTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(tensors["scenes"], float(tensors["ghost_rate"]), int(tensors["seed"]), **common)
