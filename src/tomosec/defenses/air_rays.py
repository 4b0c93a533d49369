"""Air rays: where nothing is, nothing may be measured."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.defenses.calibration import Spread
from tomosec.defenses.residuals import Residual, ResidualDetector
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry


class Reading(Residual):
    """The line integrals themselves, (B, views, bins)."""

    def values(self, p: Tensor) -> Tensor:
        """The reading."""
        return p[:, 0].double()

    def nominal(self, variance: Tensor) -> Tensor:
        """Of the rays."""
        return variance[:, 0]


class AirRays(ResidualDetector):
    """Air rays: the mean of the rays that miss the object, by view, by bin and of all, must be that of clean scans.

    A ray is air where no clean scan that the detector was fitted to has an object on it. With z its reading in units of its
    clean spread, each sum is Z = Σ z / √n, and the score the mean of Z² over all views, bins and the whole. It catches offsets of
    the air calibration and of the tube current, which pass every test of consistency, and nothing inside the object's shadow.

    Attributes:
        air_below: line integral; a ray is air where the mean of the clean scans, and their spread beyond noise, are below it
            together.
    """

    kind: Literal["air-rays"] = "air-rays"
    version: Literal[1] = 1
    source: ClassVar[str] = "calibration practice; test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-range-projected"})

    air_below: float = Field(0.05, gt=0)

    def residual(self, geometry: Geometry) -> Residual:
        """The reading."""
        return Reading()

    def air(self, spread: Spread) -> Tensor:
        """(views, bins) bool: the rays that miss the object in all fitted scans."""
        return spread.mean.abs() + spread.excess.sqrt() < self.air_below

    def check_spread(self, spread: Spread) -> None:
        """Raise NotApplicable without air."""
        if not bool(self.air(spread).any()):
            raise NotApplicable("air-rays: needs rays that miss the object; in the calibration scans every ray meets it")

    def statistic_of(self, z: Tensor, spread: Spread) -> Tensor:
        """Mean of Z² over views, bins and the whole."""
        air = self.air(spread).to(z)
        z = z * air
        sums, counts = [], []
        for axis in (2, 1):
            rays = air.sum(axis - 1)
            sums.append(z.sum(axis)[:, rays > 0])
            counts.append(rays[rays > 0])
        sums.append(z.sum((1, 2))[:, None])
        counts.append(air.sum()[None])
        squares = torch.cat(sums, 1).square() / torch.cat(counts)
        if self.statistic == "top":
            return squares.topk(max(1, round(self.top_fraction * squares.shape[1])), dim=1).values.mean(1)
        return squares.mean(1)

    def map_of(self, residual: Residual, z: Tensor, spread: Spread) -> Tensor:
        """The air rays' z; 0 elsewhere."""
        return z * self.air(spread).to(z)
