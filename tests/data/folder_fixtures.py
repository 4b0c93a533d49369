"""A small image folder: 16-bit PNG of HU + 1024 and labels.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from dicom_fixtures import chest
from PIL import Image


def write_png(path: Path, hu: np.ndarray, offset: int = 1024) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(hu + offset, 0, 65535).astype(np.uint16)).save(path)
    return path


def write_table(root: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path = root / "labels.csv"
    root.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_folder(root: Path, patients: Mapping[str, str], *, slices: int = 3, size: int = 48) -> list[dict[str, object]]:
    """Write ``slices`` images of each patient (name to class) and return the rows of the table, which is written too."""
    rows: list[dict[str, object]] = []
    for number, (patient, name) in enumerate(patients.items()):
        for i in range(slices):
            file = f"{patient}/{i:04d}.png"
            hu = chest(size, lesion=name == "disease", place=(i + 0.5) / slices, seed=100 * number + i)
            write_png(root / file, hu)
            rows.append(
                {
                    "file": file,
                    "patient": patient,
                    "target": name,
                    "position_mm": -4.0 * i,
                    "spacing_mm": 384 / size,
                    "kernel": "B41s",
                }
            )
    write_table(root, rows)
    return rows
