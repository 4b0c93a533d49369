"""A profile: what clean scans of one scanner look like, in a folder of JSON and safetensors; and the judgment by it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from tomosec import __version__
from tomosec.component import Value, component_class, describe_validation_error
from tomosec.data.alignment import aligned
from tomosec.data.measured import Measurement
from tomosec.data.measurement_file import parse_geometry
from tomosec.defenses.base import ScanDetector
from tomosec.defenses.calibration import MIN_HELD_OUT
from tomosec.errors import InputError
from tomosec.files import new_folder, write_text
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.screening.measured import Noise, as_scans, digest_of, patient_of, photons_of
from tomosec.screening.panel import Judgment, Panel
from tomosec.screening.results import Reading, ScreenResult, Verdict, reason_of
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors

#: Of the folder's files; raised when an older tomosec could not read them.
FORMAT = 1
DESCRIPTION, TENSORS = "profile.json", "detectors.safetensors"
#: A scan that tells a number of photons this many times beyond those of the clean scans is not one of them.
PHOTON_MARGIN = 1.5


class _Detector(Value):
    name: str
    component: dict[str, Any]


class _Description(Value):
    """The fields of ``profile.json``."""

    format: int
    tomosec: str
    created: datetime
    geometry: dict[str, Any]
    scans: int = Field(ge=1)
    patients: int = Field(ge=1)
    held_out: int = Field(ge=1)
    smallest_p: float = Field(gt=0, le=1)
    noise: Noise
    photons: tuple[float, float] | None
    detectors: tuple[_Detector, ...] = Field(min_length=1)
    not_applicable: dict[str, str]
    clean_scans: tuple[str, ...]
    tensors_sha256: str

    def digest(self) -> str:
        """SHA-256 of every other field, which the file of tensors holds: so neither file goes with another one's partner."""
        content = self.model_dump(mode="json", exclude={"tensors_sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Profile:
    """Detectors that are calibrated on clean scans of one scanner; made by :func:`tomosec.screening.calibrate`.

    Attributes:
        panel: the detectors.
        geometry: of the scans that can be judged; a whole turn may begin anywhere.
        scans: clean scans that were read, of
        patients: that many patients.
        noise: what residuals are whitened by.
        photons: least and most photons of the clean scans, where ``noise`` is ``photons``.
        known: digests of the clean scans, which get no verdict: their p-values would not be those of new scans.
        created: when.
        device: where to work.
    """

    def __init__(
        self,
        panel: Panel,
        geometry: FanBeam | ParallelBeam,
        *,
        scans: int,
        patients: int,
        noise: Noise,
        photons: tuple[float, float] | None,
        known: frozenset[str],
        created: datetime,
        device: torch.device | str = "cpu",
    ) -> None:
        self.panel, self.geometry = panel, geometry
        self.scans, self.patients, self.noise, self.photons = scans, patients, noise, photons
        self.known, self.created, self.device = known, created, torch.device(device)

    @property
    def held_out(self) -> int:
        """Patients behind the p-values."""
        return self.panel.held_out

    @property
    def smallest_p(self) -> float:
        """1 / (held_out + 1), the smallest p-value that can be reached."""
        return 1 / (self.held_out + 1)

    @property
    def gives_verdicts(self) -> bool:
        """Whether there are enough held-out patients for p-values."""
        return self.held_out >= MIN_HELD_OUT

    def require_alpha(self, alpha: float) -> None:
        """Raise InputError for an alpha that is no probability, or that no scan could reach."""
        if not 0 < alpha < 1:
            raise InputError(f"alpha is {alpha:g}; the share of clean scans that may be flagged is between 0 and 1")
        if self.gives_verdicts and alpha < self.smallest_p * (1 - 1e-12):
            raise InputError(
                f"alpha {alpha:g} can never be reached: the smallest p-value of this profile is {self.smallest_p:.3g}, from "
                f"{self.held_out} held-out patients; {math.ceil(1 / alpha - 1e-9) - 1} are needed (of about twice as many clean "
                "scans), or a larger alpha"
            )

    def screen(self, scan: Measurement, *, alpha: float = 0.01, want_map: bool = True) -> ScreenResult:
        """Judge one scan.

        Args:
            scan: line integrals of the profile's geometry; a whole turn may begin anywhere.
            alpha: share of clean scans that may be flagged: those with p ≤ alpha are suspicious.
            want_map: whether to say where.

        Raises:
            InputError: another geometry, or an alpha that cannot be reached.
        """
        self.require_alpha(alpha)
        scan = aligned(scan, self.geometry)
        if reason := self._unfit(scan):
            return ScreenResult(scan.key, patient_of(scan), "no verdict", math.nan, None, reason)
        found = self.panel.judge(as_scans([scan], self.noise, self.device), want_map=want_map)
        readings = tuple(Reading(n, found.scores[n], found.p_values[n], found.beyond[n]) for n in found.order)
        verdict, reason = self._verdict(found, alpha, readings)
        return ScreenResult(scan.key, patient_of(scan), verdict, found.score, found.p_value, reason, readings, found.where)

    def _verdict(self, found: Judgment, alpha: float, readings: tuple[Reading, ...]) -> tuple[Verdict, str]:
        if found.p_value is None:
            return "no verdict", (
                f"{self.held_out} held-out patients, {MIN_HELD_OUT} are needed; {readings[0].detector} says most, score "
                f"{readings[0].score:.3g}, {readings[0].beyond:.1f} clean spreads above the median"
            )
        verdict: Verdict = "suspicious" if found.p_value <= alpha * (1 + 1e-12) else "clean"
        return verdict, reason_of(readings, found.where, verdict)

    def _unfit(self, scan: Measurement) -> str:
        """Why a scan cannot be compared with the clean ones; empty where it can."""
        if digest_of(scan) in self.known:
            return "one of the clean scans that the profile was calibrated on"
        if self.noise == "clean-scans":
            return ""
        assert self.photons is not None
        low, high = self.photons
        count = photons_of(scan)
        if count is None:
            return "it tells no number of photons and measured no view twice, as the clean scans did"
        if not low / PHOTON_MARGIN <= count <= high * PHOTON_MARGIN:
            return f"{count:.3g} photons a bin; the clean scans had {low:.3g} to {high:.3g}"
        return ""

    def save(self, folder: str | Path) -> Path:
        """Write the profile as a new folder, whole or not at all.

        Raises:
            InputError: there is something of that name.
            TomosecError: the folder cannot be written.
        """
        folder = Path(folder)
        stored, names = _once(self.panel.tensors())
        description = _Description(
            format=FORMAT,
            tomosec=__version__,
            created=self.created,
            geometry=self.geometry.model_dump(mode="json"),
            scans=self.scans,
            patients=self.patients,
            held_out=self.held_out,
            smallest_p=self.smallest_p,
            noise=self.noise,
            photons=self.photons,
            detectors=tuple(
                _Detector(name=name, component=part.model_dump(mode="json")) for name, part in self.panel.components.items()
            ),
            not_applicable=self.panel.not_applicable,
            clean_scans=tuple(sorted(self.known)),
            tensors_sha256="",
        )
        with new_folder(folder) as place:
            write_tensors(place / TENSORS, stored, {"format": FORMAT, "names": names, "description": description.digest()})
            description = description.model_copy(update={"tensors_sha256": _sha256(place / TENSORS)})
            write_text(place / DESCRIPTION, description.model_dump_json(indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Profile:
        """Read a profile.

        Raises:
            InputError: no profile, a damaged or edited one, one of a newer tomosec, or of detectors that are not here or have
                changed.
        """
        folder = Path(folder)
        description = _read_description(folder)
        where = f"{folder / DESCRIPTION}"
        geometry = parse_geometry(description.geometry, f"{where}: geometry")
        detectors: dict[str, ScanDetector] = {}
        for item in description.detectors:
            detectors[item.name] = _detector(item, where)
        tensors = _read_tensors(folder, description)
        try:
            panel = Panel.restored(detectors, tensors, geometry, description.not_applicable)
        except InputError as error:
            raise InputError(f"{folder / TENSORS}: {error}; it does not belong to {DESCRIPTION}") from error
        return cls(
            panel,
            geometry,
            scans=description.scans,
            patients=description.patients,
            noise=description.noise,
            photons=description.photons,
            known=frozenset(description.clean_scans),
            created=description.created,
            device=device,
        )


def _read_description(folder: Path) -> _Description:
    path = folder / DESCRIPTION
    if not path.is_file():
        found = "no such folder" if not folder.exists() else "a file" if folder.is_file() else f"no {DESCRIPTION} in it"
        raise InputError(f"{folder}: {found}; a profile is a folder, made by `tomosec screen calibrate`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: damaged, it cannot be read as JSON ({error})") from error
    number = content.get("format") if isinstance(content, dict) else None
    if not isinstance(number, int):
        raise InputError(f"{path}: not a profile of tomosec, or a damaged one; it has no format")
    if number > FORMAT:
        raise InputError(
            f"{path}: format {number}, written by tomosec {content.get('tomosec', 'of a newer version')}; this is "
            f"{__version__}, which reads format {FORMAT}: use the newer one, or calibrate again"
        )
    try:
        return _Description.model_validate(content)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, str(path))) from error


def _read_tensors(folder: Path, description: _Description) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.is_file():
        raise InputError(f"{folder}: damaged profile, {TENSORS} is missing")
    if _sha256(path) != description.tensors_sha256:
        raise InputError(f"{path}: damaged, or of another profile; its SHA-256 is not the one in {DESCRIPTION}")
    try:
        stored, header = read_tensors(path)
        if header.get("description") != description.digest():
            raise InputError(
                f"{folder / DESCRIPTION}: changed since it was written, {TENSORS} belongs to other values; nothing in a profile "
                "is there to be edited: calibrate again"
            )
        return {name: stored[where] for name, where in header["names"].items()}
    except (UnreadableFileError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error})") from error


def _detector(item: _Detector, where: str) -> ScanDetector:
    component = item.component
    try:
        cls = component_class("defense", str(component.get("kind")))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not issubclass(cls, ScanDetector):
        raise InputError(f"{where}: {component.get('kind')} is no detector of scans")
    here = cls.model_fields["version"].default
    if component.get("version") != here:
        raise InputError(
            f"{where}: calibrated with version {component.get('version')} of {item.name}, and this tomosec has version {here}, "
            "which gives other scores: calibrate again"
        )
    try:
        return cls.model_validate(component)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, f"{where}: {item.name}")) from error


def _once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Store a tensor that several detectors share under the first of its names; and where each name's is."""
    first: dict[tuple[Any, ...], str] = {}
    names = {
        name: first.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,), name
        )
        for name, tensor in tensors.items()
    }
    return {name: tensors[name] for name in first.values()}, names


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
