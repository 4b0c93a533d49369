"""The Fourier wedge: the sinogram of an object inside a circle has next to no energy at most of its 2-D frequencies."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam

#: View frequencies (periods per turn) that are never judged: the wedge is sharp for high ones only.
GUARD = 6


def slopes(geometry: FanBeam | ParallelBeam, radius_mm: float) -> tuple[float, float]:
    """Return how many bins a point at that radius moves at the least and at the most per rad of rotation, counter-clockwise.

    For a fan these are the slopes −r / (L + r) and r / (L − r) of Mazin and Pelc, in fan angle on a curved detector and in u / D
    on a flat one, where the same holds below half the source's radius.
    """
    phi = np.linspace(0, 2 * math.pi, 3601)
    h = 1e-5

    def place(t: float) -> Floats:
        x, y = radius_mm * np.cos(phi - t), radius_mm * np.sin(phi - t)
        if isinstance(geometry, ParallelBeam):
            return np.asarray(x / geometry.bin_mm)
        along, depth = x + geometry.axis_offset_mm, geometry.source_to_isocenter_mm - y
        ratio = along / depth if geometry.detector == "flat" else np.arctan2(along, depth)
        return np.asarray(ratio * geometry.source_to_detector_mm / geometry.bin_mm)

    moved = (place(h) - place(-h)) / (2 * h)
    return float(moved.min()), float(moved.max())


class Wedge:
    """The wedge of one scan: which frequencies the sinogram of an object inside the circle can have.

    A point's track moves m bins per rad, so its energy lies at view frequency k = −m q for the bin frequency q (rad per bin);
    m is between the two :func:`slopes`.

    Attributes:
        outside: (views of a turn, bins) bool, which frequencies of the 2-D Fourier transform no object has.
    """

    def __init__(self, geometry: Geometry, *, radius_mm: float | None = None) -> None:
        """Set up; ``radius_mm`` of the circle, None for the scan circle. InputError where :func:`why_not_wedge` has a reason."""
        if reason := why_not_wedge(geometry):
            raise InputError(f"wedge: {reason}")
        assert isinstance(geometry, (FanBeam, ParallelBeam))
        self._mirrored = isinstance(geometry, ParallelBeam) and geometry.is_half_circle
        angles = geometry.view_angles
        direction = math.copysign(1.0, angles[1] - angles[0])
        low, high = slopes(geometry, geometry.scan_radius_mm if radius_mm is None else radius_mm)
        turn = geometry.views * (2 if self._mirrored else 1)
        k = np.fft.fftfreq(turn, 1 / turn)[:, None]
        q = 2 * math.pi * np.fft.fftfreq(geometry.bins)[None, :]
        ends = np.stack([-low * q, -high * q]) * direction
        allowed = (k >= ends.min(0) - GUARD) & (k <= ends.max(0) + GUARD)
        # A real sinogram has each frequency with its negative; at half a sampling rate the two are one along that axis.
        self.outside = torch.from_numpy(~allowed & ~allowed[_negative(turn)][:, _negative(geometry.bins)])
        self._views = geometry.views

    def project_out(self, p: Tensor) -> Tensor:
        """The part of sinograms (B, 1, views, bins) outside the wedge, float64; an orthogonal projection."""
        if not len(p):  # which no FFT library takes
            return p.double()
        whole = self._turn(p.double())
        part: Tensor = torch.fft.ifft2(torch.fft.fft2(whole) * self.outside.to(p.device)).real
        return part[:, :, : self._views]

    def variance(self, variance: Tensor) -> Tensor:
        """Variance of :meth:`project_out` for independent rays of the given variance (B, 1, views, bins)."""
        if not len(variance):
            return variance.double()
        kernel = torch.fft.ifft2(self.outside.double().to(variance.device)).real
        spread = torch.fft.ifft2(torch.fft.fft2(self._turn(variance.double())) * torch.fft.fft2(kernel.square())).real
        out: Tensor = spread[:, :, : self._views].clamp_min(0)
        return out

    def _turn(self, p: Tensor) -> Tensor:
        """Half a turn of parallel rays continued to a whole one."""
        return torch.cat([p, p.flip(-1)], dim=-2) if self._mirrored else p


def _negative(count: int) -> Floats:
    return np.asarray((-np.arange(count)) % count)


def why_not_wedge(geometry: Geometry) -> str:
    """Return why a scan has no wedge, or an empty string."""
    if not isinstance(geometry, (FanBeam, ParallelBeam)):
        return f"needs a fan beam or parallel rays, not a geometry of kind {geometry.model_dump().get('kind')!r}"
    if geometry.views < 4:
        return f"needs 4 views or more; this scan has {geometry.views}"
    steps = np.diff(geometry.view_angles)
    if not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return "needs equal steps in the order of the rotation"
    half = isinstance(geometry, ParallelBeam) and geometry.is_half_circle
    if not (geometry.is_full_circle or half):
        turn = "half a turn or a whole one" if isinstance(geometry, ParallelBeam) else "a whole turn"
        return f"needs equal steps around {turn}; this scan covers {math.degrees(abs(steps[0]) * geometry.views):.4g}°"
    if half and geometry.detector_offset_bins != 0:
        return (
            "half a turn of parallel rays needs a bin at −s for every bin at s; detector_offset_bins is "
            f"{geometry.detector_offset_bins:g}, not 0"
        )
    return ""


class OutsideWedge(Residual):
    """The part of a sinogram outside the wedge, (B, views, bins)."""

    def __init__(self, wedge: Wedge) -> None:
        self._wedge = wedge

    def values(self, p: Tensor) -> Tensor:
        """What the wedge leaves out."""
        return self._wedge.project_out(p)[:, 0]

    def nominal(self, variance: Tensor) -> Tensor:
        """Of independent rays."""
        return self._wedge.variance(variance)[:, 0]

    def sinogram_map(self, z: Tensor) -> Tensor:
        """Where it is."""
        return z


def why_not_outside(geometry: Geometry, radius_mm: float | None = None) -> str:
    """Return why a scan has no wedge, or nothing outside it; an empty string where it has. The radius is :class:`Wedge`'s."""
    if reason := why_not_wedge(geometry):
        return reason
    if isinstance(geometry, FanBeam) and (radius_mm or 0) >= geometry.source_to_isocenter_mm:
        return f"radius_mm is {radius_mm:g}, beyond the source at {geometry.source_to_isocenter_mm:g}"
    if not bool(Wedge(geometry, radius_mm=radius_mm).outside.any()):
        return "the views are too coarse: every frequency of this scan is inside the wedge"
    return ""
