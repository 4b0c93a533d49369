"""Measured scans in files and folders: what is measured data, and one scan after another, whatever their number.

Read are what the readers of this package read: HTC 2022 (``.mat``), the neutral form and raw counts (``.npz``, HDF5), a folder of
2DeteCT, and a folder of DICOM-CT-PD projections, of which every table position of an axial scan and evenly spaced slices of a
helical one are scans of their own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tomosec.data.alignment import aligned
from tomosec.data.counts import read_counts
from tomosec.data.ct_pd import open_ct_pd, read_ct_pd
from tomosec.data.ct_pd_header import is_ct_pd
from tomosec.data.dicom import SUFFIXES, find_files
from tomosec.data.files import is_special
from tomosec.data.hdf5 import Hdf5
from tomosec.data.htc2022 import read_htc2022
from tomosec.data.measured import Measurement
from tomosec.data.measurement_file import HDF5, NPZ, read_measurement
from tomosec.data.medmnist import is_medmnist
from tomosec.data.npz import Npz
from tomosec.data.two_detect import read_two_detect
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

MeasuredKind = Literal["htc2022", "neutral", "counts", "2detect", "ct-pd"]

MATLAB = ".mat"
#: Of a helical scan, where nothing else is said.
SLICES = 8


def measured_kind(path: Path) -> MeasuredKind | None:
    """Return what measured data a file or folder holds, by its name and the names in it; None where it is none.

    Raises:
        InputError: a file that cannot be opened, or an HDF5 file without anything that is known.
    """
    if path.is_dir():
        if (path / "sinogram.tif").is_file():
            return "2detect"
        first = next(find_files(path), None)
        try:
            return "ct-pd" if first is not None and is_ct_pd(first) else None
        except InputError:
            return None  # some other folder
    suffix = path.suffix.lower()
    if suffix == MATLAB:
        return "htc2022"
    if suffix == NPZ:
        return None if is_medmnist(Npz(path).names) else "neutral"
    if suffix in HDF5:
        with Hdf5(path) as file:
            names = file.names
        if "line_integrals" in names:
            return "neutral"
        if {"counts", "flats", "darks"} <= set(names):
            return "counts"
        raise InputError(
            f"{path}: neither line_integrals nor counts, flats and darks; there are {', '.join(names) or 'no datasets'}. "
            "tomosec.data.counts.read_counts takes other names"
        )
    return None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What was found and cannot be used.

    Attributes:
        key: names the file, folder or scan, as :class:`ScanFiles` names scans.
        reason: one message, which does not repeat the key.
    """

    key: str
    reason: str


def printable(text: str) -> str:
    """Text for terminals and pages: line breaks, escape sequences and bytes that are no text are written as Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    key: str


class ScanFiles:
    """The scans in files and folders, in alphabetical order; nothing but names is kept, and each pass reads anew.

    Args:
        paths: files, or folders that are searched with all that is below them; links are followed, each place once. What is
            hidden, a name that begins with a dot, is left out.
        geometry: of files that state none. Others have to agree with it, and all take its image grid. None: files say their own.
        slices: how many evenly spaced slices of a helical scan.

    Attributes:
        count: files and folders that hold scans.
        paths: of these.
        passed_over: files in folders that are none.

    Raises:
        InputError: a path that is not there, a file of a kind that is not read, or nothing to read at all.
    """

    def __init__(
        self, paths: Sequence[str | Path], *, geometry: FanBeam | ParallelBeam | None = None, slices: int = SLICES
    ) -> None:
        if slices < 1:
            raise InputError(f"slices is {slices}; one slice of a helical scan is the least")
        self._geometry, self._slices = geometry, slices
        self.passed_over: list[Path] = []
        self._closed: dict[Path, str] = {}
        self._seen: set[Path] = set()
        places: dict[Path, tuple[Path, str]] = {}
        for root in map(Path, paths):
            if not root.exists():
                raise InputError(f"{root}: no such file or folder")
            before = len(places) + len(self._closed)
            for path in self._search(root):
                # The same file may be reached twice, as itself and in a folder.
                places.setdefault(path.resolve(), (path, path.relative_to(root.parent).as_posix() if root.name else str(path)))
            known = any(root.resolve() in (place, *place.parents) for place in places)
            if len(places) + len(self._closed) == before and not known:
                raise InputError(
                    f"{root}: no measured data in it; read are {MATLAB} (HTC 2022), {NPZ}, {', '.join(sorted(HDF5))}, and "
                    "folders of DICOM-CT-PD or 2DeteCT"
                )
        uses = Counter(name for _, name in places.values())
        self._found = [_Found(path, printable(name if uses[name] == 1 else str(path))) for path, name in places.values()]
        self.count = len(self._found)
        self.paths = tuple(found.path for found in self._found)

    def __iter__(self) -> Iterator[Measurement]:
        """Yield every scan that can be read, and then raise InputError for those that cannot."""
        bad = []
        for reading in self.readings():
            if isinstance(reading, Unreadable):
                bad.append(f"{reading.key}: {reading.reason}")
            else:
                yield reading
        if bad:
            more = f"\n... and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise InputError(f"{len(bad)} cannot be used:\n" + "\n".join(bad[:10]) + more)

    def readings(self) -> Iterator[Measurement | Unreadable]:
        """Yield every scan, or why a file is none; keys are paths from the folder above those that were given."""
        for path, reason in self._closed.items():
            yield Unreadable(printable(str(path)), reason)
        for found in self._found:
            try:
                for scan, part in self._read(found.path):
                    yield self._placed(replace(scan, key=f"{found.key}{part}"))
            except (InputError, OSError, MemoryError) as error:
                reason = str(error).removeprefix(f"{found.path}: ") or type(error).__name__
                yield Unreadable(found.key, printable(reason))

    def _placed(self, scan: Measurement) -> Measurement | Unreadable:
        try:
            return scan if self._geometry is None else aligned(scan, self._geometry)
        except InputError as error:  # the next position of the same folder may do
            return Unreadable(scan.key, str(error).removeprefix(f"{scan.key}: "))

    def _search(self, root: Path) -> Iterator[Path]:
        if root.is_file():
            if root.suffix.lower() not in {MATLAB, NPZ, *HDF5}:
                raise InputError(
                    f"{root}: a file of a kind that is not read; measured data are {MATLAB} (HTC 2022), {NPZ}, "
                    f"{', '.join(sorted(HDF5))}, or a folder of DICOM-CT-PD or 2DeteCT"
                )
            yield root
            return
        for place, folders, names in os.walk(root, onerror=self._close, followlinks=True):
            folder = Path(place)
            shown = sorted(name for name in names if not name.startswith(".") and not is_special(folder / name))
            if folder.resolve() in self._seen:
                folders.clear()
                continue
            self._seen.add(folder.resolve())
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if _is_scan_folder(folder, shown):
                folders.clear()
                yield folder
                continue
            for name in shown:
                path = folder / name
                if path.suffix.lower() in {MATLAB, NPZ, *HDF5}:
                    yield path
                else:
                    self.passed_over.append(path)

    def _close(self, error: OSError) -> None:
        """A folder that cannot be looked into may hold scans, so it is no empty one."""
        self._closed[Path(error.filename)] = f"the folder cannot be read ({error.strerror})"

    def _read(self, path: Path) -> Iterator[tuple[Measurement, str]]:
        """Scans of one file or folder, with what tells them apart."""
        grid = {} if self._geometry is None else {"shape": self._geometry.shape, "pixel_mm": self._geometry.pixel_mm}
        kind = "ct-pd" if path.is_dir() and not (path / "sinogram.tif").is_file() else measured_kind(path)
        if kind == "htc2022":
            yield read_htc2022(path, **grid), ""  # type: ignore[arg-type]
        elif kind == "2detect":
            yield read_two_detect(path, **grid), ""  # type: ignore[arg-type]
        elif kind == "neutral":
            yield read_measurement(path, geometry=self._geometry), ""
        elif kind == "counts":
            yield read_counts(path, geometry=None if _states_geometry(path) else self._geometry), ""
        elif kind == "ct-pd":
            opened = open_ct_pd(path)
            positions = _spaced(opened.positions_mm, self._slices) if opened.helical else None
            for scan in read_ct_pd(opened, positions_mm=positions, **grid):  # type: ignore[arg-type]
                # Where no file says whose it is, its slices are still one patient's.
                whose = {} if scan.attributes.get("PatientID") else {"patient": str(path.resolve())}
                yield replace(scan, attributes={**whose, **scan.attributes}), f" at {scan.attributes['positionMm']:g} mm"
        else:
            raise InputError(f"{path}: images, not measured data")


def _is_scan_folder(folder: Path, names: Sequence[str]) -> bool:
    """Whether the files of a folder are one scan: 2DeteCT, or projections in DICOM-CT-PD."""
    if "sinogram.tif" in names:
        return True
    for name in names:
        if Path(name).suffix.lower() not in SUFFIXES:
            continue
        try:
            return is_ct_pd(folder / name)
        except InputError:
            # A name without a suffix may be anything; one that says DICOM and is damaged must not go by in silence.
            if Path(name).suffix:
                return True
    return False


def _spaced(ends: Sequence[float], slices: int) -> list[float]:
    if not ends:
        raise InputError("a helical scan of less than a full turn and a view")
    return [float(z) for z in np.linspace(ends[0], ends[1], 2 * slices + 1)[1::2]]


def _states_geometry(path: Path) -> bool:
    with Hdf5(path) as file:
        return "geometry" in file.attributes()
