"""What the private elements of a DICOM-CT-PD file say: one projection, with where its source and detector were.

Format: Chen et al., Med. Phys. 42:6964, 2015; LDCT-and-Projection-data (Moen et al., Med. Phys. 48:902, 2021, table IV). Files
without a private dictionary in implicit coding give floats as bytes; both are decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomosec.data.dicom import stored_pixels
from tomosec.data.dicom_values import Element, floats_of, integer_of, load_file, number_of, text_of
from tomosec.data.rebinning import Detector
from tomosec.errors import InputError

ANGLE: Element = (0x7031, 0x1001)
AXIAL_POSITION: Element = (0x7031, 0x1002)
ROWS: Element = (0x7029, 0x1010)
COLUMNS: Element = (0x7029, 0x1011)
_NAMES: dict[Element, str] = {
    (0x7029, 0x1002): "DetectorElementTransverseSpacing",
    (0x7029, 0x1006): "DetectorElementAxialSpacing",
    (0x7029, 0x100B): "DetectorShape",
    ROWS: "NumberofDetectorRows",
    COLUMNS: "NumberofDetectorColumns",
    ANGLE: "DetectorFocalCenterAngularPosition",
    AXIAL_POSITION: "DetectorFocalCenterAxialPosition",
    (0x7031, 0x1003): "DetectorFocalCenterRadialDistance",
    (0x7031, 0x1031): "ConstantRadialDistance",
    (0x7031, 0x1033): "DetectorCentralElement",
    (0x7033, 0x100B): "SourceAngularPositionShift",
    (0x7033, 0x100C): "SourceAxialPositionShift",
    (0x7033, 0x100D): "SourceRadialDistanceShift",
    (0x7033, 0x1013): "NumberofSourceAngularSteps",
    (0x7037, 0x1009): "TypeofProjectionData",
    (0x7039, 0x1009): "LogFlag",
    (0x7041, 0x1001): "WaterAttenuationCoefficient",
}
_TEXTS: dict[str, Element] = {
    "Manufacturer": "Manufacturer",
    "PatientPosition": "PatientPosition",
    "TypeofProjectionData": (0x7037, 0x1009),
    "DetectorShape": (0x7029, 0x100B),
    "FlyingFocalSpotMode": (0x7033, 0x100E),
    "BeamHardeningCorrectionFlag": (0x7039, 0x1003),
    "GainCorrectionFlag": (0x7039, 0x1004),
    "DarkFieldCorrectionFlag": (0x7039, 0x1005),
    "FlatFieldCorrectionFlag": (0x7039, 0x1006),
    "BadPixelCorrectionFlag": (0x7039, 0x1007),
    "ScatterCorrectionFlag": (0x7039, 0x1008),
    "LogFlag": (0x7039, 0x1009),
}
#: A shift of the focal spot along the circle is a small angle; a larger one is a length, as dictionaries confuse the two.
_LARGEST_ANGLE_SHIFT = 0.05
#: Lengths of any scanner. Text read as the bytes of a float, which implicit coding cannot tell, is far outside.
_LENGTHS_MM = (1e-3, 1e5)


@dataclass(frozen=True, slots=True)
class View:
    """Where one projection was measured.

    Attributes:
        path: the file.
        number: InstanceNumber, None where it is missing.
        angle: of the detector's focal center, rad, counter-clockwise from 12 o'clock as seen from the patient table.
        z_mm: of the detector's focal center.
        angle_shift: from the focal center to the focal spot, rad.
        z_shift_mm: the same along the axis.
        radial_shift_mm: the same away from the isocenter.
        photons: mean of PhotonStatistics over the columns, NaN where it is missing.
        detector: the detector, equal in all files of a scan.
        transposed: the image is stored as (columns, rows).
        steps: NumberofSourceAngularSteps, views per turn.
        facts: text and numbers that are equal in all files of a scan.
    """

    path: Path
    number: int | None
    angle: float
    z_mm: float
    angle_shift: float
    z_shift_mm: float
    radial_shift_mm: float
    photons: float
    detector: Detector
    transposed: bool
    steps: int
    facts: tuple[tuple[str, str | float], ...]


def name_of(element: Element) -> str:
    """Return an element's name and number for a message."""
    if isinstance(element, str):
        return element
    return f"{_NAMES[element]} ({element[0]:04X},{element[1]:04X})"


def _wrong(path: Path, element: Element, problem: str) -> InputError:
    return InputError(f"{path}: {name_of(element)}: {problem}")


def _floats(path: Path, data: Any, element: Element, count: int = 1) -> list[float]:
    found = floats_of(data, element)
    if len(found) != count or not all(map(math.isfinite, found)):
        wanted = "a finite number of type FL is" if count == 1 else f"{count} finite numbers of type FL are"
        shown = ", ".join(f"{value:g}" for value in found[:4]) or "none"
        raise _wrong(path, element, f"{wanted} needed, found {shown}")
    return found


def _length(path: Path, data: Any, element: Element) -> float:
    value = _floats(path, data, element)[0]
    low, high = _LENGTHS_MM
    if not low <= value <= high:
        raise _wrong(path, element, f"found {value:g}; a length of {low:g} to {high:g} mm is needed")
    return value


def _count(path: Path, data: Any, element: Element, least: int = 1) -> int:
    value = integer_of(data, element)
    if value is None or value < least:
        raise _wrong(path, element, f"found {value}; a whole number of {least} or more is needed")
    return value


def is_ct_pd(path: Path) -> bool:
    """Whether a file is a DICOM-CT-PD projection: it has the angle of a detector's focal center.

    Raises:
        InputError: not DICOM, unreadable, or damaged.
    """
    return bool(floats_of(load_file(path, pixels=False), ANGLE))


def read_view(path: Path) -> View:
    """Read where one projection was measured, not its pixels.

    Raises:
        InputError: not a DICOM-CT-PD projection of line integrals that can be read; the message names the element, what was
            found and what is allowed.
    """
    data = load_file(path, pixels=False)
    if not floats_of(data, ANGLE):
        raise _wrong(path, ANGLE, "missing; this is no DICOM-CT-PD projection (an image series of the same study is none)")
    facts: dict[str, str | float] = {name: text_of(data, element).upper() for name, element in _TEXTS.items()}
    facts["PatientID"] = text_of(data, "PatientID")
    facts = {name: value for name, value in facts.items() if value}
    shape = facts.get("DetectorShape", "")
    if shape not in ("CYLINDRICAL", "FLAT"):
        raise _wrong(path, (0x7029, 0x100B), f"found {shape or 'none'!r}; CYLINDRICAL and FLAT are read")
    if facts.get("TypeofProjectionData") not in ("AXIAL", "HELICAL"):
        found = facts.get("TypeofProjectionData", "none")
        raise _wrong(path, (0x7037, 0x1009), f"found {found!r}; AXIAL and HELICAL are read")
    if facts.get("LogFlag") != "YES":
        found = facts.get("LogFlag", "none")
        raise _wrong(path, (0x7039, 0x1009), f"found {found!r}; line integrals, LogFlag YES, are needed")
    for name, element in (("WaterAttenuationCoefficient", (0x7041, 0x1001)), ("SpectrumIndex", (0x7033, 0x1063))):
        value = number_of(data, element) if name.startswith("Water") else integer_of(data, element)
        if value is not None:
            facts[name] = float(value)
    for keyword in ("KVP", "DataCollectionDiameter", "SpiralPitchFactor"):
        if (number := number_of(data, keyword)) is not None:
            facts[keyword] = number
    column, row = _floats(path, data, (0x7031, 0x1033), 2)
    detector = Detector(
        columns=_count(path, data, COLUMNS, 2),
        rows=_count(path, data, ROWS),
        column_mm=_length(path, data, (0x7029, 0x1002)),
        row_mm=_length(path, data, (0x7029, 0x1006)),
        central_column=column,
        central_row=row,
        radius_mm=_length(path, data, (0x7031, 0x1003)),
        distance_mm=_length(path, data, (0x7031, 0x1031)),
        curved=shape == "CYLINDRICAL",
    )
    angle_shift = _shift(path, data, (0x7033, 0x100B))
    if abs(angle_shift) > _LARGEST_ANGLE_SHIFT:
        raise _wrong(
            path,
            (0x7033, 0x100B),
            f"found {angle_shift:g} rad, at most {_LARGEST_ANGLE_SHIFT:g} is plausible; is the axial shift in its place?",
        )
    photons = floats_of(data, (0x7033, 0x1065))
    _rescaling(path, data)
    numbered = number_of(data, "InstanceNumber")
    return View(
        path=path,
        number=None if numbered is None else int(numbered),
        angle=_floats(path, data, ANGLE)[0],
        z_mm=_floats(path, data, AXIAL_POSITION)[0],
        angle_shift=angle_shift,
        z_shift_mm=_shift(path, data, (0x7033, 0x100C)),
        radial_shift_mm=_shift(path, data, (0x7033, 0x100D)),
        photons=float(np.mean(photons)) if photons else math.nan,
        detector=detector,
        transposed=_is_transposed(path, data, detector),
        steps=_count(path, data, (0x7033, 0x1013), 2),
        facts=tuple(sorted(facts.items())),
    )


def _shift(path: Path, data: Any, element: Element) -> float:
    """Return a shift of the focal spot, 0 where the file has none."""
    return _floats(path, data, element)[0] if floats_of(data, element) else 0.0


def _rescaling(path: Path, data: Any) -> tuple[float, float]:
    """Return slope and intercept, which belong to this file alone."""
    slope, intercept = number_of(data, "RescaleSlope"), number_of(data, "RescaleIntercept")
    if not slope or intercept is None:
        raise InputError(f"{path}: no RescaleSlope and RescaleIntercept, without which stored values are no line integrals")
    return slope, intercept


def _is_transposed(path: Path, data: Any, detector: Detector) -> bool:
    found = (integer_of(data, "Rows"), integer_of(data, "Columns"))
    wanted = (detector.rows, detector.columns)
    if found == wanted:
        return False
    if found == wanted[::-1]:
        return True
    raise InputError(
        f"{path}: an image of Rows x Columns = {found[0]} x {found[1]}, but {name_of(ROWS)} x {name_of(COLUMNS)} is {wanted[0]} "
        f"x {wanted[1]}; one or the other order is needed"
    )


def read_projection(view: View) -> NDArray[np.float32]:
    """Read the line integrals of one projection, (detector rows, detector columns) float32, with the file's own rescaling.

    Raises:
        InputError: damaged pixels.
    """
    path = view.path
    data = load_file(path, pixels=True)
    slope, intercept = _rescaling(path, data)
    shape = (view.detector.rows, view.detector.columns)
    stored = stored_pixels(path, data, shape[::-1] if view.transposed else shape)
    values = stored.T if view.transposed else stored
    if values.shape != shape:
        raise InputError(f"{path}: {values.shape} pixels found, and the detector has {shape} (rows, columns)")
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
