"""The acquisitions that an experiment can name, and how their dose is calibrated.

Photons per bin are not chosen but calibrated: a dose is a noise level in HU, the same in every geometry and with every effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tomosec.acquisition.dose import DOSE_TOLERANCE, DOSES, central_mask, disc_noise, water_disc_integrals
from tomosec.acquisition.effects import BadBins, BeamHardening, Jitter, TubeCurrent, as_scanned
from tomosec.acquisition.scanner import Scanner
from tomosec.component import Component
from tomosec.errors import InputError, nearest
from tomosec.geometry import Geometry
from tomosec.hounsfield import HU_PER_MU
from tomosec.randomness import generator

#: Scans of the water disc that calibrate I0, how often it is refined at the most, and the relative error that is enough.
CALIBRATION_DRAWS = 48
REFINEMENTS = 4
REFINED = 0.005
#: Photons per bin beyond which no noise is left to speak of; above about 1e18 they could not be drawn either.
MOST_PHOTONS = 1e15

NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a dose means for one geometry.

    Attributes:
        i0: photons per bin in air; infinite where there is no noise.
        target_hu: the sd asked for.
        predicted_hu: the sd on the calibration's own scans, before the last small correction of ``i0``; fresh ones scatter
            around it.
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


class CalibratedAcquisition(Acquisition):
    """What the simulated acquisitions have in common: a dose, and effects that are off where their field says nothing.

    Attributes:
        dose: a preset (``ideal``, ``standard``, ``low``, ``ultra-low``) or the image noise in HU itself.
        electronic_noise: sd of the readout in photons (Zeng et al., IEEE TNS 62, 2015 use a variance of 11).
        floor: photons below which the log is not taken; what falls below is set to it, and the record says how often.
        tube_current: ``constant``; ``sinusoidal`` or ``attenuation``, see :class:`~tomosec.acquisition.effects.TubeCurrent`.
        modulation_depth: depth of the sinusoidal tube current.
        modulation_exponent: exponent of the tube current by attenuation.
        adc_step: step of the analog-to-digital converter in photons; 0 does not quantize.
        bad_bins: fraction of dead and hot detector elements, one at least where it is not 0.
        bad_bins_corrected: whether the scanner interpolates over them.
        scanner_seed: names the scanner; its bad bins are the same in every scan and in every seed of an experiment.
        beam_hardening: a₂, a₃, ... of the reading p + a₂ p² + a₃ p³ + ...; empty for a monochromatic beam.
        water_correction: whether the scanner inverts that polynomial after the log.
        view_jitter_rad: sd of each view's angle around the assumed one.
        detector_jitter_mm: sd of the detector's place along itself in each view, at the detector.
        axis_offset_mm: how far the true rotation axis lies off the assumed one, towards growing bins, at the isocenter.
        detector_offset_bins: how far the true detector is shifted from the assumed one.
    """

    dose: str | float = "standard"
    electronic_noise: NotNegative = 3.3
    floor: float = Field(1.0, gt=0)
    tube_current: Literal["constant", "sinusoidal", "attenuation"] = "constant"
    modulation_depth: float = Field(0.4, gt=0, lt=1)
    modulation_exponent: float = Field(0.5, gt=0, le=1)
    adc_step: NotNegative = 0.0
    bad_bins: float = Field(0.0, ge=0, le=0.2)
    bad_bins_corrected: bool = True
    scanner_seed: int = Field(0, ge=0)
    beam_hardening: tuple[float, ...] = ()
    water_correction: bool = False
    view_jitter_rad: NotNegative = 0.0
    detector_jitter_mm: NotNegative = 0.0
    axis_offset_mm: float = 0.0
    detector_offset_bins: float = 0.0

    @field_validator("dose")
    @classmethod
    def _known_dose(cls, dose: str | float) -> str | float:
        if isinstance(dose, str) and dose not in DOSES:
            raise ValueError(f"no dose {dose!r}{nearest(dose, DOSES)}; a preset ({', '.join(DOSES)}) or a noise in HU")
        if not isinstance(dose, str) and dose < 0:
            raise ValueError("image noise in HU cannot be negative")
        return dose

    @field_validator("beam_hardening")
    @classmethod
    def _growing(cls, coefficients: tuple[float, ...]) -> tuple[float, ...]:
        try:
            BeamHardening(coefficients)
        except InputError as error:
            raise ValueError(str(error).removeprefix("beam_hardening: ")) from error
        return coefficients

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, kind in (("modulation_depth", "sinusoidal"), ("modulation_exponent", "attenuation")):
            if self.tube_current != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to tube_current {kind!r}, but tube_current is {self.tube_current!r}")
        if self.bad_bins > 0 and not self.bad_bins_corrected and self.dose_hu == 0:
            raise ValueError("bad_bins_corrected: false needs a dose; without noise a dead bin has no reading")
        return self

    @property
    def dose_hu(self) -> float:
        """The image noise in HU that the dose stands for."""
        return DOSES[self.dose] if isinstance(self.dose, str) else float(self.dose)

    def fit(self, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor]) -> Calibration:
        """Find I0 so that the water disc shows ``dose_hu`` of noise, with every effect that is on.

        To first order the variance of a line integral is ``exp(p)/I0 + electronic_noise**2 exp(2p)/I0**2`` and that of the
        image is linear in it, which gives I0 in closed form. Few photons make the log noisier than that, so I0 is then
        refined on simulated scans with the full noise model, :data:`REFINEMENTS` times at the most: on a coarse grid, with few
        pixels at the center, their scatter of 1 to 2 % limits it. Jitter makes noise too, which no photon takes away: it is
        measured first, and the photons answer for the rest.

        Raises:
            InputError: the disc does not fit in the scan circle of ``geometry``, the jitter alone is noisier than the dose, no
                number of photons is noisy enough, or the dose needs more than :data:`MOST_PHOTONS`.
        """
        target = self.dose_hu
        if target == 0:
            return Calibration(i0=math.inf, target_hu=0.0, predicted_hu=0.0)
        unit = self.build(Calibration(1.0, target, target), geometry)
        weakened, growth = unit.attenuation(water_disc_integrals(unit.scanned))
        quantum = _linear_variance(weakened.mul(0.5).exp() * growth, geometry, reconstruct, "quantum")
        readout = self.electronic_noise**2 + self.adc_step**2 / 12
        electronic = readout * _linear_variance(weakened.exp() * growth, geometry, reconstruct, "electronic")
        jitter = self._jitter_noise(geometry, reconstruct)
        if jitter >= target:
            raise InputError(
                f"acquisition: view_jitter_rad and detector_jitter_mm alone make {jitter:.3g} HU of noise on the water disc, "
                f"more than the dose of {target:g} HU; reduce them or the dose"
            )
        # target² - jitter² = quantum / I0 + electronic / I0²
        wanted = target**2 - jitter**2
        i0 = (quantum + math.sqrt(quantum**2 + 4 * electronic * wanted)) / (2 * wanted)
        if i0 > MOST_PHOTONS:
            raise InputError(
                f"acquisition.dose: {target:g} HU would take {i0:.3g} photons per bin, and at most {MOST_PHOTONS:g} are "
                "simulated; 0 ('ideal') is a scan without noise"
            )
        reached = math.nan
        for _ in range(REFINEMENTS):
            reached = self._reached(i0, geometry, reconstruct)
            if abs(reached / target - 1) < REFINED:
                break
            # Where the photons' share is small, scatter may leave nothing of it, or less.
            i0 *= (reached / target) ** 2 if jitter == 0 else max(0.25, (reached**2 - jitter**2) / wanted)
        if abs(reached / target - 1) > DOSE_TOLERANCE:
            reached = self._reached(i0, geometry, reconstruct)
            if abs(reached / target - 1) > DOSE_TOLERANCE:
                raise InputError(
                    f"acquisition.dose: {target:g} HU cannot be calibrated on this geometry; {i0:.3g} photons per bin "
                    f"make {reached:.3g} HU on the water disc, and the photon floor of {self.floor:g} limits the noise"
                )
        return Calibration(i0=i0, target_hu=target, predicted_hu=reached)

    def _reached(self, i0: float, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor]) -> float:
        """Noise in HU that ``i0`` makes on the calibration's scans."""
        scanner = self.build(Calibration(i0, self.dose_hu, self.dose_hu), geometry)
        return float(disc_noise(scanner, reconstruct, "water-disc calibration", CALIBRATION_DRAWS).mean())

    def _jitter_noise(self, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor]) -> float:
        """Noise in HU that jitter alone makes on the calibration's scans."""
        if self.view_jitter_rad == 0 and self.detector_jitter_mm == 0:
            return 0.0
        return self.model_copy(update={"bad_bins": 0.0})._reached(math.inf, geometry, reconstruct)

    def build(self, calibration: Calibration, geometry: Geometry, *, device: torch.device | str = "cpu") -> Scanner:
        """Return the runtime that projects and measures.

        Raises:
            InputError: an effect that this geometry cannot have, with the reason.
        """
        current = None
        if self.tube_current == "sinusoidal":
            current = TubeCurrent("sinusoidal", self.modulation_depth)
        elif self.tube_current == "attenuation":
            current = TubeCurrent("attenuation", self.modulation_exponent)
        defects = None
        if self.bad_bins > 0:
            defects = BadBins.draw(self.bad_bins, geometry.bins, self.scanner_seed, corrected=self.bad_bins_corrected)
        jitters = self.view_jitter_rad > 0 or self.detector_jitter_mm > 0
        return Scanner(
            geometry,
            i0=calibration.i0,
            electronic_noise=self.electronic_noise,
            floor=self.floor,
            adc_step=self.adc_step,
            tube_current=current,
            hardening=BeamHardening(self.beam_hardening, self.water_correction) if self.beam_hardening else None,
            bad_bins=defects,
            jitter=Jitter(self.view_jitter_rad, self.detector_jitter_mm) if jitters else None,
            scanned=as_scanned(geometry, axis_offset_mm=self.axis_offset_mm, detector_offset_bins=self.detector_offset_bins),
        ).to(device)


class SimulatedAcquisition(CalibratedAcquisition):
    """Monochromatic scan with photon and electronic noise; every other effect is off until its field says otherwise.

    The fields are those of :class:`CalibratedAcquisition`.
    """

    kind: Literal["simulated"] = "simulated"
    version: Literal[1] = 1


class RealisticAcquisition(CalibratedAcquisition):
    """Everything that disturbs a scan, at usual or plausible sizes (docs/acquisition.md has the sources).

    The fields are those of ``simulated``; only their defaults differ.
    """

    kind: Literal["realistic"] = "realistic"
    version: Literal[1] = 1
    tube_current: Literal["constant", "sinusoidal", "attenuation"] = "attenuation"
    adc_step: NotNegative = 3.0
    bad_bins: float = Field(0.002, ge=0, le=0.2)
    beam_hardening: tuple[float, ...] = (-0.020, 0.0010)
    water_correction: bool = True
    view_jitter_rad: NotNegative = 2e-4
    detector_jitter_mm: NotNegative = 0.1
    axis_offset_mm: float = 0.1


def _linear_variance(sd: Tensor, geometry: Geometry, reconstruct: Callable[[Tensor], Tensor], name: str) -> float:
    """Variance in HU² at the center when the sinogram has independent normal noise of ``sd`` (1, 1, views, bins)."""
    mask, total, count = central_mask(geometry), 0.0, 0
    for draw in range(CALIBRATION_DRAWS // 2):
        normal = torch.from_numpy(generator("dose-calibration", name, draw).standard_normal(tuple(sd.shape)))
        noise = reconstruct((normal * sd).float())[0, 0][mask].double() * HU_PER_MU
        total, count = total + float(noise.pow(2).sum()), count + noise.numel()
    return total / count
