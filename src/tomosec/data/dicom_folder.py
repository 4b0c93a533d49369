"""Any folder of CT series in DICOM, with classes from folder names or from a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tomosec.data.base import Dataset, Finding, require_classes
from tomosec.data.dicom import Header, OpenDicom, find_files, head_to_feet, patient_findings, scan
from tomosec.data.files import in_order, read_table
from tomosec.errors import InputError, nearest

_CLASS_COLUMNS = ("class", "cls", "target", "label")


class DicomFolder(Dataset):
    """A folder of DICOM CT series: ``<root>/<class>/<patient>/**.dcm``, or ``<root>/<patient>/**.dcm`` and a table.

    A table (columns ``patient`` and ``class``) is used where the file named by ``labels`` exists. Localizers, other
    modalities and unusable files are skipped with a finding. Files directly in a class folder (or, with a table, directly in
    the root) belong to the patient that their PatientID names.

    Attributes:
        labels: name of the table in the root.
        classes: order of the classes; None sorts their names.
        patient_from: whether a patient is a folder name or a PatientID.
        series: keep all series of a patient, or the one with the most slices.

    Raises:
        InputError: at ``open``: no DICOM files, a patient of the table without files, or fewer than two classes.
    """

    kind: Literal["dicom-folder"] = "dicom-folder"
    version: Literal[1] = 1
    labels: str = "labels.csv"
    classes: tuple[str, ...] | None = None
    patient_from: Literal["folder", "header"] = "folder"
    series: Literal["all", "largest"] = "all"

    def open(self, root: Path | None) -> OpenDicomFolder:
        """Read every header below ``root``; no pixels are read."""
        return OpenDicomFolder(self, self.require_root(root))


@dataclass(frozen=True, slots=True)
class _Placed:
    header: Header
    patient: str
    group: str


class OpenDicomFolder(OpenDicom):
    """A :class:`DicomFolder` with its headers read; made by ``DicomFolder.open``."""

    def __init__(self, config: DicomFolder, root: Path) -> None:
        super().__init__(root)
        self.config = config
        headers, findings = scan(root, find_files(root))
        if not headers:
            reasons = "; ".join(f"{item.message} {item.where}" for item in findings[:5]) or "no file may be DICOM"
            raise InputError(f"{root}: no usable CT slice in DICOM: {reasons}")
        table = root / config.labels
        if table.is_file():
            self._tables.append(table)
            placed = self._by_table(headers, _read_labels(table), findings)
        else:
            placed = self._by_folder(headers)
        placed = self._choose_series(placed, findings)
        names = {item.group for item in placed}
        self.classes = config.classes or tuple(sorted(names))
        for name in sorted(names - set(self.classes)):
            raise InputError(f"{root}: class {name!r} is not in classes: {', '.join(self.classes)}{nearest(name, self.classes)}")
        index = {name: i for i, name in enumerate(self.classes)}
        self.entries = in_order(self.entry(item.header, item.patient, index[item.group]) for item in placed)
        findings += self._cross_check(placed)
        self.findings = tuple(findings)
        require_classes(self.classes, self.entries, str(root))

    def _patient(self, header: Header, folders: Sequence[str]) -> str:
        """Return the patient by folder, where there is one and it is wanted, else by PatientID."""
        if folders and self.config.patient_from == "folder":
            return folders[0]
        if not header.patient_id:
            raise InputError(f"{header.path}: no PatientID; put the files of each patient in a folder of their own")
        return header.patient_id

    def _by_folder(self, headers: Sequence[Header]) -> list[_Placed]:
        placed = []
        for header in headers:
            folders = header.path.relative_to(self.root).parts[:-1]
            if not folders:
                raise InputError(
                    f"{self.root}: {header.path.name} lies outside a class folder; use <class>/<patient>/<file>, or a table "
                    f"{self.config.labels!r} with the columns patient and class"
                )
            placed.append(_Placed(header, self._patient(header, folders[1:]), folders[0]))
        return placed

    def _by_table(self, headers: Sequence[Header], labels: Mapping[str, str], findings: list[Finding]) -> list[_Placed]:
        placed: list[_Placed] = []
        unlabeled: dict[str, int] = defaultdict(int)
        seen: set[str] = set()
        for header in headers:
            patient = self._patient(header, header.path.relative_to(self.root).parts[:-1])
            seen.add(patient)
            if patient in labels:
                placed.append(_Placed(header, patient, labels[patient]))
            else:
                unlabeled[patient] += 1
        for patient in labels:
            if patient not in seen:
                raise InputError(
                    f"{self.root / self.config.labels}: patient {patient!r} has no CT slice here{nearest(patient, seen)}"
                )
        for patient, count in sorted(unlabeled.items()):
            findings.append(Finding("warning", f"{count} slices left out: no class in {self.config.labels}", patient))
        return placed

    def _choose_series(self, placed: list[_Placed], findings: list[Finding]) -> list[_Placed]:
        if self.config.series == "all":
            return placed
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for item in placed:
            sizes[item.patient, item.header.series] += 1
        best: dict[str, str] = {}
        for (patient, series), size in sorted(sizes.items()):
            if patient not in best or size > sizes[patient, best[patient]]:
                best[patient] = series
        kept = [item for item in placed if item.header.series == best[item.patient]]
        if len(kept) < len(placed):
            findings.append(
                Finding("note", f"{len(placed) - len(kept)} slices left out: not in the largest series of their patient")
            )
        return kept

    def _cross_check(self, placed: Sequence[_Placed]) -> list[Finding]:
        findings: list[Finding] = []
        by_patient: dict[str, list[Header]] = defaultdict(list)
        groups: dict[str, set[str]] = defaultdict(set)
        owners: dict[str, set[str]] = defaultdict(set)
        for item in placed:
            by_patient[item.patient].append(item.header)
            groups[item.patient].add(item.group)
            if item.header.patient_id:
                owners[item.header.patient_id].add(item.patient)
        for patient, headers in sorted(by_patient.items()):
            findings += patient_findings(patient, head_to_feet(headers))
            if len(groups[patient]) > 1:
                listed = " and ".join(sorted(groups[patient]))
                findings.append(
                    Finding(
                        "warning", f"in the classes {listed}: taken as one person; rename the folder if they are two", patient
                    )
                )
        shared = {identity: patients for identity, patients in owners.items() if len(patients) > 1}
        # One PatientID for everybody is an anonymizer's constant and says nothing.
        if len(owners) > 1:
            for identity, patients in sorted(shared.items()):
                listed = ", ".join(sorted(patients))
                findings.append(
                    Finding(
                        "warning", f"PatientID {identity!r} is in the folders of several patients ({listed}): one person twice?"
                    )
                )
        return findings


def _read_labels(path: Path) -> dict[str, str]:
    table = read_table(path)
    table.require(["patient"])
    column = table.first_of(_CLASS_COLUMNS)
    labels: dict[str, str] = {}
    for row in table.rows:
        patient, name = row.text("patient"), row.text(column)
        if labels.setdefault(patient, name) != name:
            raise InputError(f"{row.where(column)}: patient {patient!r} is {name!r} here and {labels[patient]!r} above")
    return labels
