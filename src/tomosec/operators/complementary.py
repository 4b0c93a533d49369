"""Complementary rays: every line through the object, measured from its other side.

A whole turn measures each line twice. Of a fan beam p(t, γ) = p(t + π + 2γ, −γ) for either direction of rotation, of parallel
rays p(t, s) = p(t + π, −s) (Parker, Med. Phys. 9, 1982); C is the map from one side to the other. The views are periodic, so
they are shifted by a phase of their Fourier series, bin by bin, which is exact for what the views sample finely enough.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.operators.dispatch import check_sinogram


def why_not_complementary(geometry: Geometry) -> str:
    """Return why the bins of a scan have no complementary ones, or an empty string where all have.

    They have on equal steps, in order, around a whole turn, with a detector and an axis that are not offset (then −γ is a bin
    where γ is).
    """
    if not isinstance(geometry, (FanBeam, ParallelBeam)):
        return f"a geometry of kind {geometry.model_dump().get('kind')!r} has no known complementary rays"
    if not geometry.is_full_circle:
        return f"complementary rays need equal steps around a whole turn; this scan covers {_covered(geometry)}"
    steps = np.diff(geometry.view_angles)
    if len(steps) and not np.allclose(steps, math.copysign(2 * math.pi / geometry.views, steps[0]), rtol=1e-6, atol=0):
        return "complementary rays need the views in the order of the rotation; these explicit angles are in another"
    for name in ("detector_offset_bins", "axis_offset_mm"):
        if getattr(geometry, name, 0.0) != 0:
            return f"complementary rays need a bin at -γ for every bin at γ; {name} is {getattr(geometry, name):g}, not 0"
    return ""


def complementary(geometry: Geometry, sinogram: Tensor) -> Tensor:
    """Return C p: at every ray, what was measured along the same line from the other side.

    C is linear, its own inverse and its own transpose on what it keeps. With an even number of views the view frequency at half
    the sampling rate has no defined phase and is left out.

    Args:
        geometry: the scan.
        sinogram: (B, 1, views, bins), float32 or float64.

    Raises:
        InputError: wrong shape or type, or a scan without complementary bins (see :func:`why_not_complementary`).
    """
    check_sinogram(sinogram, geometry, "complementary")
    if reason := why_not_complementary(geometry):
        raise InputError(reason)
    angles = geometry.view_angles
    direction = math.copysign(1.0, angles[1] - angles[0]) if geometry.views > 1 else 1.0
    fan = geometry.fan_angles if isinstance(geometry, FanBeam) else np.zeros(geometry.bins)
    shift = direction * (math.pi + 2 * fan)
    order = np.arange(geometry.views // 2 + 1)
    phase = np.exp(1j * order[:, None] * shift[None, :])
    if geometry.views % 2 == 0:
        phase[-1] = 0
    spectrum = torch.fft.rfft(sinogram.flip(-1), dim=-2)
    factor = torch.from_numpy(phase).to(device=sinogram.device, dtype=spectrum.dtype)
    shifted: Tensor = torch.fft.irfft(spectrum * factor, n=geometry.views, dim=-2)
    return shifted


def symmetrize(geometry: Geometry, sinogram: Tensor) -> Tensor:
    """Return (p + C p) / 2 of the views that C keeps: the part of a sinogram on which complementary rays agree.

    Args and errors are those of :func:`complementary`; C of the result is the result.
    """
    other = complementary(geometry, sinogram)
    return (other + complementary(geometry, other)) / 2


def _covered(geometry: Geometry) -> str:
    return "explicit angles" if geometry.angles is not None else f"an arc of {math.degrees(abs(geometry.arc)):.4g}°"
