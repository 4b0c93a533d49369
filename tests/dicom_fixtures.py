"""Small format-true DICOM trees: what the published sets look like in bytes, with images drawn here."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def chest(size: int = 64, *, lesion: bool = False, place: float = 0.5, seed: int = 0) -> np.ndarray:
    """A chest slice in HU, float64 (size, size), that fills 85 % of the field; ``place`` from 0 (head) to 1 (feet)."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    rng = np.random.default_rng(seed)
    hu = np.full((size, size), -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.6) ** 2 < 1] = 40.0
    width = 0.28 * (0.5 + np.sin(np.pi * np.clip(place, 0, 1)) / 2)
    for side in (-1, 1):
        hu[((x - side * 0.4) / width) ** 2 + (y / 0.4) ** 2 < 1] = -850.0
    hu[(x / 0.1) ** 2 + ((y - 0.42) / 0.1) ** 2 < 1] = 400.0
    if lesion:
        hu[((x - 0.4) / 0.12) ** 2 + ((y - 0.1) / 0.15) ** 2 < 1] = -300.0
    return np.round(hu + rng.normal(0, 10, hu.shape))


@disable_value_validation()  # published files break the standard, identifiers that are GUIDs for one
def write_ct(
    path: Path,
    hu: np.ndarray,
    *,
    patient: str = "P1",
    position: float | None = 0.0,
    spacing: float | None = 6.0,
    slope: float = 1.0,
    intercept: float | None = -1024.0,
    signed: bool = False,
    bits: int = 12,
    series: str = "1.2.3",
    compress: bool = False,
    **elements: Any,
) -> Path:
    """Write one CT slice; ``elements`` are further DICOM keywords, None deletes one.

    Values are stored as round((hu - intercept) / slope), clipped to the range of the pixels.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, patient, path.name])  # the same bytes every time
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "CT", "SIEMENS", "SOMATOM Scope"
    data.PatientID, data.PatientSex, data.PatientPosition = patient, "M", "HFS"
    data.KVP, data.SliceThickness, data.ConvolutionKernel = "110", "2", "D40s"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2", series
    half = (hu.shape[1] - 1) / 2 * (spacing or 1.0)
    if position is not None:
        data.ImagePositionPatient = [-half, -half, position]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SliceLocation = f"{position:g}"
    if spacing is not None:
        data.PixelSpacing = [spacing, spacing]
        data.ReconstructionDiameter = f"{spacing * hu.shape[1]:g}"
    if intercept is not None:
        data.RescaleIntercept, data.RescaleSlope = f"{intercept:g}", f"{slope:g}"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = hu.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, int(signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = np.clip(np.round((hu - (intercept or 0.0)) / slope), low, high)
    data.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    if compress:
        compress_jpeg_lossless(path)
    return path


def compress_jpeg_lossless(path: Path) -> None:
    """Rewrite a file with JPEG lossless pixels (1.2.840.10008.1.2.4.70), as the published COVID sets have them."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def infected_rows(count: int) -> tuple[int, int]:
    """First and one past the last infected slice, from the head, of a COVID patient of ``count`` slices."""
    return count // 2, count - max(1, count // 6)


def write_covid_ldct(
    root: Path,
    *,
    covid: int = 3,
    normal: int = 3,
    slices: int = 12,
    size: int = 64,
    compress: bool = True,
    padding: str = "",
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write ``Dataset-S1`` of COVID-LDCT below ``root`` and return it.

    Slices are 12-bit unsigned with intercept -1024; file numbers run from the feet to the head, against the order of the
    labels. Patient i has ``slices - i % 2`` slices. The lower lungs of COVID patients are infected. Rows of the table are
    padded to the longest with ``padding``; ``labels`` replaces the cells of single patients.
    """
    base = root / "Dataset-S1"
    rows: dict[str, list[str]] = {}
    for group, letter, number in (("COVID-S1", "C", covid), ("Normal-S1", "N", normal)):
        for i in range(1, number + 1):
            patient, count = f"{letter}{i:03d}", slices - i % 2
            low, high = infected_rows(count)
            infected = [letter == "C" and low <= j < high for j in range(count)]
            for j in range(count):
                write_ct(
                    base / group / patient / f"IM{count - j:04d}.dcm",
                    chest(size, lesion=infected[j], place=(j + 0.5) / count, seed=1000 * i + j + (letter == "N") * 500_000),
                    patient=patient,
                    position=-100.0 - 2.0 * j,
                    spacing=384.0 / size,
                    series=f"1.2.{i}",
                    compress=compress,
                )
            if letter == "C":
                rows[patient] = ["1.0" if flag else "0.0" for flag in infected]
    rows |= {patient: list(cells) for patient, cells in (labels or {}).items()}
    longest = max(map(len, rows.values()))
    with (base / "LDCT-SL-Labels-S1.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", *range(1, longest + 1)])
        for patient, cells in rows.items():
            writer.writerow([patient, *cells, *[padding] * (longest - len(cells))])
    return base


def write_covid_ct_md(root: Path, *, slices: int = 8, size: int = 32, skipped: int = 1) -> Path:
    """Write COVID-CT-MD below ``root``: two patients a class, scrambled file names, an index that skips a number.

    In COVID patients the lower half is infected, in pneumonia patients the upper half. ``skipped`` is the printed index that
    is left out, so that from there on it disagrees with the row of the labels.
    """
    folders = {
        "covid": ("COVID-19 subjects", "P{:03d}"),
        "cap": ("Cap subjects", "cap{:03d}"),
        "normal": ("Normal subjects", "normal{:03d}"),
    }
    lines = [["Label Index", "Diagnosis", "Relative Path", "Folder/ID"]]
    table = []
    printed = 0
    for disease, (folder, name) in folders.items():
        for i in (1, 2):
            patient = name.format(i)
            infected = [
                (j >= slices // 2) if disease == "covid" else (j < slices // 2) and disease == "cap" for j in range(slices)
            ]
            for j in range(slices):
                write_ct(
                    root / folder / patient / f"98C1{(j * 5 + 3) % slices:02d}-ASSH_{i}.dcm",
                    chest(size, lesion=infected[j], seed=j + 100 * i),
                    patient=f"{disease}{i}",
                    position=50.0 - 2.0 * j,
                    spacing=384.0 / size,
                    series=f"{{{patient}-GUID}}",
                )
            if disease != "normal":
                printed += printed == skipped
                lines.append([str(printed), disease.upper().replace("COVID", "COVID-19"), f"./{folder}/", patient])
                table.append([int(flag) for flag in infected] + [0] * 4)
                printed += 1
    with (root / "Index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    np.save(root / "Slice-level-labels-updated-1.npy", np.array(table))
    return root
