"""CT slices in DICOM files: what a header says, why a file cannot be used, and its pixels in HU.

Facts: DICOM PS3.3 C.7.6.2 (plane), C.8.2.1 (CT image), C.7.5.1.1.2 (padding).
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGTransferSyntaxes

from tomosec.data._jpeg import jpeg_fault
from tomosec.data.base import Entry, Finding, Level, OpenDataset, Slice
from tomosec.data.dicom_values import integer_of, load_file, number_of, numbers_of, syntax_of, text_of
from tomosec.data.files import fingerprint, is_special
from tomosec.errors import InputError

#: File names that may be DICOM; archives also use none at all.
SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ""})
AIR_HU = -1000.0
#: Air and its noise are above this; what is below is padding around the field of view (GE writes -2000 - 1024 = -3024).
PADDING_HU = -1100.0
_TEXT_FACTS = {
    "kernel": "ConvolutionKernel",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "sex": "PatientSex",
}
_NUMBER_FACTS = {
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
    "tube_current_ma": "XRayTubeCurrent",
    "table_height_mm": "TableHeight",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a DICOM file is not used: a note where that is normal (a localizer), else a warning."""

    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """What the readers need of a DICOM header.

    Attributes:
        path: the file.
        patient_id: PatientID as text, may be empty.
        series: SeriesInstanceUID as text, not validated, may be empty.
        position_mm: ImagePositionPatient along the slice normal that points to the head, else SliceLocation.
        slice_location_mm: SliceLocation (0020,1041).
        spacing_mm: (row, column) PixelSpacing; None where it is missing.
        shape: (rows, columns).
        remarks: what looks odd but can be read.
        obstacle: why the file is not a usable CT slice, or None.
        attributes: facts that may be a shortcut to the class.
    """

    path: Path
    patient_id: str
    series: str
    position_mm: float | None
    slice_location_mm: float | None
    spacing_mm: tuple[float, float] | None
    shape: tuple[int, int]
    remarks: tuple[str, ...] = ()
    obstacle: Obstacle | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)


def _normal_position(data: Any) -> tuple[float | None, bool]:
    """Return the position along the normal towards the head, and whether the slice is axial (True if unknown)."""
    origin, axes = numbers_of(data, "ImagePositionPatient"), numbers_of(data, "ImageOrientationPatient")
    if len(axes) != 6:
        return (origin[2] if len(origin) == 3 else None), True
    normal = np.cross(axes[:3], axes[3:])
    length = float(np.linalg.norm(normal))
    if length < 0.5:
        return None, True
    # The sign of the normal depends on how the image is laid out; patient z always points to the head.
    normal = normal / length * (1 if normal[2] >= 0 else -1)
    # A tilted gantry is still axial; a reformatted coronal or sagittal image is not.
    axial = bool(normal[2] > math.cos(math.radians(45)))
    return (float(np.dot(normal, origin)) if len(origin) == 3 else None), axial


def _obstacle(data: Any, size: int, axial: bool) -> Obstacle | None:
    modality = text_of(data, "Modality")
    if modality != "CT":
        return Obstacle("note", f"modality is {modality or 'missing'}, only CT is read")
    image_type = text_of(data, "ImageType")
    if "LOCALIZER" in image_type.upper():
        return Obstacle("note", f"a localizer (ImageType {image_type}), not a slice")
    samples = integer_of(data, "SamplesPerPixel") or 1
    if samples != 1:
        kind = text_of(data, "PhotometricInterpretation") or "color"
        return Obstacle("warning", f"{samples} samples per pixel ({kind}), a CT slice has 1: this is a screenshot or report")
    rows, columns = integer_of(data, "Rows"), integer_of(data, "Columns")
    if not rows or not columns:
        return Obstacle("warning", "no Rows or Columns, so there is no image in it")
    if (number_of(data, "NumberOfFrames") or 1) > 1:
        return Obstacle("warning", "several frames in one file (enhanced CT); export it as one slice per file")
    if not axial:
        return Obstacle("note", "not an axial slice (ImageOrientationPatient is coronal or sagittal)")
    slope, intercept = number_of(data, "RescaleSlope"), number_of(data, "RescaleIntercept")
    if slope is None or intercept is None or slope == 0:
        return Obstacle("warning", "no RescaleSlope and RescaleIntercept, without which stored values are not HU")
    spacing = numbers_of(data, "PixelSpacing")
    if len(spacing) != 2 or min(spacing) <= 0:
        return Obstacle("warning", "no PixelSpacing (two lengths above 0 mm), without which the image has no size")
    if intercept > -100 and not integer_of(data, "PixelRepresentation"):
        return Obstacle(
            "warning", f"RescaleIntercept {intercept:g} with unsigned pixels cannot hold air (-1000 HU): the values are not HU"
        )
    allocated, stored = integer_of(data, "BitsAllocated"), integer_of(data, "BitsStored")
    if allocated not in (8, 16) or not stored or stored > allocated or integer_of(data, "HighBit") != stored - 1:
        return Obstacle(
            "warning", "BitsAllocated, BitsStored and HighBit are not those of a CT slice (16, 12 to 16, BitsStored - 1)"
        )
    syntax = syntax_of(data)
    if syntax is None:
        return Obstacle("warning", "no valid transfer syntax, so the coding of its pixels is unknown")
    if not syntax.is_compressed and size < rows * columns * allocated // 8:
        return Obstacle("warning", "truncated: the file is smaller than its pixels")
    return None


def _header(path: Path, data: Any, size: int) -> Header:
    position, axial = _normal_position(data)
    location = number_of(data, "SliceLocation")
    spacing = numbers_of(data, "PixelSpacing")
    facts: dict[str, str | float] = {}
    for name, keyword in _TEXT_FACTS.items():
        if text := text_of(data, keyword):
            facts[name] = text
    for name, keyword in _NUMBER_FACTS.items():
        if (number := number_of(data, keyword)) is not None:
            facts[name] = number
    remarks = []
    rows, columns = integer_of(data, "Rows") or 0, integer_of(data, "Columns") or 0
    if len(spacing) == 2:
        facts["spacing_mm"] = spacing[0]
        facts["field_of_view_mm"] = number_of(data, "ReconstructionDiameter") or spacing[1] * columns
    if number_of(data, "RescaleIntercept") == 0 and integer_of(data, "PixelRepresentation"):
        remarks.append("RescaleIntercept is 0 with signed pixels: taken as HU stored directly")
    return Header(
        path=path,
        patient_id=text_of(data, "PatientID"),
        series=text_of(data, "SeriesInstanceUID"),
        position_mm=position if position is not None else location,
        slice_location_mm=location,
        spacing_mm=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
        shape=(rows, columns),
        remarks=tuple(remarks),
        obstacle=_obstacle(data, size, axial),
        attributes=facts,
    )


@functools.lru_cache(maxsize=200_000)
def _cached_header(path: Path, size: int, modified_ns: int) -> Header:
    # Size and time are part of the key, so a file that was changed is read again.
    return _header(path, load_file(path, pixels=False), size)


def read_header(path: Path) -> Header:
    """Read a header without its pixels; once per process unless the file changes.

    Raises:
        InputError: not a DICOM file, unreadable, or damaged before the pixels.
    """
    stat = path.stat()
    return _cached_header(path, stat.st_size, stat.st_mtime_ns)


def read_slice(path: Path) -> Slice:
    """Read one CT slice in HU = slope * stored + intercept, with row 0 anterior and column 0 on the patient's right.

    Padding around the field of view (PixelPaddingValue, or anything below -1100 HU) becomes air, -1000 HU. Images laid out
    otherwise are flipped according to ImageOrientationPatient.

    Raises:
        InputError: not a usable CT slice, truncated or damaged pixels, or a compression without a decoder; the message says
            which.
    """
    data = load_file(path, pixels=True)
    header = _header(path, data, path.stat().st_size)
    if header.obstacle is not None:
        raise InputError(f"{path}: {header.obstacle.reason}")
    stored = stored_pixels(path, data, header.shape)
    if stored.shape != header.shape:
        raise InputError(f"{path}: {stored.shape} pixels found, but Rows and Columns say {header.shape}")
    slope, intercept = numbers_of(data, "RescaleSlope")[0], numbers_of(data, "RescaleIntercept")[0]
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = integer_of(data, "PixelPaddingValue")
    if padding is not None:
        for value in (padding, padding - 65536):  # signed and unsigned readings of the same 16 bits (63536 is -2000)
            # Some writers name a value that is tissue; only one outside the range of tissue is taken at its word.
            if not -900 <= slope * value + intercept <= 10_000:
                hu[stored == value] = AIR_HU
    hu[hu < PADDING_HU] = AIR_HU
    axes = numbers_of(data, "ImageOrientationPatient")
    if len(axes) == 6:
        hu = hu[:: -1 if axes[4] < 0 else 1, :: -1 if axes[0] < 0 else 1]
    assert header.spacing_mm is not None
    return Slice(np.ascontiguousarray(hu, dtype=np.float32), header.spacing_mm)


def stored_pixels(path: Path, data: Any, shape: tuple[int, int]) -> NDArray[np.generic]:
    """Return the pixels of a loaded file as stored.

    Raises:
        InputError: a compression without a decoder, no pixels, or damaged ones.
    """
    syntax = syntax_of(data)
    if syntax is not None and syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise InputError(
                f"{path}: its pixels are compressed ({syntax.name}) and no decoder for that is installed: pip install python-gdcm"
            )
    if "PixelData" not in data:
        raise InputError(f"{path}: no pixel data; the file is a header only, or truncated")
    try:
        if syntax in JPEGTransferSyntaxes:
            fault = jpeg_fault(get_frame(data.PixelData, 0, number_of_frames=1), *shape, integer_of(data, "BitsAllocated") or 16)
            if fault:
                raise InputError(f"{path}: {fault}; the file is truncated or damaged")
        return np.asarray(data.pixel_array)
    except InputError:
        raise
    except Exception as error:  # every decoder plug-in has its own exceptions; all of them mean these pixels
        raise InputError(f"{path}: pixels cannot be decoded, the file is truncated or damaged ({error})") from error


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` that may be DICOM by name, in alphabetical order; hidden files are left out.

    So is what is no regular file: a named pipe would be waited for. A link to nowhere stays, for whoever opens it to name.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            named = path.suffix.lower() in SUFFIXES and not name.startswith(".") and name.upper() != "DICOMDIR"
            if named and not is_special(path):
                yield path


def scan(root: Path, paths: Iterable[Path]) -> tuple[list[Header], list[Finding]]:
    """Read many headers; return the usable ones, in the order of ``paths``, and findings about the others, by reason."""

    def attempt(path: Path) -> Header | InputError:
        try:
            return read_header(path)
        except InputError as error:
            return error

    # Threads wait for disk or network together; decoding itself is 0.7 ms a file.
    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(attempt, paths))
    usable: list[Header] = []
    said: dict[tuple[Level, str], list[Path]] = defaultdict(list)
    findings: list[Finding] = []
    for result in results:
        if isinstance(result, InputError):
            findings.append(Finding("warning", f"skipped: {result}"))
            continue
        for remark in result.remarks:
            said["note", remark].append(result.path)
        if result.obstacle is None:
            usable.append(result)
        else:
            said[result.obstacle.level, f"skipped: {result.obstacle.reason}"].append(result.path)
    for (level, reason), files in said.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        findings.append(Finding(level, f"{reason} ({len(files)} files)", f"{files[0].relative_to(root).as_posix()}{more}"))
    return usable, findings


def name_order(path: Path) -> list[tuple[int, str]]:
    """Sort key of a file name in which ``IM2`` comes before ``IM10``."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def head_to_feet(headers: Sequence[Header]) -> list[Header]:
    """Order the slices of one patient by descending position, or by file name where a position is missing."""
    if all(header.position_mm is not None for header in headers):
        return sorted(headers, key=lambda h: (-(h.position_mm or 0.0), name_order(h.path)))
    return sorted(headers, key=lambda h: name_order(h.path))


def patient_findings(patient: str, headers: Sequence[Header]) -> list[Finding]:
    """Say what looks wrong in the slices of one patient: missing or repeated positions, mixed spacing, several series."""
    findings: list[Finding] = []
    missing = sum(header.position_mm is None for header in headers)
    if missing:
        findings.append(Finding("warning", f"{missing} of {len(headers)} slices have no position: ordered by file name", patient))
    by_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_series[header.series].append(header)
    if len(by_series) > 1:
        sizes = ", ".join(str(len(members)) for members in by_series.values())
        findings.append(Finding("warning", f"{len(by_series)} series ({sizes} slices) may show the same anatomy twice", patient))
    repeated = 0
    for members in by_series.values():
        known = [round(header.position_mm, 3) for header in members if header.position_mm is not None]
        repeated += len(known) - len(set(known))
    if repeated:
        findings.append(
            Finding("warning", f"{repeated} slices repeat the position of another in their series: duplicates?", patient)
        )
    spacings = sorted({header.spacing_mm for header in headers if header.spacing_mm is not None})
    if len(spacings) > 1:
        shown = ", ".join(f"{row:g} x {column:g}" for row, column in spacings[:4])
        findings.append(Finding("warning", f"mixed pixel spacing: {shown} mm", patient))
    return findings


class OpenDicom(OpenDataset):
    """Base of the open datasets whose slices are DICOM files; subclasses set ``classes``, ``entries`` and ``findings``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path] = {}
        self._tables: list[Path] = []

    def entry(self, header: Header, patient: str, target: int) -> Entry:
        """Make the entry of a header, keyed by its path below the root, and remember the file."""
        key = header.path.relative_to(self.root).as_posix()
        self._paths[key] = header.path
        return Entry(key, patient, target, header.position_mm, header.attributes)

    def read(self, entry: Entry) -> Slice:
        """Read one slice in HU; see :func:`read_slice`."""
        return read_slice(self._paths[entry.key])

    def fingerprint(self) -> Mapping[str, str]:
        """Digest of every slice file and label table."""
        return fingerprint(self.root, [*self._tables, *self._paths.values()])
