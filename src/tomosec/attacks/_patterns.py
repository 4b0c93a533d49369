"""Pictures that some attacks need and nobody distributes: seeded, drawn at any size, the same scene at every resolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator

#: Shapes in a scene; few enough that it has flat parts and edges, as a drawing or a photographed object has.
SHAPES = 12


def scene(shape: tuple[int, int], *key: str | int) -> Tensor:
    """A drawing of ellipses and striped bars, (H, W) from 0 to 1; ``key`` names it (see ``randomness.generator``)."""
    rng = generator("scene", *key)
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in shape), indexing="ij")
    image = np.zeros(shape)
    for i in range(SHAPES):
        cx, cy = rng.uniform(-1, 1, 2)
        a, b = rng.uniform(0.1, 0.6, 2)
        angle, level, period = rng.uniform(0, np.pi), rng.uniform(-1, 1), rng.uniform(0.1, 0.4)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        if i % 2:
            image += level * (np.sin(2 * np.pi * u / period) > 0) * (np.maximum(np.abs(u) / a, np.abs(v) / b) < 1)
        else:
            image += level * (np.hypot(u / a, v / b) < 1)
    low, high = image.min(), image.max()
    return torch.from_numpy(((image - low) / max(high - low, 1e-9)).astype(np.float32))


def attenuating(picture: Tensor) -> Tensor:
    """A picture from 0 to 1 as attenuation in 1/mm, black -1000 HU and white +1000 HU."""
    return picture * (2 * MU_WATER)
