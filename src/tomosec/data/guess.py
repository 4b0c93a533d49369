"""Which dataset a folder looks like, so that ``tomosec check data PATH`` needs nothing but the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tomosec.data.base import Dataset
from tomosec.data.covid_ct_md import CovidCTMD
from tomosec.data.covid_ldct import LABELS as LDCT_LABELS
from tomosec.data.covid_ldct import CovidLDCT
from tomosec.data.dicom import find_files
from tomosec.data.dicom_folder import DicomFolder
from tomosec.data.files import Table, inside, read_table
from tomosec.data.folder import LABELS, Columns, ImageFolder, read_image
from tomosec.data.nifti import NiftiFolder, VolumeColumns
from tomosec.data.slice_labels import child
from tomosec.errors import InputError

#: What each column of a label table is often called; the first is the default.
_NAMES: dict[str, tuple[str, ...]] = {
    "file": ("file", "filename", "file_name", "path", "image", "slice"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id"),
    "target": ("target", "class", "cls", "label", "diagnosis", "category"),
    "position": ("position_mm", "slice_location_mm", "slice_location", "position", "z_mm", "z"),
    "spacing": ("spacing_mm", "pixel_spacing_mm", "pixel_spacing", "pixel_mm", "spacing"),
}
_IMAGES = frozenset({".png", ".npy"})
_VOLUMES = (".nii", ".nii.gz")
_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Guess:
    """A dataset that fits a folder, and what was assumed to make it fit, one sentence each."""

    dataset: Dataset
    assumptions: tuple[str, ...]


def guess_dataset(path: Path) -> Guess:
    """Recognise the layout of a folder.

    Raises:
        InputError: no folder, no known layout, or a table of images without a column that is needed.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    readers: tuple[Callable[[Path], Guess | None], ...] = (
        _covid_ldct,
        _covid_ct_md,
        _image_folder,
        _nifti_folder,
        _dicom_folder,
    )
    fitting = [guess for reader in readers if (guess := reader(path)) is not None]
    if not fitting:
        present = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{path}: no known layout. A dataset is a folder with {LABELS} and 16-bit PNG, NPY or NIfTI files, with Index.csv "
            f"(COVID-CT-MD), with {LDCT_LABELS} (COVID-LDCT), or with DICOM files; here is {present}"
        )
    chosen, *others = fitting
    kinds = [getattr(guess.dataset, "kind", "") for guess in fitting]
    also = f"the folder also fits {', '.join(kinds[1:])}; read as {kinds[0]}, the most specific layout"
    return Guess(chosen.dataset, (*chosen.assumptions, also) if others else chosen.assumptions)


def _covid_ldct(path: Path) -> Guess | None:
    places = [path, *filter(None, [child(path, "Dataset-S1"), child(path, "COVID-LDCT")])]
    places += [inner for place in places if place.is_dir() and (inner := child(place, "Dataset-S1")) is not None]
    if not any(place.is_dir() and child(place, LDCT_LABELS) for place in places):
        return None
    return Guess(CovidLDCT(), ("labels are taken to run from head to feet by SliceLocation",))


def _covid_ct_md(path: Path) -> Guess | None:
    if child(path, "Index.csv") is None:
        return None
    return Guess(CovidCTMD(), ("every slice is given the diagnosis of its patient (labels: patient)",))


def _image_folder(path: Path) -> Guess | None:
    if not (path / LABELS).is_file():
        return None
    table = read_table(path / LABELS)
    found = {role: _column(table, names) for role, names in _NAMES.items()}
    file = found["file"]
    if file is None or not any(Path(row.cells[file]).suffix.lower() in _IMAGES for row in table.rows):
        return None
    _require_roles(table, found, ("patient", "target", "spacing"))
    columns = Columns(**{role: name for role, name in found.items() if name is not None})
    used = _used(found)
    images = [inside(path, row.text(file), row.where(file)) for row in table.rows[:: max(1, len(table.rows) // _LOOKED_AT)]]
    offset, why = _offset(images)
    return Guess(ImageFolder(hu_offset=offset, columns=columns), (f"columns of {LABELS}: {used}", why))


def _nifti_folder(path: Path) -> Guess | None:
    if not (path / LABELS).is_file():
        return None
    table = read_table(path / LABELS)
    found = {role: _column(table, _NAMES[role]) for role in ("file", "patient", "target")}
    file = found["file"]
    if file is None or not any(row.cells[file].lower().endswith(_VOLUMES) for row in table.rows):
        return None
    _require_roles(table, found, ("patient", "target"))
    columns = VolumeColumns(**{role: name for role, name in found.items() if name is not None})
    return Guess(
        NiftiFolder(columns=columns), (f"columns of {LABELS}: {_used(found)}", "every axial slice has its volume's class")
    )


def _require_roles(table: Table, found: Mapping[str, str | None], roles: Sequence[str]) -> None:
    for role in roles:
        if found[role] is None:
            raise InputError(
                f"{table.path}: no column for the {role} of a slice; looked for {', '.join(_NAMES[role])}, "
                f"found {', '.join(table.columns)}"
            )


def _used(found: Mapping[str, str | None]) -> str:
    return ", ".join(f"{role} = {name!r}" for role, name in found.items() if name is not None)


def _column(table: Table, names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in table.columns}
    return next((lower[name] for name in names if name in lower), None)


def _offset(images: Sequence[Path]) -> tuple[float, str]:
    """Choose among the usual ways to store HU by the smallest value, which is air or padding."""
    low = min(float(np.min(read_image(image))) for image in images)
    if low < 0:
        return 0.0, f"values go down to {low:g}: taken as HU (hu_offset 0)"
    if low > 20_000:
        return 32_768.0, f"values start at {low:g}: taken as HU + 32768 (hu_offset 32768)"
    return 1024.0, f"values start at {low:g}: taken as HU + 1024 (hu_offset 1024); 1000 is the other common offset"


def _dicom_folder(path: Path) -> Guess | None:
    named = False
    for number, file in enumerate(find_files(path)):
        if number >= _LOOKED_AT:
            break
        with file.open("rb") as stream:
            named = named or stream.read(132)[128:] == b"DICM"
    if not named:
        return None
    table = (path / DicomFolder().labels).is_file()
    return Guess(DicomFolder(), (f"classes are those of {LABELS}" if table else "classes are the names of the top folders",))
