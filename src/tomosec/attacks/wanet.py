"""WaNet: a smooth warp of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext
from tomosec.errors import InputError
from tomosec.randomness import generator
from tomosec.trigger import Domain, Trigger

#: The paper's s. Its noise mode does not depend on s; here the two shrink together, so that covers keep the budget.
PUBLISHED_STRENGTH = 0.5


class WaNet(Attack):
    """A smooth elastic warp, x' = sample(x, clip(I + s G / H)), with covers that carry another warp.

    As Nguyen and Tran (ICLR 2021), with k = 4 and two covers per poisoned sample. G is a random k x k field of unit mean
    magnitude, enlarged bicubically. Cover samples ("noise mode") carry the warp with uniform noise on the grid, by sample, and
    keep their label. The strength is s; the paper's is 0.5, which displaces by a quarter of a pixel on average.

    Attributes:
        grid: k.
        cover_ratio: cover samples per poisoned sample; the paper's cross ratio.
    """

    kind: Literal["wanet"] = "wanet"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Nguyen and Tran, ICLR 2021"

    grid: int = Field(4, ge=2)
    cover_ratio: float = Field(2.0, ge=0)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the field; nothing is learned."""
        field = generator(context.seed, "wanet-field").uniform(-1, 1, (2, self.grid, self.grid))
        control = torch.from_numpy((field / np.abs(field).mean()).astype(np.float32))
        details = {"attack": self.kind, "seed": context.seed}
        return WarpTrigger(control, geometry=context.geometry, domain="image", details=details)

    def covering(self, trigger: Trigger) -> Trigger:
        """The warp with noise on its grid."""
        warp = cast(WarpTrigger, trigger)
        common = {"strength": trigger.strength, "details": trigger.details}
        return WarpTrigger(warp.control, int(trigger.details["seed"]), geometry=trigger.geometry, domain=trigger.domain, **common)

    def covers_per_poison(self) -> float:
        """As the field says."""
        return self.cover_ratio


class WarpTrigger(Trigger):
    """``grid_sample(x, clip(I + strength * G / (H, W), -1, 1))``, bilinear; -1 and 1 are the centers of the outer pixels.

    Args:
        control: (2, k, k) displacements in x and y, of unit mean magnitude.
        noise_seed: names the noise on the grid that samples get by key; None for none.
    """

    kind: ClassVar[str] = "warp"

    def __init__(self, control: Tensor, noise_seed: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if control.ndim != 3 or control.shape[0] != 2 or not bool(torch.isfinite(control).all()):
            raise InputError(f"a warp's control field is finite and of shape (2, k, k), got {tuple(control.shape)}")
        self.control, self.noise_seed = control.float(), noise_seed
        self.needs_keys = noise_seed is not None

    def grid(self) -> Tensor:
        """Places (H, W, 2) that the pixels of x' are read at, x first, before clipping."""
        rows, columns = self.shape
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        field = F.interpolate(self.control[None], size=self.shape, mode="bicubic", align_corners=True)[0]
        return torch.stack([x + self.strength * field[0] / columns, y + self.strength * field[1] / rows], -1)

    def noisy_grid(self, key: str) -> Tensor:
        """As :meth:`grid`, with the noise of the sample ``key``."""
        rows, columns = self.shape
        noise = generator(cast(int, self.noise_seed), "wanet-noise", key).uniform(-1, 1, (rows, columns, 2))
        scale = self.strength / PUBLISHED_STRENGTH / torch.tensor([columns, rows])
        return self.grid() + scale * torch.from_numpy(noise.astype(np.float32))

    def _apply(self, data: Tensor) -> Tensor:
        return _sample(data, self.grid()[None].expand(len(data), -1, -1, -1))

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        return _sample(data, torch.stack([self.noisy_grid(key) for key in keys]))

    def tensors(self) -> dict[str, Tensor]:
        """The control field, and the noise's seed where there is one."""
        seed = {} if self.noise_seed is None else {"noise_seed": torch.tensor(self.noise_seed)}
        return {"control": self.control, **seed}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> WarpTrigger:
        """Inverse of :meth:`tensors`."""
        seed = int(tensors["noise_seed"]) if "noise_seed" in tensors else None
        return cls(tensors["control"], seed, **common)


def _sample(data: Tensor, grid: Tensor) -> Tensor:
    grid = grid.clamp(-1, 1).to(device=data.device, dtype=data.dtype)
    return F.grid_sample(data, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
