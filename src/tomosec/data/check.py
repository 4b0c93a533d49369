"""What a dataset holds and what is wrong with it: the content of ``tomosec check data`` and of a record's warnings."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tomosec.data.base import BODY_THRESHOLD_HU, Entry, Finding, Level, OpenDataset, Slice, body_mask
from tomosec.data.dicom import PADDING_HU
from tomosec.data.shortcuts import Shortcut, find_shortcuts
from tomosec.data.splits import PARTS, Split, SplitAssignment, patient_targets
from tomosec.errors import InputError
from tomosec.hounsfield import hu_to_mu

#: A body that lies on more of the image border than this is cut off, mm.
_BORDER_MM = 5.0
#: Where the middle of soft tissue, fat to muscle, is in any trunk or head.
_TISSUE_HU = (-150.0, 150.0)
_MIN_PATIENTS = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """What one slice's pixels say.

    Attributes:
        entry: the slice.
        shape: (rows, columns).
        spacing_mm: (row, column).
        hu_min: smallest value.
        hu_max: largest value.
        digest: of the pixels; equal images have equal digests.
        border_mm: length of the image border that the body lies on.
        tissue_hu: median of the soft tissue of the body; None where there is no body.
        features: numbers that may be a shortcut: body area and position, table, air.
    """

    entry: Entry
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    hu_min: float
    hu_max: float
    digest: str
    border_mm: float
    tissue_hu: float | None
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What was found in a dataset.

    Attributes:
        classes: class names.
        patients: number of patients with each class.
        slices: number of slices of each class.
        slices_per_patient: slices of each class, by patient.
        shapes: image shapes seen, with the number of slices read.
        spacing_mm: smallest and largest pixel spacing of the slices read.
        field_mm: smallest and largest side of the slices read.
        hu_range: smallest and largest value of the slices read.
        slices_read: how many slices' pixels were read.
        split: the split's own sentence, or empty.
        parts: slices of each class in each part of the split, by part and class name.
    """

    classes: tuple[str, ...]
    patients: Mapping[str, int]
    slices: Mapping[str, int]
    slices_per_patient: Mapping[str, Mapping[str, int]]
    shapes: Mapping[tuple[int, int], int]
    spacing_mm: tuple[float, float] | None
    field_mm: tuple[float, float] | None
    hu_range: tuple[float, float] | None
    slices_read: int
    split: str
    parts: Mapping[str, Mapping[str, int]]


def measure_slice(entry: Entry, slice_: Slice) -> Measured:
    """Measure the pixels of one slice; the body is found on at most about 256 x 256 pixels."""
    hu, spacing = slice_.hu, slice_.spacing_mm
    step = max(1, round(max(hu.shape) / 256))
    small = hu[::step, ::step]
    pixel = (spacing[0] * step, spacing[1] * step)
    body = body_mask(hu_to_mu(small))
    border_mm = float((body[0].sum() + body[-1].sum()) * pixel[1] + (body[:, 0].sum() + body[:, -1].sum()) * pixel[0])
    features: dict[str, float] = {}
    tissue = small[body & (small > -200) & (small < 300)]
    if body.any():
        rows, columns = np.nonzero(body)
        features["body area, cm2"] = float(body.sum() * pixel[0] * pixel[1] / 100)
        features["body center down, mm"] = float((rows.mean() - (small.shape[0] - 1) / 2) * pixel[0])
        features["body center right, mm"] = float((columns.mean() - (small.shape[1] - 1) / 2) * pixel[1])
        outside = ~ndimage.binary_dilation(body, iterations=3)
        if outside.any():
            around = small[outside]
            features["mean HU outside the body"] = float(around.mean())
            features["table and objects outside the body, cm2"] = float(
                (around > BODY_THRESHOLD_HU).sum() * pixel[0] * pixel[1] / 100
            )
            air = around[around < -900]
            if air.size > 50:
                features["spread of air, HU"] = float(np.subtract(*np.percentile(air, [84, 16])) / 2)
    return Measured(
        entry=entry,
        shape=(hu.shape[0], hu.shape[1]),
        spacing_mm=spacing,
        hu_min=float(hu.min()),
        hu_max=float(hu.max()),
        digest=hashlib.sha256(repr(hu.shape).encode() + hu.tobytes()).hexdigest()[:32],
        border_mm=border_mm,
        tissue_hu=float(np.median(tissue)) if tissue.size > 50 else None,
        features=features,
    )


def _sample(entries: Sequence[Entry], per_patient: int | None) -> Iterator[Entry]:
    """Yield evenly spaced slices of each patient and class, so that the whole scan is seen."""
    groups: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.patient, entry.target].append(entry)
    for members in groups.values():
        count = len(members) if per_patient is None else min(per_patient, len(members))
        for i in range(count):
            yield members[(2 * i + 1) * len(members) // (2 * count)]


def measure(opened: OpenDataset, sample: int | None = 8) -> tuple[list[Measured], list[Finding]]:
    """Read and measure slices; those that cannot be read become findings of level error.

    Args:
        opened: the dataset.
        sample: slices of each patient and class, evenly spaced; None reads all.
    """
    measured: list[Measured] = []
    findings: list[Finding] = []
    for entry in _sample(opened.entries, sample):
        try:
            slice_ = opened.read(entry)
        except InputError as error:
            findings.append(Finding("error", str(error), entry.key))
            continue
        measured.append(measure_slice(entry, slice_))
    return measured, findings


def summarize(opened: OpenDataset, measured: Sequence[Measured] = (), assignment: SplitAssignment | None = None) -> DataSummary:
    """Count patients and slices, and give the ranges of what was measured."""
    classes = opened.classes
    slices = Counter(entry.target for entry in opened.entries)
    targets = patient_targets(opened.entries)
    patients = Counter(target for group in targets.values() for target in group)
    per_patient: dict[str, dict[str, int]] = {patient: {} for patient in targets}
    for entry in opened.entries:
        row, name = per_patient[entry.patient], classes[entry.target]
        row[name] = row.get(name, 0) + 1
    parts: dict[str, dict[str, int]] = {}
    if assignment is not None:
        for part in PARTS:
            chosen = Counter(opened.entries[i].target for i in getattr(assignment, part))
            parts[part] = {name: chosen[i] for i, name in enumerate(classes)}
    spacings = [value for item in measured for value in item.spacing_mm]
    fields = [n * mm for item in measured for n, mm in zip(item.shape, item.spacing_mm, strict=True)]
    return DataSummary(
        classes=classes,
        patients={name: patients[i] for i, name in enumerate(classes)},
        slices={name: slices[i] for i, name in enumerate(classes)},
        slices_per_patient=per_patient,
        shapes=dict(Counter(item.shape for item in measured)),
        spacing_mm=(min(spacings), max(spacings)) if spacings else None,
        field_mm=(min(fields), max(fields)) if fields else None,
        hu_range=(min(m.hu_min for m in measured), max(m.hu_max for m in measured)) if measured else None,
        slices_read=len(measured),
        split="" if assignment is None else assignment.description,
        parts=parts,
    )


def check_dataset(opened: OpenDataset, split: Split | None = None, sample: int | None = 8) -> list[Finding]:
    """Say what is wrong with a dataset, worst first; see :func:`inspect_dataset` for what it holds as well."""
    return inspect_dataset(opened, split, sample)[1]


def inspect_dataset(opened: OpenDataset, split: Split | None = None, sample: int | None = 8) -> tuple[DataSummary, list[Finding]]:
    """Describe a dataset and say what is wrong with it.

    Args:
        opened: the dataset.
        split: how an experiment would divide it; a split that does not work is a finding, not an exception.
        sample: slices of each patient and class whose pixels are read; None reads all.

    Returns:
        The summary, and the findings with errors first, then warnings, then notes.
    """
    measured, unreadable = measure(opened, sample)
    findings = [*opened.findings, *unreadable]
    assignment = None
    if split is not None:
        try:
            assignment = split.assign(opened.entries, opened.classes)
        except InputError as error:
            findings.append(Finding("error", str(error), "split"))
        else:
            level: Level = "warning" if assignment.shares_patients else "note"
            findings.append(Finding(level, assignment.description, "split"))
    findings += _cohort(opened)
    findings += _pixels(measured)
    findings += _duplicates(opened, measured)
    findings += _shortcut_findings(opened, measured)
    order = {"error": 0, "warning": 1, "note": 2}
    return summarize(opened, measured, assignment), sorted(findings, key=lambda finding: order[finding.level])


def _cohort(opened: OpenDataset) -> Iterator[Finding]:
    targets = patient_targets(opened.entries)
    for target, name in enumerate(opened.classes):
        count = sum(target in group for group in targets.values())
        if 0 < count < _MIN_PATIENTS:
            message = f"class {name!r} has {count} patients; under {_MIN_PATIENTS} no interval says anything about a population"
            yield Finding("warning", message)
    several = [patient for patient, group in targets.items() if len(group) > 1]
    if several:
        message = f"{len(several)} patients have slices of several classes (first: {several[0]})"
        yield Finding("note", f"{message}: a class is then a property of slices, not of patients")


def _pixels(measured: Sequence[Measured]) -> Iterator[Finding]:
    def where(bad: Sequence[Measured]) -> str:
        return bad[0].entry.key + (f" and {len(bad) - 1} more of {len(measured)} read" if len(bad) > 1 else "")

    if empty := [m for m in measured if m.hu_max - m.hu_min < 50 or "body area, cm2" not in m.features]:
        yield Finding(
            "error",
            f"{len(empty)} empty images: constant, or nothing in them is denser than {BODY_THRESHOLD_HU:g} HU",
            where(empty),
        )
    if padded := [m for m in measured if m.hu_min < PADDING_HU]:
        low = min(m.hu_min for m in padded)
        yield Finding(
            "warning", f"values down to {low:g} HU: padding around the field of view was not replaced by air", where(padded)
        )
    if airless := [m for m in measured if m.hu_max - m.hu_min >= 50 and m.hu_min > -800]:
        low = min(m.hu_min for m in airless)
        message = f"no air (smallest value {low:g} HU) in {len(airless)} images: offset or scale of HU is wrong"
        yield Finding("error", message, where(airless))
    tissue = [m.tissue_hu for m in measured if m.tissue_hu is not None]
    if tissue and not _TISSUE_HU[0] <= float(np.median(tissue)) <= _TISSUE_HU[1]:
        message = f"soft tissue is at {np.median(tissue):.0f} HU, expected {_TISSUE_HU[0]:g} to {_TISSUE_HU[1]:g}"
        yield Finding("warning", f"{message}: offset or scale of HU is wrong")
    if cut := [m for m in measured if m.border_mm > _BORDER_MM]:
        people = len({m.entry.patient for m in cut})
        longest = max(m.border_mm for m in cut)
        yield Finding(
            "warning",
            f"{len(cut)} of {len(measured)} slices ({people} patients) have a truncated body: up to {longest:.0f} mm of it "
            "lie on the image border; projections of a cut body are not those of a scan",
            where(cut),
        )
    shapes = Counter(m.shape for m in measured)
    if len(shapes) > 1:
        listed = ", ".join(f"{rows} x {columns} ({count})" for (rows, columns), count in shapes.most_common(4))
        yield Finding("note", f"several image sizes: {listed}")


def _duplicates(opened: OpenDataset, measured: Sequence[Measured]) -> Iterator[Finding]:
    groups: dict[str, set[str]] = defaultdict(set)
    for item in measured:
        groups[item.digest].add(item.entry.key)
    # Files are compared too, so that equal files are found beyond the sample whose pixels were read.
    by_key = {entry.key: entry for entry in opened.entries}
    for name, content in opened.fingerprint().items():
        if name in by_key:
            groups[content].add(name)
    said: set[frozenset[str]] = set()
    within: list[list[str]] = []
    for keys in groups.values():
        if len(keys) < 2 or frozenset(keys) in said:
            continue
        said.add(frozenset(keys))
        ordered = sorted(keys)
        people = sorted({by_key[key].patient for key in ordered})
        if len(people) > 1:
            listed = ", ".join(people[:4])
            message = f"identical images in {len(people)} patients ({listed}): training and test would share them"
            yield Finding("error", message, ", ".join(ordered[:4]))
        else:
            within.append(ordered)
    if within:
        yield Finding(
            "warning",
            f"{sum(len(keys) - 1 for keys in within)} images repeat another of the same patient",
            ", ".join(within[0][:4]),
        )


def _units(opened: OpenDataset, measured: Sequence[Measured]) -> list[tuple[int, Mapping[str, str | float]]]:
    """Return the class and typical attributes of each patient (of each class of a patient that has several)."""
    columns: dict[tuple[str, int], dict[str, list[str | float]]] = defaultdict(lambda: defaultdict(list))
    positions: dict[tuple[str, int], list[float]] = defaultdict(list)
    counts: Counter[tuple[str, int]] = Counter()
    for entry in opened.entries:
        unit = entry.patient, entry.target
        counts[unit] += 1
        if entry.position_mm is not None:
            positions[unit].append(entry.position_mm)
        for name, value in entry.attributes.items():
            columns[unit][name].append(value)
    for item in measured:
        for name, number in item.features.items():
            columns[item.entry.patient, item.entry.target][name].append(number)
    units: list[tuple[int, Mapping[str, str | float]]] = []
    for unit in sorted(counts):
        typical: dict[str, str | float] = {name: _typical(values) for name, values in columns[unit].items()}
        typical["number of slices"] = float(counts[unit])
        if places := positions[unit]:
            typical["middle of the slice positions, mm"] = float(np.median(places))
            typical["range of the slice positions, mm"] = max(places) - min(places)
        units.append((unit[1], typical))
    return units


def _typical(values: Sequence[str | float]) -> str | float:
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) == len(values):
        return float(np.median(numbers))
    return Counter(map(str, values)).most_common(1)[0][0]


def _shortcut_findings(opened: OpenDataset, measured: Sequence[Measured]) -> Iterator[Finding]:
    units = _units(opened, measured)
    present = sorted({target for target, _ in units})
    # With two classes, telling one from the other is telling the other from the one.
    tested = present[1:] if len(present) == 2 else present
    undecidable: list[Shortcut] = []
    number = 0
    for target in tested:
        for shortcut in find_shortcuts(units, target):
            number += 1
            if shortcut.is_undecidable:
                undecidable.append(shortcut)
            elif shortcut.is_established:
                yield Finding("warning", _sentence(shortcut, opened.classes), shortcut.attribute)
    if undecidable:
        first = undecidable[0]
        names = ", ".join(sorted({shortcut.attribute for shortcut in undecidable}))
        yield Finding(
            "note",
            f"{len(undecidable)} of {number} attributes separate the classes perfectly, but with {first.inside} and "
            f"{first.outside} patients each does so by chance with probability {first.p_value:.2g}: {names}",
        )


def _sentence(shortcut: Shortcut, classes: Sequence[str]) -> str:
    return (
        f"predicts class {classes[shortcut.target]!r} between patients: {shortcut.measure} {shortcut.strength:.2f}, "
        f"{shortcut.detail} (p = {shortcut.p_value:.2g}, {shortcut.inside} against {shortcut.outside} patients)"
    )
