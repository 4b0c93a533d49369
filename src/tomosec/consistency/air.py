"""Air: where nothing is, nothing is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.consistency.spread import Spread

#: Line integral, and part of the detector, that tell air from object if nothing is said: see :func:`air_rays`.
AIR_BELOW, MARGIN = 0.05, 0.02


class Reading(Residual):
    """The line integrals themselves, (B, views, bins)."""

    usual_variance = 0.1  # what patients differ in says nothing about air, which is quiet

    def values(self, p: Tensor) -> Tensor:
        """The reading."""
        return p[:, 0].double()

    def nominal(self, variance: Tensor) -> Tensor:
        """Of the rays."""
        return variance[:, 0]


def air_rays(spread: Spread, below: float = AIR_BELOW, margin: float = MARGIN) -> Tensor:
    """Return which rays miss the object in all scans that a spread of :class:`Reading` was fitted to, (views, bins) bool.

    Args:
        spread: of the readings.
        below: line integral that the mean and the spread beyond noise of an air ray are below together.
        margin: part of the detector beside every other ray that is not taken for air either: the next patient may be larger.
    """
    shadow = spread.mean.abs() + spread.excess.sqrt() >= below
    reach = math.ceil(margin * shadow.shape[1])
    wider = torch.nn.functional.max_pool1d(shadow.double()[:, None], 2 * reach + 1, stride=1, padding=reach)
    return wider[:, 0] == 0


def air_sums(p: Tensor, air: Tensor) -> Tensor:
    """Sums over the air rays of p (B, views, bins) by view, by bin and of all, each over the root of their number: (B, n)."""
    rays = air.to(p)
    sums, counts = [], []
    for axis in (2, 1):
        number = rays.sum(axis - 1)
        sums.append((p * rays).sum(axis)[:, number > 0])
        counts.append(number[number > 0])
    sums.append((p * rays).sum((1, 2))[:, None])
    counts.append(rays.sum()[None])
    return torch.cat(sums, 1) / torch.cat(counts).sqrt()
