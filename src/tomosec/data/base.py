"""What a dataset is, and the one way from its Hounsfield units to attenuation on an experiment's grid.

A dataset component is a value; ``open(root)`` gives an :class:`OpenDataset`, which lists its slices as cheap
:class:`Entry` records and reads one at a time. A reader returns Hounsfield units and a pixel spacing, nothing else:
clipping, conversion and resampling happen here, once, for every source.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomosec.component import Component
from tomosec.errors import InputError
from tomosec.hounsfield import hu_to_mu

#: A voxel above this is patient or table, not air or lung; the body mask starts from it.
BODY_THRESHOLD_HU = -500.0

Level = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One slice, before its pixels are read.

    Attributes:
        key: unique within the dataset and stable between runs, such as ``"P001/0053"``.
        patient: the unit of every split and interval.
        target: index into the dataset's ``classes``.
        position_mm: table position along the patient axis, where known.
        attributes: header facts (kernel, tube voltage, field of view, ...) that may be a shortcut to the class.
    """

    key: str
    patient: str
    target: int
    position_mm: float | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """What a reader returns.

    Attributes:
        hu: (rows, columns) float32 Hounsfield units, row 0 anterior, as stored: unclipped.
        spacing_mm: (row, column) pixel spacing.
        lesion: optional (rows, columns) bool mask of the finding.
    """

    hu: NDArray[np.float32]
    spacing_mm: tuple[float, float]
    lesion: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `tomosec check data` or an experiment's record should say about the data."""

    level: Level
    message: str
    where: str = ""


class OpenDataset(ABC):
    """A dataset with its files found. Subclasses set the attributes in their constructor.

    Attributes:
        classes: class names; ``Entry.target`` indexes them.
        entries: every usable slice, sorted by (patient, position or key).
        findings: what was skipped or looks wrong.
    """

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...] = ()

    @abstractmethod
    def read(self, entry: Entry) -> Slice:
        """Read one slice.

        Raises:
            InputError: the file cannot be used; the message names it and the reason.
        """

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """Map each source file (or generator) to what identifies its content; the manifest is made of it."""

    def manifest_hash(self) -> str:
        """Hash everything the numbers depend on: classes, entries with their labels, and file contents (SHA-256, 16 hex)."""
        rows = [[entry.key, entry.patient, entry.target, entry.position_mm] for entry in self.entries]
        text = json.dumps([list(self.classes), rows, sorted(self.fingerprint().items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Dataset(Component):
    """Base of the dataset components. The folder is given at run time and is not part of the identity; its content is."""

    family: ClassVar[str] = "dataset"
    #: True where ``open`` needs a folder from the user.
    needs_root: ClassVar[bool] = True

    def open(self, root: Path | None) -> OpenDataset:
        """Find the files below ``root`` and list the slices, without reading pixels.

        Raises:
            InputError: no folder, nothing usable in it, or labels that contradict the files.
        """
        raise NotImplementedError

    def require_root(self, root: Path | None) -> Path:
        """Return ``root``, or say how to give one."""
        kind = getattr(self, "kind", type(self).__name__)
        if root is None:
            raise InputError(f"dataset {kind!r} reads a folder of yours: give it with --data PATH")
        if not root.is_dir():
            raise InputError(f"--data {root}: no such folder")
        return root


def _axis_weights(count_in: int, step_in: float, count_out: int, step_out: float) -> NDArray[np.float32]:
    """(count_out, count_in) weights of a triangle filter as wide as the coarser grid, both grids centered on the isocenter.

    A row sums to 1 inside the source and to less at its border: what is missing is air, whose attenuation is 0.
    """
    center_in = (np.arange(count_in) - (count_in - 1) / 2) * step_in
    center_out = (np.arange(count_out) - (count_out - 1) / 2) * step_out
    width = max(step_in, step_out)
    weights = np.clip(1 - np.abs(center_out[:, None] - center_in[None, :]) / width, 0, None)
    # Normalise by the full filter, not by the part that lies on the source, so that the outside counts as air.
    padded = np.arange(-count_in, 2 * count_in)
    full = np.clip(1 - np.abs(center_out[:, None] - (padded - (count_in - 1) / 2)[None, :] * step_in) / width, 0, None).sum(1)
    normalised: NDArray[np.float32] = (weights / np.maximum(full, 1e-12)[:, None]).astype(np.float32)
    return normalised


def resample(
    image: NDArray[np.float32], spacing_mm: tuple[float, float], shape: tuple[int, int], pixel_mm: float
) -> NDArray[np.float32]:
    """Resample attenuation to a centered grid of ``shape`` pixels of ``pixel_mm``; the outside is air (0).

    Linear interpolation where the target grid is finer, a triangle as wide as the target pixel where it is coarser, so that
    downsampling does not alias.
    """
    rows = _axis_weights(image.shape[0], spacing_mm[0], shape[0], pixel_mm)
    cols = _axis_weights(image.shape[1], spacing_mm[1], shape[1], pixel_mm)
    return np.ascontiguousarray(rows @ image @ cols.T, dtype=np.float32)


def to_attenuation(slice_: Slice, shape: tuple[int, int], pixel_mm: float) -> NDArray[np.float32]:
    """Attenuation of a slice on an experiment's grid: clip HU, convert, resample in mm, fill outside with air. (H, W), 1/mm."""
    return resample(hu_to_mu(slice_.hu), slice_.spacing_mm, shape, pixel_mm)


def body_mask(mu: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(H, W) mask of the largest body in an attenuation image, lungs included; all False where there is none."""
    labels, count = ndimage.label(mu > hu_to_mu(BODY_THRESHOLD_HU))
    if count == 0:
        return np.zeros(mu.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(labels == int(sizes.argmax()))
    return filled


def require_classes(classes: Sequence[str], entries: Sequence[Entry], where: str) -> None:
    """Raise when fewer than two classes have slices: nothing can be classified, and an ASR would be meaningless."""
    present = sorted({entry.target for entry in entries})
    if len(present) < 2:
        found = ", ".join(classes[i] for i in present) or "no labeled slice"
        raise InputError(f"{where}: at least two classes are needed, found {found}")
