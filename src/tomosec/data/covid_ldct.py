"""COVID-19 low-dose and ultra-low-dose CT (Afshar et al., Scientific Reports 12:4827, 2022), the data of the LTGM paper."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tomosec.data.base import Dataset, Finding, require_classes
from tomosec.data.dicom import Header, OpenDicom, find_files, head_to_feet, patient_findings, scan
from tomosec.data.files import in_order, is_blank, read_rows
from tomosec.data.slice_labels import Label, Labeled, child, match_labels
from tomosec.errors import InputError, nearest

CLASSES = ("covid", "normal")
LABELS = "LDCT-SL-Labels-S1.csv"
#: Share of the positives' positions at each end that is taken for outliers when normals are restricted to their range.
_TAIL = 0.05


class CovidLDCT(Dataset):
    """Dataset-S1 of COVID-19 LDCT/ULDCT: ``COVID-S1/C001/IM0001.dcm``, ``Normal-S1/N001/...``, ``LDCT-SL-Labels-S1.csv``.

    The root is ``Dataset-S1`` or the folder that holds it. Positives are the slices of COVID patients labeled 1, negatives
    the slices of normal patients. Classes: covid, normal.

    Attributes:
        slice_order: which slice column i of the table labels. ``slice-location``: the i-th by SliceLocation (0020,1041), as
            its authors say, from head to feet. The direction is not published for this set; in COVID-CT-MD, of the same group
            and scanner model, labels agree with lung density from head to feet (correlation 0.53 to 0.67) and not the other
            way (-0.63 to 0.20). ``slice-location-ascending``: from feet to head. ``file-name``: the file with number i, as in
            the released LTGM code, which in COVID-CT-MD is mostly not the slice that was labeled.
        uninfected_slices: slices of COVID patients labeled 0, or not labeled: ``drop`` them, or count them as ``normal``.
        normal_slices: ``all`` slices of normal patients, or those at relative ``positions-of-positives`` in the scan (5th to
            95th percentile); with all, the position alone tells the classes apart to some extent.

    Raises:
        InputError: at ``open``: folders or table missing, a patient of the table without files, a label other than 0 and 1,
            a label 1 beyond a patient's slices, or no slice of one class.
    """

    kind: Literal["covid-ldct"] = "covid-ldct"
    version: Literal[1] = 1
    slice_order: Literal["slice-location", "slice-location-ascending", "file-name"] = "slice-location"
    uninfected_slices: Literal["drop", "normal"] = "drop"
    normal_slices: Literal["all", "positions-of-positives"] = "all"

    def open(self, root: Path | None) -> OpenCovidLDCT:
        """Read the table and every header; no pixels are read."""
        folder = self.require_root(root)
        inner = child(folder, "Dataset-S1")
        if inner is None and (outer := child(folder, "COVID-LDCT")) is not None and outer.is_dir():
            inner = child(outer, "Dataset-S1")
        return OpenCovidLDCT(self, inner or folder)


class OpenCovidLDCT(OpenDicom):
    """A :class:`CovidLDCT` with its table and headers read; made by ``CovidLDCT.open``."""

    def __init__(self, config: CovidLDCT, root: Path) -> None:
        super().__init__(root)
        self.config = config
        self.classes = CLASSES
        covid, normal, table = child(root, "COVID-S1"), child(root, "Normal-S1"), child(root, LABELS)
        for name, path in (("COVID-S1", covid), ("Normal-S1", normal), (LABELS, table)):
            if path is None:
                present = ", ".join(sorted(item.name for item in root.iterdir())) or "nothing"
                raise InputError(f"{root}: no {name}; Dataset-S1 holds COVID-S1, Normal-S1 and {LABELS}, here is {present}")
        assert covid is not None
        assert normal is not None
        assert table is not None
        self._tables.append(table)
        headers, findings = scan(root, [*find_files(covid), *find_files(normal)])
        self._findings = findings
        sick, healthy = _by_patient(headers, covid), _by_patient(headers, normal)
        for patient, members in (*sick.items(), *healthy.items()):
            findings += patient_findings(patient, members)
        labeled = self._match(read_slice_labels(table), sick, table)
        chosen = [self.entry(header, patient, 0) for patient, item in labeled.items() for header in item.infected]
        if config.uninfected_slices == "normal":
            chosen += [self.entry(header, patient, 1) for patient, item in labeled.items() for header in item.clean]
        else:
            dropped = sum(len(item.clean) for item in labeled.values())
            findings.append(Finding("note", f"{dropped} slices of COVID patients are not labeled 1: left out", table.name))
        kept = self._normal_slices(healthy, labeled, sick)
        chosen += [self.entry(header, patient, 1) for patient, members in kept.items() for header in members]
        self.entries = in_order(chosen)
        self.findings = tuple(findings)
        require_classes(CLASSES, self.entries, str(root))

    def _match(self, labels: dict[str, list[Label]], sick: dict[str, list[Header]], table: Path) -> dict[str, Labeled]:
        labeled: dict[str, Labeled] = {}
        for patient, row in labels.items():
            if patient not in sick:
                raise InputError(
                    f"{table}: patient {patient!r} has no CT slice in COVID-S1{nearest(patient, sick)}; "
                    "add the folder, or take its row out of the table"
                )
            labeled[patient] = match_labels(patient, row, self._column_order(sick[patient]), f"{table}, row {patient!r}")
        blank = {patient: item.blank for patient, item in labeled.items() if item.blank}
        if blank:
            message = f"{sum(blank.values())} slices of {len(blank)} patients have a blank label: taken as not infected"
            self._findings.append(Finding("warning", message, table.name))
        for patient in sorted(sick.keys() - labels.keys()):
            self._findings.append(Finding("warning", f"no row in {table.name}: its slices are left out", patient))
        return labeled

    def _column_order(self, headers: Sequence[Header]) -> list[Header | None]:
        """Return the slices in the order of the columns, with None where a column has no file."""
        if self.config.slice_order != "file-name":
            if all(header.slice_location_mm is not None for header in headers):
                ordered = sorted(headers, key=lambda h: -(h.slice_location_mm or 0.0))
            else:
                ordered = head_to_feet(headers)
            ascending = self.config.slice_order == "slice-location-ascending"
            return list(reversed(ordered)) if ascending else list(ordered)
        numbered: dict[int, Header] = {}
        for header in headers:
            match = re.search(r"(\d+)$", header.path.stem)
            if match is None:
                raise InputError(f"{header.path}: slice_order 'file-name' needs a number at the end of each name (IM0001.dcm)")
            numbered[int(match[1])] = header
        return [numbered.get(number) for number in range(1, max(numbered) + 1)]

    def _normal_slices(
        self, healthy: dict[str, list[Header]], labeled: dict[str, Labeled], sick: dict[str, list[Header]]
    ) -> dict[str, list[Header]]:
        if self.config.normal_slices == "all":
            self._findings.append(
                Finding(
                    "warning",
                    "all slices of normal patients are negatives, from apex to abdomen, but only infected ones are positives: "
                    "slice position is a shortcut to the class (normal_slices: positions-of-positives restricts them)",
                    "Normal-S1",
                )
            )
            return healthy
        positions: list[float] = []
        for patient, item in labeled.items():
            rank = {header.path: place for header, place in _relative(sick[patient])}
            positions += [rank[header.path] for header in item.infected]
        if not positions:
            return healthy
        low, high = np.quantile(positions, [_TAIL, 1 - _TAIL])
        kept = {patient: [h for h, place in _relative(members) if low <= place <= high] for patient, members in healthy.items()}
        left_out = sum(map(len, healthy.values())) - sum(map(len, kept.values()))
        message = (
            f"{left_out} slices left out: outside {low:.0%} to {high:.0%} of the scan from head to feet, where positives are"
        )
        self._findings.append(Finding("note", message, "Normal-S1"))
        return kept


def _by_patient(headers: Sequence[Header], folder: Path) -> dict[str, list[Header]]:
    found: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        if header.path.is_relative_to(folder):
            parts = header.path.relative_to(folder).parts
            if len(parts) < 2:
                raise InputError(f"{header.path}: lies outside a patient's folder ({folder.name}/<patient>/<file>)")
            found[parts[0]].append(header)
    return {patient: head_to_feet(found[patient]) for patient in sorted(found)}


def _relative(ordered: Sequence[Header]) -> list[tuple[Header, float]]:
    """Pair slices from head to feet with their relative place, 0 to 1; table positions differ between scans."""
    return [(header, (i + 0.5) / len(ordered)) for i, header in enumerate(ordered)]


def read_slice_labels(path: Path) -> dict[str, list[Label]]:
    """Read ``LDCT-SL-Labels-S1.csv``: a header line, then a patient and one cell per slice, 0 or 1 as number or blank.

    Raises:
        InputError: a patient twice or without a name, or a cell that is neither 0, 1 nor blank.
    """
    header, *body = read_rows(path)
    labels: dict[str, list[Label]] = {}
    for number, row in enumerate(body, start=2):
        patient, cells = row[0], row[1:]
        if not patient:
            raise InputError(f"{path}, row {number}: the first cell must name a patient, such as C001")
        if patient in labels:
            raise InputError(f"{path}, row {number}: patient {patient!r} has two rows")
        labels[patient] = [_label(cell, f"{path}, row {patient!r}, slice {i}") for i, cell in enumerate(cells, start=1)]
    if not labels:
        raise InputError(f"{path}: no row below the {len(header)} column names")
    return labels


def _label(cell: str, where: str) -> Label:
    if is_blank(cell):
        return None
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise InputError(f"{where}: a label is 0, 1 or blank, found {cell!r}")
    return int(value)
