"""How noisy a dose is: the water disc that it is defined on, and a check that an acquisition reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tomosec.acquisition.scanner import Scanner
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.operators import Projector

if TYPE_CHECKING:
    from tomosec.acquisition.simulated import CalibratedAcquisition

#: Noise in HU within 40 mm of the center of a 30 cm water disc, ram-lak, on the experiment's own grid.
DOSES: dict[str, float] = {"ideal": 0.0, "standard": 25.0, "low": 50.0, "ultra-low": 100.0}
#: A dose is met when its noise is within this fraction of what it promises.
DOSE_TOLERANCE = 0.05
DISC_RADIUS_MM = 150.0
CENTER_RADIUS_MM = 40.0


def disc_image(geometry: Geometry, radius_mm: float) -> Tensor:
    """(1, 1, H, W) float64 image of a centered unit disc, pixel values averaged over 8 x 8 points."""
    rows, cols = geometry.shape
    fine = [((np.arange(count * 8) + 0.5) / 8 - count / 2) * geometry.pixel_mm for count in (rows, cols)]
    inside = np.hypot(fine[0][:, None], fine[1][None, :]) <= radius_mm
    return torch.from_numpy(inside.reshape(rows, 8, cols, 8).mean((1, 3)))[None, None]


def water_disc_integrals(geometry: Geometry) -> Tensor:
    """(1, 1, views, bins) float64 line integrals of the 30 cm water disc that doses are defined on."""
    if geometry.scan_radius_mm < DISC_RADIUS_MM:
        raise InputError(
            f"a dose is defined on a {2 * DISC_RADIUS_MM / 10:.0f} cm water disc, but the scan circle of this geometry is "
            f"{2 * geometry.scan_radius_mm / 10:.1f} cm wide; use dose 'ideal' or a wider geometry"
        )
    integrals: Tensor = Projector(geometry)(disc_image(geometry, DISC_RADIUS_MM) * MU_WATER)
    return integrals


def central_mask(geometry: Geometry) -> Tensor:
    """(H, W) mask of the pixels within 40 mm of the isocenter."""
    return torch.from_numpy(geometry.pixel_radii_mm() <= CENTER_RADIUS_MM)


def disc_noise(scanner: Scanner, reconstruct: Callable[[Tensor], Tensor], name: str, draws: int) -> Tensor:
    """Noise in HU at the center of the water disc in each of ``draws`` simulated scans, around their mean image; (draws,)."""
    clean, mask = water_disc_integrals(scanner.scanned).float(), central_mask(scanner.geometry)
    scans = [reconstruct(scanner.measure(clean, [name], seed=0, draw=draw))[0, 0][mask].double() for draw in range(draws)]
    images = torch.stack(scans) * HU_PER_MU
    # Each scan is part of the mean it is compared with, which takes 1/draws off its variance.
    return (images - images.mean(0)).pow(2).mean(1).mul(draws / (draws - 1)).sqrt()


@dataclass(frozen=True, slots=True)
class DoseCheck:
    """The noise that a dose reaches on the water disc, against what it promises."""

    dose: str
    target_hu: float
    reached_hu: float
    low_hu: float
    high_hu: float
    draws: int
    i0: float


def check_dose(
    acquisition: CalibratedAcquisition, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor], *, draws: int = 32
) -> DoseCheck:
    """Simulate the water disc ``draws`` times, none of them a calibration scan, and measure the sd at its center.

    The interval is that of the mean over draws of the within-image sd (95 %, normal).
    """
    calibration = acquisition.fit(geometry, reconstruct)
    if not math.isfinite(calibration.i0):
        return DoseCheck(str(acquisition.dose), 0.0, 0.0, 0.0, 0.0, 0, calibration.i0)
    values = disc_noise(acquisition.build(calibration, geometry), reconstruct, "water-disc check", draws)
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(draws)
    return DoseCheck(str(acquisition.dose), acquisition.dose_hu, mean, mean - half, mean + half, draws, calibration.i0)
