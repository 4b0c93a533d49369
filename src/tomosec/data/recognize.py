"""What a file or folder is that is no dataset by itself: measured data, without classes, and images that need statements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from tomosec.data.counts import read_counts
from tomosec.data.ct_pd import PatientPosition, open_ct_pd
from tomosec.data.dicom import find_files
from tomosec.data.folder import LABELS
from tomosec.data.hdf5 import Hdf5
from tomosec.data.htc2022 import read_htc2022
from tomosec.data.measured import Measurement
from tomosec.data.measurement_file import HDF5, NPZ, read_measurement
from tomosec.data.medmnist import PARTS, is_medmnist, read_labels
from tomosec.data.npz import Npz
from tomosec.data.scans import MATLAB, measured_kind
from tomosec.data.two_detect import read_two_detect
from tomosec.errors import InputError
from tomosec.geometry import FanBeam


@dataclass(frozen=True, slots=True)
class Recognized:
    """Something that was recognized.

    Attributes:
        what: one line, what it is.
        facts: names and values.
        how: how to use it.
    """

    what: str
    facts: tuple[tuple[str, str], ...]
    how: str


def recognize(path: Path) -> Recognized | None:
    """Recognize measured data and MedMNIST; None for any other folder, which may be a dataset.

    One scan is read, by what it says of itself, so that a damaged one is refused here; of many files only the headers are.

    Raises:
        InputError: no such file, a file of a kind that is not known, or one that cannot be used.
    """
    if path.is_dir():
        return _folder(path)
    kind = measured_kind(path)
    if kind == "htc2022":
        return _measurement(
            read_htc2022(path), "a scan of the Helsinki Tomography Challenge 2022", "tomosec.data.htc2022.read_htc2022"
        )
    if kind == "neutral":
        return _neutral(path)
    if kind == "counts":
        return _counts(path)
    if path.suffix.lower() == NPZ:
        return _medmnist(Npz(path))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(
        f"{path}: a file of a kind that is not known; data are a folder, or a file of measured data: {MATLAB} (HTC 2022), "
        f"{NPZ}, {', '.join(sorted(HDF5))}"
    )


def _folder(path: Path) -> Recognized | None:
    kind = measured_kind(path)
    if kind == "2detect":
        return _measurement(
            read_two_detect(path), "one slice of 2DeteCT in one mode, counts corrected", "tomosec.data.two_detect.read_two_detect"
        )
    damaged: InputError | None = None
    for archive in sorted(path.glob("*.npz")):
        try:
            npz = Npz(archive)
        except InputError as error:
            damaged = error
            continue
        if is_medmnist(npz.names):
            return _medmnist(npz)
    if damaged is not None and next(find_files(path), None) is None and not (path / LABELS).is_file():
        raise damaged  # nothing else here is data
    # Of any other folder, the reader of a dataset says what is wrong with its files.
    return _ct_pd(path) if kind == "ct-pd" else None


def _measurement(scan: Measurement, what: str, reader: str) -> Recognized:
    geometry = scan.geometry
    values = scan.line_integrals
    facts = [
        ("views x bins", f"{geometry.views} x {geometry.bins}"),
        ("angles", "listed" if geometry.angles is not None else f"{math.degrees(geometry.arc):g} degrees"),
        ("bin", f"{geometry.bin_mm:g} mm"),
    ]
    if isinstance(geometry, FanBeam):
        facts += [
            ("source to isocenter, to detector", f"{geometry.source_to_isocenter_mm:g}, {geometry.source_to_detector_mm:g} mm"),
            ("detector", geometry.detector),
        ]
    facts += [
        ("image", f"{geometry.shape[0]} x {geometry.shape[1]} of {geometry.pixel_mm:g} mm"),
        ("line integrals", f"{values.min():g} to {values.max():g}"),
    ]
    facts += [("counts at the floor", f"{floored:g}")] if (floored := scan.attributes.get("belowFloor")) else []
    facts += [("second measurements", f"of {len(scan.repeats)} views")] if scan.repeats else []
    return Recognized(
        f"{what}: measured line integrals", tuple(facts), f"Read it with {reader}; it has no class, so there is no split."
    )


def _neutral(path: Path) -> Recognized:
    return _measurement(
        read_measurement(path), "a scan in tomosec's neutral form", "tomosec.data.measurement_file.read_measurement"
    )


def _counts(path: Path) -> Recognized:
    """Raw counts: read where the file has one row and says its geometry; else what has to be said."""
    with Hdf5(path) as file:
        shapes = {name: file.header(name)[0] for name in ("counts", "flats", "darks")}
        stated = "geometry" in file.attributes()
    if stated and len(shapes["counts"]) == 2:
        return _measurement(
            read_counts(path), "raw counts, corrected by their flat and dark fields", "tomosec.data.counts.read_counts"
        )
    needed = [] if stated else ["geometry, which the file does not"]
    needed += ["row, because the detector has several"] if len(shapes["counts"]) == 3 else []
    return Recognized(
        "raw counts with flat and dark fields, not checked further",
        tuple((name, " x ".join(map(str, shape))) for name, shape in shapes.items()),
        f"Read it with tomosec.data.counts.read_counts and say {' and '.join(needed)}.",
    )


def _medmnist(npz: Npz) -> Recognized:
    labels = {part: read_labels(npz, part) for part in PARTS}
    sizes = [(f"{part}_images", " x ".join(map(str, npz.header(f"{part}_images")[0]))) for part in PARTS]
    present = sorted({int(label) for values in labels.values() for label in np.unique(values)})
    return Recognized(
        "MedMNIST images",
        (("file", npz.path.name), *sizes, ("labels", ", ".join(map(str, present)))),
        "They have neither HU nor a pixel size, and nothing is assumed: say what they are in a recipe, data: {kind: medmnist, "
        "hu_of_0: ..., hu_of_255: ..., zero_is_air: ..., pixel_mm: ...}, and check them with --recipe.",
    )


def _ct_pd(path: Path) -> Recognized:
    scan = open_ct_pd(path)
    detector = scan.views[0].detector
    ends = ", ".join(f"{position:g}" for position in scan.positions_mm[:8]) or "none"
    facts = [
        ("scan", f"helical, {scan.feed_mm:g} mm a turn" if scan.helical else "axial"),
        ("views", f"{len(scan.views)}, {scan.views_per_turn} a turn"),
        ("detector", f"{detector.rows} rows x {detector.columns} columns, {'curved' if detector.curved else 'flat'}"),
        ("slices from, to" if scan.helical else "table positions", f"{ends} mm"),
    ]
    facts += [(name, str(scan.facts[name])) for name in ("Manufacturer", "FlyingFocalSpotMode") if name in scan.facts]
    position = scan.facts.get("PatientPosition")
    known = get_args(PatientPosition)
    facts.append(
        (
            "PatientPosition",
            str(position) if position in known else f"{position or 'none'}: say patient_position, {', '.join(known)}",
        )
    )
    return Recognized(
        "projections in DICOM-CT-PD: measured line integrals",
        tuple(facts),
        "Read slices with tomosec.data.ct_pd.read_ct_pd; they have no class, so there is no split.",
    )
