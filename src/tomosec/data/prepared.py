"""A dataset on an experiment's grid: attenuation and body masks in memory-mapped files, made once and shared by a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from tomosec.data.base import Entry, Finding, OpenDataset, body_mask, resample, to_attenuation
from tomosec.errors import InputError
from tomosec.files import write_text
from tomosec.geometry import Geometry
from tomosec.progress import Progress


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """Every slice of a dataset on one grid.

    Attributes:
        entries: the slices, in the order of the arrays.
        attenuation: (N, H, W) float32, 1/mm, memory-mapped.
        bodies: (N, H, W) bool, body inside the scan circle.
        lesions: (N, H, W) bool, or None where the source has no masks.
        findings: what preparing showed: bodies that reach beyond the scan circle, empty slices.
    """

    entries: tuple[Entry, ...]
    attenuation: NDArray[np.float32]
    bodies: NDArray[np.bool_]
    lesions: NDArray[np.bool_] | None
    findings: tuple[Finding, ...]

    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, 1, H, W) attenuation in 1/mm, a copy."""
        return torch.from_numpy(np.stack([self.attenuation[i] for i in indices]))[:, None]

    def body(self, indices: Sequence[int]) -> Tensor:
        """(B, 1, H, W) bool body masks."""
        return torch.from_numpy(np.stack([self.bodies[i] for i in indices]))[:, None]


def prepare(opened: OpenDataset, geometry: Geometry, folder: Path, progress: Progress) -> None:
    """Read, convert and resample every slice of ``opened`` into ``folder``.

    Raises:
        InputError: a slice that cannot be read; the message names its file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, circle = len(opened.entries), geometry.scan_circle()
    attenuation = open_memmap(folder / "attenuation.npy", mode="w+", dtype=np.float32, shape=(count, *geometry.shape))
    bodies = open_memmap(folder / "bodies.npy", mode="w+", dtype=np.bool_, shape=(count, *geometry.shape))
    lesions = None
    outside: list[str] = []
    empty: list[str] = []
    progress.start(count, "Preparing slices")
    for i, entry in enumerate(opened.entries):
        slice_ = opened.read(entry)
        if not np.isfinite(slice_.hu).all():
            raise InputError(f"{entry.key}: {int((~np.isfinite(slice_.hu)).sum())} pixels are NaN or infinite")
        image = to_attenuation(slice_, geometry.shape, geometry.pixel_mm)
        body = body_mask(image)
        if not body.any():
            empty.append(entry.key)
        elif (body & ~circle).any():
            outside.append(entry.key)
        attenuation[i], bodies[i] = image, body & circle
        if slice_.lesion is not None:
            if lesions is None:
                lesions = open_memmap(folder / "lesions.npy", mode="w+", dtype=np.bool_, shape=(count, *geometry.shape))
            lesions[i] = _resample_mask(slice_.lesion, slice_.spacing_mm, geometry)
        progress.advance(1)
    for array in (attenuation, bodies, lesions):
        if array is not None:
            array.flush()
    findings = list(opened.findings)
    if empty:
        findings.append(Finding("warning", f"{len(empty)} slices show no body, the first is {empty[0]}"))
    if outside:
        findings.append(
            Finding(
                "warning",
                f"{len(outside)} of {count} bodies reach beyond the scan circle; "
                "what is outside is projected but not shown to a network",
            )
        )
    write_text(
        folder / "entries.json",
        json.dumps({"entries": [_entry(e) for e in opened.entries], "findings": [asdict(f) for f in findings]}),
    )


def load_prepared(folder: Path) -> PreparedSet:
    """Open what :func:`prepare` wrote; the arrays stay on disk."""
    content = json.loads((folder / "entries.json").read_text())
    lesions = folder / "lesions.npy"
    return PreparedSet(
        entries=tuple(Entry(**entry) for entry in content["entries"]),
        attenuation=np.load(folder / "attenuation.npy", mmap_mode="r", allow_pickle=False),
        bodies=np.load(folder / "bodies.npy", mmap_mode="r", allow_pickle=False),
        lesions=np.load(lesions, mmap_mode="r", allow_pickle=False) if lesions.exists() else None,
        findings=tuple(Finding(**finding) for finding in content["findings"]),
    )


def _entry(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "attributes": dict(entry.attributes)}


def _resample_mask(mask: NDArray[np.bool_], spacing_mm: tuple[float, float], geometry: Geometry) -> NDArray[np.bool_]:
    covered: NDArray[np.bool_] = resample(mask.astype(np.float32), spacing_mm, geometry.shape, geometry.pixel_mm) > 0.5
    return covered
