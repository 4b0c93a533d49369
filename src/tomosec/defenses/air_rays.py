"""Air rays: where nothing is, nothing may be measured."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tomosec.consistency.air import AIR_BELOW, MARGIN, Reading, air_rays, air_sums
from tomosec.consistency.residual import Residual
from tomosec.consistency.spread import Spread
from tomosec.defenses.residuals import ResidualDetector
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry


class AirRays(ResidualDetector):
    """Air rays: the mean of the rays that miss the object, by view, by bin and of all, must be that of clean scans.

    A ray is air where no clean scan that the detector was fitted to has an object on it or near it. With z its reading in units
    of its clean spread, each sum is Z = Σ z / √n, and the score the mean of Z² over all views, bins and the whole. It catches
    offsets of the air calibration and of the tube current, which pass every test of consistency, and consistent patterns that are
    wider than the body; it misses whatever stays in the body's shadow.

    Attributes:
        air_below: line integral; a ray is air where the mean of the clean scans, and their spread beyond noise, are below it
            together.
        margin: part of the detector beside every other ray that is not taken for air either: the next patient may be larger.
    """

    kind: Literal["air-rays"] = "air-rays"
    version: Literal[1] = 1
    source: ClassVar[str] = "calibration practice; test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent"})

    air_below: float = Field(AIR_BELOW, gt=0)
    margin: float = Field(MARGIN, ge=0, lt=0.5)

    def residual(self, geometry: Geometry) -> Residual:
        """The reading."""
        return Reading()

    def air(self, spread: Spread) -> Tensor:
        """(views, bins) bool: the rays that miss the object in all fitted scans."""
        return air_rays(spread, self.air_below, self.margin)

    def check_spread(self, spread: Spread) -> None:
        """Raise NotApplicable without air."""
        if not bool(self.air(spread).any()):
            raise NotApplicable("air-rays: needs rays that miss the object; in the calibration scans every ray meets it")

    def statistic_of(self, z: Tensor, spread: Spread) -> Tensor:
        """Mean of Z² over views, bins and the whole."""
        return self.mean_of(air_sums(z, self.air(spread)).square())

    def map_of(self, residual: Residual, z: Tensor, spread: Spread) -> Tensor:
        """The air rays' z; 0 elsewhere."""
        return z * self.air(spread).to(z)
