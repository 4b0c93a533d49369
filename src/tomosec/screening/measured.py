"""What screening needs of a measured scan: whose it is, which it is, how noisy it is, and its tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from tomosec.data.measured import Measurement
from tomosec.defenses.base import Scans

#: ``photons``: variance exp(p) / N of line integrals p, with N photons per bin without an object; ``clean-scans``: no model, only
#: the spread of clean scans.
Noise = Literal["photons", "clean-scans"]

#: Attributes that state N: that of the neutral form, and that of DICOM-CT-PD (7033,1065).
STATED = ("photons", "PhotonStatistics")


def photons_of(scan: Measurement) -> float | None:
    """Photons per bin without an object: stated in the attributes, or by the views that were measured twice; None where neither.

    Of n differences d of two measurements of a ray, less their mean, because levels drift: 1/N = Σ d² / (2 exp(p)) / (n − 1).
    """
    for name in STATED:
        value = scan.attributes.get(name)
        if isinstance(value, float | int) and math.isfinite(value) and value > 0:
            return float(value)
    if not scan.repeats:
        return None
    squares, count = 0.0, 0
    for view, row in scan.repeats.items():
        first, second = scan.line_integrals[view].astype(np.float64), row.astype(np.float64)
        difference = second - first
        difference -= difference.mean()
        squares += float((np.square(difference) / (2 * np.exp((first + second) / 2))).sum())
        count += len(difference) - 1
    return count / squares if squares > 0 and count > 0 else None


def as_scans(batch: Sequence[Measurement], noise: Noise, device: torch.device | str = "cpu") -> Scans:
    """Scans of one geometry as detectors read them, with the noise of each where it is known."""
    lines = torch.cat([scan.sinogram() for scan in batch]).to(device)
    sd = None
    if noise == "photons":
        counts = torch.tensor([photons_of(scan) or math.nan for scan in batch], dtype=torch.float64)[:, None, None, None]
        counts = counts.to(device)
        # No fewer than one photon: else one absurd ray would have so much noise that nothing in the scan stood out.
        sd = (torch.minimum(lines.double(), counts.log()) / 2).exp().div(counts.sqrt()).float()
    return Scans(lines, tuple(scan.key for scan in batch), sd)


def patient_of(scan: Measurement) -> str:
    """Whose a scan is: the attribute ``patient`` or ``PatientID``, else the scan's own key."""
    stated = (scan.attributes.get(name, "") for name in ("patient", "PatientID"))
    return next((str(value) for value in stated if value != ""), scan.key)  # 0 is a name too


def digest_of(scan: Measurement) -> str:
    """Tell scans apart by content: a hash of the line integrals of all views, whichever the first is."""
    rows = sorted(hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in scan.line_integrals)
    return hashlib.sha256(b"".join(rows)).hexdigest()[:32]
