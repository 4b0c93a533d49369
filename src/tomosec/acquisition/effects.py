"""What a real scanner adds to a scan, each effect alone, on line integrals (views, bins) in float64.

They are values without state: the order in which they act is in :class:`tomosec.acquisition.scanner.Scanner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.interpolate import CubicSpline

from tomosec.component import describe_validation_error
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Floats, Geometry
from tomosec.randomness import generator

#: Where a hardening polynomial must grow; outside it goes on as a straight line. 15 is one photon in three million.
HARDENING_RANGE = (-1.0, 15.0)


def as_scanned(geometry: Geometry, *, axis_offset_mm: float = 0.0, detector_offset_bins: float = 0.0) -> Geometry:
    """Return the geometry that a scanner really has, where it misses the one that the reconstruction assumes.

    Args:
        geometry: What is assumed.
        axis_offset_mm: How far the true rotation axis lies off the assumed one, towards growing bins, at the isocenter. Parallel
            rays have no central ray, so there it is a shift of the detector the other way.
        detector_offset_bins: How far the true detector is shifted from the assumed one, in bins.

    Raises:
        InputError: The shifted scan is none, with the reason.
    """
    if axis_offset_mm == 0 and detector_offset_bins == 0:
        return geometry
    change = {"detector_offset_bins": geometry.detector_offset_bins + detector_offset_bins}
    if isinstance(geometry, FanBeam):
        change["axis_offset_mm"] = geometry.axis_offset_mm + axis_offset_mm
    else:
        change["detector_offset_bins"] -= axis_offset_mm / geometry.bin_mm
    try:
        return type(geometry).model_validate(geometry.model_dump() | change)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, "acquisition: the geometry with its offsets")) from error


@dataclass(frozen=True, slots=True)
class TubeCurrent:
    """How the tube current, and with it the photons, varies over the views of one scan; the mean over the views is 1.

    Attributes:
        kind: ``sinusoidal``: 1 − strength · cos 2t in the view at angle t, least from the front and the back, where a body is
            thin.
            ``attenuation``: proportional to A**strength, A being the factor by which the view's most attenuated ray is
            weakened. For one ray a view, and noise that only photons make, strength 1/2 gives the least noise for the charge
            (Gies et al., Med. Phys. 26:2235, 1999).
        strength: depth of the sinusoid, or exponent of the attenuation.
    """

    kind: Literal["sinusoidal", "attenuation"]
    strength: float

    def profile(self, integrals: Floats, geometry: Geometry) -> Floats:
        """Relative current of every view, (views,), of a scan with noiseless line integrals (views, bins)."""
        if self.kind == "sinusoidal":
            current = 1 - self.strength * np.cos(2 * geometry.view_angles)
        else:
            peak = integrals.max(axis=1)
            # Only ratios count; this way a very thick body does not overflow.
            current = np.exp(self.strength * (peak - peak.max()))
        return np.asarray(current / current.mean(), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class BeamHardening:
    """A polychromatic beam: p reads as h(p) = p + a₂ p² + a₃ p³ + ... (Herman, Phys. Med. Biol. 24:81, 1979).

    p is the line integral at the energy that the beam shows through thin layers. One polynomial for all matter: bone hardens the
    beam no more than the water that weakens it as much.

    Attributes:
        coefficients: a₂, a₃, ...; a₂ is negative.
        corrected: whether h is inverted after the log, as scanners do by their calibration on water.

    Raises:
        InputError: h does not grow everywhere in :data:`HARDENING_RANGE`, so that two thicknesses would read the same.
    """

    coefficients: tuple[float, ...]
    corrected: bool = False

    def __post_init__(self) -> None:
        grid = np.linspace(*HARDENING_RANGE, 1601)
        slope = np.polynomial.polynomial.polyval(grid, self._derivative)
        if slope.min() <= 0:
            shown = " + ".join(["p", *(f"({a:g}) p^{k}" for k, a in enumerate(self.coefficients, 2))])
            raise InputError(
                f"beam_hardening: the reading {shown} does not grow at p = {grid[slope.argmin()]:.3g}; "
                f"it must from p = {HARDENING_RANGE[0]:g} to {HARDENING_RANGE[1]:g}"
            )

    @property
    def _polynomial(self) -> tuple[float, ...]:
        return (0.0, 1.0, *self.coefficients)

    @property
    def _derivative(self) -> tuple[float, ...]:
        return tuple(k * a for k, a in enumerate(self._polynomial))[1:]

    def __call__(self, integrals: Floats) -> Floats:
        """Return h(p), any shape."""
        inside = np.clip(integrals, *HARDENING_RANGE)
        out = np.polynomial.polynomial.polyval(inside, self._polynomial)
        return np.asarray(out + (integrals - inside) * self.slope(inside), dtype=np.float64)

    def slope(self, integrals: Floats) -> Floats:
        """Return h'(p), any shape."""
        return np.asarray(np.polynomial.polynomial.polyval(np.clip(integrals, *HARDENING_RANGE), self._derivative))

    def inverse(self, measured: Floats) -> Floats:
        """Return the p with h(p) = ``measured``, any shape: the water correction."""
        grid = np.linspace(*HARDENING_RANGE, 1601)
        out = np.interp(measured, self(grid), grid)
        # From a table that is good to 1e-5, Newton's second step is at the last digit; beyond the range the first one is exact.
        for _ in range(2):
            out = out - (self(out) - measured) / self.slope(out)
        return out


@dataclass(frozen=True, slots=True)
class BadBins:
    """Detector elements that do not measure: dead ones read nothing, hot ones what air would give, whatever is before them.

    Attributes:
        dead, hot: which bins, in ascending order.
        corrected: whether their line integrals are replaced by linear interpolation between the nearest good bins of the view.
    """

    dead: tuple[int, ...]
    hot: tuple[int, ...]
    corrected: bool = True

    @classmethod
    def draw(cls, fraction: float, bins: int, seed: int, *, corrected: bool = True) -> BadBins:
        """Draw the defects of one scanner: ``fraction`` of its bins, one at least, half of them (rounded up) dead.

        Args:
            fraction: Above 0.
            bins: How many bins the detector has.
            seed: Names the scanner; its defects are in every scan of it.
            corrected: See the class.

        Raises:
            InputError: No good bin would be left.
        """
        count = max(1, round(fraction * bins))
        if count >= bins:
            raise InputError(f"bad_bins: {count} of {bins} bins would be bad; at least one must measure")
        chosen = generator(seed, "bad-bins", bins).choice(bins, size=count, replace=False).tolist()
        dead = (count + 1) // 2
        return cls(tuple(sorted(chosen[:dead])), tuple(sorted(chosen[dead:])), corrected)

    @property
    def all(self) -> NDArray[np.intp]:
        """Every bad bin, ascending."""
        return np.asarray(sorted((*self.dead, *self.hot)), dtype=np.intp)

    def neighbors(self, bins: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
        """Return the good bins below and above each of ``all``, and the weight of the one above; at an edge both are the same."""
        good = np.setdiff1d(np.arange(bins), self.all)
        above = np.searchsorted(good, self.all)
        left, right = good[np.maximum(above - 1, 0)], good[np.minimum(above, len(good) - 1)]
        left, right = np.where(above == 0, right, left), np.where(above == len(good), left, right)
        weight = (self.all - left) / np.maximum(right - left, 1)
        return left, right, np.where(left == right, 0.0, weight)

    def interpolate(self, integrals: Floats) -> Floats:
        """Replace the bad bins of (..., bins) by what lies between their neighbors."""
        left, right, weight = self.neighbors(integrals.shape[-1])
        out = integrals.copy()
        out[..., self.all] = (1 - weight) * integrals[..., left] + weight * integrals[..., right]
        return out


@dataclass(frozen=True, slots=True)
class Jitter:
    """Views that are not measured quite where the reconstruction assumes; independent normal errors in every view and scan.

    Measured is p(t + δ, s + ε) instead of p(t, s): source and detector turned δ too far, then the detector shifted along itself
    by ε. Both are found by interpolation in the noiseless sinogram, so they are meant to be small against its sampling.

    Attributes:
        view_rad: sd of δ.
        detector_mm: sd of ε, at the detector.
    """

    view_rad: float = 0.0
    detector_mm: float = 0.0

    def displacements(self, geometry: Geometry, *key: str | int) -> tuple[Floats, Floats]:
        """Return δ in rad and ε in mm, each (views,), of the scan that ``key`` names."""
        turned, shifted = (generator(*key, name).standard_normal(geometry.views) for name in ("view-jitter", "detector-jitter"))
        return self.view_rad * turned, self.detector_mm * shifted

    def displace(self, integrals: Floats, geometry: Geometry, *key: str | int) -> Floats:
        """Return (views, bins) line integrals as the displaced views measure them."""
        turned, shifted = self.displacements(geometry, *key)
        out = turn_views(integrals, geometry, turned) if self.view_rad > 0 else integrals
        return shift_bins(out, shifted / geometry.bin_mm) if self.detector_mm > 0 else out


def turn_views(integrals: Floats, geometry: Geometry, angles: Floats) -> Floats:
    """Return what the views of a sinogram (views, bins) would measure if each were turned by an angle of its own.

    Cubic splines over the view angle, periodic where the views are equal steps around a full circle.

    Args:
        integrals: (views, bins).
        geometry: The scan.
        angles: (views,), rad; meant to be small against the step between views.

    Raises:
        InputError: All views have one angle.
    """
    period = 2 * np.pi if geometry.is_full_circle else None
    nominal = geometry.view_angles if period is None else np.mod(geometry.view_angles, period)
    knots, index = np.unique(nominal, return_index=True)
    if len(knots) < 2:
        raise InputError("view_jitter_rad: nothing can be interpolated between views that have one angle")
    values = integrals[index]
    if period is not None:
        knots, values = np.append(knots, knots[0] + period), np.concatenate([values, values[:1]])
    spline = CubicSpline(knots, values, bc_type="not-a-knot" if period is None else "periodic")
    return np.asarray(spline(nominal + angles), dtype=np.float64)


def shift_bins(integrals: Floats, bins: Floats) -> Floats:
    """Return what the views of a sinogram (views, bins) would measure if the detector were shifted in each of them.

    Cubic convolution (Keys, IEEE Trans. Acoust. 29:1153, 1981); beyond the detector it sees what its last bin does.

    Args:
        integrals: (views, bins).
        bins: (views,), shift towards growing bins, in bins.
    """
    whole = np.floor(bins)
    t = (bins - whole)[:, None]
    weights = (
        -t * (1 - t) ** 2 / 2,
        1 - t**2 * (5 - 3 * t) / 2,
        t * (1 + t * (4 - 3 * t)) / 2,
        -(t**2) * (1 - t) / 2,
    )
    places = np.arange(integrals.shape[1]) + whole[:, None].astype(np.intp)
    out = np.zeros_like(integrals)
    for tap, weight in enumerate(weights, -1):
        out += weight * np.take_along_axis(integrals, np.clip(places + tap, 0, integrals.shape[1] - 1), axis=1)
    return out
