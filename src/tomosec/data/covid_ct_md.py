"""COVID-CT-MD (Afshar et al., Scientific Data 8:121, 2021, doi 10.1038/s41597-021-00900-3): COVID-19, pneumonia, normal."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from tomosec.data.base import Dataset, Entry, Finding, require_classes
from tomosec.data.dicom import Header, OpenDicom, find_files, head_to_feet, patient_findings, scan
from tomosec.data.files import in_order, read_table
from tomosec.data.slice_labels import Label, child, match_labels
from tomosec.errors import InputError

Disease = Literal["covid", "cap", "normal"]
#: Folder names of each diagnosis: the repository's and those of the archives.
_FOLDERS: dict[Disease, tuple[str, ...]] = {
    "covid": ("COVID-19 subjects", "COVID-19 Cases", "COVID-19"),
    "cap": ("Cap subjects", "Cap Cases", "CAP"),
    "normal": ("Normal subjects", "Normal Cases", "Normal"),
}
_OWN_NAMES: dict[Disease, str] = {"covid": "covid", "cap": "cap", "normal": "normal"}
_LABEL_FILES = ("Slice-level-labels-updated-1.npy", "Slice-level-labels-updated.npy", "Slice-level-labels.npy")


class CovidCTMD(Dataset):
    """COVID-CT-MD as published: ``COVID-19 subjects/P001/*.dcm``, ``Cap subjects``, ``Normal subjects``, slice labels.

    Slice labels are the rows of ``Slice-level-labels*.npy`` (updated labels first). A row belongs to the patient at that
    POSITION in ``Index.csv``; its "Label Index" skips 43, so from there on it names the row of the next patient. Columns go
    from head to feet; file names are not in slice order. Both were checked against lung density (see
    ``CovidLDCT.slice_order``).

    Attributes:
        labels: ``patient``: every slice has the diagnosis of its patient. ``slice``: positives are the slices labeled as
            infected, and COVID and pneumonia patients without labels are left out.
        classes: class name of each diagnosis, or fewer of them: ``{covid: disease, normal: normal}`` leaves pneumonia (cap) out.
        uninfected_slices: with ``labels: slice``, what becomes of the slices of labeled patients that are not infected:
            ``drop``, or ``normal`` to give them the class of normal patients.

    Raises:
        InputError: at ``open``: no class folder, labels that do not fit index or slices, or fewer than two classes.
    """

    kind: Literal["covid-ct-md"] = "covid-ct-md"
    version: Literal[1] = 1
    labels: Literal["patient", "slice"] = "patient"
    classes: dict[Disease, str] = Field(default_factory=lambda: dict(_OWN_NAMES))
    uninfected_slices: Literal["drop", "normal"] = "drop"

    @field_validator("classes")
    @classmethod
    def _two_classes(cls, value: dict[Disease, str]) -> dict[Disease, str]:
        if len(set(value.values())) < 2:
            raise ValueError("at least two different class names are needed")
        return value

    def open(self, root: Path | None) -> OpenCovidCTMD:
        """Read headers, and index and labels where they are wanted; no pixels are read."""
        folder = self.require_root(root)
        return OpenCovidCTMD(self, folder)


class OpenCovidCTMD(OpenDicom):
    """A :class:`CovidCTMD` with its headers read; made by ``CovidCTMD.open``."""

    def __init__(self, config: CovidCTMD, root: Path) -> None:
        super().__init__(root)
        self.config = config
        self.classes = tuple(dict.fromkeys(config.classes[name] for name in _FOLDERS if name in config.classes))
        self._findings: list[Finding] = []
        people = self._scan()
        if config.labels == "patient":
            chosen = [
                self.entry(header, patient, self._target(disease))
                for disease, patients in people.items()
                for patient, headers in patients.items()
                for header in headers
            ]
        else:
            chosen = self._by_slice(people)
        self.entries = in_order(chosen)
        self.findings = tuple(self._findings)
        require_classes(self.classes, self.entries, str(root))

    def _target(self, disease: Disease) -> int:
        return self.classes.index(self.config.classes[disease])

    def _scan(self) -> dict[Disease, dict[str, list[Header]]]:
        """Return the slices of each patient from head to feet, by diagnosis."""
        # The repository keeps its patients one folder below the tables.
        bases = [self.root, *filter(None, [child(self.root, "Sample data")])]
        people: dict[Disease, dict[str, list[Header]]] = {}
        for disease in self.config.classes:
            folder = next((found for base in bases if (found := child(base, *_FOLDERS[disease]))), None)
            if folder is None:
                continue
            headers, findings = scan(self.root, find_files(folder))
            self._findings += findings
            grouped: dict[str, list[Header]] = defaultdict(list)
            for header in headers:
                parts = header.path.relative_to(folder).parts
                if len(parts) < 2:
                    raise InputError(f"{header.path}: lies outside a patient's folder ({folder.name}/<patient>/<file>)")
                # Older releases call pneumonia patients p001, which differs from the COVID patient P001 in case only.
                name = f"cap{parts[0][1:]}" if disease == "cap" and parts[0][:1] in "pP" else parts[0]
                grouped[name].append(header)
            people[disease] = {patient: head_to_feet(grouped[patient]) for patient in sorted(grouped)}
            for patient, members in people[disease].items():
                self._findings += patient_findings(patient, members)
        if not people:
            present = ", ".join(sorted(path.name for path in self.root.iterdir())) or "nothing"
            names = ", ".join(names[0] for names in _FOLDERS.values())
            raise InputError(f"{self.root}: none of the folders {names}; here is {present}")
        return people

    def _by_slice(self, people: dict[Disease, dict[str, list[Header]]]) -> list[Entry]:
        table, labels = self._read_labels()
        chosen: list[Entry] = []
        dropped = blank = 0
        for disease, patients in people.items():
            for patient, headers in patients.items():
                if disease == "normal":
                    chosen += [self.entry(header, patient, self._target("normal")) for header in headers]
                    continue
                if patient not in labels:
                    self._findings.append(Finding("note", f"not in {table.name}: its slices have no label, left out", patient))
                    continue
                item = match_labels(patient, labels[patient], headers, f"{table}, patient {patient!r}")
                blank += item.blank
                chosen += [self.entry(header, patient, self._target(disease)) for header in item.infected]
                if self.config.uninfected_slices == "normal" and "normal" in self.config.classes:
                    chosen += [self.entry(header, patient, self._target("normal")) for header in item.clean]
                else:
                    dropped += len(item.clean)
        if dropped:
            self._findings.append(Finding("note", f"{dropped} slices of labeled patients are not infected: left out", table.name))
        if blank:
            self._findings.append(Finding("warning", f"{blank} slices lie beyond the labels: taken as not infected", table.name))
        return chosen

    def _read_labels(self) -> tuple[Path, dict[str, list[Label]]]:
        index, path = child(self.root, "Index.csv"), child(self.root, *_LABEL_FILES)
        if index is None or path is None:
            missing = "Index.csv" if index is None else _LABEL_FILES[-1]
            raise InputError(f"{self.root}: labels 'slice' needs {missing}; without it use labels: patient")
        self._tables += [index, path]
        try:
            labels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as NPY, it is damaged or holds Python objects ({error})") from error
        table = read_table(index)
        diagnosis = table.first_of(["Diagnosis"])
        name = table.first_of(["Folder/ID", "Folder", "ID"])
        if not isinstance(labels, np.ndarray) or labels.ndim != 2 or len(labels) != len(table.rows):
            shape = getattr(labels, "shape", "an archive")
            raise InputError(f"{path}: one row per patient of {index.name} ({len(table.rows)}) is needed, found {shape}")
        if not np.isin(labels, (0, 1)).all():
            raise InputError(f"{path}: labels are 0 and 1, found {np.unique(labels[~np.isin(labels, (0, 1))])[:5].tolist()}")
        found: dict[str, list[Label]] = {}
        # The position in the index is the row; the printed index is wrong from the skipped 43 on.
        for values, row in zip(labels, table.rows, strict=False):
            patient = row.text(name)
            if row.text(diagnosis).lower() == "cap" and patient[:1] in "pP":
                patient = f"cap{patient[1:]}"
            if patient in found:
                raise InputError(f"{row.where(name)}: patient {patient!r} is listed twice")
            found[patient] = [int(value) for value in values]
        return index, found
