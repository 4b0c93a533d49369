"""How much an additive pattern raises the scores of the tests of consistency: a quadratic form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from tomosec.consistency.air import Reading, air_rays, air_sums
from tomosec.consistency.complementary_rays import difference, why_not_twice
from tomosec.consistency.fourier_wedge import OutsideWedge, Wedge, why_not_outside
from tomosec.consistency.half_scans import HalfDifference, why_not_halves
from tomosec.consistency.helgason_ludwig import ForbiddenMoments, why_not_moments
from tomosec.consistency.pairs import SEPARATIONS_RAD, PairDifference, separations, why_not_pairs
from tomosec.consistency.reprojection import FixedSteps
from tomosec.consistency.residual import Residual
from tomosec.consistency.second_differences import SecondDifferences
from tomosec.consistency.spread import Moments, Spread, SpreadFit
from tomosec.errors import NotApplicable
from tomosec.geometry import FanBeam, Geometry

#: Line integrals (B, 1, views, bins) of clean scans, and the sd of their noise or None, in batches; read anew at every call.
Clean = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]


def linear_residuals(geometry: Geometry, typical: Tensor) -> dict[str, Residual]:
    """The residuals that are linear and apply to a geometry, by the kind of the detector that scores them, with its defaults.

    Args:
        geometry: the scan.
        typical: (1, 1, views, bins) line integrals of a typical scan, whose steps the reprojection takes.
    """
    found: dict[str, Residual] = {"air-rays": Reading(), "reprojection-residual": FixedSteps(geometry, typical)}
    if not why_not_twice(geometry):
        found["complementary-rays"] = difference(geometry)
    if not why_not_outside(geometry):
        found["fourier-wedge"] = OutsideWedge(Wedge(geometry))
    if not why_not_moments(geometry):
        found["helgason-ludwig"] = ForbiddenMoments(geometry)
    if isinstance(geometry, FanBeam) and not why_not_pairs(geometry):
        found["pairwise-consistency"] = PairDifference(geometry, separations(geometry, SEPARATIONS_RAD))
    if not why_not_halves(geometry):
        found["half-scan-disagreement"] = HalfDifference(geometry)
    if geometry.views >= 4:
        found["noise-statistics"] = SecondDifferences()
    return dict(sorted(found.items()))


class ScoreRise:
    """By how much T, added to every scan, raises the score of each detector, in units of the score's own clean sd.

    A residual L is linear, so that of p + T is that of p plus L T, and the cross term has no mean. The score (statistic
    ``chi2``), the mean of m squares that are 1 each in clean scans, rises by mean (L T / sd)²; were they independent and normal,
    its sd would be √(2 / m). Hence

        d(T) = √(m / 2) mean (L T / sd)².

    That of ``air-rays`` is of the sums that it looks at. ``noise-statistics`` is not linear: d is of the second differences whose
    variance it estimates, and is the growth of that variance over the whole scan.

    Args:
        geometry: the scan.
        clean: clean scans of the scanner, two or more.

    Attributes:
        sd: by kind of detector, the clean sd of its residual, float64.
        ray_variance: (1, 1, views, bins) mean variance of the rays' noise, float64; None where it is not known.
    """

    def __init__(self, geometry: Geometry, clean: Clean) -> None:
        rays, noise, has_model = Moments(), Moments(), False
        for p, noise_sd in clean():
            rays.update(p)
            if noise_sd is not None:
                has_model = True
                noise.update(noise_sd.double().square())
        if rays.count < 2:
            raise NotApplicable(f"a clean spread needs two scans or more; there is {rays.count}")
        self._residuals = linear_residuals(geometry, rays.mean[None])
        self.ray_variance = noise.mean[None] if has_model else None
        fits = {name: SpreadFit(exact=one.exact_noise, usual=one.usual_variance) for name, one in self._residuals.items()}
        for p, noise_sd in clean():
            for name, residual in self._residuals.items():
                fits[name].update(*residual.measure(p.double(), noise_sd))
        self.sd: dict[str, Tensor] = {}
        for name, fit in fits.items():
            spread = fit.finish()
            if name == "air-rays":
                self._air = air_rays(spread)
            self.sd[name] = _sd(self._residuals[name], spread, self.ray_variance)
        if not bool(self._air.any()):
            del self._residuals["air-rays"], self.sd["air-rays"]

    def __call__(self, pattern: Tensor) -> dict[str, Tensor]:
        """D by kind of detector, float64, of a pattern (1, 1, views, bins) float64; differentiable."""
        found = {}
        for name, residual in self._residuals.items():
            z = residual.values(pattern) / self.sd[name]
            squares = (air_sums(z, self._air) if name == "air-rays" else z).square()
            found[name] = math.sqrt(squares.numel() / 2) * squares.mean()
        return found


def _sd(residual: Residual, spread: Spread, variance: Tensor | None) -> Tensor:
    """Clean sd of a residual at the mean variance of the rays (1, 1, views, bins)."""
    total = spread.excess[None]
    if variance is not None:
        nominal = residual.nominal(variance)
        assert nominal is not None
        total = total + spread.gain * nominal
    return total.clamp_min(spread.floor).sqrt()
