"""Noise statistics: how strong the noise is, where, and how much neighbors have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.consistency.second_differences import SecondDifferences
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class NoiseFeatures(Residual):
    """log variance of the whitened second differences in tiles, and their correlations, (B, tiles² + 2)."""

    exact_noise = False

    def __init__(self, geometry: Geometry, tiles: int) -> None:
        self._views, self._bins = geometry.sinogram_shape
        self._second = SecondDifferences()
        self._rows, self._columns = min(tiles, self._views - 2), min(tiles, self._bins)

    def measure(self, p: Tensor, noise_sd: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The features of differences in units of the scan's own noise, where it has a model.

        They have no nominal variance. Zero stands for it where there is a model, so that features with and without one, which
        are not comparable, are told apart.
        """
        second = self._second.values(p)
        if noise_sd is None:
            return self._features(second), None
        variance = noise_sd.double().square()
        usual = variance[:, 0].mean((1, 2), keepdim=True)
        features = self._features(second / (self._second.nominal(variance) + 1e-6 * usual + 1e-30).sqrt())
        return features, torch.zeros_like(features)

    def values(self, p: Tensor) -> Tensor:
        """The features of the differences as they are."""
        return self.measure(p, None)[0]

    def nominal(self, variance: Tensor) -> None:
        """Not known: the features are not linear."""
        return

    def _features(self, second: Tensor) -> Tensor:
        squares = second.square()
        tiles = torch.nn.functional.adaptive_avg_pool2d(squares[:, None], (self._rows, self._columns)).flatten(1)
        total = squares.mean((1, 2)).clamp_min(1e-30)
        by_view = (second[:, 1:] * second[:, :-1]).mean((1, 2)) / total
        by_bin = (second[:, :, 1:] * second[:, :, :-1]).mean((1, 2)) / total
        return torch.cat([tiles.clamp_min(1e-30).log(), by_view[:, None], by_bin[:, None]], dim=1)

    def sinogram_map(self, z: Tensor) -> Tensor:
        """The tiles."""
        tiles = z[:, :-2].reshape(len(z), 1, self._rows, self._columns)
        return torch.nn.functional.interpolate(tiles, size=(self._views, self._bins), mode="nearest")[:, 0]


class NoiseStatistics(ResidualDetector):
    """Noise statistics: the local variance of the noise and the correlation of its neighbors must be those of clean scans.

    The noise is d = p(β − Δ) − 2 p(β) + p(β + Δ) over its sd by the scanner's noise model, v ≈ exp(p) / I0 + σ² exp(2p) / I0².
    The features are log mean d² in tiles of the sinogram and the correlations of d between neighboring views and bins; the score
    is their mean squared deviation from clean scans, too little noise counting as much as too much. Objects that few views sample
    coarsely leave their edges in d, which is in the clean spread.

    Attributes:
        tiles: along each axis.
    """

    kind: Literal["noise-statistics"] = "noise-statistics"
    version: Literal[2] = 2
    source: ClassVar[str] = "noise model: Whiting et al., Med. Phys. 33, 2006; test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-consistent", "ltgm-noise-shaped"})

    tiles: int = Field(8, ge=1, le=64)

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why there are no differences."""
        if geometry.views < 4 or geometry.bins < 2:
            return f"needs 4 views and 2 bins or more; this scan has {geometry.views} and {geometry.bins}"
        return ""

    def residual(self, geometry: Geometry) -> NoiseFeatures:
        """The features."""
        return NoiseFeatures(geometry, self.tiles)
