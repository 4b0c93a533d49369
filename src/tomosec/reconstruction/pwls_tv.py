"""PWLS-TV: total variation with each ray weighted by the certainty of its measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.reconstruction.base import Reconstruction
from tomosec.reconstruction.tv import UNSEEN, TVReconstructor


class PWLSTVReconstructor(TVReconstructor):
    """As :class:`tomosec.reconstruction.tv.TVReconstructor` with weights w_i = c / σ_i² for the variances σ² of the rays.

    The factor c of a sample is such that a pixel in the scan circle sees the mean weight 1: the mean over those pixels j of
    (Aᵀw)_j / (Aᵀ1)_j. So only ratios of the variances count, λ keeps the meaning that it has without weights, and rays that
    say nothing (a dead bin) move nothing. The weights depend on the data too, and the gradient includes that.
    """

    kind: ClassVar[str] = "pwls-tv"
    _columns: Tensor

    def __init__(self, geometry: Geometry, *, strength_hu: float, iterations: int, nonnegative: bool) -> None:
        super().__init__(geometry, strength_hu=strength_hu, iterations=iterations, nonnegative=nonnegative)
        with torch.no_grad():
            ones = torch.ones((1, 1, *geometry.sinogram_shape), dtype=torch.float64, device="cpu")
            columns = self._projector.T.unchecked(ones)
        self.register_buffer("_columns", columns, persistent=False)

    def ray_weights(self, sinogram: Tensor) -> Tensor:
        """Weights of photon noise, whose variance is exp(p) / I0, so c exp(−p); same shape as the sinogram."""
        return self._weights(sinogram)

    def _weights(self, log_variance: Tensor) -> Tensor:
        """The weights from the logarithm of the variance, up to a constant: the variance itself may overflow."""
        least = log_variance.detach().flatten(1).min(1).values[:, None, None, None] if len(log_variance) else 0
        weights = (least - log_variance).exp()
        columns = self._columns.to(weights)
        inside = self._circle & (columns > UNSEEN * columns.max())
        seen = self._projector.T.unchecked(weights.contiguous()) / torch.where(inside, columns, 1)
        mean = torch.where(inside, seen, 0).sum((1, 2, 3), keepdim=True) / inside.sum()
        return weights / mean

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
        return self.iterate(sinogram, weights=self._weights(log))


class PWLSTotalVariation(Reconstruction):
    """As ``tv``, noisy rays count less. Not linear; its gradient costs what the image does, and memory a step.

    Penalized weighted least squares. Rays through much tissue are noisy: the weights are proportional to exp(−p) of the measured
    line integrals, those of photon noise, unless variances are given with the sinogram. Where counts are so few that p itself is
    mostly noise the weights follow that noise, which pulls their average to small p. They know neither the tube current of a
    view nor electronic noise: with a modulated current the variances have to be given. Cost and gradient as ``tv``, and one more
    transposed projection.

    Attributes:
        strength_hu: λ, the contrast that is smoothed away, in HU where a pixel sees the mean weight 1. The middle of a body
            sees less and is smoothed more, so that a fifth of what suits ``tv`` is a good start.
        iterations: steps; uneven weights need more of them than ``tv`` does.
        nonnegative: constrain attenuation to 0 and above.
    """

    source: ClassVar[str] = "Sauer and Bouman, IEEE Trans. Signal Process. 41:534, 1993 (the weights)"
    kind: Literal["pwls-tv"] = "pwls-tv"
    version: Literal[1] = 1
    strength_hu: Annotated[float, Field(gt=0)] = 3.0
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    nonnegative: bool = False

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> PWLSTVReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return PWLSTVReconstructor(
            geometry, strength_hu=self.strength_hu, iterations=self.iterations, nonnegative=self.nonnegative
        ).to(device)
