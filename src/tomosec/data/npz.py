"""Arrays in NPZ files: named, read one at a time, never as Python objects."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomosec.errors import InputError, nearest

_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class Npz:
    """An NPZ file whose list of arrays was read; ``array`` reads one of them from the disk.

    Attributes:
        path: the file.
        names: of its arrays, in the order of the file.

    Raises:
        InputError: no such file, a folder, or not an NPZ file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; an NPZ file is needed")
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except _DAMAGE as error:
            raise InputError(f"{path}: not an NPZ file, or a truncated one ({error})") from error
        self.names = tuple(name.removesuffix(".npy") for name in members)

    def require(self, names: Iterable[str]) -> None:
        """Raise InputError for the first of ``names`` that is not in the file, naming the nearest one."""
        for name in names:
            if name not in self.names:
                raise InputError(
                    f"{self.path}: no array {name!r}{nearest(name, self.names)}; the arrays are {', '.join(self.names) or 'none'}"
                )

    def array(self, name: str) -> NDArray[Any]:
        """Read one array.

        Raises:
            InputError: missing, damaged, more than the memory holds, or Python objects, which are never loaded.
        """
        self.require([name])
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                values = archive[name]
        except _DAMAGE as error:
            raise InputError(f"{self.path}: {name} is damaged, or holds Python objects, which are not read ({error})") from error
        except MemoryError as error:
            raise InputError(f"{self.path}: {name} has shape {self.header(name)[0]}, which does not fit in memory") from error
        if not isinstance(values, np.ndarray):
            raise InputError(f"{self.path}: {name} is no array")
        return values

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and type of one array without reading its values.

        Raises:
            InputError: missing, damaged, or of a version that is not known.
        """
        self.require([name])
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
        except _DAMAGE as error:
            raise InputError(f"{self.path}: {name} is damaged ({error})") from error
        return shape, dtype
