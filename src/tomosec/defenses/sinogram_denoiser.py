"""A denoiser of measured data: what is finer than the noise allows to see is smoothed away."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.defenses.base import ModelContext, Need, Purification, ScanContext, ScanPurifier, Scans, TrainingContext
from tomosec.defenses.calibration import check_scans, clean_scans
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry


class WeightedGaussian(Purification):
    """Gaussian smoothing along views and bins with the inverse variance of each ray as its weight.

    Attributes:
        widths: sd along views and along bins, in samples; 0 leaves an axis alone.
    """

    def __init__(self, geometry: Geometry, widths: tuple[float, float]) -> None:
        self.widths = widths
        self._geometry = geometry
        self._taps = [_taps(width) for width in widths]
        steps = np.diff(geometry.view_angles)
        self._closed = geometry.is_full_circle and bool(np.allclose(steps, steps[0], rtol=1e-6, atol=0)) if len(steps) else False
        (views, bins), (along_views, along_bins) = geometry.sinogram_shape, self._taps
        own = _own(along_views, views, closed=self._around(along_views, views)), _own(along_bins, bins, closed=False)
        self._own = torch.from_numpy(np.outer(*own))

    @torch.no_grad()
    def purify(self, scans: Scans) -> Tensor:
        """(B, 1, views, bins), type of the scans."""
        check_scans(scans, self._geometry, "sinogram-denoiser")
        return self.smooth(scans)[0].to(scans.line_integrals.dtype)

    def smooth(self, scans: Scans) -> tuple[Tensor, Tensor]:
        """Smoothed line integrals, and each ray's own share in its smoothed value; (B, 1, views, bins) float64."""
        p = scans.line_integrals.double()
        weights = torch.ones_like(p)
        if scans.noise_sd is not None:
            variance = scans.noise_sd.double().square()
            mean = variance.mean((2, 3), keepdim=True)
            weights = torch.where(mean > 0, mean / (variance + 1e-6 * mean).clamp_min(1e-300), 1.0)
        total = self._convolve(weights)
        return self._convolve(p * weights) / total, self._own.to(p.device) * weights / total

    def _around(self, taps: np.ndarray[tuple[int], np.dtype[np.float64]], views: int) -> bool:
        return self._closed and len(taps) // 2 <= views

    def _convolve(self, p: Tensor) -> Tensor:
        for axis, taps in zip((2, 3), self._taps, strict=True):
            reach = len(taps) // 2
            if not reach:
                continue
            pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
            around = axis == 2 and self._around(taps, p.shape[2])
            padded = F.pad(p, pad, mode="circular" if around else "replicate")
            kernel = torch.from_numpy(taps).to(p).reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
            p = F.conv2d(padded, kernel)
        return p


def _taps(width: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    reach = math.ceil(4 * width)
    if not reach:
        return np.ones(1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.asarray(taps / taps.sum())


def _own(
    taps: np.ndarray[tuple[int], np.dtype[np.float64]], count: int, *, closed: bool
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(count,) weight of each sample in its smoothed value; beyond the ends of an axis the last sample is repeated."""
    reach = len(taps) // 2
    own = np.full(count, taps[reach])
    if not closed:
        own[0] += taps[:reach].sum()
        own[-1] += taps[reach + 1 :].sum()
    return own


class SinogramDenoiser(ScanPurifier):
    """Sinogram denoiser: Gaussian smoothing along views and bins, as wide as clean scans are best predicted.

    p̂ = G(w p) / G(w) with w one over the variance of each ray by the scanner's noise model. The two widths are those of the
    smallest risk over clean scans, for which no noiseless scan is needed. With c a ray's own share in its smoothed value, it is
    Stein's estimate, the mean of (p − p̂)² / v + 2 c − 1 (Stein, Ann. Stat. 9, 1981), or without a noise model generalized
    cross-validation, the mean of (p − p̂)² over (1 − mean c)² (Craven and Wahba, Numer. Math. 31, 1979), which cannot judge
    no smoothing at all. Simple on purpose; a trigger that is as smooth as anatomy stays.

    Attributes:
        widths: sd in samples to choose from, for each axis.
        scans: clean scans that are enough to choose.
    """

    kind: Literal["sinogram-denoiser"] = "sinogram-denoiser"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "calibration-scans"})
    source: ClassVar[str] = "baseline; width by Stein, Ann. Stat. 9, 1981, or Craven and Wahba, Numer. Math. 31, 1979"

    widths: Annotated[tuple[Annotated[float, Field(ge=0, le=20)], ...], Field(min_length=1)] = (0.0, 0.4, 0.6, 0.9, 1.3, 2.0)
    scans: Annotated[int, Field(ge=1)] = 32

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why there is nothing to choose a width by."""
        if not isinstance(context, ScanContext):
            return "needs measured data"
        return "" if len(context.clean) else "needs calibration scans; there are none"

    @torch.no_grad()
    def fit(self, context: ScanContext) -> WeightedGaussian:
        """Choose the widths.

        Raises:
            NotApplicable: no clean scans.
        """
        if reason := self.why_not(context):
            raise NotApplicable(f"sinogram-denoiser: {reason}")
        choices = [WeightedGaussian(context.geometry, (views, bins)) for views in self.widths for bins in self.widths]
        risks = [0.0] * len(choices)
        count = min(self.scans, len(context.clean))
        context.progress.start(count, "fit sinogram-denoiser")
        for scans in clean_scans(context, range(count), "sinogram-denoiser"):
            for i, choice in enumerate(choices):
                risks[i] += _risk(scans, choice)
            context.progress.advance(len(scans.keys))
        return choices[min(range(len(choices)), key=lambda i: risks[i])]


def _risk(scans: Scans, choice: WeightedGaussian) -> float:
    """Estimated error of the smoothed line integrals, summed over scans; smaller is better."""
    smoothed, share = choice.smooth(scans)
    error = (scans.line_integrals.double() - smoothed).square()
    if scans.noise_sd is not None:
        variance = scans.noise_sd.double().square()
        variance = variance + 1e-6 * variance.mean((1, 2, 3), keepdim=True)
        # Without noise every error counts, and no smoothing is best.
        relative = torch.where(error > 0, error / variance.clamp_min(1e-30), 0.0)
        return float((relative + 2 * share - 1).mean((1, 2, 3)).sum())
    freedom = 1 - share.mean((1, 2, 3))
    if choice.widths == (0.0, 0.0):
        return math.inf
    return float((error.mean((1, 2, 3)) / freedom.square()).sum())
