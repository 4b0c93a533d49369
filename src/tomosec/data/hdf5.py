"""Plain arrays and attributes of HDF5 files; needs h5py, the extra ``hdf5``. No file leads to another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tomosec.errors import InputError, nearest


class Hdf5:
    """An HDF5 file that is open while its ``with`` block runs.

    Raises:
        InputError: h5py is not installed, no such file, or not an HDF5 file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import h5py
        except ImportError as error:
            raise InputError(f'{path}: HDF5 needs h5py, which is not installed; pip install "tomosec[hdf5]"') from error
        self._h5py = h5py
        if not path.is_file():
            raise InputError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; an HDF5 file is needed")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path}: not an HDF5 file, or a damaged one ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """What is at the top of the file."""
        return tuple(self._file)

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and type of a dataset of real numbers without reading its values; errors as in :meth:`array`."""
        item = self._dataset(name)
        return tuple(item.shape), item.dtype

    def array(self, name: str, row: int | None = None) -> NDArray[Any]:
        """Read one dataset of real numbers.

        Args:
            name: its path in the file.
            row: which one of its second-last axis to read, of two axes at least; None reads all.

        Raises:
            InputError: missing, a group, a link, values in another file, no real numbers, damaged, or more than the memory
                holds.
        """
        item = self._dataset(name)
        try:
            return np.asarray(item[()] if row is None else item[..., row, :])
        except OSError as error:
            raise InputError(f"{self.path}: {name} is damaged or truncated ({error})") from error
        except MemoryError as error:
            raise InputError(f"{self.path}: {name} has shape {item.shape}, which does not fit in memory") from error

    def _dataset(self, name: str) -> Any:
        item: Any = self._file
        for part in name.strip("/").split("/"):
            if not isinstance(item, self._h5py.Group) or part not in item:
                there = list(item) if isinstance(item, self._h5py.Group) else []
                where = "" if item is self._file else f" in {item.name}"
                raise InputError(
                    f"{self.path}: no dataset {name!r}{nearest(part, there)}; there are{where} {', '.join(there) or 'none'}"
                )
            if not isinstance(item.get(part, getlink=True), self._h5py.HardLink):
                raise InputError(f"{self.path}: {name} is a link, which is not followed; name the dataset itself")
            item = item[part]
        if not isinstance(item, self._h5py.Dataset) or item.dtype.kind not in "iuf":
            found = "a group" if isinstance(item, self._h5py.Group) else f"of type {item.dtype}"
            raise InputError(f"{self.path}: {name} is {found}; a dataset of real numbers is needed")
        if item.external is not None or item.is_virtual:
            raise InputError(f"{self.path}: the values of {name} lie in another file, which is not opened")
        return item

    def attributes(self) -> dict[str, str | float]:
        """Return the text and single numbers among the attributes of the file itself."""
        found: dict[str, str | float] = {}
        for name, value in self._file.attrs.items():
            if isinstance(value, bytes):
                found[name] = value.decode("utf-8", "replace")
            elif isinstance(value, str):
                found[name] = value
            elif np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf":
                found[name] = float(value)
        return found
