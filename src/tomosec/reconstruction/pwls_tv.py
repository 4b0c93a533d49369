"""PWLS-TV: total variation with each ray weighted by the certainty of its measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.reconstruction.base import Reconstruction
from tomosec.reconstruction.tv import TVReconstructor

_MOST = 30.0  # largest logarithm of a weight: beyond it a ray is exact, and its weight would overflow


class PWLSTVReconstructor(TVReconstructor):
    """As :class:`tomosec.reconstruction.tv.TVReconstructor` with w_i = mean(σ²) / σ_i² for the variances σ² of the rays.

    The mean runs over the rays of the sample, so that only ratios of the variances count and λ keeps its scale; it is no
    normalization of the data. The weights depend on the data too, and the gradient includes that.
    """

    def ray_weights(self, sinogram: Tensor) -> Tensor:
        """Weights of photon noise, whose variance is exp(p) / I0: mean(exp p) exp(−p), same shape as the sinogram."""
        return _weights(sinogram)

    def forward(self, sinogram: Tensor, variance: Tensor | None = None) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm.

        Args:
            sinogram: Measured line integrals.
            variance: Of each line integral, shape of the sinogram or broadcastable to it; None takes that of photon noise.

        Raises:
            InputError: wrong shape or type, or a variance that is not positive and finite.
        """
        if variance is None:
            return self.iterate(sinogram)
        if not bool((variance > 0).all() and torch.isfinite(variance).all()):
            raise InputError("pwls-tv: the variance of every line integral has to be positive and finite")
        try:
            log = variance.to(sinogram).log().expand_as(sinogram)
        except RuntimeError as error:
            raise InputError(
                f"pwls-tv: the variance has shape {tuple(variance.shape)}, which does not fit a sinogram of shape "
                f"{tuple(sinogram.shape)}"
            ) from error
        return self.iterate(sinogram, weights=_weights(log))


def _weights(log_variance: Tensor) -> Tensor:
    """mean(v) / v of each sample, from the logarithm of v: the variance itself may overflow."""
    mean = torch.logsumexp(log_variance, (1, 2, 3), keepdim=True) - math.log(log_variance[0].numel() if len(log_variance) else 1)
    return (mean - log_variance).clamp(max=_MOST).exp()


class PWLSTotalVariation(Reconstruction):
    """Penalized weighted least squares with total variation (Sauer and Bouman, IEEE TSP 41:534, 1993, for the weights).

    Rays through much tissue are noisy and count less: the weights are mean(exp p) exp(−p) of the measured line integrals, those
    of photon noise, unless variances are given with the sinogram. Where counts are so few that p itself is mostly noise the
    weights follow that noise, which pulls their average to small p. Cost and gradient as ``tv``.

    Attributes:
        strength_hu: λ, the contrast that is smoothed away, in HU.
        iterations: steps.
        nonnegative: constrain attenuation to 0 and above.
    """

    kind: Literal["pwls-tv"] = "pwls-tv"
    version: Literal[1] = 1
    strength_hu: Annotated[float, Field(gt=0)] = 5.0
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 40
    nonnegative: bool = False

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> PWLSTVReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return PWLSTVReconstructor(
            geometry, strength_hu=self.strength_hu, iterations=self.iterations, nonnegative=self.nonnegative
        ).to(device)
