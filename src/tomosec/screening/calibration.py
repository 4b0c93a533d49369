"""From clean scans to a profile."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

import torch

from tomosec.data.alignment import aligned
from tomosec.data.measured import Measurement
from tomosec.defenses.base import ScanContext, Scans
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.progress import Progress, SilentProgress
from tomosec.screening.measured import Noise, as_scans, digest_of, patient_of, photons_of
from tomosec.screening.panel import Panel, choose
from tomosec.screening.profile import Profile

_log = logging.getLogger(__name__)


def calibrate(
    scans: Iterable[Measurement],
    *,
    geometry: FanBeam | ParallelBeam | None = None,
    detectors: Sequence[str] | None = None,
    noise: Noise | Literal["auto"] = "auto",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Profile:
    """Calibrate detectors on clean scans of one scanner.

    The patients are dealt into two halves: one fits what clean scans look like, the other gives the p-values. The scans are gone
    through three times and never held together, so that their number does not matter to memory.

    Args:
        scans: of one geometry, known to be untouched; anything that can be gone through several times, such as a list or
            :class:`tomosec.data.scans.ScanFiles`. ``attributes["patient"]`` or ``["PatientID"]`` says whose a scan is; otherwise
            each is its own patient's.
        geometry: of all scans; None is that of the first. The image grid is its own.
        detectors: names; None is every one that applies.
        noise: ``photons`` whitens each scan by its own photon noise, where every scan tells the number of its photons (see
            :func:`tomosec.screening.measured.photons_of`), ``clean-scans`` by the spread of the clean scans alone; ``auto``
            takes the first where it can.
        seed: deals the patients.
        device: where to work.
        progress: where progress goes.

    Raises:
        InputError: scans that can be read once only, that differ in geometry, are the same or too few, or an unknown detector.
    """
    choose(detectors)  # a wrong name is said before anything is read
    if iter(scans) is scans:
        raise InputError(
            "calibrate: these scans can be gone through once only; give a list, or tomosec.data.scans.ScanFiles, which reads anew"
        )
    progress = progress or SilentProgress()
    clean = _CleanScans(scans, geometry, noise, progress)
    context = ScanContext(clean.geometry, clean, seed=seed, device=torch.device(device), progress=progress)
    panel = Panel.calibrated(context, detectors)
    return Profile(
        panel,
        clean.geometry,
        scans=len(clean),
        patients=len(set(clean.patients)),
        noise=clean.noise,
        photons=clean.photons,
        known=frozenset(clean.digests),
        created=datetime.now(UTC),
        device=torch.device(device),
    )


class _CleanScans:
    """Measurements as the detectors read them; the first pass looks at every scan and keeps its name alone."""

    def __init__(
        self,
        scans: Iterable[Measurement],
        geometry: FanBeam | ParallelBeam | None,
        noise: Noise | Literal["auto"],
        progress: Progress,
    ) -> None:
        self._scans = scans
        self.patients: list[str] = []
        self.digests: dict[str, str] = {}
        counts: list[float | None] = []
        progress.start(0, "read the clean scans")
        first = ""
        for scan in scans:
            if geometry is None:
                geometry, first = scan.geometry, scan.key
            try:
                scan = aligned(scan, geometry)
            except InputError as error:
                raise InputError(f"{error}" + (f", as that of {first}, the first clean scan" if first else "")) from error
            other = self.digests.setdefault(digest_of(scan), scan.key)
            if len(self.digests) == len(self.patients):
                raise InputError(f"{scan.key}: the same data as {other}; a scan counts once among the clean ones")
            self.patients.append(patient_of(scan))
            counts.append(photons_of(scan))
            progress.advance()
        if geometry is None or not self.patients:
            raise InputError("calibrate: there is no clean scan")
        self.geometry = geometry
        known = [count for count in counts if count is not None]
        if noise == "photons" and len(known) < len(counts):
            raise InputError(
                f"noise photons: {len(counts) - len(known)} of {len(counts)} clean scans tell no number of photons (attribute "
                "photons or PhotonStatistics) and measured no view twice; noise clean-scans needs none"
            )
        self.noise: Noise = "photons" if noise != "clean-scans" and len(known) == len(counts) else "clean-scans"
        self.photons = (min(known), max(known)) if self.noise == "photons" else None
        if noise == "auto" and 0 < len(known) < len(counts):
            _log.info(
                "%d of %d clean scans tell no number of photons: residuals are in units of the spread of clean scans, not of the "
                "photon noise of each scan",
                len(counts) - len(known),
                len(counts),
            )

    def __len__(self) -> int:
        return len(self.patients)

    def batches(self, size: int) -> Iterator[Scans]:
        """All of them, anew."""
        count, batch = 0, []
        for scan in self._scans:
            batch.append(aligned(scan, self.geometry))
            count += 1
            if len(batch) == size:
                yield as_scans(batch, self.noise)
                batch = []
        if batch:
            yield as_scans(batch, self.noise)
        if count != len(self):
            raise InputError(f"calibrate: there were {len(self)} clean scans and then {count}; they must not change meanwhile")
