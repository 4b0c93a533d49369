"""From an image to measured data: projection, photons, detector, log and corrections, and how much noise a dose is.

``effects`` holds what happens on the way, each effect alone; ``scanner`` puts them in order; ``dose`` says how noisy a dose is;
``simulated`` holds the components that experiments name.
"""

from tomosec.acquisition.dose import DOSES, DoseCheck, check_dose, disc_noise, water_disc_integrals
from tomosec.acquisition.effects import BadBins, BeamHardening, Jitter, TubeCurrent, as_scanned
from tomosec.acquisition.scanner import Scanner
from tomosec.acquisition.simulated import (
    Acquisition,
    CalibratedAcquisition,
    Calibration,
    RealisticAcquisition,
    SimulatedAcquisition,
)

__all__ = [
    "DOSES",
    "Acquisition",
    "BadBins",
    "BeamHardening",
    "CalibratedAcquisition",
    "Calibration",
    "DoseCheck",
    "Jitter",
    "RealisticAcquisition",
    "Scanner",
    "SimulatedAcquisition",
    "TubeCurrent",
    "as_scanned",
    "check_dose",
    "disc_noise",
    "water_disc_integrals",
]
