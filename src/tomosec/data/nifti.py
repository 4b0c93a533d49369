"""A folder of CT volumes in NIfTI (``.nii``, ``.nii.gz``) with a ``labels.csv``; needs nibabel, the extra ``nifti``.

A volume has one class, and each axial slice of it is a sample. How a file lays out its axes is undone by its affine: row 0 is
anterior, column 0 is on the patient's right, and positions grow towards the head. Format: NIfTI-1.1 (Cox et al. 2004).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tomosec.component import Value
from tomosec.data.base import Dataset, Entry, Finding, OpenDataset, Slice, require_classes
from tomosec.data.dicom import AIR_HU, PADDING_HU
from tomosec.data.files import Row, attribute, fingerprint, in_order, inside, read_table
from tomosec.errors import InputError, nearest

LABELS = "labels.csv"
#: A volume whose middle slice has nothing below this has no air in or around the body, so its values are not HU.
_AIR_BELOW_HU = -300.0
_STEEPEST = math.cos(math.radians(45))  # of a voxel axis against the patient's; a tilted gantry is still axial


class VolumeColumns(Value):
    """Names of the columns of ``labels.csv``.

    Attributes:
        file: path of the volume, relative to the folder.
        patient: name of the patient.
        target: class of the volume, as text.
    """

    file: str = "file"
    patient: str = "patient"
    target: str = "target"


class NiftiFolder(Dataset):
    """A folder of CT volumes in NIfTI, listed in ``labels.csv``; the values, after the file's own scaling, are HU.

    Padding below -1100 HU becomes air. Every column that has no other role becomes an attribute of the volume's slices.

    Attributes:
        columns: names of the columns.
        classes: order of the classes; None sorts their names.
        slice_step: take every n-th axial slice.
        extent: which part of each volume is used, as fractions of its slices from the feet (0) to the head (1).

    Raises:
        InputError: at ``open``: nibabel is not installed, a missing column or file, a file that is no volume with an
            orientation and lengths in mm, or fewer than two classes.
    """

    kind: Literal["nifti-folder"] = "nifti-folder"
    version: Literal[1] = 1
    columns: VolumeColumns = VolumeColumns()
    classes: tuple[str, ...] | None = None
    slice_step: Annotated[int, Field(ge=1)] = 1
    extent: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _some_extent(self) -> Self:
        low, high = self.extent
        if not 0 <= low < high <= 1:
            raise ValueError(f"extent is two fractions with 0 <= low < high <= 1, from feet to head; got {low:g}, {high:g}")
        return self

    def open(self, root: Path | None) -> OpenNiftiFolder:
        """Read ``labels.csv`` and the header of every volume; no voxels are read."""
        return OpenNiftiFolder(self, self.require_root(root))


@dataclass(frozen=True, slots=True)
class Volume:
    """One file's header.

    Attributes:
        path: the file.
        slices: number of axial slices.
        spacing_mm: (row, column) pixel spacing of an axial slice.
        positions_mm: of each slice from the feet to the head, along z of the patient, shape (slices,).
        axes: which axis of the file runs right-left, back-front and feet-head.
        flips: whether each of them has to be reversed so that columns run from right to left, rows from front to back and
            slices from feet to head.
    """

    path: Path
    slices: int
    spacing_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def _nibabel(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise InputError(f'{path}: NIfTI files need nibabel, which is not installed; pip install "tomosec[nifti]"') from error
    return nibabel


def read_volume_header(path: Path) -> Volume:
    """Read shape, spacing and orientation of a NIfTI file, not its voxels.

    Raises:
        InputError: not NIfTI, damaged, not three-dimensional, no orientation, other units than mm, or axes more than 45 degrees
            off the patient's.
    """
    image = _load(path)
    header = image.header
    shape = image.shape[:3] if len(image.shape) > 3 and set(image.shape[3:]) == {1} else image.shape
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: an image of shape {image.shape}; a CT volume has three axes")
    if header.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {header.get_data_dtype()}; HU are real numbers")
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise InputError(f"{path}: xyzt_units says {unit}; lengths in mm are needed")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise InputError(f"{path}: sform_code and qform_code are 0, so the file does not say how the patient lies in it")
    affine = np.asarray(image.affine, dtype=np.float64)[:3]
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0:
        raise InputError(f"{path}: the affine {affine.tolist()} has an axis without length")
    cosines = affine[:, :3] / lengths
    axes = [int(np.argmax(np.abs(cosines[world]))) for world in range(3)]
    if len(set(axes)) < 3 or min(abs(cosines[world, axes[world]]) for world in range(3)) < _STEEPEST:
        raise InputError(f"{path}: its axes are more than 45 degrees off those of the patient, so it has no axial slices")
    x, y, z = axes
    middle = affine[:, 3] + affine[:, x] * (shape[x] - 1) / 2 + affine[:, y] * (shape[y] - 1) / 2
    positions = middle[2] + affine[2, z] * np.arange(shape[z])
    downwards = bool(affine[2, z] < 0)
    return Volume(
        path=path,
        slices=shape[z],
        spacing_mm=(float(lengths[y]), float(lengths[x])),
        positions_mm=positions[::-1] if downwards else positions,
        axes=(x, y, z),
        # NIfTI's world is right, anterior, superior; an image's columns run to the left and its rows to the back.
        flips=(bool(affine[0, x] > 0), bool(affine[1, y] > 0), downwards),
    )


def _load(path: Path) -> Any:
    nibabel = _nibabel(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        image = nibabel.load(path)
    except Exception as error:  # nibabel meets damage with many types; all of them mean this file
        raise InputError(f"{path}: not a NIfTI file, or a damaged one ({type(error).__name__}: {error})") from error
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
        raise InputError(f"{path}: {type(image).__name__}; only NIfTI (.nii, .nii.gz) is read")
    return image


class OpenNiftiFolder(OpenDataset):
    """A :class:`NiftiFolder` with its headers read; made by ``NiftiFolder.open``."""

    def __init__(self, config: NiftiFolder, root: Path) -> None:
        _nibabel(root)
        self.config = config
        self.root = root
        table = read_table(root / LABELS)
        columns = config.columns
        table.require([columns.file, columns.patient, columns.target])
        self._table = table.path
        names = {row.text(columns.target) for row in table.rows}
        self.classes = config.classes or tuple(sorted(names))
        for name in sorted(names - set(self.classes)):
            raise InputError(
                f"{table.path}: class {name!r} is not in classes: {', '.join(self.classes)}{nearest(name, self.classes)}"
            )
        others = [name for name in table.columns if name not in {columns.file, columns.patient, columns.target}]
        self._places: dict[str, tuple[Volume, int]] = {}
        self._volumes: dict[str, Volume] = {}
        entries: list[Entry] = []
        findings: list[Finding] = []
        for row in table.rows:
            entries += self._entries(row, others, findings)
        self.entries = in_order(entries)
        self.findings = tuple(findings)
        self._voxels: tuple[Path, NDArray[np.float32]] | None = None
        self._checked: set[Path] = set()
        require_classes(self.classes, self.entries, str(table.path))

    def _entries(self, row: Row, others: list[str], findings: list[Finding]) -> list[Entry]:
        columns = self.config.columns
        name = row.text(columns.file)
        path = inside(self.root, name, row.where(columns.file))
        key = path.relative_to(self.root).as_posix()
        if key in self._volumes:
            raise InputError(f"{row.where(columns.file)}: {name!r} is listed twice; each volume needs one row")
        if not path.is_file():
            raise InputError(f"{row.where(columns.file)}: no such file below {self.root}: {name!r}")
        volume = self._volumes[key] = read_volume_header(path)
        low, high = (round(part * volume.slices) for part in self.config.extent)
        chosen = range(low, high, self.config.slice_step)
        if not chosen:
            findings.append(Finding("warning", f"none of {volume.slices} slices is within extent {self.config.extent}", key))
        facts = {column: attribute(row.cells[column]) for column in others}
        facts["spacing_mm"] = volume.spacing_mm[0]
        patient, target = row.text(columns.patient), self.classes.index(row.text(columns.target))
        out = []
        for index in chosen:
            place = f"{key}/{index:04d}"
            self._places[place] = volume, index
            out.append(Entry(place, patient, target, float(volume.positions_mm[index]), facts))
        return out

    def read(self, entry: Entry) -> Slice:
        """Read one axial slice in HU. A compressed volume is kept until another is read, because it cannot be read in part.

        Raises:
            InputError: damaged or truncated voxels, NaN or infinity, or a volume without air, whose values are not HU.
        """
        volume, index = self._places[entry.key]
        if volume.path not in self._checked:
            low = float(self._plane(volume, volume.slices // 2).min())
            if low > _AIR_BELOW_HU:
                raise InputError(
                    f"{volume.path}: the smallest value of its middle slice is {low:g}; air is -1000 HU, so the values are not "
                    "HU (check scl_slope and scl_inter)"
                )
            self._checked.add(volume.path)
        hu = self._plane(volume, index)
        hu[hu < PADDING_HU] = AIR_HU
        return Slice(hu, volume.spacing_mm)

    def _plane(self, volume: Volume, index: int) -> NDArray[np.float32]:
        """Return a copy of one axial slice as stored, rows from front to back and columns from right to left."""
        x, y, z = volume.axes
        stored = volume.slices - 1 - index if volume.flips[2] else index
        try:
            if volume.path.suffix.lower() == ".gz":
                if self._voxels is None or self._voxels[0] != volume.path:
                    self._voxels = None  # frees one volume before the next is read
                    values = np.asarray(_load(volume.path).dataobj, dtype=np.float32)
                    self._voxels = (volume.path, values.reshape(values.shape[:3]))
                plane = np.take(self._voxels[1], stored, axis=z)
            else:
                where: list[slice | int] = [slice(None)] * 3
                where[z] = stored
                image = _load(volume.path)
                where += [0] * (len(image.shape) - 3)
                plane = np.asarray(image.dataobj[tuple(where)], dtype=np.float32)
        except InputError:
            raise
        except Exception as error:  # truncated files and streams come as many types
            raise InputError(f"{volume.path}: voxels cannot be read, the file is truncated or damaged ({error})") from error
        plane = plane.T if x < y else plane
        plane = plane[:: -1 if volume.flips[1] else 1, :: -1 if volume.flips[0] else 1]
        if not np.isfinite(plane).all():
            bad = int(plane.size - np.isfinite(plane).sum())
            raise InputError(f"{volume.path}: {bad} of {plane.size} voxels of slice {index} are NaN or infinite")
        return np.array(plane, dtype=np.float32, order="C")

    def fingerprint(self) -> Mapping[str, str]:
        """Digest of ``labels.csv`` and of each volume."""
        return fingerprint(self.root, [self._table, *(volume.path for volume in self._volumes.values())])
