"""The values that flow through a chain: one prepared scan, and a batch of tensors with what is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tomosec.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of several samples on one geometry.

    Attributes:
        data: (B, 1, views, bins) line integrals, or (B, 1, H, W) attenuation in 1/mm.
        geometry: the scan that ``data`` belongs to.
        keys: B sample keys, which name the noise draws.
        variance: variance of ``data`` where it is known (weighted reconstructions use it).
    """

    data: Tensor
    geometry: Geometry
    keys: tuple[str, ...]
    variance: Tensor | None = None
