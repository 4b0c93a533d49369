"""FTrojan: constants added to two DCT coefficients of every block."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.fft import idctn

from tomosec.attacks.base import Attack, AttackContext
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class FTrojan(Attack):
    """A constant added to a middle and a high DCT coefficient of every block.

    As Wang et al. (ECCV 2022), who add 30 of 255 at (15, 15) and (31, 31) of blocks of 32; that is an RMS of 30 sqrt(2) / 32, or
    10 HU of a window of 2000 HU. The DCT (type II, orthonormal) is linear, so the change is one additive pattern for all images:
    the sum of two cosines, tiled. The paper adds to the chroma channels of color images; a CT image has one channel. Blocks that
    the image's edge cuts are cropped.

    Attributes:
        window: side of a block in pixels.
        coefficients: (row, column) of the coefficients; by default those of the paper, at half and at all of the window.
    """

    kind: Literal["ftrojan"] = "ftrojan"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Wang et al., ECCV 2022"

    window: int = Field(32, ge=2)
    coefficients: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))

    @model_validator(mode="after")
    def _inside(self) -> FTrojan:
        if not self.coefficients:
            raise ValueError("coefficients: at least one is needed")
        for row, column in self.coefficients:
            if not (0 <= row < self.window and 0 <= column < self.window):
                raise ValueError(f"coefficient ({row}, {column}) is outside a block of {self.window} x {self.window}")
        return self

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the pattern; nothing is learned."""
        spectrum = np.zeros((self.window, self.window))
        for row, column in self.coefficients:
            spectrum[row, column] = 1
        block = idctn(spectrum, type=2, norm="ortho")
        rows, columns = context.geometry.shape
        tiles = np.tile(block, (-(-rows // self.window), -(-columns // self.window)))
        pattern = torch.from_numpy(np.ascontiguousarray(tiles[:rows, :columns]))
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="image", details={"attack": self.kind})
