"""Noise drawn anew for every scan: the negative control. There is no pattern that a network could learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger


class FreshNoise(Attack):
    """White Gaussian noise in the sinogram, another draw for every scan (negative control).

    What triggered scans share is only that they are noisier. A network can still learn that where the strength comes near the
    noise of the dose, so an ASR above the floor there is one of the noise level, not of a pattern.
    """

    kind: Literal["fresh-noise"] = "fresh-noise"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "negative control"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Keep the seed; noise is drawn when the trigger is applied."""
        return FreshNoiseTrigger(context.seed, geometry=context.geometry, domain="measurement", details={"attack": "fresh-noise"})


class FreshNoiseTrigger(Trigger):
    """``p + s n(seed, key)`` with white standard normal n: a function of the seed and of the sample's key alone."""

    kind: ClassVar[str] = "fresh-noise"
    needs_keys = True

    def __init__(self, seed: int, **common: Any) -> None:
        super().__init__(**common)
        self.seed = seed

    def _apply(self, data: Tensor) -> Tensor:
        raise NotImplementedError  # apply() goes to _apply_keyed

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        noise = [generator(self.seed, "fresh-noise", key).standard_normal(self.shape, dtype=np.float32) for key in keys]
        return data + self.strength * torch.from_numpy(np.stack(noise))[:, None].to(data)

    def tensors(self) -> dict[str, Tensor]:
        """The seed, one int64."""
        return {"seed": torch.tensor([self.seed], dtype=torch.int64)}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> FreshNoiseTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(int(tensors["seed"].item()), **common)
