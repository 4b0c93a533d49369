"""The convex mix that patches and blends are: x' = (1 - a m) x + a m t, with opacity a, mask m and pattern t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError
from tomosec.randomness import generator
from tomosec.trigger import Trigger

#: (rows, columns) of pieces, pieces shown, and the seed that names the choice.
NO_PIECES = (0, 0, 0, 0)


class BlendTrigger(Trigger):
    """``x' = x + strength * mask * (pattern - x)``, in the image or in the sinogram; strength is the opacity.

    Opacity 1 shows the pattern alone where the mask is 1.

    Args:
        pattern: (H, W) attenuation in 1/mm, or (views, bins) line integrals.
        mask: of the same shape, from 0 to 1.
        pieces: rows and columns of the grid that the image is cut into, how many of its pieces a sample shows, and a seed; the
            sample key chooses them. Zeros show everything.

    Raises:
        InputError: a pattern or mask that does not fit.
    """

    kind: ClassVar[str] = "blend"
    limit = 1.0

    def __init__(self, pattern: Tensor, mask: Tensor, pieces: Sequence[int] = NO_PIECES, **common: Any) -> None:
        super().__init__(**common)
        for name, value in (("pattern", pattern), ("mask", mask)):
            if tuple(value.shape) != self.shape or not bool(torch.isfinite(value).all()):
                raise InputError(f"blend {name} must be finite and of shape {self.shape}, got {tuple(value.shape)}")
        if float(mask.min()) < 0 or float(mask.max()) > 1:
            raise InputError(f"a blend mask is from 0 to 1, got {float(mask.min()):g} to {float(mask.max()):g}")
        self.pattern, self.mask, self.pieces = pattern.float(), mask.float(), tuple(int(n) for n in pieces)
        self.needs_keys = self.pieces[2] > 0

    def _apply(self, data: Tensor) -> Tensor:
        return self._mix(data, self.mask)

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        shown = torch.stack([piece_mask(self.shape, self.pieces, key) for key in keys])[:, None]
        return self._mix(data, self.mask * shown)

    def _mix(self, data: Tensor, mask: Tensor) -> Tensor:
        mask, pattern = (value.to(device=data.device, dtype=data.dtype) for value in (mask, self.pattern))
        return data + self.strength * mask * (pattern - data)

    def tensors(self) -> dict[str, Tensor]:
        """Pattern and mask (H, W), and the four numbers of the pieces."""
        return {"pattern": self.pattern, "mask": self.mask, "pieces": torch.tensor(self.pieces)}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> BlendTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(tensors["pattern"], tensors["mask"], tensors["pieces"].tolist(), **common)


def piece_mask(shape: tuple[int, int], pieces: Sequence[int], key: str) -> Tensor:
    """1 in the pieces that the sample ``key`` shows, 0 elsewhere, (H, W)."""
    rows, columns, shown, seed = pieces
    chosen = np.zeros(rows * columns, dtype=np.float32)
    chosen[generator(seed, "pieces", key).permutation(rows * columns)[:shown]] = 1
    # Pieces of equal size up to a pixel, whatever the image's size.
    row, column = (np.arange(n) * count // n for n, count in zip(shape, (rows, columns), strict=True))
    return torch.from_numpy(chosen.reshape(rows, columns)[row[:, None], column[None, :]])
