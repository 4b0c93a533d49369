"""DICOM-CT-PD scans written as the public files have them, of a phantom whose line integrals are exact.

The geometry is that of the format's manual (Chen et al. 2015), written down here apart from the reader: the frame seen from the
patient table, x to the right and y up, source at (−ρ sin φ, ρ cos φ), row 1 the farthest from the table and column 1 on the left
while the detector is at 6 o'clock.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

#: Value (1/mm), half axes, center and angle of elliptic cylinders, mm and degrees, x to the patient's left and y to the front.
BODY: tuple[tuple[float, ...], ...] = (
    (0.0192, 80.0, 60.0, 0.0, 0.0, 0.0),
    (-0.015, 25.0, 30.0, 38.0, 8.0, 20.0),
    (0.012, 12.0, 8.0, -35.0, -30.0, 0.0),
    (-0.008, 10.0, 16.0, -20.0, 28.0, -30.0),
)


@dataclass(frozen=True)
class Scanner:
    """A small scanner with the proportions of a real one."""

    rows: int = 16
    columns: int = 120
    row_mm: float = 3.0
    column_mm: float = 3.4
    central_column: float = 61.1  # off the middle, so that a mirrored detector shows
    central_row: float = 8.5
    radius_mm: float = 595.0
    distance_mm: float = 1085.6
    curved: bool = True
    views_per_turn: int = 180

    def element(self, angle: float) -> np.ndarray:
        """Places of the detector's elements in the frame of the table, relative to z of the focal center, (rows, columns, 3)."""
        place = (np.arange(1, self.columns + 1) - self.central_column) * self.column_mm
        if self.curved:
            gamma = place / self.distance_mm
            across, deep = self.distance_mm * np.sin(gamma), self.distance_mm * np.cos(gamma)
        else:
            across, deep = place, np.full_like(place, self.distance_mm)
        up = self.radius_mm - deep  # of the detector at 6 o'clock
        cos, sin = math.cos(angle), math.sin(angle)
        z = (self.central_row - np.arange(1, self.rows + 1)) * self.row_mm
        flat = np.stack([across * cos - up * sin, across * sin + up * cos], axis=-1)
        out = np.empty((self.rows, self.columns, 3))
        out[..., :2] = flat[None]
        out[..., 2] = z[:, None]
        return out


def to_patient(points: np.ndarray, position: str) -> np.ndarray:
    """From the frame of the table to x to the patient's left and y to the front."""
    signs = {"HFS": (1, 1), "FFS": (-1, 1), "HFP": (-1, -1), "FFP": (1, -1)}[position]
    return points * np.array([*signs, 1.0])


def line_integrals(source: np.ndarray, elements: np.ndarray, z_range: tuple[float, float]) -> np.ndarray:
    """Exact integrals of ``BODY``, which fills ``z_range``, from a source to elements (..., 3)."""
    ray = elements - source
    length = np.linalg.norm(ray, axis=-1)
    with np.errstate(divide="ignore"):
        ends = (np.array(z_range)[:, None, None] - source[2]) / ray[None, ..., 2]
    low, high = np.minimum(*ends), np.maximum(*ends)
    level = ray[..., 2] == 0
    inside = z_range[0] <= source[2] <= z_range[1]
    low, high = np.where(level, -np.inf if inside else np.inf, low), np.where(level, np.inf, high)
    total = np.zeros(elements.shape[:-1])
    for value, half_x, half_y, x0, y0, degrees in BODY:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        px, py = source[0] - x0, source[1] - y0
        u, du = (px * cos + py * sin) / half_x, (ray[..., 0] * cos + ray[..., 1] * sin) / half_x
        v, dv = (py * cos - px * sin) / half_y, (ray[..., 1] * cos - ray[..., 0] * sin) / half_y
        a, b, c = du**2 + dv**2, u * du + v * dv, u**2 + v**2 - 1
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        enter, leave = np.maximum((-b - root) / a, low), np.minimum((-b + root) / a, high)
        total += value * length * np.clip(leave - enter, 0, None)
    return total


def write_view(path: Path, scanner: Scanner, values: np.ndarray, *, implicit: bool, transposed: bool, **elements: Any) -> Path:
    """Write one projection; ``elements`` are ``gggg_eeee=(VR, value)`` in hexadecimal or keywords, None deletes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    data = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.Manufacturer, data.PatientPosition = "CT", "SIEMENS", "HFS"
    data.DataCollectionDiameter, data.KVP = "200", "120"
    private: dict[int, tuple[str, Any]] = {
        0x70291002: ("FL", scanner.column_mm),
        0x70291006: ("FL", scanner.row_mm),
        0x7029100B: ("CS", "CYLINDRICAL" if scanner.curved else "FLAT"),
        0x70291010: ("US", scanner.rows),
        0x70291011: ("US", scanner.columns),
        0x70311003: ("FL", scanner.radius_mm),
        0x70311031: ("FL", scanner.distance_mm),
        0x70311033: ("FL", [scanner.central_column, scanner.central_row]),
        0x70331013: ("US", scanner.views_per_turn),
        0x70331061: ("US", 1),
        0x70331063: ("US", 1),
        0x70331065: ("FL", list(np.linspace(1000, 3000, scanner.columns))),
        0x70391009: ("CS", "YES"),
        0x70411001: ("DS", "0.0192"),
    }
    for name, value in elements.items():
        if "_" in name:
            private[int(name.replace("_", ""), 16)] = value
        else:
            setattr(data, name, value)
    creators = {
        0x7029: "DetectorSystemArrangementModule",
        0x7031: "DetectorDynamicsModule",
        0x7033: "SourceDynamicsModule",
        0x7037: "ProjectionDataDefinitions",
        0x7039: "PreprocessingFlagsModule",
        0x7041: "WaterAttenuationModule",
    }
    for group, creator in creators.items():
        data.add_new((group << 16) + 0x10, "LO", creator)
    for tag, item in private.items():
        if item is None:
            continue
        kind, value = item
        if implicit and kind == "FL":  # as files without a private dictionary have it
            kind, value = "UN", struct.pack(f"<{np.size(value)}f", *np.atleast_1d(value))
        data.add_new(tag, kind, value)
    low, high = float(values.min()), float(values.max())
    slope = max(high - low, 1e-6) / 65535
    text = f"{slope:.9g}"
    stored = np.clip(np.round((values - low) / float(text)), 0, 65535).astype("<u2")
    stored = stored.T if transposed else stored
    data.RescaleSlope, data.RescaleIntercept = text, f"{low:.9g}"
    for name in [name for name, value in elements.items() if value is None and "_" not in name]:
        delattr(data, name)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


Spot = tuple[float, float, float]  # shifts of angle, radius and z


def write_scan(
    folder: Path,
    scanner: Scanner,
    *,
    turns: float = 1.0,
    feed_mm: float = 0.0,
    start: float = 0.7,
    z_start: float = 0.0,
    clockwise: bool = False,
    position: str = "HFS",
    spots: Sequence[Spot] = ((0.0, 0.0, 0.0),),
    z_range: tuple[float, float] = (-1e4, 1e4),
    implicit: bool = True,
    transposed: bool = True,
    first: int = 1,
    change: Callable[[int], dict[str, Any]] = lambda number: {},
) -> Path:
    """Write a scan of ``BODY``; the body fills ``z_range`` and ``change`` gives further elements of a view by its number."""
    step = 2 * math.pi / scanner.views_per_turn * (-1 if clockwise else 1)
    for index in range(round(turns * scanner.views_per_turn)):
        angle, z = start + index * step, z_start + index * feed_mm / scanner.views_per_turn
        angle_shift, radial_shift, z_shift = spots[index % len(spots)]
        rho, phi = scanner.radius_mm + radial_shift, angle + angle_shift
        source = np.array([-rho * math.sin(phi), rho * math.cos(phi), z + z_shift])
        elements = scanner.element(angle) + np.array([0.0, 0.0, z])
        values = line_integrals(to_patient(source, position), to_patient(elements, position), z_range)
        fields: dict[str, Any] = {
            "InstanceNumber": str(first + index),
            "PatientPosition": position,
            "7031_1001": ("FL", float(np.mod(angle + math.pi, 2 * math.pi) - math.pi)),
            "7031_1002": ("FL", z),
            "7033_100B": ("FL", angle_shift),
            "7033_100C": ("FL", z_shift),
            "7033_100D": ("FL", radial_shift),
            "7033_100E": ("CS", "FFSNONE" if len(spots) == 1 else "FFSXYZ"),
            "7037_1009": ("CS", "HELICAL" if feed_mm else "AXIAL"),
        }
        # Names that do not sort in the order of acquisition.
        name = f"1-{(first + index) * 7 % 1009:05d}-{first + index}.dcm"
        write_view(folder / name, scanner, values, implicit=implicit, transposed=transposed, **fields | change(first + index))
    return folder
