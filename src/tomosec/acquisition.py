"""From an image to measured data: projection, photon statistics, electronic noise, the log, and how much noise a dose is.

The measured line integral of a bin with expected line integral p is ``log(I0 / max(N + e, floor))`` with ``N ~ Poisson(I0
exp(-p))`` and ``e ~ Normal(0, electronic_noise)`` in photons (the usual monochromatic model, e.g. Whiting et al., Medical
Physics 33, 2006). I0 is not chosen but calibrated: a dose is a noise level in HU, the same in every geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from tomosec.component import Component
from tomosec.errors import InputError, nearest
from tomosec.geometry import Geometry
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.operators import Projector
from tomosec.randomness import generator

#: Noise in HU within 40 mm of the center of a 30 cm water disc, ram-lak, on the experiment's own grid.
DOSES: dict[str, float] = {"ideal": 0.0, "standard": 25.0, "low": 50.0, "ultra-low": 100.0}
DISC_RADIUS_MM = 150.0
CENTER_RADIUS_MM = 40.0
#: Scans of the water disc that calibrate I0, how often it is refined at the most, and the relative error that is enough.
CALIBRATION_DRAWS = 48
REFINEMENTS = 4
REFINED = 0.005


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a dose means for one geometry.

    Attributes:
        i0: photons per bin in air; infinite where there is no noise.
        target_hu: the sd asked for.
        predicted_hu: the sd on the calibration's own scans; fresh ones scatter around it.
    """

    i0: float
    target_hu: float
    predicted_hu: float


class Acquisition(Component):
    """Base of the acquisition components."""

    family: ClassVar[str] = "acquisition"

    def fit(self, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor]) -> Calibration:
        """Calibrate against a water disc; ``reconstruct`` is filtered backprojection with ram-lak on ``geometry``."""
        raise NotImplementedError

    def build(self, calibration: Calibration, geometry: Geometry, *, device: torch.device | str = "cpu") -> Scanner:
        """Return the runtime that projects and measures."""
        raise NotImplementedError


class SimulatedAcquisition(Acquisition):
    """Monochromatic scan with photon and electronic noise.

    Attributes:
        dose: a preset (``ideal``, ``standard``, ``low``, ``ultra-low``) or the image noise in HU itself.
        electronic_noise: sd of the readout in photons (Zeng et al., IEEE TNS 62, 2015 use a variance of 11).
        floor: photons below which the log is not taken; what falls below is set to it, and the record says how often.
    """

    kind: Literal["simulated"] = "simulated"
    version: Literal[1] = 1
    dose: str | float = "standard"
    electronic_noise: float = Field(3.3, ge=0)
    floor: float = Field(1.0, gt=0)

    @field_validator("dose")
    @classmethod
    def _known_dose(cls, dose: str | float) -> str | float:
        if isinstance(dose, str) and dose not in DOSES:
            raise ValueError(f"no dose {dose!r}{nearest(dose, DOSES)}; a preset ({', '.join(DOSES)}) or a noise in HU")
        if not isinstance(dose, str) and dose < 0:
            raise ValueError("image noise in HU cannot be negative")
        return dose

    @property
    def dose_hu(self) -> float:
        """The image noise in HU that the dose stands for."""
        return DOSES[self.dose] if isinstance(self.dose, str) else float(self.dose)

    def fit(self, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor]) -> Calibration:
        """Find I0 so that the water disc shows ``dose_hu`` of noise.

        To first order the variance of a line integral is ``exp(p)/I0 + electronic_noise**2 exp(2p)/I0**2`` and that of the
        image is linear in it, which gives I0 in closed form. Few photons make the log noisier than that, so I0 is then
        refined on simulated scans with the full noise model and the same random numbers each time.

        Raises:
            InputError: the disc does not fit in the scan circle of ``geometry``.
        """
        target = self.dose_hu
        if target == 0:
            return Calibration(i0=math.inf, target_hu=0.0, predicted_hu=0.0)
        integrals = water_disc_integrals(geometry)
        quantum = _linear_variance(integrals.mul(0.5).exp(), geometry, reconstruct, "quantum")
        electronic = self.electronic_noise**2 * _linear_variance(integrals.exp(), geometry, reconstruct, "electronic")
        # target² = quantum / I0 + electronic / I0²
        i0 = (quantum + math.sqrt(quantum**2 + 4 * electronic * target**2)) / (2 * target**2)
        reached = math.nan
        for _ in range(REFINEMENTS):
            scanner = self.build(Calibration(i0, target, target), geometry)
            reached = float(disc_noise(scanner, reconstruct, "water-disc calibration", CALIBRATION_DRAWS).mean())
            if abs(reached / target - 1) < REFINED:
                break
            i0 *= (reached / target) ** 2
        return Calibration(i0=i0, target_hu=target, predicted_hu=reached)

    def build(self, calibration: Calibration, geometry: Geometry, *, device: torch.device | str = "cpu") -> Scanner:
        """Return the runtime that projects and measures."""
        return Scanner(geometry, i0=calibration.i0, electronic_noise=self.electronic_noise, floor=self.floor).to(device)


class Scanner(nn.Module):
    """Simulates scans of attenuation images.

    Args:
        geometry: the scan.
        i0: photons per bin in air; ``math.inf`` switches every kind of noise off.
        electronic_noise: sd of the readout, photons.
        floor: smallest count that the log is taken of.
    """

    def __init__(self, geometry: Geometry, *, i0: float, electronic_noise: float = 0.0, floor: float = 1.0) -> None:
        super().__init__()
        self.geometry = geometry
        self.projector = Projector(geometry)
        self.i0, self.electronic_noise, self.floor = i0, electronic_noise, floor

    def forward(self, image: Tensor) -> Tensor:
        """Noiseless line integrals (B, 1, views, bins) of attenuation (B, 1, H, W) in 1/mm."""
        out: Tensor = self.projector(image)
        return out

    @property
    def is_noisy(self) -> bool:
        """Whether measuring changes anything."""
        return math.isfinite(self.i0)

    def noise_sd(self, integrals: Tensor) -> Tensor:
        """Standard deviation of the measured line integrals, first order; zero without noise. Shape of ``integrals``."""
        if not self.is_noisy:
            return torch.zeros_like(integrals)
        photons = self.i0 * torch.exp(-integrals)
        return torch.sqrt(photons + self.electronic_noise**2) / photons

    def measure(
        self, integrals: Tensor, keys: Sequence[str], *, seed: int, draw: int, counts_change: Tensor | None = None
    ) -> Tensor:
        """Measured line integrals of noiseless ones.

        Args:
            integrals: (B, 1, views, bins) noiseless line integrals.
            keys: B sample keys. The noise is a function of (seed, key, draw) alone, so a clean and a triggered scan share it.
            seed: seed of the experiment.
            draw: 0 for tests, 1 + epoch in training.
            counts_change: line integrals to add to each sample at the ``counts`` site: after quantum noise, before
                electronic noise and the log.

        Returns:
            (B, 1, views, bins), float32 on the device of ``integrals``.
        """
        if len(keys) != integrals.shape[0]:
            raise InputError(f"{len(keys)} sample keys for {integrals.shape[0]} sinograms")
        if not self.is_noisy:
            return integrals if counts_change is None else integrals + counts_change
        expected = integrals.detach().cpu().numpy()
        change = None if counts_change is None else np.broadcast_to(counts_change.detach().cpu().numpy(), expected.shape)
        out = np.empty(expected.shape, dtype=np.float32)

        def one(i: int) -> None:
            rng = generator(seed, "noise", keys[i], draw)
            counts = rng.poisson(self.i0 * np.exp(-expected[i].astype(np.float64))).astype(np.float64)
            if change is not None:
                counts *= np.exp(-change[i].astype(np.float64))
            if self.electronic_noise > 0:
                counts += self.electronic_noise * rng.standard_normal(counts.shape, dtype=np.float32)
            out[i] = np.log(self.i0 / np.maximum(counts, self.floor))

        # NumPy's generators release the GIL while they draw.
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            list(pool.map(one, range(len(keys))))
        return torch.from_numpy(out).to(integrals.device)

    def floored_fraction(self, integrals: Tensor) -> float:
        """Expected fraction of bins whose count falls below the floor (normal approximation); the record states it."""
        if not self.is_noisy:
            return 0.0
        photons = self.i0 * torch.exp(-integrals.double())
        sd = torch.sqrt(photons + self.electronic_noise**2)
        return float(torch.special.ndtr((self.floor - photons) / sd).mean())

    def extra_repr(self) -> str:
        """Show the physics in ``repr``."""
        return f"i0={self.i0:.4g}, electronic_noise={self.electronic_noise}, floor={self.floor}"


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


def _linear_variance(sd: Tensor, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor], name: str) -> float:
    """Variance in HU² at the center when the sinogram has independent normal noise of ``sd`` (1, 1, views, bins)."""
    mask, total, count = central_mask(geometry), 0.0, 0
    for draw in range(CALIBRATION_DRAWS // 2):
        normal = torch.from_numpy(generator("dose-calibration", name, draw).standard_normal(tuple(sd.shape)))
        noise = reconstruct((normal * sd).float())[0, 0][mask].double() * HU_PER_MU
        total, count = total + float(noise.pow(2).sum()), count + noise.numel()
    return total / count


def disc_noise(scanner: Scanner, reconstruct: Callable[[Tensor], Tensor], name: str, draws: int) -> Tensor:
    """Noise in HU at the center of the water disc in each of ``draws`` simulated scans, around their mean image; (draws,)."""
    clean, mask = water_disc_integrals(scanner.geometry).float(), central_mask(scanner.geometry)
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
    acquisition: SimulatedAcquisition, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor], *, draws: int = 32
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
